// Both sides of a session, fed with any bytes: none fails, none keeps more than its limits, and the
// next host is heard.
//
// Input: the first byte says which side, the rest is what comes.

#include <cstddef>
#include <cstdint>

#include "agent/session.h"

namespace berth::agent {
namespace {

constexpr std::uint64_t token = 0x0102030405060708;

void prepare(Session& session, Session::Role role) {
  for (std::uint32_t which = 0; which < 3; ++which) {
    Stream& stream = *session.open(stream_of(1, which));
    stream.in.emplace(0, stream_window,
                      role == Session::Role::host ? IncomingStream::Gaps::counted
                                                  : IncomingStream::Gaps::refused);
    stream.out.emplace().add(as_bytes("0123456789"));
  }
  if (role == Session::Role::host) session.greet(token);
}

void check(Session& session) {
  while (const auto message = session.next()) {
    const auto fields = Fields::decode(message->fields);
    if (fields) (void)fields->check_tags();
    if (fields) (void)read_error(*fields);
    if (message->kind == Message::Kind::request) session.answer(message->channel, FieldWriter());
  }
  session.fill_output();
  CHECK(session.output().size() <= output_target + resynchronization_size + frame_size_max);
  session.mark_written(session.output().size());
  for (std::uint32_t which = 0; which < 3; ++which) {
    const Stream* stream = session.find(stream_of(1, which));
    CHECK(stream->in->readable().size() <= stream_window);
    CHECK(stream->out->produced() == 10);
  }
}

void try_bytes(Bytes bytes) {
  if (bytes.empty()) return;
  const auto role = bytes[0] == std::byte{0} ? Session::Role::agent : Session::Role::host;
  Session session(role);
  prepare(session, role);
  bytes = bytes.subspan(1);
  while (!bytes.empty()) {
    const Bytes piece = bytes.first(std::min<std::size_t>(bytes.size(), 1000));
    session.receive(piece);
    check(session);
    bytes = bytes.subspan(piece.size());
  }
  if (role == Session::Role::host) return;
  ByteQueue greeting;
  greeting.append(std::vector<std::byte>(resynchronization_size));
  append_frame(greeting, FrameType::hello, static_cast<std::uint32_t>(token),
               encode(Greeting{.token = token}));
  session.receive(greeting.view());
  while (session.next()) {
  }
  CHECK(session.is_greeted() && session.peer().token == token);
}

}  // namespace
}  // namespace berth::agent

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  berth::agent::try_bytes({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
