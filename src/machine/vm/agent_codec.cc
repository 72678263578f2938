#include "machine/vm/agent_codec.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <fmt/format.h>

#include "base/ids.h"

namespace berth::machine {
namespace {

constexpr std::byte delimiter{0xFF};
constexpr std::size_t token_line_max = 256;  // bytes; an answer with a token has about 20
constexpr std::size_t shown_max = 200;       // bytes of what no agent says

std::string format_request(std::string_view command, const Json& arguments) {
  Json request{{"execute", command}};
  if (!arguments.is_null()) request["arguments"] = arguments;
  return format_json(request) + '\n';
}

std::string format_synchronization(std::uint64_t token) {
  return static_cast<char>(delimiter) + format_request("guest-sync-delimited", {{"id", token}});
}

bool is_token(std::string_view line, std::uint64_t token) {
  const auto answer = parse_json(line, agent_depth_max);
  return answer && *answer == Json{{"return", token}};
}

std::unexpected<Error> refuse(std::string_view why, std::string_view line) {
  return failure(ErrorKind::protocol,
                 fmt::format("the guest agent says what no agent says ({}): {}",
                             printable(why, shown_max), printable(line, shown_max)));
}

}  // namespace

AgentExchange::AgentExchange(std::uint64_t token, std::string command, const Json& arguments,
                             Success success)
    : command_(std::move(command)), request_(format_request(command_, arguments)) {
  if (success == Success::silent) request_ += format_request("guest-ping", nullptr);
  begin_again(token);
}

void AgentExchange::begin_again(std::uint64_t token) {
  if (stage_ != Stage::synchronizing) return;
  token_ = token;
  output_ = format_synchronization(token);
}

std::string AgentExchange::take_output() {
  if (stage_ == Stage::synchronized) {
    stage_ = Stage::asked;
    return request_;
  }
  return std::exchange(output_, {});
}

Result<void> AgentExchange::receive(Bytes bytes) {
  if (stage_ == Stage::synchronizing) {
    bytes = skip_to_token(bytes);
    if (skipped_ > agent_skipped_max) {
      return failure(
          ErrorKind::limit,
          fmt::format("{} bytes came from the guest, and none of its agent's answers", skipped_));
    }
  }
  if (stage_ == Stage::synchronizing || answer_) return {};
  lines_.append(bytes);
  auto line = lines_.next();
  if (!line) {
    return failure(ErrorKind::limit, fmt::format("the guest agent's answer to {} has more than {} "
                                                 "bytes",
                                                 command_, agent_answer_max));
  }
  return *line ? take_answer(**line) : Result<void>();
}

/// What comes after the line with the token; nothing if it has not come yet.
Bytes AgentExchange::skip_to_token(Bytes bytes) {
  while (!bytes.empty()) {
    if (!delimited_) {
      const auto found = std::ranges::find(bytes, delimiter);
      const auto length = static_cast<std::size_t>(found - bytes.begin());
      skipped_ += length;
      if (found == bytes.end()) return {};
      delimited_.emplace();
      ++skipped_;
      bytes = bytes.subspan(length + 1);
      continue;
    }
    const auto end = std::ranges::find_if(
        bytes, [](std::byte b) { return b == delimiter || b == std::byte{'\n'}; });
    const auto length = static_cast<std::size_t>(end - bytes.begin());
    skipped_ += length;
    if (delimited_->size() <= token_line_max) *delimited_ += as_text(bytes.first(length));
    if (end == bytes.end()) return {};
    if (*end == delimiter) {  // the line that counts begins after it
      delimited_.reset();
      bytes = bytes.subspan(length);
      continue;
    }
    bytes = bytes.subspan(length + 1);
    ++skipped_;
    const std::string line = std::move(*delimited_);
    delimited_.reset();
    if (line.size() <= token_line_max && is_token(line, token_)) {
      stage_ = Stage::synchronized;
      return bytes;
    }
  }
  return {};
}

Result<void> AgentExchange::take_answer(std::string_view line) {
  if (stage_ != Stage::asked) return refuse("an answer before the request", line);
  auto parsed = parse_json(line, agent_depth_max);
  if (!parsed) return refuse(parsed.error().message(), line);
  if (!parsed->is_object()) return refuse("not an object", line);
  if (const auto error = parsed->find("error"); error != parsed->end()) {
    const Json& description = error->is_object() ? error->value("desc", Json()) : Json();
    if (!description.is_string()) return refuse("an error without a description", line);
    answer_ = failure(ErrorKind::precondition,
                      fmt::format("the guest agent refuses {}: {}", command_,
                                  printable(description.get_ref<const std::string&>())));
    return {};
  }
  const auto result = parsed->find("return");
  if (result == parsed->end()) return refuse("neither result nor error", line);
  answer_ = std::move(*result);
  return {};
}

std::uint64_t make_agent_token() {
  std::uint64_t token = 0;
  SystemRandom().fill(std::as_writable_bytes(std::span(&token, 1)));
  return token & static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
}

Result<unsigned> parse_agent_count(const Json& answer) {
  if (!answer.is_number_unsigned() ||
      answer.get<std::uint64_t>() > std::numeric_limits<unsigned>::max()) {
    return refuse("not a count", format_json(answer));
  }
  return answer.get<unsigned>();
}

Result<bool> parse_agent_is_frozen(const Json& answer) {
  if (answer == "frozen") return true;
  if (answer == "thawed") return false;
  return refuse("neither \"frozen\" nor \"thawed\"", format_json(answer));
}

}  // namespace berth::machine
