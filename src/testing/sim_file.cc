#include "testing/sim_file.h"

#include <utility>

#include <fmt/format.h>

#include "testing/sim_loop.h"
#include "testing/sim_operation.h"

namespace berth {
namespace {

/// A name in a directory, never a path: what openat() would make of one is not simulated.
bool is_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos;
}

}  // namespace

SimFile::SimFile(std::shared_ptr<SimDescription> description)
    : description_(std::move(description)) {}

SimFile::~SimFile() {
  description_->closed = true;
  if (description_->in_flight == 0) description_->host.release_lock(*description_);
}

void SimFile::submit(FileRequest& request) {
  CHECK(!description_->closed);  // else its process is dead
  description_->host.submit(description_, request);
}

Result<void> SimFile::blocking_call(std::uint32_t kind, const char* what, bool changes) {
  CHECK(!description_->closed);  // else its process is dead
  const int error = description_->host.blocking_call(kind, what, description_->path, changes);
  if (error != 0)
    return errno_failure(error, fmt::format("cannot {} '{}'", what, description_->path));
  return {};
}

Result<std::uint64_t> SimFile::size() {
  TRY(blocking_call(fault_on::query, "tell the size of", false));
  return description_->node->content->size();
}

Result<void> SimFile::truncate(std::uint64_t size) {
  TRY(blocking_call(fault_on::truncate, "change the size of", true));
  if (description_->options.read_only) {
    return errno_failure(EINVAL, fmt::format("cannot change the size of '{}'", description_->path));
  }
  SimHost& host = description_->host;
  description_->node->content->truncate(size, ++host.operation_count_);
  description_->node->modified_ns = host.file_time();
  return {};
}

Result<FileIdentity> SimFile::identity() {
  TRY(blocking_call(fault_on::query, "identify", false));
  const SimNode& node = *description_->node;
  return FileIdentity{.size = node.content->size(),
                      .inode = node.inode,
                      .device = 0x801,
                      .modified_ns = node.modified_ns,
                      .device_id = {}};
}

Result<std::uint64_t> SimFile::next_data(std::uint64_t offset) {
  TRY(blocking_call(fault_on::query, "look for data in", false));
  return description_->node->content->next_data(offset);
}

Result<std::uint64_t> SimFile::next_hole(std::uint64_t offset) {
  TRY(blocking_call(fault_on::query, "look for holes in", false));
  return description_->node->content->next_hole(offset);
}

const std::string& SimFile::name() const { return description_->path; }

Result<void> SimDirectory::blocking_call(std::uint32_t kind, const char* what,
                                         const std::string& path, bool changes) {
  const int error = host_.blocking_call(kind, what, path, changes);
  if (error != 0) return errno_failure(error, fmt::format("cannot {} '{}'", what, path));
  return {};
}

std::shared_ptr<SimNode> SimDirectory::find(const std::string& name) const {
  const auto found = node_->entries.find(name);
  return found == node_->entries.end() ? nullptr : found->second;
}

Result<std::unique_ptr<File>> SimDirectory::open(const std::string& name, OpenOptions options) {
  const std::string path = path_of(name);
  const auto refuse = [&](int error) {
    return errno_failure(error, fmt::format("cannot open '{}'", path));
  };
  if (!is_name(name)) return refuse(EINVAL);
  std::shared_ptr<SimNode> node = find(name);
  if (node && options.create && options.exclusive) return refuse(EEXIST);
  if (!node && !options.create) return refuse(ENOENT);
  if (node && node->is_directory()) return refuse(EISDIR);
  TRY(blocking_call(fault_on::open, "open", path, !options.read_only || !node));
  const bool made = !node;
  if (made) {
    node = host_.make_node(false);
    node->modified_ns = node->durable_modified_ns = host_.file_time();
    node_->create_name(name, node);
  }
  auto description = std::make_shared<SimDescription>(host_, &loop_, node, path, options);
  if (options.lock && !host_.take_lock(description)) {
    return errno_failure(EWOULDBLOCK, fmt::format("cannot lock '{}': it is open elsewhere", path));
  }
  return std::make_unique<SimFile>(std::move(description));
}

Result<std::unique_ptr<Directory>> SimDirectory::open_directory(const std::string& name,
                                                                bool create) {
  const std::string path = path_of(name);
  const auto refuse = [&](int error) {
    return errno_failure(error, fmt::format("cannot open directory '{}'", path));
  };
  if (!is_name(name)) return refuse(EINVAL);
  std::shared_ptr<SimNode> node = find(name);
  if (!node && !create) return refuse(ENOENT);
  if (node && !node->is_directory()) return refuse(ENOTDIR);
  TRY(blocking_call(fault_on::open, "open directory", path, !node));
  if (!node) {
    node = host_.make_node(true);
    node_->create_name(name, node);
  }
  return std::make_unique<SimDirectory>(host_, loop_, std::move(node), path);
}

Result<bool> SimDirectory::exists(const std::string& name) {
  TRY(blocking_call(fault_on::query, "look for", path_of(name), false));
  return find(name) != nullptr;
}

Result<void> SimDirectory::remove(const std::string& name) {
  const std::string path = path_of(name);
  TRY(blocking_call(fault_on::remove, "remove", path, true));
  const std::shared_ptr<SimNode> node = find(name);
  if (!node) return errno_failure(ENOENT, fmt::format("cannot remove '{}'", path));
  if (node->is_directory() && !node->entries.empty()) {
    return errno_failure(ENOTEMPTY, fmt::format("cannot remove '{}'", path));
  }
  node_->remove_name(name);
  return {};
}

Result<void> SimDirectory::rename(const std::string& from, const std::string& to) {
  const std::string path = path_of(from);
  TRY(blocking_call(fault_on::rename, "rename", path, true));
  const auto refuse = [&](int error) {
    return errno_failure(error, fmt::format("cannot rename '{}' to '{}'", path, to));
  };
  const std::shared_ptr<SimNode> node = find(from);
  const std::shared_ptr<SimNode> target = find(to);
  if (!node) return refuse(ENOENT);
  if (!is_name(to)) return refuse(EINVAL);
  if (target == node) return {};
  if (target && target->is_directory() && !node->is_directory()) return refuse(EISDIR);
  if (target && !target->is_directory() && node->is_directory()) return refuse(ENOTDIR);
  if (target && target->is_directory() && !target->entries.empty()) return refuse(ENOTEMPTY);
  node_->rename_name(from, to);
  return {};
}

Result<std::vector<std::string>> SimDirectory::list() {
  TRY(blocking_call(fault_on::list, "list", path_, false));
  std::vector<std::string> names;
  for (const auto& [name, node] : node_->entries) names.push_back(name);
  host_.random_.shuffle(names);
  return names;
}

Result<void> SimDirectory::sync() {
  TRY(blocking_call(fault_on::sync_directory, "sync", path_, false));
  node_->sync_names();
  return {};
}

}  // namespace berth
