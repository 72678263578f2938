#include "machine/vm/guest_addresses.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "machine/vm/peer_lines.h"

namespace berth::machine {
namespace {

constexpr std::size_t interface_name_max = 64;  // bytes; Windows has long ones

std::string text_of(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::string mac_of(const Json& interface) {
  std::string mac = text_of(interface, "hardware-address");
  bool is_zero = true;
  if (mac.size() != 17) return {};
  for (std::size_t at = 0; at < mac.size(); ++at) {
    char& c = mac[at];
    if (at % 3 == 2) {
      if (c != ':') return {};
      continue;
    }
    if (c >= 'A' && c <= 'F') c = static_cast<char>(c - 'A' + 'a');
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return {};
    is_zero = is_zero && c == '0';
  }
  return is_zero ? std::string() : mac;
}

bool is_global(const in_addr& address) {
  const std::uint32_t host = ntohl(address.s_addr);
  const bool is_loopback = (host >> 24U) == 127;
  const bool is_link_local = (host >> 16U) == 0xA9FE;  // 169.254.0.0/16
  const bool is_multicast = (host >> 28U) == 0xE;
  return host != INADDR_ANY && host != INADDR_BROADCAST && !is_loopback && !is_link_local &&
         !is_multicast;
}

bool is_global(const in6_addr& address) {
  return !IN6_IS_ADDR_UNSPECIFIED(&address) && !IN6_IS_ADDR_LOOPBACK(&address) &&
         !IN6_IS_ADDR_LINKLOCAL(&address) && !IN6_IS_ADDR_MULTICAST(&address);
}

/// In its usual spelling; nothing if it is no global address.
template <typename Address, int family>
std::optional<std::string> global_address(const std::string& text) {
  Address address{};
  std::array<char, INET6_ADDRSTRLEN> spelled{};
  if (::inet_pton(family, text.c_str(), &address) != 1 || !is_global(address) ||
      ::inet_ntop(family, &address, spelled.data(), spelled.size()) == nullptr) {
    return std::nullopt;
  }
  return spelled.data();
}

std::optional<GuestAddress> address_of(const Json& entry) {
  if (!entry.is_object()) return std::nullopt;
  const bool is_ipv6 = text_of(entry, "ip-address-type") == "ipv6";
  const std::string text = text_of(entry, "ip-address");
  const auto address =
      is_ipv6 ? global_address<in6_addr, AF_INET6>(text) : global_address<in_addr, AF_INET>(text);
  const auto prefix = entry.find("prefix");
  if (!address || prefix == entry.end() || !prefix->is_number_unsigned()) return std::nullopt;
  const auto length = prefix->get<std::uint64_t>();
  if (length > (is_ipv6 ? 128U : 32U)) return std::nullopt;
  return GuestAddress{
      .interface = {}, .mac = {}, .address = *address, .prefix = static_cast<unsigned>(length)};
}

}  // namespace

Result<std::vector<GuestAddress>> parse_guest_addresses(const Json& answer) {
  if (!answer.is_array()) {
    return failure(ErrorKind::protocol, "the guest agent's interfaces are no list");
  }
  std::vector<GuestAddress> addresses;
  for (const Json& interface : answer) {
    if (!interface.is_object()) continue;
    const std::string name = printable(text_of(interface, "name"), interface_name_max);
    const auto entries = interface.find("ip-addresses");
    if (name.empty() || name == "lo" || entries == interface.end() || !entries->is_array())
      continue;
    for (const Json& entry : *entries) {
      if (addresses.size() >= guest_addresses_max) return addresses;
      auto address = address_of(entry);
      if (!address) continue;
      address->interface = name;
      address->mac = mac_of(interface);
      addresses.push_back(std::move(*address));
    }
  }
  return addresses;
}

}  // namespace berth::machine
