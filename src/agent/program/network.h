// An interface's addresses, without any program of the image's: ioctl(2) on a socket, netdevice(7).
#pragma once

#include <string>

#include "base/result.h"

namespace berth::agent {

struct InterfaceSettings {
  std::string name;              // "eth0"
  std::string address;           // "192.0.2.7/24", or "" to leave it
  std::string gateway;           // of everything else, or ""
  std::string hardware_address;  // "52:54:00:12:34:56", or "" to leave it
};

Result<void> set_interface_up(const std::string& name);
/// IPv4. `invalid_argument` for what is no address.
Result<void> set_interface(const InterfaceSettings& settings);

}  // namespace berth::agent
