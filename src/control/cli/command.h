// The commands of `berth`, listed once: what people type, and which action of the API it is. The
// parser, --help, the man page and shell completion derive from this list and from actions.h.
//
// Plain data, made once, never changed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "control/actions.h"

namespace berth::control::cli {

/// What a word may be completed with.
enum class Names : std::uint8_t {
  none,
  volumes,
  machines,
  checkpoints,
  refpoints,
  images,
  jobs,
  files,
  choices
};

struct Option {
  std::string name;        // "--size"
  std::string short_name;  // "-o", or ""
  std::string value;       // "SIZE"; "" for a flag
  std::string description;
  std::string parameter;    // of the action; "" for one of the command's own
  std::string flag_value;   // what the flag sets the parameter to; "" for true
  std::string environment;  // a variable that it defaults to, or ""
  bool required = false;
  bool repeated = false;
  Names names = Names::none;
  std::vector<std::string> choices;
  bool machine_only = false;  // of no use where the name is a volume's
};

struct Positional {
  std::string name;  // "VOLUME"
  std::string description;
  /// Of the action. "volume@checkpoint" or "volume@refpoint" stands for two parameters in one word.
  std::string parameter;
  bool required = true;
  bool repeated = false;
  Names names = Names::none;
};

struct Example {
  std::string command;
  std::string meaning;
};

/// How a command is carried out.
enum class Flow : std::uint8_t {
  call,             // one action; if it starts a job, wait for it
  changes,          // changes.list, page by page
  refpoint_export,  // to a file, or to standard output
  refpoint_import,  // from such a file
  vm_create,        // from a vm.toml
  vm_console,       // relay a terminal
  container_run,    // these are container_commands.h's
  container_create,
  container_start,
  container_exec,
  container_attach,
  container_logs,
  container_ps,
  container_copy,
  container_each,   // one action on each of the names
  template_create,  // these are template_commands.h's
  container_clone,
  job_watch,  // follow one job to its end
  events,     // print what comes
  daemon,     // these run here, not in the daemon
  keeper,
  watchdog,
  check,
  doctor,
  completion,
  internal
};

struct Command {
  std::vector<std::string> words;  // "volume", "create"
  std::string summary;             // one line
  std::string description;         // more, or ""
  Flow flow = Flow::call;
  const Action* action = nullptr;
  const Action* machine_action = nullptr;  // in its place where the first name is a machine's
  std::vector<Positional> positionals;
  std::vector<Option> options;
  std::vector<Example> examples;
  bool hidden = false;
};

const std::vector<Command>& commands();
/// Options that every command takes.
const std::vector<Option>& global_options();
/// What a noun stands for, one line.
std::string_view noun_summary(std::string_view noun);

/// "volume create"
std::string words_of(const Command& command);

}  // namespace berth::control::cli
