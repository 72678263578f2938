#include "container/cpio.h"

#include <array>
#include <utility>

#include <sys/stat.h>

#include <fmt/format.h>

namespace berth::container {
namespace {

constexpr std::size_t alignment = 4;
constexpr std::size_t archive_alignment = 512;

void pad(std::string& archive, std::size_t to) {
  archive.resize((archive.size() + to - 1) / to * to, '\0');
}

}  // namespace

void CpioWriter::add(const Entry& entry) {
  const bool is_last = entry.mode == 0;
  const std::array<std::uint32_t, 13> fields{is_last ? 0 : ++inode_,
                                             entry.mode,
                                             0,  // owner
                                             0,  // group
                                             entry.links,
                                             0,  // time
                                             static_cast<std::uint32_t>(entry.content.size()),
                                             0,  // of the device that the file is on
                                             0,
                                             entry.device_major,
                                             entry.device_minor,
                                             static_cast<std::uint32_t>(entry.path.size() + 1),
                                             0};  // checksum: "newc" has none
  archive_ += "070701";
  for (const std::uint32_t field : fields) archive_ += fmt::format("{:08X}", field);
  archive_ += entry.path;
  archive_ += '\0';
  pad(archive_, alignment);
  archive_ += as_text(entry.content);
  pad(archive_, alignment);
}

void CpioWriter::add_directory(std::string_view path, std::uint32_t mode) {
  add({.path = path, .mode = S_IFDIR | mode, .links = 2});
}

void CpioWriter::add_file(std::string_view path, std::uint32_t mode, Bytes content) {
  add({.path = path, .mode = S_IFREG | mode, .content = content});
}

void CpioWriter::add_character_device(std::string_view path, std::uint32_t mode,
                                      std::uint32_t major, std::uint32_t minor) {
  add({.path = path, .mode = S_IFCHR | mode, .device_major = major, .device_minor = minor});
}

std::string CpioWriter::finish() {
  add({.path = "TRAILER!!!"});
  pad(archive_, archive_alignment);
  return std::move(archive_);
}

}  // namespace berth::container
