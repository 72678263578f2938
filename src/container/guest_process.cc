#include "container/guest_process.h"

#include <utility>

namespace berth::container {
namespace {

using agent::FieldWriter;
using agent::Operation;
using agent::Tag;

constexpr Duration start_timeout = std::chrono::seconds(30);
constexpr Duration request_timeout = std::chrono::seconds(10);
/// How long a guest goes on after its main process's end while nobody asks how that was: as long as
/// a daemon may be away.
constexpr std::uint64_t linger_ms = 600'000;
constexpr unsigned signal_base = 128;

}  // namespace

std::optional<ProcessEnd> decode_end(const agent::Field& field) {
  const auto number = static_cast<unsigned>(agent::number_of(field).value_or(0));
  if (field.tag == Tag::exit_code) return ProcessEnd{.exit_code = number & 0xFF, .signal = 0};
  if (field.tag != Tag::exit_signal) return std::nullopt;
  return ProcessEnd{.exit_code = signal_base + (number & 0x7F), .signal = number & 0x7F};
}

std::optional<ProcessEnd> decode_end(const agent::Fields& fields) {
  for (const agent::Field& field : fields)
    if (const auto end = decode_end(field)) return end;
  return std::nullopt;
}

GuestProcess::GuestProcess(UringLoop& loop, std::shared_ptr<AgentLink> link, std::uint32_t number,
                           ProcessSpecification specification)
    : link_(std::move(link)),
      number_(number),
      specification_(std::move(specification)),
      changed_(loop) {}

GuestProcess::~GuestProcess() {
  for (const std::uint32_t stream : streams_) link_->close_stream(stream);
}

Result<void> GuestProcess::open_streams(const Positions& positions) {
  const auto open = [this](std::uint32_t which) -> Result<agent::Stream*> {
    const std::uint32_t number = agent::stream_of(number_, which);
    agent::Stream* stream = TRY(link_->open_stream(number, [this] { changed_.notify_all(); }));
    streams_.push_back(number);
    return stream;
  };
  const auto incoming = [](std::uint64_t position) {
    return agent::IncomingStream(position, agent::stream_window,
                                 agent::IncomingStream::Gaps::counted);
  };
  if (specification_.terminal || specification_.input) {
    agent::Stream* stream = TRY(open(agent::stream_input));
    stream->out.emplace(positions.input, positions.input_limit);
    if (specification_.terminal) stream->in = incoming(positions.output);
  }
  if (specification_.terminal) return {};
  TRY(open(agent::stream_output))->in = incoming(positions.output);
  TRY(open(agent::stream_errors))->in = incoming(positions.errors);
  return {};
}

Task<Result<void>> GuestProcess::start() {
  shell_status_ = 125;  // neither the program's matter
  CO_TRY(open_streams({}));
  FieldWriter request(Operation::start);
  request.number(Tag::process, number_);
  for (const std::string& word : specification_.arguments) request.text(Tag::argument, word);
  for (const std::string& variable : specification_.environment)
    request.text(Tag::environment, variable);
  if (!specification_.working_directory.empty())
    request.text(Tag::working_directory, specification_.working_directory);
  if (!specification_.user.empty()) request.text(Tag::user, specification_.user);
  std::uint64_t flags = 0;
  if (specification_.terminal) flags |= agent::start_terminal;
  if (specification_.input) flags |= agent::start_with_input;
  if (specification_.is_main) {
    flags |= agent::start_main;
    request.number(Tag::linger_ms, linger_ms);
  }
  request.number(Tag::flags, flags);
  request.number(Tag::rows, specification_.rows).number(Tag::columns, specification_.columns);
  const AgentAnswer answer = CO_TRY(co_await link_->ask(std::move(request), start_timeout));
  if (auto error = agent::read_error(answer.fields())) {
    if (const auto status = answer.fields().number(Tag::shell_status))
      shell_status_ = static_cast<unsigned>(*status & 0xFF);
    co_return failure(*std::move(error));
  }
  shell_status_ = 0;
  co_return Result<void>{};
}

Result<void> GuestProcess::go_on(const Positions& positions) { return open_streams(positions); }

agent::Stream* GuestProcess::stream(std::uint32_t which) {
  return link_->stream(agent::stream_of(number_, which));
}

agent::IncomingStream* GuestProcess::output() {
  agent::Stream* found =
      stream(specification_.terminal ? agent::stream_input : agent::stream_output);
  return found != nullptr && found->in ? &*found->in : nullptr;
}

agent::IncomingStream* GuestProcess::errors() {
  if (specification_.terminal) return nullptr;
  agent::Stream* found = stream(agent::stream_errors);
  return found != nullptr && found->in ? &*found->in : nullptr;
}

agent::OutgoingStream* GuestProcess::input() {
  agent::Stream* found = stream(agent::stream_input);
  return found != nullptr && found->out ? &*found->out : nullptr;
}

void GuestProcess::set_end(ProcessEnd end) {
  end_ = end;
  changed_.notify_all();
}

bool GuestProcess::is_silent() {
  const auto is_done = [](agent::IncomingStream* in) { return in == nullptr || in->is_at_end(); };
  return is_done(output()) && is_done(errors());
}

bool GuestProcess::is_over() { return end_ && is_silent(); }

Task<Result<void>> GuestProcess::signal(unsigned number) {
  FieldWriter request(Operation::signal);
  request.number(Tag::process, number_)
      .number(Tag::signal, number)
      .number(Tag::scope, agent::scope_process);
  CO_TRY(co_await link_->request(std::move(request), request_timeout));
  co_return Result<void>{};
}

Task<Result<void>> GuestProcess::resize(std::uint16_t rows, std::uint16_t columns) {
  FieldWriter request(Operation::resize);
  request.number(Tag::process, number_).number(Tag::rows, rows).number(Tag::columns, columns);
  CO_TRY(co_await link_->request(std::move(request), request_timeout));
  co_return Result<void>{};
}

Task<> GuestProcess::forget() {
  FieldWriter request(Operation::forget);
  request.number(Tag::process, number_);
  (void)co_await link_->request(std::move(request), request_timeout);
}

}  // namespace berth::container
