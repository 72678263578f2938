// The network of a container that has one (`--net user`): the same for all of them, with a gateway,
// a resolver, and for each microVM an address of its own, so that no two of a host take themselves
// for the same. It is its QEMU's alone (or slirp4netns's): nothing of it is on the host's network.
// Its addresses are those that RFC 2544 set aside, which no network around the host should have.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "container/container_record.h"

namespace berth::container::guest_network {

constexpr const char* network = "198.18.0.0/15";
constexpr const char* gateway = "198.18.0.2";  // and the host's loopback
constexpr const char* resolver = "198.18.0.3";
constexpr const char* first_lease = "198.18.0.16";  // of DHCP, which nothing of ours asks

/// Of a microVM by its user (ContainerRecord::uid); of every container in the host's kernel the one
/// that slirp4netns(1) gives it. None without a network.
std::optional<std::string> address_of(const ContainerRecord& container);
/// With the length of the network's prefix.
std::string with_prefix(const std::string& address);

/// QEMU's -netdev, of this id.
std::string qemu_netdev(const char* id);

}  // namespace berth::container::guest_network
