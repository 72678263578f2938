#include "control/cli/render.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/units.h"

namespace berth::control::cli {
namespace {

constexpr std::size_t command_shown_max = 32;  // bytes

using Json = nlohmann::json;
using Row = std::vector<std::string>;

std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

bool is_control(unsigned char c) { return c < 0x20 || c == 0x7f; }

std::string text_of(const Json& value) {
  if (value.is_null()) return "-";
  if (value.is_string()) return value.get<std::string>().empty() ? "-" : value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  return value.dump();
}

std::string size_of(const Json& value) {
  return value.is_number() ? format_size(value.get<std::uint64_t>()) : "-";
}

/// "name: value", aligned.
std::string pairs(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::size_t width = 0;
  for (const auto& [name, value] : entries) width = std::max(width, name.size());
  std::string out;
  for (const auto& [name, value] : entries)
    out += fmt::format("{:<{}}  {}\n", name + ":", width + 1, value);
  return out;
}

std::string duration(std::uint64_t seconds) {
  if (seconds >= 3600)
    return fmt::format("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
  return fmt::format("{}:{:02}", seconds / 60, seconds % 60);
}

std::string listeners_of(const Json& volume) {
  std::string text;
  for (const Json& listener : volume["listeners"]) {
    text += fmt::format("{}{} ({} connected{})", text.empty() ? "" : ", ", text_of(listener["uri"]),
                        listener["connections"].dump(),
                        listener["read_only"] == true ? ", read-only" : "");
  }
  return text.empty() ? "-" : text;
}

std::string render_host(const Json& host) {
  return pairs({{"version", text_of(host["version"])},
                {"host", fmt::format("{}, Linux {}, {} CPUs, {}", text_of(host["hostname"]),
                                     text_of(host["kernel"]), host["cpus"].dump(),
                                     size_of(host["memory_bytes"]))},
                {"daemon", fmt::format("process {}, since {}", host["pid"].dump(),
                                       text_of(host["started_at"]))},
                {"state directory", fmt::format("{} ({} free of {})", text_of(host["state_dir"]),
                                                size_of(host["state_bytes_free"]),
                                                size_of(host["state_bytes_total"]))},
                {"run directory", text_of(host["run_dir"])},
                {"volumes", fmt::format("{}, {} of them open", host["volumes"].dump(),
                                        host["keepers"].dump())},
                {"jobs running", host["jobs_running"].dump()}});
}

std::string render_volume(const Json& volume) {
  return pairs(
      {{"name", text_of(volume["name"])},
       {"id", text_of(volume["id"])},
       {"size", fmt::format("{} ({} bytes)", size_of(volume["size"]), volume["size"].dump())},
       {"block size", size_of(volume["block_size"])},
       {"backing", text_of(volume["backing"])},
       {"epoch", volume["epoch"].dump()},
       {"checkpoints",
        fmt::format("{}, holding {}", volume["checkpoints"].dump(), size_of(volume["held_bytes"]))},
       {"reference points", volume["refpoints"].dump()},
       {"hot regions", fmt::format("{} of at most {}", volume["hot_regions"].dump(),
                                   volume["hot_regions_max"].dump())},
       {"failed", volume["failed"] == true
                      ? "yes: a sync failed; nothing is written before it is opened again"
                      : "no"},
       {"keeper", fmt::format("process {}", volume["keeper_pid"].dump())},
       {"served at", listeners_of(volume)}});
}

/// With how deep it is where that says more.
std::string machine_state(const Json& state, const Json& level) {
  if (level.is_null() || level == state) return text_of(state);
  return fmt::format("{} ({})", text_of(state), text_of(level));
}

std::string render_machine(const Json& machine) {
  const Json& specification = machine["specification"];
  std::string addresses;
  for (const Json& address : machine["addresses"]) {
    addresses += fmt::format("{}{} ({})", addresses.empty() ? "" : ", ",
                             text_of(address["address"]), text_of(address["interface"]));
  }
  std::string disks;
  for (const Json& disk : machine["disks"]) {
    disks += fmt::format("{}{} (volume {}{})", disks.empty() ? "" : ", ", text_of(disk["name"]),
                         text_of(disk["volume"]), disk["read_only"] == true ? ", read-only" : "");
  }
  const bool runs = machine["pid"].is_number();
  return pairs(
      {{"name", text_of(machine["name"])},
       {"id", text_of(machine["id"])},
       {"state", machine_state(machine["state"],
                               machine["pause"].is_object() ? machine["pause"]["level"] : Json())},
       {"CPUs, memory",
        fmt::format("{}, {}", text_of(specification["cpus"]), size_of(specification["memory"]))},
       {"disks", disks.empty() ? "-" : disks},
       {"QEMU", runs ? fmt::format("process {}, {}, since {}", text_of(machine["pid"]),
                                   text_of(machine["accelerator"]), text_of(machine["started_at"]))
                     : "-"},
       {"guest agent", machine["agent"] == true ? "answers" : "-"},
       {"addresses", addresses.empty() ? "-" : addresses},
       {"last end", machine["last_end"] == ""
                        ? "-"
                        : fmt::format("{}, at {}", text_of(machine["last_end"]),
                                      text_of(machine["last_end_at"]))}});
}

std::string milliseconds_of(const Json& microseconds) {
  return fmt::format("{:.1f} ms", microseconds.get<double>() / 1000);
}

std::string render_machine_checkpoint(const Json& checkpoint) {
  std::string line =
      fmt::format("checkpoint {} of machine {}: {}", text_of(checkpoint["name"]),
                  text_of(checkpoint["machine"]), text_of(checkpoint["consistency"]));
  if (checkpoint["memory"] == true) {
    line += fmt::format(", with memory; its CPUs stood still for {}",
                        milliseconds_of(checkpoint["stopped_us"]));
  }
  if (checkpoint["frozen_us"] != 0)
    line += fmt::format("; frozen for {}", milliseconds_of(checkpoint["frozen_us"]));
  if (checkpoint["reason"] != "") line += fmt::format(" ({})", text_of(checkpoint["reason"]));
  return line + '\n';
}

std::string render_machine_checkpoints(const Json& list) {
  std::vector<Row> rows;
  for (const Json& point : list["checkpoints"]) {
    rows.push_back({text_of(point["name"]), text_of(point["consistency"]), text_of(point["memory"]),
                    text_of(point["parent"]), point["current"] == true ? "*" : "",
                    text_of(point["created_at"])});
  }
  return table({"NAME", "CONSISTENCY", "MEMORY", "PARENT", "CURRENT", "CREATED"}, rows);
}

std::string render_machine_refpoints(const Json& list) {
  std::vector<Row> rows;
  for (const Json& point : list["refpoints"]) {
    std::string volumes;
    for (const Json& disk : point["disks"])
      volumes += (volumes.empty() ? "" : ", ") + text_of(disk["volume"]);
    rows.push_back({text_of(point["name"]), text_of(point["consistency"]), volumes,
                    text_of(point["created_at"])});
  }
  return table({"NAME", "CONSISTENCY", "VOLUMES", "CREATED"}, rows);
}

std::string render_machines(const Json& list) {
  std::vector<Row> rows;
  for (const Json& machine : list["machines"]) {
    rows.push_back({text_of(machine["name"]), machine_state(machine["state"], machine["level"]),
                    text_of(machine["cpus"]), size_of(machine["memory"]),
                    text_of(machine["disks"])});
  }
  return table({"NAME", "STATE", ">CPUS", ">MEMORY", ">DISKS"}, rows);
}

/// Of somebody else's making: it may not tell a terminal what to do.
std::string foreign_text(const Json& value) {
  std::string text = text_of(value);
  std::ranges::replace_if(text, is_control, '?');
  return text;
}

std::string words(const Json& list) {
  std::string text;
  for (const Json& word : list) text += (text.empty() ? "" : " ") + foreign_text(word);
  return text.empty() ? "-" : text;
}

std::string render_image(const Json& image) {
  const Json& config = image["config"];
  return pairs({{"names", words(image["names"])},
                {"digest", text_of(image["digest"])},
                {"created", foreign_text(image["created_at"])},
                {"imported", fmt::format("{}, from {}", text_of(image["imported_at"]),
                                         text_of(image["source"]))},
                {"platform", fmt::format("{}/{}", foreign_text(image["os"]),
                                         foreign_text(image["architecture"]))},
                {"layers", fmt::format("{}", image["layers"].size())},
                {"file system",
                 fmt::format("{}, {}", size_of(image["size"]), text_of(image["file_system"]))},
                {"entrypoint", words(config["entrypoint"])},
                {"command", words(config["command"])},
                {"user", foreign_text(config["user"])},
                {"working directory", foreign_text(config["working_directory"])},
                {"ports", words(config["exposed_ports"])},
                {"volumes", words(config["volumes"])}});
}

/// A row for each name.
std::string render_images(const Json& list) {
  constexpr std::size_t digits_shown = 12;
  const std::size_t digits_begin = std::string_view("sha256:").size();
  std::vector<Row> rows;
  for (const Json& image : list["images"]) {
    Json names = image["names"];
    if (names.empty()) names.push_back("<none>");
    for (const Json& name : names) {
      rows.push_back({text_of(name), text_of(image["digest"]).substr(digits_begin, digits_shown),
                      foreign_text(image["created_at"]), size_of(image["size"])});
    }
  }
  return table({"NAME", "DIGEST", "CREATED", ">SIZE"}, rows);
}

std::string render_deleted_image(const Json& image) {
  std::string text;
  for (const Json& name : image["names"]) text += fmt::format("untagged {}\n", text_of(name));
  if (image["deleted"] == true)
    text +=
        fmt::format("deleted {}, freed {}\n", text_of(image["digest"]), size_of(image["freed"]));
  return text;
}

std::string render_summary(const Json& volume) {
  return fmt::format("volume {}: {}, blocks of {}{}\n", text_of(volume["name"]),
                     size_of(volume["size"]), size_of(volume["block_size"]),
                     volume["backing"] == "" ? "" : ", over " + text_of(volume["backing"]));
}

std::string render_volumes(const Json& list) {
  std::vector<Row> rows;
  for (const Json& volume : list["volumes"]) {
    rows.push_back({text_of(volume["name"]), size_of(volume["size"]), size_of(volume["block_size"]),
                    text_of(volume["state"]), text_of(volume["backing"])});
  }
  return table({"NAME", ">SIZE", ">BLOCK", "STATE", "BACKING"}, rows);
}

std::string render_checkpoints(const Json& list) {
  std::vector<Row> rows;
  for (const Json& point : list["checkpoints"]) {
    rows.push_back({text_of(point["volume"]), text_of(point["name"]), point["epoch"].dump(),
                    point["lost"] == true ? "lost" : text_of(point["durability"]),
                    text_of(point["consistency"]), size_of(point["held_bytes"]),
                    text_of(point["created_at"])});
  }
  return table({"VOLUME", "NAME", ">EPOCH", "DURABILITY", "CONSISTENCY", ">HELD", "CREATED"}, rows);
}

std::string render_refpoints(const Json& list) {
  std::vector<Row> rows;
  for (const Json& point : list["refpoints"]) {
    rows.push_back({text_of(point["volume"]), text_of(point["name"]), point["epoch"].dump(),
                    text_of(point["exact"]), text_of(point["created_at"]),
                    text_of(point["nonce"])});
  }
  return table({"VOLUME", "NAME", ">EPOCH", "EXACT", "CREATED", "NONCE"}, rows);
}

std::string render_jobs(const Json& list) {
  std::vector<Row> rows;
  for (const Json& job : list["jobs"]) {
    const bool total_known = !job["bytes_total"].is_null();
    rows.push_back(
        {text_of(job["id"]), text_of(job["kind"]), text_of(job["target"]), text_of(job["state"]),
         size_of(job["bytes_done"]) + (total_known ? " of " + size_of(job["bytes_total"]) : ""),
         text_of(job["created_at"]),
         job["error"].is_null() ? "" : text_of(job["error"]["message"])});
  }
  return table({"ID", "KIND", "TARGET", "STATE", ">DONE", "CREATED", "ERROR"}, rows);
}

std::string render_listeners(const Json& list) {
  std::string text;
  for (const Json& listener : list["listeners"])
    text += fmt::format("stopped {}\n", text_of(listener["uri"]));
  return text;
}

std::string render_cut(const Json& cut) {
  std::string text;
  for (const Json& part : cut["volumes"]) {
    const auto named = [&](const char* member, std::string_view what) {
      if (part[member].is_null()) return;
      text += fmt::format("{} {}@{}: epoch {}, writes waited {:.1f} ms\n", what,
                          text_of(part["volume"]), text_of(part[member]["name"]),
                          part["epoch"].dump(), part["gate_closed_us"].get<double>() / 1000);
    };
    named("checkpoint", "checkpoint");
    named("refpoint", "reference point");
  }
  return text;
}

std::string render_export(const Json& written) {
  return fmt::format(
      "{}: {} in {} extents{}{}\n", text_of(written["path"]), size_of(written["bytes"]),
      written["extents"].dump(),
      written["since"].is_null() ? "" : ", changed since " + text_of(written["since"]),
      written["exact"] == true ? "" : " (after a power loss: more than had changed)");
}

std::string render_exported_volume(const Json& exported) {
  return fmt::format("{}: {} in {}\n", text_of(exported["name"]), size_of(exported["bytes"]),
                     text_of(exported["path"]));
}

std::string render_imported_volume(const Json& volume) {
  std::string text =
      fmt::format("volume {}: {}, {}\n", text_of(volume["name"]), size_of(volume["size"]),
                  volume["arrival"] == "moved" ? "the same one as before, with all of its points"
                                               : "a new one with the content of another");
  const auto given_up = [&](const char* member, std::string_view one, std::string_view many,
                            std::string_view why) {
    const std::size_t count = volume[member].size();
    if (count != 0) text += fmt::format("{} {} {}\n", count, count == 1 ? one : many, why);
  };
  given_up("void_refpoints", "reference point is", "reference points are",
           "of the original only: the next backup is a full one");
  given_up("lost_checkpoints", "checkpoint is", "checkpoints are",
           "lost: the data file was changed after the last close");
  return text;
}

std::string render_check(const Json& report) {
  std::string text;
  for (const Json& finding : report["findings"]) {
    text += fmt::format("{}: {}: {}{}\n", text_of(finding["severity"]), text_of(finding["where"]),
                        text_of(finding["what"]), finding["repaired"] == true ? " (repaired)" : "");
  }
  if (report["findings_left_out"] != 0) {
    text += fmt::format("and {} findings more\n", report["findings_left_out"].dump());
  }
  return text +
         fmt::format(
             "{}: {}: {} errors ({} repaired), {} warnings; read {} map pages, {} held blocks\n",
             text_of(report["volume"]), report["sound"] == true ? "sound" : "damaged",
             report["errors"].dump(), report["errors_repaired"].dump(), report["warnings"].dump(),
             report["pages"].dump(), report["hold_entries"].dump());
}

std::string shown_port(const Json& port) {
  return fmt::format("{}:{}->{}", text_of(port["host_address"]), port["host_port"].dump(),
                     port["guest_port"].dump());
}

std::string render_swap(const Json& answer) {
  std::vector<Row> rows;
  for (const Json& area : answer["areas"]) {
    rows.push_back({text_of(area["name"]), text_of(area["kind"]), size_of(area["size"]),
                    size_of(area["used"]), text_of(area["ours"])});
  }
  return table({"NAME", "KIND", ">SIZE", ">USED", "OURS"}, rows) +
         fmt::format("zswap: {}\n", text_of(answer["zswap"]));
}

/// "", "42s", "5m", "3h", "12d": whole units, of two digits where there is such a one.
std::string shown_idle(const Json& seconds) {
  if (!seconds.is_number()) return "";
  const auto count = seconds.get<std::uint64_t>();
  if (count < 100) return fmt::format("{}s", count);
  if (count < 100 * 60) return fmt::format("{}m", count / 60);
  if (count < 100 * 3600) return fmt::format("{}h", count / 3600);
  return fmt::format("{}d", count / 86'400);
}

std::string render_containers(const Json& list) {
  std::vector<Row> rows;
  for (const Json& container : list["containers"]) {
    std::string command;
    for (const Json& word : container["command"])
      command += (command.empty() ? "" : " ") + text_of(word);
    if (command.size() > command_shown_max)
      command = command.substr(0, command_shown_max - 3) + "...";
    std::string ports;
    for (const Json& port : container["ports"])
      ports += (ports.empty() ? "" : ", ") + shown_port(port);
    std::string state = text_of(container["state"]);
    if (container["exit_code"].is_number()) state += " (" + container["exit_code"].dump() + ")";
    rows.push_back({text_of(container["name"]), text_of(container["image_name"]), command, state,
                    text_of(container["created_at"]), shown_idle(container["idle_s"]), ports});
  }
  return table({"NAME", "IMAGE", "COMMAND", "STATE", "CREATED", ">IDLE", "PORTS"}, rows);
}

std::string render_kernels(const Json& list) {
  std::vector<Row> rows;
  for (const Json& kernel : list["kernels"])
    rows.push_back(
        {text_of(kernel["release"]), text_of(kernel["imported_at"]), text_of(kernel["source"])});
  return table({"RELEASE", "IMPORTED", "SOURCE"}, rows);
}

std::string render_templates(const Json& list) {
  std::vector<Row> rows;
  for (const Json& each : list["templates"]) {
    rows.push_back({text_of(each["name"]), text_of(each["image_name"]), size_of(each["memory"]),
                    size_of(each["memory_bytes"]), text_of(each["built_at"]),
                    each["clones"].dump()});
  }
  return table({"NAME", "IMAGE", "MEMORY", "SHARED", "MADE", "CLONES"}, rows);
}

std::string render_template(const Json& shown) {
  const Json& is = shown["specification"];
  const Json& stamp = shown["stamp"];
  return pairs(
      {{"name", text_of(shown["name"])},
       {"image", fmt::format("{} ({})", text_of(is["image_name"]), text_of(is["image"]))},
       {"made of", shown["container"] == "" ? "its image"
                                            : fmt::format("the container '{}', while it ran",
                                                          text_of(shown["container"]))},
       {"command", words(is["arguments"])},
       {"memory", fmt::format("{}, {} of it shared by all clones", size_of(is["memory"]),
                              size_of(shown["memory_bytes"]))},
       {"devices", size_of(shown["device_bytes"])},
       {"ready", text_of(shown["ready"])},
       {"warmed with", words(shown["warm"])},
       {"asked for", text_of(shown["created_at"])},
       {"made", text_of(shown["built_at"])},
       {"fits to", fmt::format("kernel {}, agent {}, {}, {}, {}", text_of(stamp["kernel"]),
                               text_of(stamp["agent"]), text_of(stamp["qemu"]),
                               text_of(stamp["accelerator"]), text_of(stamp["cpu"]))},
       {"memory checksum", text_of(shown["memory_checksum"])},
       {"pool", fmt::format("{} of {} wait", shown["waiting"].dump(), shown["pool"].dump())},
       {"clones", words(shown["clones"])}});
}

/// Whatever has no form of its own.
std::string render_members(const Json& object) {
  std::vector<std::pair<std::string, std::string>> entries;
  for (const auto& [name, value] : object.items()) {
    std::string shown = name;
    std::ranges::replace(shown, '_', ' ');
    entries.emplace_back(shown, text_of(value));
  }
  return pairs(entries);
}

}  // namespace

std::string table(const std::vector<std::string>& headings, const std::vector<Row>& rows) {
  std::vector<bool> right;
  std::vector<Row> all(1);
  for (const std::string& heading : headings) {
    right.push_back(heading.starts_with('>'));
    all[0].push_back(heading.substr(right.back() ? 1 : 0));
  }
  all.insert(all.end(), rows.begin(), rows.end());
  std::vector<std::size_t> widths(headings.size());
  for (const Row& row : all) {
    for (std::size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], columns_of(row[i]));
  }
  std::string out;
  for (const Row& row : all) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - columns_of(row[i]), ' ');
      if (i != 0) line += "  ";
      line += right[i] ? padding + row[i] : row[i] + padding;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  }
  return out;
}

