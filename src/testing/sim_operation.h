// What is under way on a simulated host: open files, and operations on them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "async/file.h"
#include "testing/sim_node.h"
#include "testing/sim_scheduler.h"

namespace berth {

class SimHost;
class SimLoop;

/// An open file: what a descriptor stands for. It is closed once its File is gone or its process is
/// dead; it goes, and its lock with it, after its last operation.
struct SimDescription {
  SimDescription(SimHost& of, SimLoop* on, std::shared_ptr<SimNode> to, std::string at,
                 OpenOptions as);
  SimDescription(const SimDescription&) = delete;
  SimDescription& operator=(const SimDescription&) = delete;
  ~SimDescription();

  SimHost& host;
  SimLoop* loop;  // of its process; null in a host that was cloned
  std::shared_ptr<SimNode> node;
  std::string path;
  OpenOptions options;
  bool closed = false;
  std::uint32_t in_flight = 0;
};

/// A read, write, sync, punch or zero that has not ended. Its process may be dead (`request` is
/// null).
struct SimOperation final : SimEvent {
  explicit SimOperation(SimHost& of) : host(of) {}
  void fire() override;

  std::uint64_t end() const { return offset + length; }
  std::uint64_t first_page() const { return offset / sim_page_size; }

  SimHost& host;
  std::shared_ptr<SimDescription> description;
  FileRequest* request = nullptr;
  FileRequest::Kind kind = FileRequest::Kind::read;
  std::uint64_t number = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::uint64_t sequence = 0;     // of a sync: everything up to here becomes durable
  int error = 0;                  // it will fail with this
  bool drop = false;              // of a dead process: nothing of it will land
  bool partly = false;            // of a dead process: some of it will land
  bool in_pieces = false;         // a part of it happens before its end
  Duration rest{};                // from that part to its end
  std::vector<SimPage> pages;     // what a write writes
  std::vector<SimSectors> to_do;  // of each page; of reads only when in pieces
  std::size_t index = 0;          // in the host's list
};

}  // namespace berth
