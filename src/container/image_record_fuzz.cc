// The readers of what images say of themselves, from any bytes. What they take comes back as it
// was; what they refuse is refused in one printable line.
//
// Input: the text of a document, or a name.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "container/image_archive.h"
#include "container/image_name.h"
#include "container/image_record.h"
#include "container/program_run.h"

namespace berth::container {
namespace {

bool is_printable(std::string_view text) {
  return std::ranges::none_of(text, [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; });
}

template <typename T>
void check_refusal(const Result<T>& result) {
  if (result) return;
  CHECK(result.error().kind() != ErrorKind::internal);
  CHECK(result.error().message().size() < 1024);
  CHECK(is_printable(result.error().message()));
}

void try_text(std::string_view text) {
  const auto name = parse_image_name(text);
  check_refusal(name);
  if (name) CHECK(MUST(parse_image_name(name->text())) == *name);

  const auto manifest = decode_manifest(text);
  check_refusal(manifest);
  const auto index = decode_index(text);
  check_refusal(index);
  if (index) CHECK(MUST(decode_index(encode_index(*index))) == *index);
  check_refusal(platforms_of(text));
  check_refusal(images_of_index(text));
  check_refusal(images_of_docker_manifest(text));

  ImageRecord record{.digest = "sha256:" + std::string(64, 'a'),
                     .config_digest = "sha256:" + std::string(64, 'b')};
  const auto config = decode_config(text, record);
  check_refusal(config);
  if (config) CHECK(MUST(decode_image_record(encode(record).dump())) == record);
  const auto kept = decode_image_record(text);
  check_refusal(kept);
  if (kept) CHECK(MUST(decode_image_record(encode(*kept).dump())) == *kept);

  CHECK(is_printable(last_words(text)));
}

}  // namespace
}  // namespace berth::container

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  berth::container::try_text({reinterpret_cast<const char*>(data), size});
  return 0;
}
