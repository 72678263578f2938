#include "testing/sim_memory.h"

#include <utility>

#include <fmt/format.h>

namespace berth {
namespace {

class SimSharedMemory final : public SharedMemory {
 public:
  explicit SimSharedMemory(std::shared_ptr<AlignedBuffer> memory) : memory_(std::move(memory)) {}
  MutableBytes bytes() override { return memory_->bytes(); }

 private:
  std::shared_ptr<AlignedBuffer> memory_;
};

}  // namespace

Result<std::unique_ptr<SharedMemory>> SimSharedMemoryStore::open(const std::string& name) {
  const auto refuse = [&](int error) {
    return errno_failure(error, fmt::format("cannot open shared memory '{}'", name));
  };
  const int error = host_.blocking_call(fault_on::open, "open", "shared/" + name, false);
  if (error != 0) return refuse(error);
  const auto found = host_.shared_memory_.find(name);
  if (found == host_.shared_memory_.end()) return refuse(ENOENT);
  return std::make_unique<SimSharedMemory>(found->second);
}

Result<std::unique_ptr<SharedMemory>> SimSharedMemoryStore::create(const std::string& name,
                                                                   std::uint64_t size) {
  const int error = host_.blocking_call(fault_on::open, "create", "shared/" + name, false);
  if (error != 0)
    return errno_failure(error, fmt::format("cannot create shared memory '{}'", name));
  auto memory = std::make_shared<AlignedBuffer>(AlignedBuffer::zeroed(size));
  host_.shared_memory_[name] = memory;
  return std::make_unique<SimSharedMemory>(std::move(memory));
}

Result<void> SimSharedMemoryStore::remove(const std::string& name) {
  const auto refuse = [&](int error) {
    return errno_failure(error, fmt::format("cannot remove shared memory '{}'", name));
  };
  const int error = host_.blocking_call(fault_on::remove, "remove", "shared/" + name, false);
  if (error != 0) return refuse(error);
  if (host_.shared_memory_.erase(name) == 0) return refuse(ENOENT);
  return {};
}

}  // namespace berth
