// SimNode: a file or a directory of a simulated host, with what is known of it and what is durable.
// Held by its names, by open files and by operations; its number may be used again after the last.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "testing/sim_content.h"

namespace berth {

struct SimDescription;
struct SimNode;

using SimEntries = std::map<std::string, std::shared_ptr<SimNode>>;

/// Inode numbers of one host; those of files that are gone come back.
struct SimInodes {
  std::uint64_t last = 11;
  std::vector<std::uint64_t> free;
};

/// A change of a directory's names that its sync has not made durable.
struct SimNameChange {
  enum class Kind : std::uint8_t { create, remove, rename };
  Kind kind = Kind::create;
  std::string name;
  std::string to;  // of a rename
  std::shared_ptr<SimNode> node;
};

struct SimNode {
  /// A new empty file or directory.
  static std::shared_ptr<SimNode> make(SimDisk& disk, SimInodes& inodes, bool directory,
                                       SimRandom& random);
  SimNode(SimInodes& inodes_of_host, std::uint64_t number)
      : inodes(inodes_of_host), inode(number) {}
  SimNode(const SimNode&) = delete;
  SimNode& operator=(const SimNode&) = delete;
  ~SimNode() { inodes.free.push_back(inode); }

  bool is_directory() const { return !content.has_value(); }

  SimInodes& inodes;
  std::uint64_t inode;

  // Of a file.
  std::optional<SimContent> content;
  std::int64_t modified_ns = 0;
  std::int64_t durable_modified_ns = 0;
  const SimDescription* lock_holder = nullptr;

  // Of a directory.
  SimEntries entries;
  SimEntries durable_entries;
  std::vector<SimNameChange> name_changes;  // in order

  // Both change the entries that are seen, and remember that they did.
  void create_name(const std::string& name, std::shared_ptr<SimNode> node);
  void remove_name(const std::string& name);
  void rename_name(const std::string& from, const std::string& to);
  void sync_names();

  /// The whole tree after a power loss. `shared` applies to every file; without it each has its
  /// own.
  void power_loss(const SimSurvival* shared, std::uint64_t sequence, SimRandom& random,
                  SimFates& fates, SimProbes& probes);
};

using SimClones = std::unordered_map<const SimNode*, std::shared_ptr<SimNode>>;

/// The same tree for another host; `clones` tells which node became which.
std::shared_ptr<SimNode> clone_tree(const std::shared_ptr<SimNode>& node, SimDisk& disk,
                                    SimInodes& inodes, SimClones& clones);

}  // namespace berth
