// The options that say what a container is to be, for all commands that make one.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"
#include "control/cli/api_client.h"
#include "control/cli/command.h"
#include "control/cli/parser.h"

namespace berth::control::cli {

Option flag(std::string short_name, std::string name, std::string description);
Option value(std::string short_name, std::string name, std::string what, std::string description);
/// One that may be given more than once.
Option values(std::string short_name, std::string name, std::string what, std::string description);

/// Of a process in a container.
std::vector<Option> process_options();
/// And of what it runs in.
std::vector<Option> create_options();

/// Of -e and --env-file: a list.
Result<nlohmann::json> environment_of(const ParsedLine& line);
/// Members of a ContainerSpecification, of those options that the command has.
Result<nlohmann::json> specification_of(const ParsedLine& line);
Result<double> number_of(const std::string& text, const char* option);

/// Fetches an image that is not here.
Result<void> have_image(const ApiClient& client, const std::string& image);

/// Prints the error; `code`.
int report(const Error& error, int code);

/// "[ADDRESS:]HOST:GUEST", "GUEST" (a free port of the host's): a PublishedPort.
Result<nlohmann::json> parse_published_port(const std::string& text);
/// "VOLUME:PATH[:ro]": a ContainerMount.
Result<nlohmann::json> parse_mount(const std::string& text);

}  // namespace berth::control::cli
