#include "testing/sim_node.h"

#include <set>
#include <utility>

namespace berth {

std::shared_ptr<SimNode> SimNode::make(SimDisk& disk, SimInodes& inodes, bool directory,
                                       SimRandom& random) {
  std::uint64_t number = 0;
  if (!inodes.free.empty() && random.one_in(2)) {
    number = inodes.free.back();
    inodes.free.pop_back();
  } else {
    number = ++inodes.last;
  }
  auto node = std::make_shared<SimNode>(inodes, number);
  if (!directory) node->content.emplace(disk);
  return node;
}

void SimNode::create_name(const std::string& name, std::shared_ptr<SimNode> node) {
  entries[name] = node;
  name_changes.push_back({SimNameChange::Kind::create, name, "", std::move(node)});
}

void SimNode::remove_name(const std::string& name) {
  entries.erase(name);
  name_changes.push_back({SimNameChange::Kind::remove, name, "", nullptr});
}

void SimNode::rename_name(const std::string& from, const std::string& to) {
  auto moved = std::move(entries.extract(from).mapped());
  entries[to] = moved;
  name_changes.push_back({SimNameChange::Kind::rename, from, to, std::move(moved)});
}

void SimNode::sync_names() {
  durable_entries = entries;
  name_changes.clear();
}

namespace {

const char* lost_probe(SimNameChange::Kind kind) {
  switch (kind) {
    case SimNameChange::Kind::create: return "power_loss_lost_create";
    case SimNameChange::Kind::remove: return "power_loss_undid_remove";
    case SimNameChange::Kind::rename: return "power_loss_undid_rename";
  }
  return "";
}

/// Each change survives or not, but none survives one before it that it needs: of the same name.
SimEntries surviving_entries(const SimNode& directory, SimRandom& random, SimProbes& probes) {
  SimEntries entries = directory.durable_entries;
  std::set<std::string> lost_names;
  const std::uint64_t style = random.below(4);  // 0: all lost, 1: all survive, else each by itself
  for (const SimNameChange& change : directory.name_changes) {
    const bool can = !lost_names.contains(change.name) && !lost_names.contains(change.to);
    const bool survives = style == 1 || (style != 0 && random.one_in(2));
    if (!can || !survives) {
      lost_names.insert(change.name);
      if (!change.to.empty()) lost_names.insert(change.to);
      probes.hit(lost_probe(change.kind));
      continue;
    }
    if (change.kind != SimNameChange::Kind::create) entries.erase(change.name);
    if (change.kind == SimNameChange::Kind::create) entries[change.name] = change.node;
    if (change.kind == SimNameChange::Kind::rename) entries[change.to] = change.node;
    probes.hit("power_loss_kept_name_change");
  }
  return entries;
}

}  // namespace

void SimNode::power_loss(const SimSurvival* shared, std::uint64_t sequence, SimRandom& random,
                         SimFates& fates, SimProbes& probes) {
  if (!is_directory()) {
    const SimSurvival own = SimSurvival::choose(random, sequence);
    content->power_loss(shared != nullptr ? *shared : own, random, fates);
    if (random.one_in(2)) durable_modified_ns = modified_ns;
    if (modified_ns != durable_modified_ns) probes.hit("power_loss_lost_modified_time");
    modified_ns = durable_modified_ns;
    return;
  }
  entries = surviving_entries(*this, random, probes);
  sync_names();
  for (const auto& [name, node] : entries)
    node->power_loss(shared, sequence, random, fates, probes);
}

std::shared_ptr<SimNode> clone_tree(const std::shared_ptr<SimNode>& node, SimDisk& disk,
                                    SimInodes& inodes, SimClones& clones) {
  auto& clone = clones[node.get()];
  if (clone) return clone;
  const auto made = std::make_shared<SimNode>(inodes, node->inode);
  clone = made;
  if (node->content) made->content.emplace(*node->content, disk);
  made->modified_ns = node->modified_ns;
  made->durable_modified_ns = node->durable_modified_ns;
  for (const auto& [name, child] : node->entries) {
    made->entries[name] = clone_tree(child, disk, inodes, clones);
  }
  for (const auto& [name, child] : node->durable_entries) {
    made->durable_entries[name] = clone_tree(child, disk, inodes, clones);
  }
  for (SimNameChange change : node->name_changes) {
    if (change.node) change.node = clone_tree(change.node, disk, inodes, clones);
    made->name_changes.push_back(std::move(change));
  }
  return made;
}

}  // namespace berth
