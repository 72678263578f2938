#include "container/attach_server.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "async/deadline.h"
#include "base/log.h"
#include "container/attach_frame.h"
#include "container/attach_request.h"
#include "machine/control_protocol.h"

namespace berth::container {
namespace {

using machine::Json;

constexpr std::size_t read_size = std::size_t{64} << 10;
constexpr std::size_t log_piece = std::size_t{48} << 10;
constexpr unsigned engine_failed = 125;  // where a program was not started, and not by its fault
constexpr Duration request_patience = std::chrono::seconds(10);
constexpr Duration copy_patience = std::chrono::hours(24);  // the client ends it before

Json error_answer(const Error& error, unsigned shell_status) {
  return {{"error",
           {{"kind", to_string(error.kind())},
            {"message", error.message()},
            {"shell_status", shell_status}}}};
}

}  // namespace

/// One connection. Two tasks: what the client sends, and what it is sent.
class AttachServer::Client {
 public:
  Client(AttachServer& server, std::unique_ptr<berth::Stream> stream)
      : server_(server),
        container_(server.container_),
        stream_(std::move(stream)),
        moved_(server.loop_),
        reading_(server.loop_) {}

  Task<> run() {
    auto request = co_await read_request();
    if (!request) {
      co_await send_line(error_answer(request.error(), engine_failed));
      co_return;
    }
    switch (request->kind) {
      case AttachRequest::Kind::exec: co_await run_process(std::move(request->process)); break;
      case AttachRequest::Kind::attach: co_await run_main(*request); break;
      default: co_await run_copy(*request);
    }
    is_over_ = true;
    stream_->shutdown();
    co_await reading_.drained();
  }

  void shutdown() {
    is_over_ = true;
    stream_->shutdown();
    moved_.notify_all();
  }

 private:
  Task<Result<AttachRequest>> read_request() {
    Deadline deadline(server_.loop_, request_patience, [this] { stream_->shutdown(); });
    std::string line;
    Result<AttachRequest> request = failure(ErrorKind::disconnected, "the client said nothing");
    std::vector<std::byte> buffer(read_size);
    while (line.size() <= attach_line_max) {
      const auto count = co_await stream_->read_some(buffer);
      if (!count || *count == 0) break;
      line += as_text(Bytes(buffer).first(*count));
      const std::size_t end = line.find('\n');
      if (end == std::string::npos) continue;
      request = decode_attach_request(std::string_view(line).substr(0, end));
      decoder_.append(as_bytes(std::string_view(line).substr(end + 1)));
      break;
    }
    co_await deadline.stop();
    co_return request;
  }

  Task<bool> send(std::vector<std::byte> bytes) {
    const std::array<Bytes, 1> parts = {Bytes(bytes)};
    co_return (co_await stream_->write_all(parts)).has_value();
  }
  Task<bool> send_line(Json json) {
    const std::string line = machine::format_json(json) + '\n';
    const std::array<Bytes, 1> parts = {as_bytes(line)};
    co_return (co_await stream_->write_all(parts)).has_value();
  }
  Task<bool> send_end(const Container::End& end) {
    if (!end.error.empty())
      co_return co_await send(attach_frame(AttachFrameType::failed, as_bytes(end.error)));
    co_return co_await send(attach_exit_frame(static_cast<std::uint8_t>(end.end.exit_code),
                                              static_cast<std::uint8_t>(end.end.signal)));
  }

  // --- Another process.

  Task<> run_process(ProcessSpecification specification) {
    unsigned shell_status = engine_failed;
    auto started = co_await container_.execute(std::move(specification), shell_status);
    if (!started) {
      co_await send_line(error_answer(started.error(), shell_status));
      co_return;
    }
    process_ = std::move(*started);
    const bool answered =
        co_await send_line({{"ok", {{"terminal", process_->specification().terminal}}}});
    if (answered) {
      reading_.spawn(read_frames());
      co_await send_output();
    }
    is_over_ = true;
    container_.release(process_);
  }

