// ClientFile: an NBD export as a read-only File (async/file.h), through libnbd. What a volume can
// stand on.
//
//   nbd://HOST[:PORT]/EXPORT   nbds://…   nbd+unix:///EXPORT?socket=PATH   nbds+unix://…
//   (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md, as nbd_connect_uri(3) reads
//   it)
//
// Used on its loop; a thread of its own speaks with the server and posts what has ended.
// next_data() and next_hole() wait for the server: call them under offload() where that matters. A
// connection that breaks is made again, a bounded number of times with growing pauses, and reads
// under way go on; then they fail with ECONNRESET, and the next read tries again. The export must
// be the same after that: one of another size fails for good. Writes are refused (EROFS). It goes
// when no read is under way: close() ends them.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "async/file.h"
#include "async/uring_loop.h"

namespace berth::nbd {

class ClientFile final : public File {
 public:
  struct Options {
    Duration connect_timeout = std::chrono::seconds(20);  // of each attempt
    Duration answer_timeout =
        std::chrono::seconds(60);  // of each request; the connection is given up then
    unsigned attempts_max = 5;     // to connect, in a row
    Duration pause_first =
        std::chrono::milliseconds(100);  // before the second attempt; doubles with each
  };

  /// Connected, or why not: one attempt.
  static Task<Result<std::unique_ptr<ClientFile>>> open(UringLoop& loop, std::string uri,
                                                        Options options);
  ~ClientFile() override;

  /// Every read ends with ECANCELED, now and from now on. Any time, more than once.
  void close();

  void submit(FileRequest& request) override;
  Result<std::uint64_t> size() override;
  Result<void> truncate(std::uint64_t size) override;
  /// Its size, and the URI as the device's id: NBD knows no better.
  Result<FileIdentity> identity() override;
  /// What the server says is zero is a hole; where it does not say, all is data.
  Result<std::uint64_t> next_data(std::uint64_t offset) override;
  Result<std::uint64_t> next_hole(std::uint64_t offset) override;
  const std::string& name() const override;

 private:
  class Worker;
  explicit ClientFile(std::unique_ptr<Worker> worker);
  Result<std::uint64_t> seek(std::uint64_t offset, bool hole);

  std::unique_ptr<Worker> worker_;
};

}  // namespace berth::nbd
