#include "machine/vm/base64.h"

#include <climits>

#include <openssl/evp.h>

namespace berth::machine {

Result<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0 || text.size() > INT_MAX)
    return failure(ErrorKind::protocol, "this is no base64: its length is no multiple of 4");
  std::string bytes(text.size() / 4 * 3, '\0');
  const int length = ::EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                                       reinterpret_cast<const unsigned char*>(text.data()),
                                       static_cast<int>(text.size()));
  if (length < 0) return failure(ErrorKind::protocol, "this is no base64");
  // It counts the padding as bytes.
  std::size_t padding = 0;
  while (padding < 2 && text.size() > padding && text[text.size() - 1 - padding] == '=') ++padding;
  bytes.resize(static_cast<std::size_t>(length) - padding);
  return bytes;
}

}  // namespace berth::machine
