// The daemon: the one process per host that has the catalogue and the API (DESIGN §3).
#pragma once

#include <chrono>
#include <string>

namespace berth::control {

struct DaemonOptions {
  std::string state_dir;
  std::string run_dir;
  std::string listen;   // host:port for TCP with TLS, "" for none
  std::string tls_dir;  // server-cert.pem, server-key.pem, ca-cert.pem; needed with `listen`
  std::string configuration_file;  // "": the default one, where it is there
  std::chrono::milliseconds keeper_idle{60'000};
  std::string memory_dir = "/dev/shm/berth";      // where machines' memory is
  std::string keeper_program = "/proc/self/exe";  // executed as `PROGRAM keeper …`
};

/// Runs until SIGTERM, SIGINT or the action host.shutdown; keepers go on without it. Logs to
/// standard error. Says READY=1 on the socket $NOTIFY_SOCKET (sd_notify's protocol) once requests
/// are taken. The process's exit code.
int run_daemon(const DaemonOptions& options);

}  // namespace berth::control
