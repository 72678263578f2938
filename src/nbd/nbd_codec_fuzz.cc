// The pure part of the NBD server: a handshake and, after it, requests, from any bytes in pieces of
// any size. What the server says must be well formed, whatever it was told.
//
// Input: a byte whose lowest bit requires TLS, a byte with the size of the pieces, then what the
// client sends.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "nbd/handshake.h"
#include "nbd/wire.h"

namespace berth::nbd {
namespace {

ExportInfo volume_info(bool read_only) {
  return {.name = "volume",
          .size = 10 * MiB,
          .read_only = read_only,
          .block_minimum = read_only ? 512U : 1U,
          .contexts = {"berth:changed:a", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}};
}

/// The output is a greeting, replies to options, or the answer to NBD_OPT_EXPORT_NAME.
void check_output(const std::vector<std::byte>& output, bool greeting, bool transmits) {
  WireReader reader(output);
  if (greeting) CHECK(reader.raw(18).size() == 18);
  const bool replies =
      reader.left() >= 8 && load_be<std::uint64_t>(output.data()) == option_reply_magic;
  if (transmits && !replies) {
    CHECK(output.size() == 10 || output.size() == 10 + export_name_padding_size);
    return;
  }
  while (reader.left() != 0) {
    const OptionAnswer answer = read_option_answer(reader);
    CHECK(reader.ok() && static_cast<std::uint32_t>(answer.type) != 0);
  }
}

/// Takes one request off the input and answers it; false where that is not possible.
bool serve_request(Bytes& input, const Session& session) {
  if (input.size() < request_size) return false;
  const auto request =
      parse_request(std::span<const std::byte, request_size>(input.data(), request_size));
  if (!request) return false;
  input = input.subspan(request_size);
  std::vector<std::byte> chunk(std::max(error_chunk_size_max, block_status_size(4)));
  const Refusal refusal = check_request(*request, session);
  if (request->type == Command::write)
    input = input.subspan(std::min<std::size_t>(request->length, input.size()));
  if (refusal) {
    CHECK(!refusal.reason.empty());
    CHECK(encode_error(chunk, request->cookie, Chunk::done, refusal.error, refusal.reason) <=
          chunk.size());
    return true;
  }
  CHECK(request->type == Command::flush || request->offset + request->length <= session.size);
  const bool has_payload = request->type == Command::read || request->type == Command::write;
  CHECK(!has_payload || request->length <= payload_length_max);
  if (request->type == Command::block_status) {
    const std::vector<StatusExtent> extents{
        {request->length / 2 + 1, 0}, {request->length, 3}, {1, 0}, {~0ULL, 1}};
    const std::size_t size =
        encode_block_status(chunk, request->cookie, Chunk::done, 0, extents, request->length);
    CHECK(size > block_status_size(0) && size <= chunk.size());
  }
  return request->type != Command::disconnect;
}

class Run {
 public:
  Run(bool tls, std::size_t piece, Bytes input)
      : handshake_(tls ? TlsMode::required : TlsMode::off), piece_(piece), input_(input) {}

  void run() {
    auto step = Handshake::Step::receive;
    bool greeting = true;
    while (true) {
      check_output(handshake_.take_output(), greeting, step == Handshake::Step::transmit);
      greeting = false;
      if (step == Handshake::Step::end) return;
      if (step == Handshake::Step::transmit) break;
      const auto next = take(step);
      if (!next) return;
      step = *next;
    }
    CHECK(handshake_.contexts().size() == handshake_.session().context_count);
    Bytes rest = input_;
    pending_.insert(pending_.end(), rest.begin(), rest.end());
    Bytes requests = pending_;
    while (serve_request(requests, handshake_.session())) {
    }
  }

 private:
  Result<Handshake::Step> take(Handshake::Step step) {
    switch (step) {
      case Handshake::Step::find_export: {
        const std::string& name = handshake_.export_name();
        CHECK(name.size() <= string_length_max);
        if (name.size() > 6) return handshake_.not_found(Error(ErrorKind::not_found, name));
        return handshake_.found(volume_info(name.empty()));
      }
      case Handshake::Step::list_exports:
        return handshake_.listed({{"volume", "a disk"}, {"volume@checkpoint", ""}});
      case Handshake::Step::start_tls: handshake_.tls_started(); return Handshake::Step::receive;
      default: return receive();
    }
  }

  Result<Handshake::Step> receive() {
    Bytes view = pending_;
    const std::size_t before = view.size();
    const Handshake::Step step = TRY(handshake_.receive(view));
    const std::size_t consumed = before - view.size();
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(consumed));
    if (step != Handshake::Step::receive || consumed != 0) return step;
    if (input_.empty()) return Handshake::Step::end;
    const Bytes piece = input_.first(std::min(piece_, input_.size()));
    input_ = input_.subspan(piece.size());
    pending_.insert(pending_.end(), piece.begin(), piece.end());
    return Handshake::Step::receive;
  }

  Handshake handshake_;
  const std::size_t piece_;
  Bytes input_;
  std::vector<std::byte> pending_;
};

}  // namespace
}  // namespace berth::nbd

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const berth::Bytes input(reinterpret_cast<const std::byte*>(data), size);
  berth::nbd::Run((data[0] & 1) != 0, 1 + data[1], input.subspan(2)).run();
  return 0;
}