  Task<> send_output() {
    const std::shared_ptr<GuestProcess> process = process_;
    while (!is_over_) {
      bool moved = false;
      const std::array sources = {std::pair{process->output(), AttachFrameType::output},
                                  std::pair{process->errors(), AttachFrameType::errors}};
      for (const auto& [in, type] : sources) {
        if (in == nullptr || in->readable().empty()) continue;
        const Bytes waiting = in->readable();
        const Bytes piece = waiting.first(std::min(waiting.size(), attach_payload_max));
        const std::size_t taken = piece.size();
        std::vector<std::byte> frame = attach_frame(type, piece);
        in->consume(taken);
        process->wake();
        if (!co_await send(std::move(frame))) co_return;
        moved = true;
      }
      if (moved) continue;
      if (process->is_over()) {
        co_await send_end({.end = *process->end(), .error = {}});
        co_return;
      }
      if (process->is_lost()) {
        co_await send_end({.end = {}, .error = "the guest, or the way to it, is gone"});
        co_return;
      }
      co_await process->changed();
    }
  }

  // --- An archive.

  Task<> run_copy(AttachRequest request) {
    const bool is_out = request.kind == AttachRequest::Kind::copy_out;
    const Container::Use use(container_);
    const auto awake = co_await container_.awaken();
    auto link = awake ? container_.link() : failure(awake.error());
    if (!link) {
      co_await send_line(error_answer(link.error(), engine_failed));
      co_return;
    }
    copy_link_ = std::move(*link);
    copy_ = container_.next_stream();
    auto opened = copy_link_->open_stream(copy_, [this] { moved_.notify_all(); });
    if (!opened) {
      co_await send_line(error_answer(opened.error(), engine_failed));
      co_return;
    }
    (*opened)->out.emplace(0, agent::stream_window);
    (*opened)->in.emplace(0, agent::stream_window, agent::IncomingStream::Gaps::refused);
    agent::FieldWriter asked(is_out ? agent::Operation::archive_read
                                    : agent::Operation::archive_write);
    asked.number(agent::Tag::stream, copy_).text(agent::Tag::path, request.path);
    if (request.keep_owners && !is_out) asked.number(agent::Tag::flags, agent::archive_keep_owners);
    if (co_await send_line({{"ok", {{"terminal", false}}}})) {
      reading_.spawn(ask(std::move(asked)));
      reading_.spawn(read_frames());
      co_await send_archive(is_out);
    }
    if (!copied_ && copy_link_->is_open()) {
      agent::FieldWriter close(agent::Operation::close_stream);
      close.number(agent::Tag::stream, copy_);
      (void)co_await copy_link_->request(std::move(close), request_patience);
    }
    is_over_ = true;
    stream_->shutdown();
    co_await reading_.drained();
    copy_link_->close_stream(copy_);
  }

  Task<> ask(agent::FieldWriter asked) {
    const auto answer = co_await copy_link_->request(std::move(asked), copy_patience);
    copied_ = answer ? Result<void>() : failure(answer.error());
    moved_.notify_all();
  }

  Task<> send_archive(bool is_out) {
    while (!is_over_) {
      agent::Stream* stream = copy_link_->is_open() ? copy_link_->stream(copy_) : nullptr;
      const Bytes waiting = stream != nullptr ? stream->in->readable() : Bytes();
      if (!waiting.empty()) {
        const std::size_t taken = std::min(waiting.size(), attach_payload_max);
        std::vector<std::byte> frame = attach_frame(AttachFrameType::output, waiting.first(taken));
        stream->in->consume(taken);
        copy_link_->wake();
        if (!co_await send(std::move(frame))) co_return;
        continue;
      }
      const bool is_whole = !is_out || stream == nullptr || stream->in->is_at_end();
      if (copied_ && (!*copied_ || is_whole)) {
        co_await send_end({.end = {}, .error = *copied_ ? "" : copied_->error().message()});
        co_return;
      }
      co_await moved_.wait();
    }
  }

