#include "control/cli/parser.h"

#include <cstdlib>
#include <deque>
#include <filesystem>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "control/cli/container_commands.h"
#include "control/exit_code.h"
#include "control/version.h"

namespace berth::control::cli {
namespace {

/// What CLI11 writes one option's words into.
struct Slot {
  std::string name;
  std::vector<std::string> words;
  bool flag = false;
};

class Parser {
 public:
  Parser()
      : app_(
            "The state of virtual machines: their disks, checkpoints, and what changed since when.",
            "berth") {
    app_.require_subcommand(1);
    app_.set_version_flag("--version", fmt::format("berth {}", program_version()));
    app_.footer(
        "berth NOUN VERB --help shows one command, with examples. berth(1) has all of them.\n"
        "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 precondition, 5 cancelled or timed "
        "out.");
    for (const Option& option : global_options()) add_option(app_, option, globals_);
    for (const Command& command : commands()) add_command(command);
  }

  ParseOutcome parse(int argc, const char* const* argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return {.line = std::nullopt, .exit_code = tell(error) == 0 ? exit_done : exit_usage};
    }
    for (const auto& [command, entry] : entries_) {
      if (!entry.app->parsed()) continue;
      ParsedLine line{.command = command};
      take(entry.slots, line.values);
      std::map<std::string, std::vector<std::string>> globals;
      take(globals_, globals);
      fill(line.globals, globals);
      return {.line = std::move(line)};
    }
    return {.line = std::nullopt, .exit_code = exit_usage};
  }

 private:
  /// Of a word that is not known CLI11 says only that another one is missing.
  int tell(const CLI::ParseError& error) {
    const bool lacks_something = dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
    const std::vector<std::string> unknown = app_.remaining(true);
    if (lacks_something && !unknown.empty()) return app_.exit(CLI::ExtrasError(unknown));
    return app_.exit(error);
  }

  using Slots = std::deque<Slot>;  // CLI11 keeps references
  struct Entry {
    CLI::App* app = nullptr;
    Slots slots;
  };

  static void add_option(CLI::App& app, const Option& option, Slots& slots) {
    Slot& slot =
        slots.emplace_back(Slot{.name = option.name, .words = {}, .flag = option.value.empty()});
    const std::string names =
        option.short_name.empty() ? option.name : option.short_name + "," + option.name;
    if (slot.flag) {
      app.add_flag_callback(names, [&slot] { slot.words = {"true"}; }, option.description);
      return;
    }
    CLI::Option* added = app.add_option(names, slot.words, option.description);
    added->type_name(option.value)->expected(1)->required(option.required);
    if (option.repeated) added->take_all()->allow_extra_args(false);
    if (!option.choices.empty())
      added->check(CLI::IsMember(option.choices))->type_name(option.value);
    if (!option.environment.empty()) added->envname(option.environment);
  }

  static void add_positional(CLI::App& app, const Positional& positional, Slots& slots) {
    Slot& slot = slots.emplace_back(Slot{.name = positional.name, .words = {}});
    CLI::Option* added = app.add_option(positional.name, slot.words, positional.description);
    added->type_name(" ")->required(positional.required);
    if (positional.repeated) {
      added->expected(1, 1 << 16);
    } else {
      added->expected(1)->allow_extra_args(false);
    }
  }

  static std::string footer_of(const Command& command) {
    std::string text;
    if (!command.examples.empty()) text += "Examples:\n";
    for (const Example& example : command.examples) {
      text += fmt::format("  {}\n", example.command);
      if (!example.meaning.empty()) text += fmt::format("      {}\n", example.meaning);
    }
    return text + "Also --state-dir, --run-dir, --socket, -o table|json: see berth --help.";
  }

  void add_command(const Command& command) {
    CLI::App* parent = &app_;
    if (command.words.size() == 2) {
      CLI::App*& noun = nouns_[command.words.front()];
      if (noun == nullptr) {
        noun = app_.add_subcommand(command.words.front(),
                                   std::string(noun_summary(command.words.front())));
        noun->require_subcommand(1)->fallthrough();
      }
      parent = noun;
    }
    std::string text = command.summary + ".";
    if (!command.description.empty()) text += "\n" + command.description;
    CLI::App* app = parent->add_subcommand(command.words.back(), text);
    app->fallthrough()->footer(footer_of(command));
    if (command.hidden) app->group("");
    Entry& entry = entries_[&command];
    entry.app = app;
    for (const Positional& positional : command.positionals)
      add_positional(*app, positional, entry.slots);
    for (const Option& option : command.options) add_option(*app, option, entry.slots);
  }

  static void take(const Slots& slots, std::map<std::string, std::vector<std::string>>& into) {
    for (const Slot& slot : slots) {
      if (!slot.words.empty()) into[slot.name] = slot.words;
    }
  }

  static void fill(Globals& globals,
                   const std::map<std::string, std::vector<std::string>>& values) {
    const auto text = [&values](const char* name, std::string otherwise) {
      const auto found = values.find(name);
      return found == values.end() ? std::move(otherwise) : found->second.front();
    };
    globals.state_dir = absolute_path(text("--state-dir", globals.state_dir));
    globals.run_dir = absolute_path(text("--run-dir", globals.run_dir));
    globals.socket = text("--socket", globals.run_dir + "/api.sock");
    globals.json = text("--output", "table") == "json";
  }

  CLI::App app_;
  Slots globals_;
  std::map<std::string, CLI::App*> nouns_;
  std::map<const Command*, Entry> entries_;
};

}  // namespace

ParseOutcome parse_line(int argc, const char* const* argv) {
  const SplitLine split = with_command_apart(argc, argv);
  std::vector<const char*> pointers;
  for (const std::string& word : split.words) pointers.push_back(word.c_str());
  ParseOutcome outcome = Parser().parse(static_cast<int>(pointers.size()), pointers.data());
  if (outcome.line && !split.tail.empty()) outcome.line->values["COMMAND"] = split.tail;
  return outcome;
}

std::string absolute_path(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  std::string text = error ? path : absolute.lexically_normal().string();
  while (text.size() > 1 && text.ends_with('/')) text.pop_back();
  return text;
}

}  // namespace berth::control::cli
