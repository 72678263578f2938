#include "container/guest_network.h"

#include <cstring>

#include <fmt/format.h>

#include "container/container_store.h"

namespace berth::container::guest_network {
namespace {

constexpr const char* process_address = "198.18.0.100";

// 198.18.1.0: what is below has the gateway's, the resolver's and a process's.
constexpr std::uint32_t first_address = (198U << 24U) | (18U << 16U) | (1U << 8U);
// Up to 198.19.0.255, of a network that ends with 198.19.255.255.
static_assert(container_uid_count <= 65'536);

}  // namespace

std::optional<std::string> address_of(const ContainerRecord& container) {
  const ContainerSpecification& is = container.specification;
  if (is.network == ContainerSpecification::Network::none) return std::nullopt;
  if (is.isolation == ContainerSpecification::Isolation::process) return process_address;
  const std::uint32_t address = first_address + (container.uid - container_uid_first);
  return fmt::format("{}.{}.{}.{}", address >> 24U, (address >> 16U) & 0xffU,
                     (address >> 8U) & 0xffU, address & 0xffU);
}

std::string with_prefix(const std::string& address) { return address + std::strchr(network, '/'); }

std::string qemu_netdev(const char* id) {
  return fmt::format("user,id={},net={},host={},dns={},dhcpstart={}", id, network, gateway,
                     resolver, first_lease);
}

}  // namespace berth::container::guest_network
