#include "control/cli/man_page.h"

#include <fmt/format.h>

#include "control/version.h"

namespace berth::control::cli {
namespace {

/// Text that troff prints as it is.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\e";
    } else if (c == '-') {
      out += "\\-";
    } else if ((c == '.' || c == '\'') && (out.empty() || out.back() == '\n')) {
      out += "\\&";
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

std::string option_usage(const Option& option) {
  std::string usage = option.name;
  if (!option.short_name.empty()) usage = option.short_name + ", " + usage;
  return option.value.empty() ? usage : usage + " " + option.value;
}

void write_option(const Option& option, std::string& out) {
  out += fmt::format(
      ".TP\n\\fB{}\\fR",
      escaped(option.short_name.empty() ? option.name : option.short_name + ", " + option.name));
  if (!option.value.empty()) out += fmt::format(" \\fI{}\\fR", escaped(option.value));
  out += fmt::format("\n{}", escaped(option.description));
  if (option.required) out += " (required)";
  if (!option.environment.empty()) out += fmt::format(" (environment: {})", option.environment);
  out += ".\n";
}

std::string usage_of(const Command& command) {
  std::string usage = fmt::format("berth {}", words_of(command));
  for (const Option& option : command.options) {
    if (option.required) usage += " " + option_usage(option);
  }
  for (const Positional& positional : command.positionals) {
    const std::string name = positional.name + (positional.repeated ? "…" : "");
    usage += positional.required ? " " + name : fmt::format(" [{}]", name);
  }
  for (const Option& option : command.options) {
    if (!option.required) usage += fmt::format(" [{}]", option_usage(option));
  }
  return usage;
}

void write_command(const Command& command, std::string& out) {
  out += fmt::format(".SS \"{}\"\n", escaped(words_of(command)));
  out += fmt::format(".nh\n.B {}\n.hy\n.PP\n", escaped(usage_of(command)));
  out += escaped(command.summary) + ".\n";
  if (!command.description.empty()) out += escaped(command.description) + "\n";
  for (const Positional& positional : command.positionals) {
    out += fmt::format(".TP\n\\fI{}\\fR\n{}.\n", escaped(positional.name),
                       escaped(positional.description));
  }
  for (const Option& option : command.options) write_option(option, out);
  if (command.examples.empty()) return;
  out += ".PP\nExamples:\n.PP\n.RS 4\n.nf\n";
  for (const Example& example : command.examples) {
    out += escaped(example.command) + '\n';
    if (!example.meaning.empty()) out += fmt::format("    # {}\n", escaped(example.meaning));
  }
  out += ".fi\n.RE\n";
}

constexpr std::string_view head =
    R"(.\" Made by `berth internal man` from the list of commands; a test checks that it is current.
.TH BERTH 1 "" "berth {version}" "Berth"
.SH NAME
berth \- the state of virtual machines: disks, checkpoints, and what changed since when
.SH SYNOPSIS
.B berth
.I NOUN VERB
.RI [ ARGUMENT \&...]
.SH DESCRIPTION
A
.I volume
is a virtual disk that knows what changed since when. A
.I checkpoint
is a restorable image of one or several volumes; a
.I reference point
is a checkpoint that holds no data any more, only its place in time: what changed since then can still be asked, and
copied. The commands talk to
.BR "berth daemon" ,
which runs once per host; the processes that serve disks outlive it.
.PP
Sizes take binary suffixes (64K, 10G, 1.5T). JSON has bytes, and times in UTC (RFC 3339).
)";

constexpr std::string_view tail = R"(.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
Failed.
.TP
.B 2
Usage: the arguments are wrong.
.TP
.B 3
Not found.
.TP
.B 4
Precondition: what is asked for does not allow it now, such as full_backup_required, in_use, already_exists.
.TP
.B 5
Cancelled or timed out.
.SH FILES
.TP
.I /var/lib/berth
The state directory: volumes, and the daemon's catalogue.
.TP
.I /run/berth/api.sock
The daemon's socket, for root and the group berth.
.TP
.IR /run/berth/keepers/ VOLUME /log
What a volume's keeper had to say.
)";

}  // namespace

std::string man_page() {
  std::string out(head);
  constexpr std::string_view version_mark = "{version}";
  out.replace(out.find(version_mark), version_mark.size(), program_version());
  out += ".SH OPTIONS\nEvery command takes these.\n";
  for (const Option& option : global_options()) write_option(option, out);
  out += ".SH COMMANDS\n";
  for (const Command& command : commands()) {
    if (!command.hidden) write_command(command, out);
  }
  return out += tail;
}

}  // namespace berth::control::cli