std::string render(std::string_view schema, const Json& answer) {
  if (schema == "Nothing") return {};
  if (schema == "Host") return render_host(answer);
  if (schema == "HostSwap") return render_swap(answer);
  if (schema == "Volume") return render_volume(answer);
  if (schema == "VolumeSummary") return render_summary(answer);
  if (schema == "VolumeList") return render_volumes(answer);
  if (schema == "CheckpointList") return render_checkpoints(answer);
  if (schema == "RefpointList") return render_refpoints(answer);
  if (schema == "JobList") return render_jobs(answer);
  if (schema == "Cut") return render_cut(answer);
  if (schema == "Export") return render_export(answer);
  if (schema == "Listener") return text_of(answer["uri"]) + '\n';
  if (schema == "ListenerList") return render_listeners(answer);
  if (schema == "CheckReport") return render_check(answer);
  if (schema == "ExportedVolume") return render_exported_volume(answer);
  if (schema == "ImportedVolume") return render_imported_volume(answer);
  if (schema == "Populated") return fmt::format("copied {}\n", size_of(answer["copied"]));
  if (schema == "VolumeSize")
    return fmt::format("{}: {}\n", text_of(answer["name"]), size_of(answer["size"]));
  if (schema == "Shutdown") {
    return fmt::format("the daemon ends; {} machines and {} keepers were ended\n",
                       answer["machines_stopped"].dump(), answer["keepers_stopped"].dump());
  }
  if (schema == "ContainerList") return render_containers(answer);
  if (schema == "KernelList") return render_kernels(answer);
  if (schema == "TemplateList") return render_templates(answer);
  if (schema == "Template") return render_template(answer);
  if (schema == "Image") return render_image(answer);
  if (schema == "ImageList") return render_images(answer);
  if (schema == "DeletedImage") return render_deleted_image(answer);
  if (schema == "Machine") return render_machine(answer);
  if (schema == "MachineList") return render_machines(answer);
  if (schema == "MachineCheckpoint") return render_machine_checkpoint(answer);
  if (schema == "MachineCheckpointList") return render_machine_checkpoints(answer);
  if (schema == "MachineRefpointList") return render_machine_refpoints(answer);
  if (schema == "MachineRefpoint") {
    return fmt::format("reference point {} of machine {}, in {} disks\n", text_of(answer["name"]),
                       text_of(answer["machine"]), answer["disks"].size());
  }
  if (schema == "Event") {
    return fmt::format("{}  {}{}{}  {}\n", text_of(answer["at"]), text_of(answer["kind"]),
                       answer["volume"].is_null() ? "" : " " + text_of(answer["volume"]),
                       answer["job"].is_null() ? "" : " job " + text_of(answer["job"]),
                       text_of(answer["message"]));
  }
  return render_members(answer);
}

