#include "machine/vm/page_files.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <string_view>
#include <system_error>
#include <utility>

#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "base/log.h"
#include "base/units.h"
#include "machine/host/available_memory.h"
#include "memory/page_file.h"
#include "memory/parking.h"

namespace berth::machine {
namespace {

namespace fs = std::filesystem;
using memory::GuestMemory;
using memory::GuestProcess;

constexpr std::string_view name_begin = "pages-";
constexpr std::uint64_t piece_max = 64 * MiB;  // copied in some tens of milliseconds
constexpr std::uint64_t status_block = 512;    // of st_blocks, stat(2)
constexpr std::uint64_t cached_share = 64;     // one part in so many of what the host has left

/// By their numbers.
std::map<std::uint64_t, std::string> page_files_in(const std::string& directory) {
  std::map<std::uint64_t, std::string> found;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename();
    if (!name.starts_with(name_begin)) continue;
    const std::string_view digits = std::string_view(name).substr(name_begin.size());
    std::uint64_t number = 0;
    const auto [last, code] = std::from_chars(digits.begin(), digits.end(), number);
    if (code == std::errc() && last == digits.end()) found.emplace(number, it->path());
  }
  return found;
}

std::string name_of(const std::string& path) { return fs::path(path).filename(); }

}  // namespace

std::string PageFiles::path_of(const std::string& name) const {
  return fmt::format("{}/{}", directory_, name);
}

std::vector<std::string> PageFiles::paths() const {
  std::vector<std::string> paths;
  for (const auto& [number, path] : page_files_in(directory_)) paths.push_back(path);
  return paths;
}

std::string PageFiles::next_path() const {
  const auto there = page_files_in(directory_);
  const std::uint64_t last = there.empty() ? 0 : there.rbegin()->first;
  return fmt::format("{}/{}{}", directory_, name_begin, last + 1);
}

void PageFiles::log_failure(const Error& error) { log_warning("page files: {}", error.message()); }

Result<PageFiles::Report> PageFiles::trim(const GuestProcess& process) const {
  const auto memory = TRY(GuestMemory::open(process));
  Report report{.before = TRY(memory_use(*memory)), .after = {}};
  TRY(memory::trim(*memory));
  report.after = TRY(memory_use(*memory));
  return report;
}

void PageFiles::inherit_working_set(const std::string& newest) const {
  auto file = memory::PageFile::open(newest);
  if (!file) return log_failure(file.error());
  memory::GranuleSet known(file->memory_size());
  for (const std::string& path : paths()) {
    const auto earlier = memory::PageFile::open(path);
    if (earlier && earlier->memory_size() == file->memory_size()) known.add(earlier->working_set());
  }
  if (const auto noted = file->set_working_set(known); !noted) log_failure(noted.error());
}

Result<PageFiles::Report> PageFiles::park(const GuestProcess& process) const {
  const auto memory = TRY(GuestMemory::open(process));
  const std::string newest = next_path();
  const memory::ParkReport parked = TRY(memory::park(*memory, newest));
  inherit_working_set(newest);
  for (const std::string& path : paths())
    if (const auto released = release_unmapped(*memory, path); !released)
      log_failure(released.error());
  Report report{.before = parked.before, .after = parked.after};
  // What is left is QEMU's own.
  const auto trimmed = memory::trim(*memory);
  if (!trimmed && trimmed.error().kind() != ErrorKind::precondition) log_failure(trimmed.error());
  if (trimmed) report.after = TRY(memory_use(*memory));
  keep_first_in_cache();
  return report;
}

Result<PageFiles::Saved> PageFiles::save(const GuestProcess& process) const {
  const auto memory = TRY(GuestMemory::open(process));
  if (const auto there = page_files_in(directory_); !there.empty()) {
    // Parked, and not written to since.
    const std::string& newest = there.rbegin()->second;
    if (TRY(is_saved_in(*memory, newest)))
      return Saved{.name = name_of(newest), .before = TRY(memory_use(*memory))};
  }
  const std::string path = next_path();
  const memory::SaveReport saved = TRY(memory::save(*memory, path));
  inherit_working_set(path);
  return Saved{.name = name_of(path), .before = saved.before};
}

