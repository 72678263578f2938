// Probes: how often the rare paths of a simulation have run, so that a test can prove that they
// did.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace berth {

class SimProbes {
 public:
  void hit(std::string_view name) {
    const auto found = counts_.find(name);
    if (found != counts_.end()) {
      ++found->second;
    } else {
      counts_.emplace(name, 1);
    }
  }
  std::uint64_t count(std::string_view name) const {
    const auto found = counts_.find(name);
    return found == counts_.end() ? 0 : found->second;
  }
  /// Adds another run's counts to these.
  void merge(const SimProbes& other) {
    for (const auto& [name, count] : other.counts_) counts_[name] += count;
  }
  const std::map<std::string, std::uint64_t, std::less<>>& counts() const { return counts_; }

 private:
  std::map<std::string, std::uint64_t, std::less<>> counts_;
};

}  // namespace berth
