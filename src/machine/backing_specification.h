// What a volume may stand on, as people write it and as it is kept in the volume.
//
//   /path, file:/path                       a raw image; without the prefix its format is looked at
//   qcow2:/path  vmdk:  vhdx:  vdi:  vpc:   an image of that format, read through qemu-nbd
//   volume:NAME@CHECKPOINT                  a checkpoint of another volume on this host
//   nbd://HOST[:PORT]/EXPORT, nbds://, nbd+unix:///EXPORT?socket=PATH, nbds+unix://
//
// Parsing is pure; looking at a file's format is one blocking read. An image whose format was only
// guessed may not name other files (a backing file, an extent), since its bytes may be a guest's,
// who would choose what the host opens.
#pragma once

#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace berth::machine {

struct BackingSpecification {
  enum class Kind : std::uint8_t {
    unknown_file,  // a path; its format is to be looked at
    raw_file,
    image,  // a path and a format
    volume_checkpoint,
    nbd
  };
  Kind kind = Kind::unknown_file;
  std::string path;    // absolute
  std::string format;  // of an image: qemu's name of it
  std::string volume;  // of a checkpoint
  std::string checkpoint;
  std::string uri;  // of an NBD export
};

constexpr std::size_t backing_length_max = 4096;  // bytes

/// invalid_argument if it is none of these.
Result<BackingSpecification> parse_backing(std::string_view text);
/// The inverse; of an unknown_file, the path alone.
std::string to_string(const BackingSpecification& backing);

constexpr std::size_t image_head_size =
    64 * 1024;  // bytes at a file's beginning that tell its format

struct ImageFormat {
  std::string name;                // qemu's name; "raw" where nothing is recognised
  bool names_other_files = false;  // or may do so
};
/// The format of the image that begins with `head`.
ImageFormat recognise_image(Bytes head);

/// Settles the format of an unknown_file; leaves the others as they are. Blocking. not_found,
/// in_use..., `invalid_argument` where it is neither a file nor a block device, or `precondition`
/// where the image may name other files.
Result<BackingSpecification> settle_format(BackingSpecification backing);

}  // namespace berth::machine
