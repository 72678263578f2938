// SimSharedMemoryStore: the simulated twin of SharedMemoryStore. The host holds the memory: it
// outlives the process and this store, and goes at power loss. Made by SimHost::shared_memory().
// Faults: fault_on::open and fault_on::remove on the path "shared/NAME".
#pragma once

#include <memory>
#include <string>

#include "async/memory.h"
#include "testing/sim_host.h"

namespace berth {

class SimSharedMemoryStore final : public SharedMemoryStore {
 public:
  explicit SimSharedMemoryStore(SimHost& host) : host_(host) {}

  Result<std::unique_ptr<SharedMemory>> open(const std::string& name) override;
  Result<std::unique_ptr<SharedMemory>> create(const std::string& name,
                                               std::uint64_t size) override;
  Result<void> remove(const std::string& name) override;
  std::string boot_id() const override { return host_.boot_id(); }

 private:
  SimHost& host_;
};

}  // namespace berth
