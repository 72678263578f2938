#include "control/cli/template_commands.h"

#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "control/cli/api_client.h"
#include "control/cli/client.h"
#include "control/cli/container_options.h"
#include "control/cli/render.h"
#include "control/exit_code.h"

namespace berth::control::cli {
namespace {

using Json = nlohmann::json;

// --- What there is to say.

/// Those of create_options() that are of these names.
std::vector<Option> some_create_options(std::initializer_list<std::string_view> names) {
  std::vector<Option> some;
  for (Option& option : create_options())
    if (std::ranges::find(names, option.name) != names.end()) some.push_back(std::move(option));
  return some;
}

Positional template_name() { return {"TEMPLATE", "Name of the template", "template"}; }

Command on_template(std::string word, const char* action, std::vector<Example> examples) {
  const Action* what = find_action(action);
  return {.words = {"template", std::move(word)},
          .summary = std::string(what->summary),
          .description = what->precondition.empty()
                             ? std::string()
                             : fmt::format("Precondition: {}.", what->precondition),
          .action = what,
          .positionals = {template_name()},
          .examples = std::move(examples)};
}

// --- Carrying it out.

Result<Json> create(const ParsedLine& line, const ApiClient& client) {
  const std::string image = line.text("--image");
  if (!image.empty()) TRY(have_image(client, image));
  Json specification = TRY(specification_of(line));
  for (const char* never : {"input", "terminal", "remove"}) specification.erase(never);
  Json request = {{"name", line.text("NAME")}};
  if (!image.empty()) request["image"] = image;
  if (line.has("--from")) {
    request["container"] = line.text("--from");
    if (specification["environment"].empty()) specification.erase("environment");
  }
  if (line.has("--warm")) request["warm"] = line.values.at("--warm");
  request["specification"] = std::move(specification);
  if (line.has("--ready")) request["ready"] = line.text("--ready");
  for (const char* never : {"input", "terminal", "remove"}) request["specification"].erase(never);
  if (line.has("--timeout")) {
    const double seconds = TRY(number_of(line.text("--timeout"), "--timeout"));
    if (!(seconds >= 1 && seconds <= 1e9))
      return failure(ErrorKind::invalid_argument, "--timeout: expected a number of seconds");
    request["timeout_s"] = static_cast<std::uint64_t>(seconds);
  }
  if (line.has("--pool")) {
    const double pool = TRY(number_of(line.text("--pool"), "--pool"));
    if (!(pool >= 0 && pool <= 1e6))
      return failure(ErrorKind::invalid_argument, "--pool: expected how many");
    request["pool"] = static_cast<std::uint64_t>(pool);
  }
  const Json job = TRY(client.call(*find_action("template.create"), request));
  return wait_for_job(client, job.value("id", ""));
}

Result<Json> clone(const ParsedLine& line, const ApiClient& client) {
  Json request = {{"template", line.text("TEMPLATE")},
                  {"specification", TRY(specification_of(line))}};
  for (const char* never : {"input", "terminal", "environment"})
    request["specification"].erase(never);
  if (line.has("--count")) {
    const double count = TRY(number_of(line.text("--count"), "--count"));
    if (!(count >= 1 && count <= 1e6))
      return failure(ErrorKind::invalid_argument, "--count: expected how many");
    request["count"] = static_cast<std::uint64_t>(count);
  }
  return client.call(*find_action("container.clone"), request);
}

}  // namespace

std::vector<Command> template_commands() {
  std::vector<Command> all;
  std::vector<Option> of_template = {
      {.name = "--image",
       .value = "IMAGE",
       .description = "Name or digest of the image; fetched if it is not here",
       .names = Names::images},
      value("", "--from", "CONTAINER",
            "In place of an image: a container that runs, and runs on; it stands for an instant"),
      value("", "--ready", "PROBE",
            "What says that it is ready: tcp:PORT, http:PORT[/PATH], log:TEXT or exec:COMMAND; "
            "when left out, that its command runs"),
      values("", "--warm", "COMMAND", "A shell command that is run in it once it is ready"),
      value("", "--pool", "N",
            "How many clones wait, ready, for somebody to ask for one; 2 when left out"),
      value("", "--timeout", "SECONDS",
            "How long until it is ready, and for each command; 120 when left out")};
  for (Option& option :
       some_create_options({"--env", "--env-file", "--user", "--workdir", "--cpus", "--memory",
                            "--net", "--entrypoint", "--stop-signal", "--stop-timeout", "--label",
                            "--log-size", "--park-after"}))
    of_template.push_back(std::move(option));
  all.push_back(
      {.words = {"template", "create"},
       .summary = std::string(find_action("template.create")->summary),
       .description = "Clones of it are mapped, not started: they go on where it was, each with a "
                      "name, an address, a machine-id and random numbers of its own. What has to "
                      "be done in a program that runs already when it becomes a clone is a hook "
                      "in the image's /etc/berth/clone.d.",
       .flow = Flow::template_create,
       .positionals = {{"NAME", "Name of the template", ""},
                       {"COMMAND", "After --, what it runs; the image's command when left out", "",
                        false, true}},
       .options = std::move(of_template),
       .examples = {{"berth template create web --image nginx --ready http:80", ""},
                    {"berth template create web2 --from web", "of a container that runs"},
                    {"berth template create app --image app:1.2 --ready http:8080/health --warm "
                     "'wget -qO- localhost:8080/' -m 512M",
                     "answered one request already"}}});
  all.push_back({.words = {"template", "list"},
                 .summary = "List the templates",
                 .action = find_action("template.list")});
  all.push_back(on_template("inspect", "template.inspect", {{"berth template inspect web", ""}}));
  all.push_back(on_template("check", "template.check", {{"berth template check web", ""}}));
  all.push_back(on_template("delete", "template.delete", {{"berth template delete web", ""}}));
  std::vector<Option> of_clone = {
      value("-n", "--count", "N", "How many; named NAME-1, NAME-2 and so on")};
  for (Option& option :
       some_create_options({"--name", "--hostname", "--publish", "--rm", "--stop-signal",
                            "--stop-timeout", "--label", "--log-size", "--park-after"}))
    of_clone.push_back(std::move(option));
  all.push_back({.words = {"container", "clone"},
                 .summary = "Run new containers that go on where a template was",
                 .description = "Prints their names, when they run.",
                 .flow = Flow::container_clone,
                 .positionals = {template_name()},
                 .options = std::move(of_clone),
                 .examples = {{"berth container clone web -p 8080:80", ""},
                              {"berth container clone web -n 100 -p 80", "each at a free port"}}});
  return all;
}

bool is_template_flow(Flow flow) {
  return flow == Flow::template_create || flow == Flow::container_clone;
}

int run_template_command(const ParsedLine& line) {
  const ApiClient client = client_of(line.globals);
  const bool is_create = line.command->flow == Flow::template_create;
  const auto done = is_create ? create(line, client) : clone(line, client);
  if (!done) return report(done.error(), exit_code(done.error().kind()));
  std::string text;
  if (line.globals.json) {
    text = done->dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
  } else if (is_create) {
    text = done->value("name", "") + '\n';
  } else {
    for (const Json& made : (*done)["containers"]) text += made.value("name", "") + '\n';
  }
  (void)std::fwrite(text.data(), 1, text.size(), stdout);
  const std::string error = is_create ? std::string() : done->value("error", "");
  if (error.empty()) return exit_done;
  (void)std::fflush(stdout);
  fmt::print(stderr, "berth: not as many as were asked for: {}\n", error);
  return exit_failed;
}

}  // namespace berth::control::cli
