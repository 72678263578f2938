// docs/man/berth.1, and completion scripts, made from the list of commands. Pure.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "control/cli/command.h"

namespace berth::control::cli {

/// The manual page, in man(7)'s language.
std::string man_page();

/// A script for bash, zsh or fish that asks `berth internal complete`.
Result<std::string> completion_script(const std::string& shell);

/// The names that there are: volumes, "VOLUME@CHECKPOINT", …
using NameSource = std::function<std::vector<std::string>(Names kind)>;

/// What the last of `words` may become; all but the last are complete, "berth" is not among them.
/// The single word
/// ":files" stands for file names.
std::vector<std::string> complete(const std::vector<std::string>& words, const NameSource& names);

}  // namespace berth::control::cli
