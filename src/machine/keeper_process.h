// A keeper in a child process, and the sockets to speak with it. Only tests include it.
#pragma once

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include <libnbd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "async/socket.h"
#include "async/uring_loop.h"
#include "machine/control_client.h"
#include "machine/keeper.h"
#include "machine/layout.h"

namespace berth::machine {

class KeeperProcess {
 public:
  explicit KeeperProcess(KeeperOptions options) : options_(std::move(options)) {
    process_ = ::fork();
    CHECK(process_ >= 0);
    if (process_ == 0) ::_exit(run_keeper(options_));
  }
  KeeperProcess(const KeeperProcess&) = delete;
  KeeperProcess& operator=(const KeeperProcess&) = delete;
  ~KeeperProcess() {
    if (process_ > 0) {
      ::kill(process_, SIGKILL);
      wait();
    }
  }

  /// The exit code, or minus the signal that ended it.
  int wait() {
    int status = 0;
    CHECK(::waitpid(process_, &status, 0) == process_);
    process_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int end(int signal) {
    ::kill(process_, signal);
    return wait();
  }
  pid_t id() const { return process_; }

  /// A client, once the volume is open; nothing if the keeper ends or takes too long.
  std::unique_ptr<ControlClient> connect(UringLoop& loop) {
    const std::string path = RunLayout{options_.run_dir}.control_socket(options_.id);
    return loop.run_until_complete(connect_when_open(loop, path));
  }

 private:
  static constexpr int attempts_max = 2000;

  static Task<std::unique_ptr<ControlClient>> connect_when_open(UringLoop& loop, std::string path) {
    for (int attempt = 0; attempt < attempts_max; ++attempt) {
      auto stream = co_await connect_unix(loop, path, std::chrono::seconds(5));
      if (stream) {
        auto client = std::make_unique<ControlClient>(std::move(*stream));
        const auto hello = co_await client->call("hello");
        if (hello && (*hello)["volume_open"] == true) co_return client;
      }
      co_await loop.sleep(std::chrono::milliseconds(5));
    }
    co_return nullptr;
  }

  KeeperOptions options_;
  pid_t process_ = -1;
};

/// A libnbd connection that waits for each answer. A failed call gives false, and error() why.
class NbdClient {
 public:
  explicit NbdClient(const std::string& uri, const std::vector<std::string>& contexts = {})
      : handle_(::nbd_create(), &::nbd_close) {
    for (const auto& context : contexts) ::nbd_add_meta_context(handle_.get(), context.c_str());
    ::nbd_set_uri_allow_local_file(handle_.get(), true);  // of certificates
    is_connected_ = ::nbd_connect_uri(handle_.get(), uri.c_str()) == 0;
  }
  bool is_connected() const { return is_connected_; }
  bool write(std::uint64_t offset, const std::string& text) {
    return ::nbd_pwrite(handle_.get(), text.data(), text.size(), offset, 0) == 0;
  }
  bool flush() { return ::nbd_flush(handle_.get(), 0) == 0; }
  std::string read(std::uint64_t offset, std::size_t length) {
    std::string text(length, '\0');
    if (::nbd_pread(handle_.get(), text.data(), length, offset, 0) != 0) return "error: " + error();
    return text;
  }
  std::int64_t size() { return ::nbd_get_size(handle_.get()); }
  static std::string error() { return ::nbd_get_error() == nullptr ? "" : ::nbd_get_error(); }
  nbd_handle* get() { return handle_.get(); }

 private:
  std::unique_ptr<nbd_handle, void (*)(nbd_handle*)> handle_;
  bool is_connected_ = false;
};

}  // namespace berth::machine