void PageFiles::leave_only(const std::string& name) const {
  remove_all_but(name);
  auto file = memory::PageFile::open(path_of(name));
  if (!file) return log_failure(file.error());
  file->drop_cache();
}

std::vector<memory::PageFile> PageFiles::open_all() const {
  std::vector<memory::PageFile> files;
  for (const std::string& path : paths()) {
    if (auto file = memory::PageFile::open(path))
      files.push_back(std::move(*file));
    else
      log_failure(file.error());
  }
  return files;
}

void PageFiles::read_ahead(std::vector<memory::PageFile> files) {
  for (memory::PageFile& file : files)
    if (const auto asked = file.prefetch(); !asked) log_failure(asked.error());
}

void PageFiles::read_ahead() const { read_ahead(open_all()); }

void PageFiles::bring_forward(pid_t qemu, const std::vector<memory::PageRegion>& own) const {
  read_ahead();
  if (const auto asked = memory::swap_in(qemu, own); !asked) log_failure(asked.error());
}

/// There it is nobody's: it goes as soon as anybody needs the memory.
void PageFiles::keep_first_in_cache() const {
  auto files = open_all();
  std::uint64_t wanted = 0;
  for (const memory::PageFile& file : files) wanted += total_length(file.working_set().ranges());
  if (wanted <= available_memory() / cached_share) read_ahead(std::move(files));
}

std::vector<memory::PageRegion> PageFiles::note_working_set(const GuestProcess& process) const {
  if (const auto there = paths(); !there.empty()) note_in(there, process);
  auto own = memory::own_pages(process.pid);
  if (own) return *std::move(own);
  log_failure(own.error());
  return {};
}

void PageFiles::note_in(const std::vector<std::string>& paths, const GuestProcess& process) {
  const auto memory = GuestMemory::open(process);
  if (!memory) return log_failure(memory.error());
  for (const std::string& path : paths)
    if (const auto noted = record_working_set(**memory, path); !noted) log_failure(noted.error());
}

Result<void> PageFiles::bring_back(const GuestProcess& process) const {
  if (paths().empty()) return {};
  const auto memory = TRY(GuestMemory::open(process));
  (void)TRY(restore(*memory));
  remove_all();
  return {};
}

Result<bool> PageFiles::bring_piece_back(const GuestProcess& process) const {
  const auto memory = TRY(GuestMemory::open(process));
  return restore(*memory, piece_max);
}

Result<void> PageFiles::prepare_piece(const GuestProcess& process) const {
  const auto memory = TRY(GuestMemory::open(process));
  return read_in(*memory, piece_max);
}

void PageFiles::remove_unused(const GuestProcess& process) const {
  if (paths().empty()) return;
  const auto memory = GuestMemory::open(process);
  if (!memory) return log_failure(memory.error());
  for (const std::string& path : paths())
    if (const auto released = release_unmapped(**memory, path); !released)
      log_failure(released.error());
}

void PageFiles::remove_all() const { remove_all_but(""); }

void PageFiles::remove_all_but(const std::string& name) const {
  for (const std::string& path : paths())
    if (name_of(path) != name && ::unlink(path.c_str()) != 0)
      log_warning("cannot remove the page file '{}'", path);
}

std::uint64_t PageFiles::disk_bytes() const {
  std::uint64_t total = 0;
  for (const std::string& path : paths()) total += disk_bytes(name_of(path));
  return total;
}

std::uint64_t PageFiles::disk_bytes(const std::string& name) const {
  struct stat status{};
  if (::stat(path_of(name).c_str(), &status) != 0) return 0;
  return static_cast<std::uint64_t>(status.st_blocks) * status_block;
}

}  // namespace berth::machine