  /// Of the archive that is being written.
  Task<> add_archive(Bytes payload) {
    const auto out = [this]() -> agent::OutgoingStream* {
      agent::Stream* stream = copy_link_->is_open() ? copy_link_->stream(copy_) : nullptr;
      return stream != nullptr && stream->out ? &*stream->out : nullptr;
    };
    if (payload.empty() && out() != nullptr) {
      out()->finish();
      copy_link_->wake();
    }
    while (!payload.empty() && !is_over_ && !copied_ && out() != nullptr) {
      const std::size_t count = std::min(payload.size(), out()->room());
      if (count == 0) {
        co_await moved_.wait();
        continue;
      }
      out()->add(payload.first(count));
      copy_link_->wake();
      payload = payload.subspan(count);
    }
  }

  // --- The main process.

  Task<> run_main(AttachRequest request) {
    const bool has_terminal = container_.record().specification.terminal;
    if (request.input && server_.input_ != nullptr) {
      co_await send_line(error_answer(
          Error(ErrorKind::in_use, "somebody is attached to its input already"), engine_failed));
      co_return;
    }
    // Who only looks on is no use of it.
    std::optional<Container::Use> use;
    if (request.input && container_.record().specification.input) {
      server_.input_ = this;
      use.emplace(container_);
    }
    LogReader reader(container_.log_path(),
                     request.from_start ? LogReader::From::start : LogReader::From::now);
    is_main_ = true;
    const auto begun = co_await container_.begin(request.rows, request.columns);
    if (!begun) {
      const auto& end = container_.end();
      co_await send_line(error_answer(begun.error(), end ? end->end.exit_code : engine_failed));
    } else if (co_await send_line({{"ok", {{"terminal", has_terminal}}}})) {
      reading_.spawn(read_frames());
      co_await send_log(reader);
    }
    if (server_.input_ == this) server_.input_ = nullptr;
  }

  Task<> send_log(LogReader& reader) {
    while (!is_over_) {
      // Before the log is read: everything is in it once there is an end.
      const bool has_ended = container_.end().has_value();
      const auto lines = reader.read(log_piece);
      if (!lines) {
        co_await send_end({.end = {}, .error = lines.error().message()});
        co_return;
      }
      if (!lines->empty()) {
        std::vector<std::byte> frames = frames_of(*lines);
        if (!frames.empty() && !co_await send(std::move(frames))) co_return;
        continue;
      }
      if (has_ended) {
        co_await send_end(*container_.end());
        co_return;
      }
      co_await container_.changed();
    }
  }

  /// One frame for each run of entries of one stream.
  std::vector<std::byte> frames_of(std::string_view lines) {
    std::vector<std::byte> frames;
    std::string text;
    LogStream stream = LogStream::output;
    const auto flush = [&] {
      if (text.empty()) return;
      const auto type =
          stream == LogStream::output ? AttachFrameType::output : AttachFrameType::errors;
      const auto frame = attach_frame(type, as_bytes(text));
      frames.insert(frames.end(), frame.begin(), frame.end());
      text.clear();
    };
    while (!lines.empty()) {
      const std::size_t end = std::min(lines.find('\n'), lines.size());
      const auto entry = parse_log_line(lines.substr(0, end));
      lines.remove_prefix(std::min(end + 1, lines.size()));
      if (!entry || entry->at < container_.log_begins_at()) continue;
      if (entry->stream != stream || text.size() + entry->text.size() + 1 > attach_payload_max)
        flush();
      stream = entry->stream;
      text += entry->text;
      if (!entry->partial) text += '\n';
    }
    flush();
    return frames;
  }

  // --- What the client sends.

  GuestProcess* process() { return is_main_ ? container_.main() : process_.get(); }

  Task<> read_frames() {
    std::vector<std::byte> buffer(read_size);
    while (!is_over_) {
      auto frame = decoder_.next();
      if (!frame) {
        log_warning("attach: {}", frame.error().message());
        break;
      }
      if (*frame) {
        // Its own memory: it is waited for.
        const std::vector<std::byte> payload((*frame)->payload.begin(), (*frame)->payload.end());
        co_await take((*frame)->type, payload);
        continue;
      }
      const auto count = co_await stream_->read_some(buffer);
      if (!count || *count == 0) break;
      decoder_.append(Bytes(buffer).first(*count));
    }
    // The client has gone: so does what was started for it.
    shutdown();
    if (process_) process_->wake_up();
    if (is_main_) container_.wake_up();
  }

