// man_page.h: completion.

#include <algorithm>
#include <ranges>
#include <set>

#include <fmt/format.h>

#include "control/cli/man_page.h"

namespace berth::control::cli {
namespace {

constexpr const char* bash_script = R"(# bash completion for berth
COMP_WORDBREAKS=${COMP_WORDBREAKS//[@:=]/}
_berth() {
  local IFS=$'\n'
  COMPREPLY=($(berth internal complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  if [[ ${COMPREPLY[0]} == :files ]]; then
    COMPREPLY=()
    compopt -o default
  fi
}
complete -F _berth berth
)";

constexpr const char* zsh_script = R"(#compdef berth
_berth() {
  local -a candidates
  candidates=("${(@f)$(berth internal complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ ${candidates[1]} == :files ]]; then
    _files
  else
    compadd -a candidates
  fi
}
compdef _berth berth
)";

constexpr const char* fish_script = R"(# fish completion for berth
function __berth_complete
  set -l words (commandline -opc)
  set -l candidates (berth internal complete -- $words[2..] (commandline -ct) 2>/dev/null)
  if test "$candidates[1]" = :files
    __fish_complete_path (commandline -ct)
  else
    printf '%s\n' $candidates
  end
end
complete -c berth -f -a '(__berth_complete)'
)";

const std::vector<std::string> files = {":files"};

const Option* find_option(const Command* command, const std::string& word) {
  const auto is_it = [&word](const Option& option) {
    return option.name == word || option.short_name == word;
  };
  if (command != nullptr) {
    const auto own = std::ranges::find_if(command->options, is_it);
    if (own != command->options.end()) return &*own;
  }
  const auto global = std::ranges::find_if(global_options(), is_it);
  return global == global_options().end() ? nullptr : &*global;
}

/// What the complete words say: the command's words, and how many positionals it has.
struct Position {
  std::vector<std::string> words;   // not options, not their values
  const Option* waiting = nullptr;  // an option whose value comes next
};

const Command* command_of(const std::vector<std::string>& words) {
  for (const Command& command : commands()) {
    if (words.size() >= command.words.size() &&
        std::ranges::equal(command.words, words | std::views::take(command.words.size()))) {
      return &command;
    }
  }
  return nullptr;
}

Position read_position(const std::vector<std::string>& words) {
  Position position;
  for (const std::string& word : words) {
    if (position.waiting != nullptr) {
      position.waiting = nullptr;
    } else if (word.starts_with('-')) {
      const Option* option = find_option(command_of(position.words), word);
      if (option != nullptr && !option->value.empty()) position.waiting = option;
    } else {
      position.words.push_back(word);
    }
  }
  return position;
}

std::vector<std::string> names_for(Names kind, const std::vector<std::string>& choices,
                                   const NameSource& names) {
  if (kind == Names::files) return files;
  if (kind == Names::choices) return choices;
  return kind == Names::none ? std::vector<std::string>() : names(kind);
}

/// Nouns, or the verbs of the noun that is there.
std::vector<std::string> command_words(const std::vector<std::string>& so_far) {
  std::set<std::string> found;
  for (const Command& command : commands()) {
    if (command.hidden || command.words.size() <= so_far.size()) continue;
    if (std::ranges::equal(so_far, command.words | std::views::take(so_far.size()))) {
      found.insert(command.words[so_far.size()]);
    }
  }
  return {found.begin(), found.end()};
}

std::vector<std::string> option_names(const Command* command) {
  std::vector<std::string> found = {"--help"};
  if (command != nullptr) {
    for (const Option& option : command->options) found.push_back(option.name);
  }
  for (const Option& option : global_options()) found.push_back(option.name);
  return found;
}

std::vector<std::string> positional_words(const Command& command, std::size_t index,
                                          const NameSource& names) {
  if (command.positionals.empty()) return {};
  if (index >= command.positionals.size()) {
    if (!command.positionals.back().repeated) return {};
    index = command.positionals.size() - 1;
  }
  static const std::vector<std::string> shells = {"bash", "fish", "zsh"};
  return names_for(command.positionals[index].names, shells, names);
}

}  // namespace

Result<std::string> completion_script(const std::string& shell) {
  if (shell == "bash") return std::string(bash_script);
  if (shell == "zsh") return std::string(zsh_script);
  if (shell == "fish") return std::string(fish_script);
  return failure(ErrorKind::invalid_argument,
                 fmt::format("there is no completion for '{}': bash, zsh or fish", shell));
}

std::vector<std::string> complete(const std::vector<std::string>& words, const NameSource& names) {
  const std::string prefix = words.empty() ? std::string() : words.back();
  const Position position =
      read_position({words.begin(), words.empty() ? words.end() : words.end() - 1});
  const Command* command = command_of(position.words);
  std::vector<std::string> found;
  if (position.waiting != nullptr) {
    found = names_for(position.waiting->names, position.waiting->choices, names);
  } else if (prefix.starts_with('-')) {
    found = option_names(command);
  } else if (command == nullptr) {
    found = command_words(position.words);
  } else {
    found = positional_words(*command, position.words.size() - command->words.size(), names);
  }
  if (found == files) return found;
  std::erase_if(found, [&prefix](const std::string& word) { return !word.starts_with(prefix); });
  return found;
}

}  // namespace berth::control::cli
