// For tests: what a client writes on the wire, field by field, big endian.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "nbd/codec.h"
#include "nbd/protocol.h"

namespace berth::nbd {

class Wire {
 public:
  template <std::unsigned_integral T>
  Wire& number(T value) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    store_be<T>(bytes_.data() + at, value);
    return *this;
  }
  Wire& text(std::string_view text) { return raw(as_bytes(text)); }
  Wire& raw(Bytes bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  /// 32 bits of length, then the text.
  Wire& counted(std::string_view text) {
    return number(static_cast<std::uint32_t>(text.size())).text(text);
  }

  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

inline Wire client_flags(std::uint32_t flags = flag_fixed_newstyle | flag_no_zeroes) {
  return Wire().number(flags);
}

inline Wire option(std::uint32_t number, Bytes data = {}) {
  return Wire()
      .number(option_magic)
      .number(number)
      .number(static_cast<std::uint32_t>(data.size()))
      .raw(data);
}
inline Wire option(Option which, Bytes data = {}) {
  return option(static_cast<std::uint32_t>(which), data);
}

/// The data of NBD_OPT_INFO and NBD_OPT_GO.
inline Wire info_data(std::string_view name, const std::vector<Info>& requests = {}) {
  Wire data;
  data.counted(name).number(static_cast<std::uint16_t>(requests.size()));
  for (const Info request : requests) data.number(static_cast<std::uint16_t>(request));
  return data;
}

/// The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
inline Wire context_data(std::string_view name, const std::vector<std::string>& queries) {
  Wire data;
  data.counted(name).number(static_cast<std::uint32_t>(queries.size()));
  for (const std::string& query : queries) data.counted(query);
  return data;
}

inline Wire wire_request(const Request& request) {
  return Wire()
      .number(request_magic)
      .number(request.flags)
      .number(static_cast<std::uint16_t>(request.type))
      .number(request.cookie)
      .number(request.offset)
      .number(request.length);
}

/// Big-endian fields out of what a server has sent; nothing past the end.
class WireReader {
 public:
  explicit WireReader(Bytes bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T number() {
    const Bytes bytes = raw(sizeof(T));
    return bytes.empty() ? T{0} : load_be<T>(bytes.data());
  }
  Bytes raw(std::size_t length) {
    if (length > bytes_.size()) {
      ok_ = false;
      bytes_ = {};
      return {};
    }
    const Bytes taken = bytes_.first(length);
    bytes_ = bytes_.subspan(length);
    return taken;
  }
  std::string text(std::size_t length) { return std::string(as_text(raw(length))); }
  std::size_t left() const { return bytes_.size(); }
  bool ok() const { return ok_; }

 private:
  Bytes bytes_;
  bool ok_ = true;
};

/// One reply of the option phase.
struct OptionAnswer {
  std::uint32_t option = 0;
  OptionReply type{};
  std::vector<std::byte> data;
};

inline OptionAnswer read_option_answer(WireReader& reader) {
  OptionAnswer answer;
  if (reader.number<std::uint64_t>() != option_reply_magic) return answer;
  answer.option = reader.number<std::uint32_t>();
  answer.type = static_cast<OptionReply>(reader.number<std::uint32_t>());
  const Bytes data = reader.raw(reader.number<std::uint32_t>());
  answer.data.assign(data.begin(), data.end());
  return answer;
}

}  // namespace berth::nbd
