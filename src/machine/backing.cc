#include "machine/backing.h"

#include <atomic>
#include <filesystem>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/uring_file.h"
#include "machine/backing_specification.h"
#include "machine/listener_address.h"
#include "machine/volume_directory.h"
#include "nbd/client_file.h"
#include "nbd/qemu_nbd.h"

namespace berth::machine {
namespace {

using Kind = BackingSpecification::Kind;

constexpr std::string_view image_socket_prefix = "image-";
constexpr Duration keeper_wait_max = std::chrono::seconds(10);
constexpr Duration keeper_wait_step = std::chrono::milliseconds(50);
constexpr unsigned keeper_attempts_max =
    8;  // 13 seconds in all: the daemon starts a dead keeper again

Result<std::unique_ptr<File>> open_raw(UringLoop& loop, const std::string& path) {
  const std::filesystem::path split(path);
  const auto directory = TRY(open_directory(loop, split.parent_path(), false));
  return directory->open(split.filename(), {.read_only = true});
}

Task<Result<std::unique_ptr<File>>> open_nbd(UringLoop& loop, std::string uri,
                                             nbd::ClientFile::Options options) {
  co_return CO_TRY(co_await nbd::ClientFile::open(loop, std::move(uri), options));
}

/// After a restart of the machine all keepers come up at once: the one that is needed may come a
/// little later.
Task<Result<std::unique_ptr<File>>> open_checkpoint(UringLoop& loop, std::string socket,
                                                    BackingSpecification backing) {
  const std::string uri =
      nbd_uri({.unix_path = socket}, "", backing.volume + '@' + backing.checkpoint, false);
  const Instant deadline = loop.now() + keeper_wait_max;
  while (!path_exists(socket) && loop.now() < deadline) co_await loop.sleep(keeper_wait_step);
  if (!path_exists(socket)) {
    co_return failure(
        ErrorKind::timed_out,
        fmt::format("no keeper serves the volume '{}': start it first", backing.volume));
  }
  co_return co_await open_nbd(loop, uri, {.attempts_max = keeper_attempts_max});
}

/// An image and the qemu-nbd that reads it.
class ImageFile final : public File {
 public:
  ImageFile(std::unique_ptr<nbd::QemuNbd> server, std::unique_ptr<nbd::ClientFile> client,
            std::string name)
      : server_(std::move(server)), client_(std::move(client)), name_(std::move(name)) {}

  void submit(FileRequest& request) override { client_->submit(request); }
  Result<std::uint64_t> size() override { return client_->size(); }
  Result<void> truncate(std::uint64_t size) override { return client_->truncate(size); }
  Result<FileIdentity> identity() override { return client_->identity(); }
  Result<std::uint64_t> next_data(std::uint64_t offset) override {
    return client_->next_data(offset);
  }
  Result<std::uint64_t> next_hole(std::uint64_t offset) override {
    return client_->next_hole(offset);
  }
  const std::string& name() const override { return name_; }

 private:
  std::unique_ptr<nbd::QemuNbd> server_;
  std::unique_ptr<nbd::ClientFile> client_;  // goes first
  std::string name_;
};

Task<Result<std::unique_ptr<File>>> open_image(UringLoop& loop, std::string socket,
                                               BackingSpecification backing) {
  auto server = CO_TRY(co_await nbd::QemuNbd::start(
      loop, {.image = backing.path, .format = backing.format, .socket_path = std::move(socket)}));
  auto client = CO_TRY(co_await nbd::ClientFile::open(loop, server->uri(), {}));
  co_return std::make_unique<ImageFile>(std::move(server), std::move(client), backing.path);
}

/// No two openers of a process, and no two processes, use one twice.
std::string new_image_socket(const std::string& directory) {
  static std::atomic<unsigned> count = 0;
  return fmt::format("{}/{}{}-{}", directory, image_socket_prefix, ::getpid(), ++count);
}

Task<Result<std::unique_ptr<File>>> open_backing(UringLoop& loop, BackingPlaces places,
                                                 std::string specification) {
  const auto written = CO_TRY(parse_backing(specification));
  const auto backing = CO_TRY(settle_format(written));
  switch (backing.kind) {
    case Kind::unknown_file:
    case Kind::raw_file: co_return open_raw(loop, backing.path);
    case Kind::image:
      co_return co_await open_image(loop, new_image_socket(places.socket_directory), backing);
    case Kind::volume_checkpoint:
      co_return co_await open_checkpoint(
          loop, CO_TRY(places.volume_socket(backing.volume, backing.checkpoint)), backing);
    case Kind::nbd: co_return co_await open_nbd(loop, backing.uri, {});
  }
  co_return failure(ErrorKind::internal, "a backing of no kind");
}

}  // namespace

disk::BackingOpener make_backing_opener(UringLoop& loop, BackingPlaces places) {
  return [&loop, places = std::move(places)](std::string specification) {
    return open_backing(loop, places, std::move(specification));
  };
}

void remove_stale_image_sockets(const std::string& directory) {
  for (const std::string& name : names_in(directory)) {
    if (name.starts_with(image_socket_prefix))
      ::unlink(fmt::format("{}/{}", directory, name).c_str());
  }
}

}  // namespace berth::machine