std::string render_checkpoint_tree(const Json& checkpoints) {
  std::string out;
  // Bounded: each is below one other, so that nobody is met twice.
  const auto below = [&](const auto& self, const Json& parent, std::size_t depth) -> void {
    for (const Json& point : checkpoints) {
      if (point["parent"] != parent || depth > checkpoints.size()) continue;
      out += fmt::format("{}{}{}  {}{}  {}\n", std::string(2 * depth, ' '), text_of(point["name"]),
                         point["current"] == true ? " *" : "", text_of(point["consistency"]),
                         point["memory"] == true ? ", memory" : "", text_of(point["created_at"]));
      self(self, point["name"], depth + 1);
    }
  };
  below(below, Json(), 0);
  return out;
}

std::string progress_line(const Json& job, std::size_t width) {
  const auto done = job.value("bytes_done", std::uint64_t{0});
  const Json& total = job["bytes_total"];
  std::string line =
      fmt::format("{} {}: {}", text_of(job["kind"]), text_of(job["target"]), text_of(job["phase"]));
  if (total.is_number() && total.get<std::uint64_t>() > 0) {
    constexpr std::size_t bar_width = 24;
    const double part = std::min(1.0, static_cast<double>(done) / total.get<double>());
    const auto filled = static_cast<std::size_t>(part * bar_width);
    line += fmt::format("  [{}{}] {:3.0f}%  {} of {}", std::string(filled, '#'),
                        std::string(bar_width - filled, ' '), part * 100, format_size(done),
                        size_of(total));
  } else if (done != 0) {
    line += "  " + format_size(done);
  }
  if (job["bytes_per_second"].is_number()) line += "  " + size_of(job["bytes_per_second"]) + "/s";
  if (job["eta_seconds"].is_number())
    line += "  " + duration(job["eta_seconds"].get<std::uint64_t>()) + " left";
  return line.substr(0, width);
}

std::string render_error(const Error& error) {
  std::string line = error.message();
  if (error.kind() == ErrorKind::full_backup_required) line += ": make a full backup";
  std::ranges::replace_if(line, is_control, '?');
  return line;
}

std::string changes_heading() { return fmt::format("{:>16}  {:>16}\n", "OFFSET", "LENGTH"); }

std::string render_extents(const Json& extents) {
  std::string out;
  for (const Json& extent : extents) {
    out += fmt::format("{:>16}  {:>16}\n", extent[0].get<std::uint64_t>(),
                       extent[1].get<std::uint64_t>());
  }
  return out;
}

std::string changes_summary(std::uint64_t extents, std::uint64_t bytes, bool exact) {
  return fmt::format(
      "{} in {} extents{}\n", format_size(bytes), extents,
      exact ? "" : " (not exact: a power loss lies between, and more is listed than changed)");
}

}  // namespace berth::control::cli
