#include "container/guest_checks.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "async/deadline.h"

namespace berth::container {
namespace {

using agent::FieldWriter;
using agent::Operation;
using agent::Tag;

constexpr Duration look_patience = std::chrono::seconds(5);
// What it has left running may have its output for ever.
constexpr Duration last_words_patience = std::chrono::milliseconds(500);
constexpr std::size_t status_line_max = 1024;

void append_tail(std::string& tail, agent::IncomingStream* from) {
  if (from == nullptr) return;
  const std::string_view text = as_text(from->readable());
  tail += text;
  if (tail.size() > program_output_max) tail.erase(0, tail.size() - program_output_max);
  from->consume(text.size());
}

enum class Until { ended, silent };

/// For `patience` at most.
Task<> take_output(UringLoop& loop, GuestProcess& process, std::string& tail, Until until,
                   Duration patience) {
  Deadline deadline(loop, patience, [&process] { process.wake_up(); });
  while (!process.is_lost() && !deadline.expired()) {
    append_tail(tail, process.output());
    append_tail(tail, process.errors());
    process.wake();
    if (until == Until::ended ? process.end().has_value() : process.is_over()) break;
    co_await process.changed();
  }
  co_await deadline.stop();
}

/// Connects to a port of the guest's own; says `words` if there are any, and waits for a line then,
/// which is returned.
Task<Result<std::string>> ask_port(UringLoop& loop, Container& container, std::uint16_t port,
                                   std::string words) {
  const std::shared_ptr<AgentLink> link = CO_TRY(container.link());
  const std::uint32_t number = container.next_stream();
  Event changed(loop);
  agent::Stream* stream = CO_TRY(link->open_stream(number, [&] { changed.notify_all(); }));
  stream->out.emplace(0, agent::stream_window);
  stream->in.emplace(0, agent::stream_window, agent::IncomingStream::Gaps::refused);
  FieldWriter request(Operation::connect);
  request.number(Tag::stream, number).number(Tag::port, port);
  Result<std::string> line = std::string();
  const auto connected = co_await link->request(std::move(request), look_patience);
  if (!connected) line = failure(connected.error());
  stream = link->stream(number);
  if (connected && !words.empty() && stream != nullptr) {
    stream->out->add(as_bytes(words));
    link->wake();
    Deadline deadline(loop, look_patience, [&] { changed.notify_all(); });
    while (!deadline.expired() && link->is_open()) {
      stream = link->stream(number);
      if (stream == nullptr) break;
      const std::string_view text = as_text(stream->in->readable());
      *line += text;
      stream->in->consume(text.size());
      if (line->contains('\n') || line->size() > status_line_max || stream->in->is_at_end()) break;
      co_await changed.wait();
    }
    co_await deadline.stop();
  }
  if (connected && link->is_open()) {
    FieldWriter close(Operation::close_stream);
    close.number(Tag::stream, number);
    (void)co_await link->request(std::move(close), look_patience);
  }
  link->close_stream(number);
  co_return line;
}

/// "" for a status below 400.
std::string judge_status_line(std::string_view line) {
  const std::string_view first = line.substr(0, line.find_first_of("\r\n"));
  const std::size_t space = first.find(' ');
  unsigned status = 0;
  if (first.starts_with("HTTP/") && space != std::string_view::npos)
    std::from_chars(first.data() + space + 1, first.data() + first.size(), status);
  if (status >= 100 && status < 400) return {};
  return first.empty() ? "it does not answer" : fmt::format("it answers '{}'", first);
}

/// In one of the lines that are there.
bool has_written(const std::string& path, const std::string& text) {
  for (const std::string& file : {path, path + ".old"}) {
    std::ifstream in(file, std::ios::binary);
    const std::string all{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (all.contains(text)) return true;
  }
  return false;
}

}  // namespace

Task<Result<ProgramResult>> run_program_in(UringLoop& loop, Container& container,
                                           std::vector<std::string> arguments, Duration timeout) {
  const ContainerSpecification& is = container.record().specification;
  unsigned shell_status = 0;
  const auto process = CO_TRY(co_await container.execute({.arguments = std::move(arguments),
                                                          .environment = is.environment,
                                                          .working_directory = is.working_directory,
                                                          .user = is.user},
                                                         shell_status));
  ProgramResult result;
  co_await take_output(loop, *process, result.output, Until::ended, timeout);
  const bool is_late = !process->end();
  if (!is_late)
    co_await take_output(loop, *process, result.output, Until::silent, last_words_patience);
  if (process->end()) result.end = *process->end();
  const bool is_lost = process->is_lost() && !process->end();
  co_await container.dismiss(process);
  if (is_lost) co_return failure(ErrorKind::disconnected, "the container has ended");
  if (is_late) co_return failure(ErrorKind::timed_out, "it did not end in time");
  co_return result;
}

Task<Result<std::string>> look_whether_ready(UringLoop& loop, Container& container,
                                             ReadyProbe probe) {
  switch (probe.kind) {
    case ReadyProbe::Kind::none: co_return std::string();
    case ReadyProbe::Kind::log:
      co_return has_written(container.log_path(), probe.text)
          ? std::string()
          : fmt::format("it has not written '{}'", probe.text);
    case ReadyProbe::Kind::exec: {
      const auto ran =
          co_await run_program_in(loop, container, {"/bin/sh", "-c", probe.text}, look_patience);
      if (!ran) co_return ran.error().message();
      if (ran->end.exit_code == 0) co_return std::string();
      co_return fmt::format("'{}' ends with {}{}{}", probe.text, ran->end.exit_code,
                            ran->output.empty() ? "" : ": ", ran->output);
    }
    case ReadyProbe::Kind::tcp:
    case ReadyProbe::Kind::http: {
      const bool is_http = probe.kind == ReadyProbe::Kind::http;
      const auto line = co_await ask_port(
          loop, container, probe.port,
          is_http ? fmt::format("GET {} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: berth\r\n\r\n",
                                probe.path)
                  : std::string());
      if (!line) co_return fmt::format("port {}: {}", probe.port, line.error().message());
      co_return is_http ? judge_status_line(*line) : std::string();
    }
  }
  co_return std::string();
}

}  // namespace berth::container