  Task<> take(AttachFrameType type, Bytes payload) {
    if (copy_link_) {
      if (type == AttachFrameType::input) co_await add_archive(payload);
      co_return;
    }
    // A size is nothing that somebody waits for.
    if (type == AttachFrameType::size && container_.is_paused()) co_return;
    if (!co_await container_.awaken()) co_return;
    GuestProcess* process = this->process();
    if (process == nullptr || process->is_lost()) co_return;
    switch (type) {
      case AttachFrameType::input: co_await add_input(payload); break;
      case AttachFrameType::size:
        if (payload.size() == 4 && process->specification().terminal) {
          (void)co_await process->resize(load_le<std::uint16_t>(payload.data()),
                                         load_le<std::uint16_t>(payload.data() + 2));
        }
        break;
      case AttachFrameType::signal:
        if (payload.size() == 1)
          (void)co_await process->signal(std::to_integer<unsigned>(payload[0]));
        break;
      default: break;  // a client sends no others
    }
  }

  Task<> add_input(Bytes payload) {
    if (is_main_ && server_.input_ != this) co_return;
    GuestProcess* process = this->process();
    if (payload.empty() && process != nullptr) {
      if (agent::OutgoingStream* input = process->input();
          input != nullptr && !process->specification().terminal)
        input->finish();
      process->wake();
      co_return;
    }
    while (!payload.empty() && !is_over_) {
      process = this->process();
      agent::OutgoingStream* input =
          process == nullptr || process->is_lost() ? nullptr : process->input();
      if (input == nullptr || process->is_over()) co_return;
      const std::size_t count = std::min(payload.size(), input->room());
      if (count == 0 && input->is_finished()) co_return;
      if (count > 0) {
        input->add(payload.first(count));
        process->wake();
        payload = payload.subspan(count);
        continue;
      }
      // It is held while it is waited for.
      co_await process->changed();
    }
  }

  AttachServer& server_;
  Container& container_;
  std::unique_ptr<berth::Stream> stream_;
  AttachDecoder decoder_;
  std::shared_ptr<GuestProcess> process_;  // of exec
  std::shared_ptr<AgentLink> copy_link_;   // of an archive
  std::uint32_t copy_ = 0;                 // its stream
  std::optional<Result<void>> copied_;     // how that ended
  Event moved_;
  Gate reading_;
  bool is_main_ = false;
  bool is_over_ = false;
};

AttachServer::AttachServer(UringLoop& loop, Container& container)
    : loop_(loop), container_(container), moved_(loop), tasks_(loop) {}

AttachServer::~AttachServer() = default;

void AttachServer::serve(std::unique_ptr<Listener> listener) {
  listener_ = std::move(listener);
  tasks_.spawn(accept_clients());
}

Task<> AttachServer::accept_clients() {
  while (!closing_) {
    auto stream = co_await listener_->accept();
    if (closing_) co_return;
    if (!stream) {
      if (stream.error().kind() == ErrorKind::cancelled) co_return;
      log_warning("attach: {}", stream.error().message());
      co_await loop_.sleep(std::chrono::milliseconds(100));
      continue;
    }
    if (clients_.size() >= attach_clients_max) continue;  // which disconnects it
    tasks_.spawn(serve_client(std::move(*stream)));
  }
}

Task<> AttachServer::serve_client(std::unique_ptr<berth::Stream> stream) {
  Client client(*this, std::move(stream));
  clients_.push_back(&client);
  co_await client.run();
  clients_.remove(&client);
  moved_.notify_all();
}

Task<> AttachServer::drained(Duration patience) {
  Deadline deadline(loop_, patience, [this] { moved_.notify_all(); });
  while (!clients_.empty() && !deadline.expired()) co_await moved_.wait();
  co_await deadline.stop();
}

Task<> AttachServer::close() {
  closing_ = true;
  if (listener_) listener_->close();
  for (Client* client : clients_) client->shutdown();
  container_.wake_up();
  co_await tasks_.drained();
}

}  // namespace berth::container
