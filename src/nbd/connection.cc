#include "nbd/connection.h"

#include <array>
#include <utility>

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "async/deadline.h"
#include "async/tls.h"

namespace berth::nbd {
namespace {

constexpr Duration close_timeout = std::chrono::seconds(5);
// Room for the largest option, and for what a client with many small writes in flight sends at
// once.
constexpr std::size_t receive_buffer_size = 256 * KiB;
static_assert(receive_buffer_size >= option_header_size + option_length_max);

}  // namespace

Connection::Connection(Loop& loop, std::unique_ptr<Stream> stream, ExportDirectory& exports,
                       BufferPool& pool, ConnectionOptions options)
    : loop_(loop),
      peer_(stream->peer()),
      stream_(std::move(stream)),
      transport_(stream_.get()),
      exports_(exports),
      pool_(pool),
      options_(options),
      input_(receive_buffer_size),
      handshake_(options.tls == nullptr ? TlsMode::off : TlsMode::required) {}

void Connection::drain() {
  ending_ = true;
  if (transmission_) {
    transmission_->drain();
  } else {
    cut();
  }
}

void Connection::cut() {
  ending_ = true;
  if (transport_ != nullptr) transport_->shutdown();
}

Task<> Connection::serve() {
  const Result<void> outcome = co_await handshake_and_transmit();
  if (!outcome && !ending_) {
    // A client that just goes is nobody's mistake.
    const bool went = outcome.error().kind() == ErrorKind::disconnected;
    spdlog::log(went ? spdlog::level::debug : spdlog::level::warn, "nbd: {} was disconnected: {}",
                peer_, outcome.error().message());
  }
  if (stream_ != nullptr) co_await close();
}

/// NBD: Terminating the transmission phase. Ends TLS in an orderly way, as far as the client lets
/// us.
Task<> Connection::close() {
  Deadline deadline(loop_, close_timeout, [this] { cut(); });
  static_cast<void>(co_await stream_->finish_writing());
  co_await deadline.stop();
  stream_->shutdown();
}

Task<Result<void>> Connection::handshake_and_transmit() {
  Deadline deadline(loop_, options_.handshake_timeout, [this] { cut(); });
  Result<bool> negotiated = co_await negotiate();
  co_await deadline.stop();
  if (deadline.expired()) {
    spdlog::warn("nbd: {} was disconnected: it did not complete the handshake in time", peer_);
    co_return Result<void>{};
  }
  const bool transmits = CO_TRY(std::move(negotiated));
  if (!transmits || ending_) co_return Result<void>{};

  transmission_.emplace(loop_, *stream_, *export_, pool_, handshake_.session(),
                        handshake_.contexts(), options_.limits);
  Result<void> outcome = co_await transmission_->run(input_);
  transmission_.reset();
  co_return outcome;
}

/// NBD: Handshake. True for the transmission phase, false where the client gave up.
Task<Result<bool>> Connection::negotiate() {
  auto step = Handshake::Step::receive;
  while (true) {
    if (const std::vector<std::byte> output = handshake_.take_output(); !output.empty()) {
      const std::array<Bytes, 1> parts{Bytes(output)};
      CO_TRY(co_await stream_->write_all(parts));
    }
    if (step == Handshake::Step::transmit) co_return true;
    if (step == Handshake::Step::end || ending_) co_return false;
    step = CO_TRY(co_await take_step(step));
  }
}

Task<Result<Handshake::Step>> Connection::take_step(Handshake::Step step) {
  switch (step) {
    case Handshake::Step::find_export: co_return co_await find_export();
    case Handshake::Step::list_exports: co_return handshake_.listed(exports_.list());
    case Handshake::Step::start_tls: {
      CO_TRY(co_await start_tls());
      co_return Handshake::Step::receive;
    }
    default: co_return co_await receive();
  }
}

Task<Result<Handshake::Step>> Connection::receive() {
  Bytes unread = input_.unread();
  const Handshake::Step step = CO_TRY(handshake_.receive(unread));
  const std::size_t consumed = input_.size() - unread.size();
  input_.consume(consumed);
  if (step != Handshake::Step::receive || consumed != 0) co_return step;

  const std::size_t got = CO_TRY(co_await stream_->read_some(input_.room(receive_buffer_size)));
  input_.received(got);
  co_return got == 0 ? Handshake::Step::end : Handshake::Step::receive;
}

/// A client asks for the same export several times: to learn of it, to select contexts, to go. It
/// is found once.
Task<Handshake::Step> Connection::find_export() {
  const std::string name = handshake_.export_name();
  if (export_ == nullptr || export_found_as_ != name) {
    export_.reset();
    Result<std::shared_ptr<Export>> found = co_await exports_.find(name);
    if (!found) {
      spdlog::info("nbd: {} asked for the export {:?}: {}", peer_, name, found.error().message());
      co_return handshake_.not_found(found.error());
    }
    export_ = std::move(*found);
    export_found_as_ = name;
  }
  co_return handshake_.found(export_->info());
}

/// NBD: Option types, NBD_OPT_STARTTLS.
Task<Result<void>> Connection::start_tls() {
  // Sent before the answer, they would be taken for what came under the protection of TLS.
  if (input_.size() != 0) {
    co_return failure(ErrorKind::protocol, "bytes in the clear follow NBD_OPT_STARTTLS");
  }
  Result<std::unique_ptr<TlsStream>> secured = co_await TlsStream::accept(
      loop_, options_.tls, std::move(stream_), options_.handshake_timeout);
  if (!secured) {
    transport_ = nullptr;
    co_return failure(std::move(secured).error());
  }
  stream_ = std::move(*secured);
  handshake_.tls_started();
  co_return Result<void>{};
}

}  // namespace berth::nbd
