#include "container/guest_network.h"

#include <gtest/gtest.h>

#include "container/container_store.h"

namespace berth::container {
namespace {

using guest_network::address_of;

ContainerRecord container_of(std::uint32_t index) {
  ContainerRecord made;
  made.uid = container_uid_first + index;
  made.specification.network = ContainerSpecification::Network::user;
  return made;
}

TEST(GuestNetwork, EachMicroVmHasAnAddressOfItsOwn) {
  EXPECT_EQ(address_of(container_of(0)), "198.18.1.0");
  EXPECT_EQ(address_of(container_of(257)), "198.18.2.1");
  EXPECT_EQ(address_of(container_of(container_uid_count - 1)), "198.19.0.255");
  EXPECT_EQ(guest_network::with_prefix("198.18.1.0"), "198.18.1.0/15");
}

TEST(GuestNetwork, OneInTheHostsKernelHasWhatItIsGivenAndOneWithoutNetworkHasNone) {
  ContainerRecord container = container_of(7);
  container.specification.isolation = ContainerSpecification::Isolation::process;
  EXPECT_EQ(address_of(container), "198.18.0.100");
  container.specification.network = ContainerSpecification::Network::none;
  EXPECT_EQ(address_of(container), std::nullopt);
}

TEST(GuestNetwork, QemuIsToldAllOfIt) {
  EXPECT_EQ(guest_network::qemu_netdev("net"),
            "user,id=net,net=198.18.0.0/15,host=198.18.0.2,dns=198.18.0.3,dhcpstart=198.18.0.16");
}

}  // namespace
}  // namespace berth::container
