#include "nbd/handshake.h"

#include <algorithm>
#include <bit>
#include <optional>

#include <fmt/format.h>

namespace berth::nbd {
namespace {

template <std::unsigned_integral T>
void append(std::vector<std::byte>& to, T value) {
  const std::size_t at = to.size();
  to.resize(at + sizeof value);
  store_be<T>(to.data() + at, value);
}

void append(std::vector<std::byte>& to, std::string_view text) {
  const Bytes bytes = as_bytes(text);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

/// NBD: Conventions. A string of ours that the protocol does not allow is cut.
std::string_view as_string(std::string_view text) {
  return text.substr(0, std::min(text.find('\0'), string_length_max));
}

std::uint32_t block_minimum_of(const ExportInfo& info) {
  return std::bit_floor(std::clamp<std::uint32_t>(info.block_minimum, 1, block_minimum_max));
}

/// NBD: Size constraints.
std::uint32_t block_preferred_of(const ExportInfo& info) {
  const std::uint32_t least = std::max<std::uint32_t>(block_minimum_of(info), 512);
  return std::bit_floor(std::clamp<std::uint32_t>(info.block_preferred, least, payload_length_max));
}

std::uint32_t block_maximum_of(const ExportInfo& info) {
  return std::clamp<std::uint32_t>(info.block_maximum, block_preferred_of(info),
                                   payload_length_max);
}

}  // namespace

/// The data of an option, field by field. Past its end everything is nothing, and ok() is false for
/// good.
class Handshake::OptionData {
 public:
  explicit OptionData(Bytes bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T number() {
    const Bytes bytes = take(sizeof(T));
    return bytes.empty() ? T{0} : load_be<T>(bytes.data());
  }
  /// NBD: Conventions. Strings have no NUL in them.
  std::string string(std::size_t length) {
    const std::string_view text = as_text(take(length));
    if (text.find('\0') != std::string_view::npos) ok_ = false;
    return std::string(text);
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && bytes_.empty(); }

 private:
  Bytes take(std::size_t length) {
    if (length > bytes_.size()) ok_ = false;
    if (!ok_) return {};
    const Bytes taken = bytes_.first(length);
    bytes_ = bytes_.subspan(length);
    return taken;
  }

  Bytes bytes_;
  bool ok_ = true;
};

/// NBD: Newstyle negotiation, Handshake flags.
Handshake::Handshake(TlsMode tls) : tls_mode_(tls) {
  append(output_, init_magic);
  append(output_, option_magic);
  append(output_, static_cast<std::uint16_t>(flag_fixed_newstyle | flag_no_zeroes));
}

Result<Handshake::Step> Handshake::receive(Bytes& input) {
  while (true) {
    const std::size_t before = input.size();
    const Step step = TRY(has_client_flags_ ? receive_option(input) : receive_client_flags(input));
    // Each answer is sent before the next option is looked at: a client that sends without reading
    // waits.
    if (step != Step::receive || input.size() == before || !output_.empty()) return step;
  }
}

/// NBD: Client flags.
Result<Handshake::Step> Handshake::receive_client_flags(Bytes& input) {
  if (input.size() < client_flags_size) return Step::receive;
  const auto flags = load_be<std::uint32_t>(input.data());
  input = input.subspan(client_flags_size);
  if ((flags & ~std::uint32_t{flag_fixed_newstyle | flag_no_zeroes}) != 0) {
    return failure(ErrorKind::protocol, fmt::format("unknown client flags {:#x}", flags));
  }
  no_zeroes_ = (flags & flag_no_zeroes) != 0;
  has_client_flags_ = true;
  return Step::receive;
}

/// NBD: Newstyle negotiation, the generic format of an option.
Result<Handshake::Step> Handshake::receive_option(Bytes& input) {
  if (skip_ != 0) {
    const std::size_t skipped = std::min(skip_, input.size());
    input = input.subspan(skipped);
    skip_ -= skipped;
    if (skip_ != 0) return Step::receive;
    return refuse(OptionReply::error_too_big, "the option is too long");
  }
  if (input.size() < option_header_size) return Step::receive;
  if (const auto magic = load_be<std::uint64_t>(input.data()); magic != option_magic) {
    return failure(ErrorKind::protocol,
                   fmt::format("an option begins with {:#018x}, not with IHAVEOPT", magic));
  }
  const auto length = load_be<std::uint32_t>(input.data() + 12);
  if (length > option_length_skipped_max) {
    return failure(ErrorKind::protocol, fmt::format("an option of {} bytes", length));
  }
  const bool too_long = length > option_length_max;
  if (!too_long && input.size() - option_header_size < length) return Step::receive;

  if (++options_seen_ > options_max) {
    return failure(ErrorKind::protocol, fmt::format("more than {} options", options_max));
  }
  option_ = load_be<std::uint32_t>(input.data() + 8);
  input = input.subspan(option_header_size);
  if (too_long) {
    skip_ = length;
    if (option_ == static_cast<std::uint32_t>(Option::export_name)) return Step::end;
    if (option_ == static_cast<std::uint32_t>(Option::set_meta_context)) forget_contexts();
    return receive_option(input);
  }
  const Bytes data = input.first(length);
  input = input.subspan(length);
  return begin_option(data);
}

/// NBD: Option types; FORCEDTLS mode.
Handshake::Step Handshake::begin_option(Bytes data) {
  const auto option = static_cast<Option>(option_);
  if (tls_mode_ == TlsMode::required && !tls_started_ && option != Option::starttls &&
      option != Option::abort) {
    if (option == Option::export_name) return Step::end;
    return refuse(OptionReply::error_tls_required, "this server requires TLS");
  }
  switch (option) {
    case Option::export_name: return begin_export_name(data);
    case Option::abort: reply(OptionReply::ack, {}); return Step::end;
    case Option::list: return begin_list(data);
    case Option::starttls: return begin_starttls(data);
    case Option::info:
    case Option::go: return begin_info(data);
    case Option::structured_reply: return begin_structured_reply(data);
    case Option::list_meta_context:
    case Option::set_meta_context: return begin_meta_context(data);
    case Option::extended_headers: break;  // an extension that is not served here
  }
  return refuse(OptionReply::error_unsupported, "this server does not know the option");
}

/// NBD: Option types, NBD_OPT_EXPORT_NAME. It has no way to report an error but to close.
Handshake::Step Handshake::begin_export_name(Bytes data) {
  OptionData fields(data);
  export_name_ = fields.string(data.size());
  if (!fields.ok() || data.size() > string_length_max) return Step::end;
  return Step::find_export;
}

/// NBD: Option types, NBD_OPT_LIST.
Handshake::Step Handshake::begin_list(Bytes data) {
  if (!data.empty()) return refuse(OptionReply::error_invalid, "NBD_OPT_LIST has no data");
  return Step::list_exports;
}

/// NBD: Option types, NBD_OPT_STARTTLS; Server-side requirements.
Handshake::Step Handshake::begin_starttls(Bytes data) {
  if (!data.empty()) return refuse(OptionReply::error_invalid, "NBD_OPT_STARTTLS has no data");
  if (tls_started_) return refuse(OptionReply::error_invalid, "TLS has been started already");
  if (tls_mode_ == TlsMode::off)
    return refuse(OptionReply::error_policy, "this server does not offer TLS here");
  reply(OptionReply::ack, {});
  return Step::start_tls;
}

/// NBD: Option types, NBD_OPT_STARTTLS: nothing said in the clear counts any more.
void Handshake::tls_started() {
  tls_started_ = true;
  structured_replies_ = false;
  forget_contexts();
}

/// NBD: Option types, NBD_OPT_INFO and NBD_OPT_GO.
Handshake::Step Handshake::begin_info(Bytes data) {
  OptionData fields(data);
  const auto name_length = fields.number<std::uint32_t>();
  export_name_ = fields.string(name_length);
  const auto count = fields.number<std::uint16_t>();
  information_requests_.clear();
  for (std::size_t i = 0; i < count && fields.ok(); ++i) {
    information_requests_.push_back(fields.number<std::uint16_t>());
  }
  if (!fields.at_end()) return refuse(OptionReply::error_invalid, "the option is malformed");
  if (name_length > string_length_max)
    return refuse(OptionReply::error_too_big, "the export name is too long");
  if (count > information_requests_max)
    return refuse(OptionReply::error_too_big, "too many information requests");
  return Step::find_export;
}

/// NBD: Option types, NBD_OPT_STRUCTURED_REPLY.
Handshake::Step Handshake::begin_structured_reply(Bytes data) {
  if (!data.empty())
    return refuse(OptionReply::error_invalid, "NBD_OPT_STRUCTURED_REPLY has no data");
  structured_replies_ = true;
  return acknowledge();
}

/// NBD: Option types, NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
Handshake::Step Handshake::begin_meta_context(Bytes data) {
  if (static_cast<Option>(option_) == Option::set_meta_context) forget_contexts();
  if (!structured_replies_)
    return refuse(OptionReply::error_invalid, "negotiate structured replies first");
  OptionData fields(data);
  const auto name_length = fields.number<std::uint32_t>();
  export_name_ = fields.string(name_length);
  const auto count = fields.number<std::uint32_t>();
  queries_.clear();
  if (fields.ok() && count > context_queries_max)
    return refuse(OptionReply::error_too_big, "too many queries");
  bool too_long = name_length > string_length_max;
  for (std::size_t i = 0; i < count && fields.ok(); ++i) {
    const auto length = fields.number<std::uint32_t>();
    too_long = too_long || length > string_length_max;
    queries_.push_back(fields.string(length));
  }
  if (!fields.at_end()) return refuse(OptionReply::error_invalid, "the option is malformed");
  if (too_long) return refuse(OptionReply::error_too_big, "a string is too long");
  return Step::find_export;
}

/// A selection replaces the one before, also when it fails.
void Handshake::forget_contexts() {
  contexts_export_.clear();
  contexts_.clear();
}

Handshake::Step Handshake::found(const ExportInfo& info) {
  switch (static_cast<Option>(option_)) {
    case Option::export_name: return found_for_export_name(info);
    case Option::info:
    case Option::go: return found_for_info(info);
    default: return found_for_meta_context(info);
  }
}

Handshake::Step Handshake::not_found(const Error& error) {
  if (static_cast<Option>(option_) == Option::export_name) return Step::end;
  const bool policy = error.kind() == ErrorKind::permission;
  return refuse(policy ? OptionReply::error_policy : OptionReply::error_unknown, error.message());
}

/// NBD: Newstyle negotiation, the reply to NBD_OPT_EXPORT_NAME.
Handshake::Step Handshake::found_for_export_name(const ExportInfo& info) {
  begin_session(info);
  append(output_, session_.size);
  append(output_, session_.transmission_flags);
  if (!no_zeroes_) output_.resize(output_.size() + export_name_padding_size);
  return Step::transmit;
}

Handshake::Step Handshake::found_for_info(const ExportInfo& info) {
  begin_session(info);
  reply_information(info);
  acknowledge();
  return static_cast<Option>(option_) == Option::go ? Step::transmit : Step::receive;
}

/// NBD: Option reply types, NBD_REP_INFO.
void Handshake::reply_information(const ExportInfo& info) {
  const auto wants = [this](Info what) {
    return std::ranges::find(information_requests_, static_cast<std::uint16_t>(what)) !=
           information_requests_.end();
  };
  const auto begin = [](Info what) {
    std::vector<std::byte> data;
    append(data, static_cast<std::uint16_t>(what));
    return data;
  };
  std::vector<std::byte> data = begin(Info::export_);
  append(data, session_.size);
  append(data, session_.transmission_flags);
  reply(OptionReply::info, data);
  if (wants(Info::name)) {
    data = begin(Info::name);
    append(data, as_string(info.name));
    reply(OptionReply::info, data);
  }
  if (wants(Info::description) && !info.description.empty()) {
    data = begin(Info::description);
    append(data, as_string(info.description));
    reply(OptionReply::info, data);
  }
  // Also unasked, where a client could otherwise not know (NBD: Size constraints).
  if (wants(Info::block_size) || session_.block_minimum > 1) {
    data = begin(Info::block_size);
    append(data, session_.block_minimum);
    append(data, block_preferred_of(info));
    append(data, session_.block_maximum);
    reply(OptionReply::info, data);
  }
}

/// What the transmission phase would be, if it began now.
void Handshake::begin_session(const ExportInfo& info) {
  const bool contexts_hold = contexts_export_ == export_name_;
  const bool begins = static_cast<Option>(option_) == Option::go ||
                      static_cast<Option>(option_) == Option::export_name;
  if (begins && !contexts_hold) contexts_.clear();  // they were selected for another export
  session_ = {.size = info.size,
              .transmission_flags = transmission_flags(info, structured_replies_),
              .block_minimum = block_minimum_of(info),
              .block_maximum = block_maximum_of(info),
              .structured_replies = structured_replies_,
              .context_count = contexts_hold ? contexts_.size() : 0};
}

/// NBD: Metadata querying; The `base:` metadata namespace. To list, a query that ends in a colon
/// stands for all contexts that begin with it ("base:", "qemu:", "qemu:dirty-bitmap:"), and no
/// query at all for all there are.
bool Handshake::matches_query(std::string_view context) const {
  const bool list = static_cast<Option>(option_) == Option::list_meta_context;
  if (list && queries_.empty()) return true;
  return std::ranges::any_of(queries_, [&](std::string_view query) {
    return query == context || (list && query.ends_with(':') && context.starts_with(query));
  });
}

/// NBD: Option reply types, NBD_REP_META_CONTEXT.
Handshake::Step Handshake::found_for_meta_context(const ExportInfo& info) {
  std::vector<std::string> matching;
  if (matches_query(base_allocation)) matching.emplace_back(base_allocation);
  std::ranges::copy_if(info.contexts, std::back_inserter(matching),
                       [this](const std::string& context) { return matches_query(context); });
  const bool select = static_cast<Option>(option_) == Option::set_meta_context;
  if (select && matching.size() > contexts_max) {
    return refuse(OptionReply::error_too_big,
                  fmt::format("at most {} contexts can be selected", contexts_max));
  }
  for (std::size_t id = 0; id < matching.size(); ++id) {
    std::vector<std::byte> data;
    append(data, select ? static_cast<std::uint32_t>(id) : 0U);
    append(data, as_string(matching[id]));
    reply(OptionReply::meta_context, data);
  }
  if (select) {
    contexts_ = std::move(matching);
    contexts_export_ = export_name_;
  }
  return acknowledge();
}

/// NBD: Option reply types, NBD_REP_SERVER.
Handshake::Step Handshake::listed(const std::vector<ListedExport>& exports) {
  for (const ListedExport& listed : exports) {
    const std::string_view name = as_string(listed.name);
    std::vector<std::byte> data;
    append(data, static_cast<std::uint32_t>(name.size()));
    append(data, name);
    append(data, as_string(listed.description));  // the rest is for display
    reply(OptionReply::server, data);
  }
  return acknowledge();
}

/// NBD: Fixed newstyle negotiation, the format of a reply.
void Handshake::reply(OptionReply type, Bytes data) {
  append(output_, option_reply_magic);
  append(output_, option_);
  append(output_, static_cast<std::uint32_t>(type));
  append(output_, static_cast<std::uint32_t>(data.size()));
  output_.insert(output_.end(), data.begin(), data.end());
}

Handshake::Step Handshake::acknowledge() {
  reply(OptionReply::ack, {});
  return Step::receive;
}

Handshake::Step Handshake::refuse(OptionReply type, std::string_view message) {
  reply(type, as_bytes(as_string(message)));
  return Step::receive;
}

}  // namespace berth::nbd
