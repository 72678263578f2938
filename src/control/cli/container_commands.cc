#include "control/cli/container_commands.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <thread>

#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "container/container_record.h"
#include "container/log_lines.h"
#include "control/cli/api_client.h"
#include "control/cli/attach.h"
#include "control/cli/client.h"
#include "control/cli/container_copy.h"
#include "control/cli/container_options.h"
#include "control/cli/inspect_awake.h"
#include "control/cli/render.h"
#include "control/exit_code.h"

namespace berth::control::cli {
namespace {

using Json = nlohmann::json;

constexpr std::chrono::milliseconds log_poll{100};
constexpr std::chrono::milliseconds rest_poll{20};
constexpr std::chrono::seconds rest_patience{15};

// --- What there is to say.

Positional container_name(bool repeated = false) {
  return {"CONTAINER", "Its name, or the beginning of its id", "container", true, repeated,
          Names::none};
}
Positional image() {
  return {"IMAGE",      "Name or digest of the image; fetched if it is not here", "", true, false,
          Names::images};
}
Positional words() { return {"COMMAND", "What to run, with its arguments", "", false, true}; }

Command each(std::string word, const char* action, std::vector<Option> options,
             std::vector<Example> examples) {
  return {.words = {"container", std::move(word)},
          .summary = std::string(find_action(action)->summary),
          .flow = Flow::container_each,
          .action = find_action(action),
          .positionals = {container_name(true)},
          .options = std::move(options),
          .examples = std::move(examples)};
}

Option of_action(Option option, std::string parameter) {
  option.parameter = std::move(parameter);
  return option;
}

// --- Carrying it out.

class Runner {
 public:
  explicit Runner(const ParsedLine& line) : line_(line), client_(client_of(line.globals)) {}

  int run() {
    switch (line_.command->flow) {
      case Flow::container_run: return run_container();
      case Flow::container_create: return create_only();
      case Flow::container_start: return start();
      case Flow::container_exec: return execute();
      case Flow::container_attach: return attach();
      case Flow::container_logs: return logs();
      case Flow::container_ps: return list();
      case Flow::container_copy: return copy_container_files(line_, client_);
      default: return for_each();
    }
  }

 private:
  Result<Json> call(const char* action, const Json& parameters) const {
    return client_.call(*find_action(action), parameters);
  }

  Result<Json> create() {
    TRY(have_image(client_, line_.text("IMAGE")));
    return call("container.create",
                {{"image", line_.text("IMAGE")}, {"specification", TRY(specification_of(line_))}});
  }

  int create_only() {
    const auto made = create();
    if (!made) return report(made.error(), exit_code(made.error().kind()));
    show(*made);
    return exit_done;
  }

  int run_container() {
    const bool detached = line_.has("--detach");
    if (line_.has("--tty") && !detached && ::isatty(STDIN_FILENO) != 1 &&
        line_.has("--interactive"))
      return report(Error(ErrorKind::invalid_argument, "-t: standard input is no terminal"),
                    exit_engine_failed);
    const auto made = create();
    if (!made) return report(made.error(), exit_engine_failed);
    const std::string name = made->value("name", "");
    const auto started = call("container.start", {{"container", name}, {"hold", !detached}});
    if (!started) {
      const int code = failed_start(name);
      if (!line_.has("--rm") && !line_.has("--name"))
        fmt::print(stderr, "berth: the container is '{}'\n", name);
      return report(started.error(), code);
    }
    if (detached) {
      show(*started);
      return exit_done;
    }
    const int code = attach_to(*started, true, line_.has("--interactive"));
    wait_for_rest(name);
    return code;
  }

  /// Whoever comes next finds it ended, or gone; unless it was only detached from.
  void wait_for_rest(const std::string& name) {
    const auto deadline = std::chrono::steady_clock::now() + rest_patience;
    while (std::chrono::steady_clock::now() < deadline) {
      const auto now = call("container.inspect", {{"container", name}});
      if (!now) return;
      const std::string state = now->value("state", "");
      const bool is_ending = state == "stopping" || state == "exited";
      if (!is_ending || (state == "exited" && !line_.has("--rm"))) return;
      std::this_thread::sleep_for(rest_poll);
    }
  }

  /// Of a program that cannot be run, what a shell would end with.
  int failed_start(const std::string& name) {
    const auto now = call("container.inspect", {{"container", name}});
    if (line_.has("--rm")) (void)call("container.delete", {{"container", name}, {"force", true}});
    const int code = now && now->at("exit_code").is_number() ? now->at("exit_code").get<int>()
                                                             : exit_engine_failed;
    return code == 126 || code == 127 ? code : exit_engine_failed;
  }

  int attach_to(const Json& shown, bool from_start, bool input) {
    const auto at = attach_point(client_, shown);
    if (!at) return report(at.error(), exit_engine_failed);
    const bool terminal = shown["specification"].value("terminal", false);
    Json request = {{"input", input}, {"from", from_start ? "start" : "now"}};
    if (terminal) add_terminal_size(request);
    return run_attached(*at, {{"attach", request}},
                        {.input = input, .terminal = terminal && input});
  }

  int start() {
    const bool attached = line_.has("--attach");
    int code = exit_done;
    for (const std::string& name : line_.values.at("CONTAINER")) {
      const auto started = call("container.start", {{"container", name}, {"hold", attached}});
      if (!started) {
        code = report(started.error(),
                      attached ? failed_start(name) : exit_code(started.error().kind()));
        continue;
      }
      if (attached) {
        const int ended = attach_to(*started, true, line_.has("--interactive"));
        wait_for_rest(name);
        return ended;
      }
      show(*started);
    }
    return code;
  }

  int attach() {
    const auto shown = inspect_awake(client_, line_.text("CONTAINER"));
    if (!shown) return report(shown.error(), exit_engine_failed);
    const bool input = (*shown)["specification"].value("input", false) && !line_.has("--no-stdin");
    const int code = attach_to(*shown, false, input);
    wait_for_rest(line_.text("CONTAINER"));
    return code;
  }

  int execute() {
    if (!line_.has("COMMAND"))
      return report(Error(ErrorKind::invalid_argument, "exec: COMMAND is missing"), exit_usage);
    const auto shown = inspect_awake(client_, line_.text("CONTAINER"));
    if (!shown) return report(shown.error(), exit_engine_failed);
    const auto at = attach_point(client_, *shown);
    if (!at) return report(at.error(), exit_engine_failed);
    const auto environment = environment_of(line_);
    if (!environment) return report(environment.error(), exit_engine_failed);
    const Json& is = (*shown)["specification"];
    Json all = is["environment"];
    all.insert(all.end(), environment->begin(), environment->end());
    Json request = {{"arguments", line_.values.at("COMMAND")},
                    {"environment", std::move(all)},
                    {"working_directory", line_.has("--workdir") ? Json(line_.text("--workdir"))
                                                                 : is["working_directory"]},
                    {"user", line_.has("--user") ? Json(line_.text("--user")) : is["user"]},
                    {"terminal", line_.has("--tty")},
                    {"input", line_.has("--interactive")}};
    if (line_.has("--tty")) add_terminal_size(request);
    return run_attached(*at, {{"exec", request}},
                        {.input = line_.has("--interactive"),
                         .terminal = line_.has("--tty") && line_.has("--interactive")});
  }

  int for_each() {
    int code = exit_done;
    for (const std::string& name : line_.values.at("CONTAINER")) {
      Json parameters = {{"container", name}};
      for (const Option& option : line_.command->options) {
        if (option.parameter.empty() || !line_.has(option.name)) continue;
        if (option.value.empty()) {
          parameters[option.parameter] = true;
        } else if (option.parameter == "timeout_s") {
          const auto seconds = number_of(line_.text(option.name), option.name.c_str());
          if (!seconds) return report(seconds.error(), exit_usage);
          parameters[option.parameter] = static_cast<std::uint64_t>(std::max(0.0, *seconds));
        } else {
          parameters[option.parameter] = line_.text(option.name);
        }
      }
      const auto done = client_.call(*line_.command->action, parameters);
      if (!done) {
        code = report(done.error(), exit_code(done.error().kind()));
      } else if (line_.command->action->name == "container.inspect" || line_.globals.json) {
        print(done->dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
      } else {
        print(name + '\n');
      }
    }
    return code;
  }

  int list() {
    auto all = call("container.list", Json::object());
    if (!all) return report(all.error(), exit_code(all.error().kind()));
    Json shown = Json::array();
    for (Json& container : (*all)["containers"]) {
      const std::string state = container.value("state", "");
      if (line_.has("--all") || (state != "exited" && state != "created"))
        shown.push_back(std::move(container));
    }
    if (line_.has("--quiet")) {
      for (const Json& container : shown) print(container.value("name", "") + '\n');
    } else {
      (*all)["containers"] = std::move(shown);
      if (line_.globals.json) {
        print(all->dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
      } else {
        print(render("ContainerList", *all));
      }
    }
    return exit_done;
  }

  // --- Logs.

  int logs() {
    const auto shown = call("container.inspect", {{"container", line_.text("CONTAINER")}});
    if (!shown) return report(shown.error(), exit_code(shown.error().kind()));
    container::LogLines lines((*shown)["log"].get<std::string>());
    if (line_.has("--tail")) {
      const auto tail = number_of(line_.text("--tail"), "--tail");
      if (!tail || *tail < 0)
        return report(tail
                          ? Error(ErrorKind::invalid_argument, "--tail: expected a number of lines")
                          : tail.error(),
                      exit_usage);
      if (const auto found = lines.keep_last(static_cast<std::size_t>(*tail)); !found)
        return report(found.error(), exit_failed);
    }
    const std::string name = shown->value("name", "");
    while (true) {
      // Before the log is read: everything is in it once the container has ended.
      const bool goes_on = line_.has("--follow") && is_running(name);
      const auto read = lines.read_all(
          [this](const container::LogEntry& entry, bool begins) { print_log(entry, begins); });
      if (!read) return report(read.error(), exit_failed);
      (void)std::fflush(stdout);
      if (!goes_on) return exit_done;
      std::this_thread::sleep_for(log_poll);
    }
  }

  bool is_running(const std::string& name) const {
    const auto shown = call("container.inspect", {{"container", name}});
    if (!shown) return false;
    const std::string state = shown->value("state", "");
    return shown->at("pid").is_number() || state == "starting" || state == "hibernated";
  }

  void print_log(const container::LogEntry& entry, bool begins) const {
    std::string text;
    if (line_.has("--timestamps") && begins) text = fmt::format("{} ", entry.at);
    text += entry.text;
    if (!entry.partial) text += '\n';
    const bool is_errors = entry.stream == container::LogStream::errors;
    (void)std::fwrite(text.data(), 1, text.size(), is_errors ? stderr : stdout);
  }

  // --- Printing.

  static void print(std::string_view text) {
    (void)std::fwrite(text.data(), 1, text.size(), stdout);
  }
  void show(const Json& container) const {
    if (line_.globals.json) {
      print(container.dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
    } else {
      print(container.value("name", "") + '\n');
    }
  }

  const ParsedLine& line_;
  ApiClient client_;
};

/// Options of the command, and those that every command has, which take a word of their own.
bool takes_word(const Command* command, std::string_view word) {
  const auto is_it = [&word](const Option& option) {
    return !option.value.empty() && (option.name == word || option.short_name == word);
  };
  return (command != nullptr && std::ranges::any_of(command->options, is_it)) ||
         std::ranges::any_of(global_options(), is_it);
}

/// Whether the value of this option, or of the last of several flags in one word, is the next word.
bool has_next_word(const Command* command, std::string_view word) {
  if (word.starts_with("--")) return !word.contains('=') && takes_word(command, word);
  for (std::size_t i = 1; i < word.size(); ++i) {
    const std::string option = std::string("-") + word[i];
    if (takes_word(command, option)) return i + 1 == word.size();
  }
  return false;
}

/// The command of `container`, if what follows its first name is not ours; else null.
const Command* with_tail(const std::string& word) {
  for (const Command& command : commands()) {
    const bool has_tail = command.flow == Flow::container_run ||
                          command.flow == Flow::container_create ||
                          command.flow == Flow::container_exec;
    if (has_tail && command.words.back() == word) return &command;
  }
  return nullptr;
}

}  // namespace

std::vector<Command> container_commands() {
  std::vector<Command> all;
  std::vector<Option> run = create_options();
  run.push_back(flag("-d", "--detach", "Do not attach: print its name, and leave it running"));
  all.push_back({.words = {"container", "run"},
                 .summary = "Run a command in a new container, in a microVM of its own",
                 .description =
                     "Ends with the command's exit code; 125 where Berth failed, 126 and "
                     "127 where the command cannot be run or is not there. ^P ^Q "
                     "detaches from a terminal.",
                 .flow = Flow::container_run,
                 .positionals = {image(), words()},
                 .options = std::move(run),
                 .examples = {{"berth container run --rm debian:12 cat /etc/os-release", ""},
                              {"berth container run -it --rm alpine", "a shell, with a terminal"},
                              {"berth container run -d --name web -p 8080:80 nginx", "a service"},
                              {"berth container run -d -v data:/var/lib/postgresql/data -e "
                               "POSTGRES_PASSWORD=x postgres",
                               "with its data in a volume"}}});
  all.push_back({.words = {"container", "create"},
                 .summary = "Make a container, to be started later",
                 .flow = Flow::container_create,
                 .positionals = {image(), words()},
                 .options = create_options(),
                 .examples = {{"berth container create --name web -p 8080:80 nginx", ""}}});
  all.push_back({.words = {"container", "start"},
                 .summary = "Run a container again, or for the first time",
                 .flow = Flow::container_start,
                 .positionals = {container_name(true)},
                 .options = {flag("-a", "--attach", "Attach to it"),
                             flag("-i", "--interactive", "Send standard input")},
                 .examples = {{"berth container start web", ""}}});
  all.push_back({.words = {"container", "exec"},
                 .summary = "Run another command in a container",
                 .flow = Flow::container_exec,
                 .positionals = {container_name(), words()},
                 .options = process_options(),
                 .examples = {{"berth container exec -it web sh", ""},
                              {"berth container exec db pg_isready", ""}}});
  all.push_back({.words = {"container", "attach"},
                 .summary = "See what a container writes from now on, and write to it",
                 .flow = Flow::container_attach,
                 .positionals = {container_name()},
                 .options = {flag("", "--no-stdin", "Do not send standard input")},
                 .examples = {{"berth container attach web", ""}}});
  all.push_back({.words = {"container", "logs"},
                 .summary = "Print what a container has written",
                 .flow = Flow::container_logs,
                 .positionals = {container_name()},
                 .options = {flag("-f", "--follow", "And what it will, until it ends"),
                             value("-n", "--tail", "N", "The last N lines alone"),
                             flag("-t", "--timestamps", "With the time of each line")},
                 .examples = {{"berth container logs -f --tail 100 web", ""}}});
  all.push_back({.words = {"container", "ps"},
                 .summary = "List the containers that run",
                 .flow = Flow::container_ps,
                 .options = {flag("-a", "--all", "Those that do not run, too"),
                             flag("-q", "--quiet", "Names alone")},
                 .examples = {{"berth container ps -a", ""}}});
  all.push_back(
      {.words = {"container", "cp"},
       .summary = "Copy files between a container that runs and this host",
       .description = "A directory that is there takes what is copied under its own name; what is "
                      "not there is made, of that name. - is a tar, on standard output or input",
       .flow = Flow::container_copy,
       .positionals = {{"FROM", "CONTAINER:PATH, a path here, or -", ""},
                       {"TO", "A path here, -, or CONTAINER:PATH", "", true, false, Names::files}},
       .options = {flag("-a", "--archive", "Keep owners, too")},
       .examples = {{"berth container cp web:/etc/nginx .", ""},
                    {"berth container cp index.html web:/usr/share/nginx/html/", ""},
                    {"berth container cp db:/var/lib/dump - | gzip > dump.tar.gz", ""}}});
  all.push_back(each("stop", "container.stop",
                     {of_action(value("-t", "--time", "SECONDS",
                                      "How long they may take; their own time when left out"),
                                "timeout_s")},
                     {{"berth container stop web db", ""}}));
  all.push_back(
      each("kill", "container.kill",
           {of_action(value("-s", "--signal", "SIGNAL", "SIGKILL when left out"), "signal")},
           {{"berth container kill -s HUP web", ""}}));
  all.push_back(each("rm", "container.delete",
                     {of_action(flag("-f", "--force", "End those that run, by force"), "force")},
                     {{"berth container rm -f web", ""}}));
  all.push_back(each(
      "pause", "container.pause",
      {{.name = "--level",
        .value = "LEVEL",
        .description = std::string(find_action("container.pause")->parameters.back().description),
        .parameter = "level",
        .names = Names::choices,
        .choices = {"frozen", "trimmed", "parked", "hibernated"}}},
      {{"berth container pause web", ""},
       {"berth container pause --level parked web db", "their memory on disk"},
       {"berth container pause --level hibernated web", "nothing but files is left"}}));
  all.push_back(each("resume", "container.resume", {}, {{"berth container resume web", ""}}));
  all.push_back(each("inspect", "container.inspect", {}, {{"berth container inspect web", ""}}));
  return all;
}

bool is_container_flow(Flow flow) {
  return flow >= Flow::container_run && flow <= Flow::container_each;
}

int run_container_command(const ParsedLine& line) { return Runner(line).run(); }

SplitLine with_command_apart(int argc, const char* const* argv) {
  SplitLine line{.words = {argv, argv + argc}, .tail = {}};
  std::vector<std::string>& words = line.words;
  const auto is_option = [](const std::string& word) {
    return word.size() > 1 && word.starts_with('-');
  };
  if (words.size() > 2 && words[1] == "template" && words[2] == "create") {
    // A command of its own is told apart by a mark alone: the image is an option.
    const auto mark = std::ranges::find(words, "--");
    if (mark == words.end()) return line;
    line.tail.assign(mark + 1, words.end());
    words.erase(mark, words.end());
    return line;
  }
  const Command* command = nullptr;
  std::size_t names = 0;  // words that are no options, so far
  for (std::size_t i = 1; i < words.size(); ++i) {
    if (words[i] != "--" && is_option(words[i])) {
      if (has_next_word(command, words[i])) ++i;
      continue;
    }
    const bool is_mark = words[i] == "--";
    if (!is_mark) ++names;
    if (names == 1 && words[i] != "container") return line;
    if (names == 2 && !is_mark) command = with_tail(words[i]);
    if (names == 2 && command == nullptr) return line;
    if (names < 3 && !(names == 2 && is_mark)) continue;
    // The image, or the container; all that follows is not ours.
    std::size_t tail = i + 1 + (is_mark ? 1 : 0);
    if (!is_mark && tail < words.size() && words[tail] == "--")
      words.erase(words.begin() + static_cast<std::ptrdiff_t>(tail));
    tail = std::min(tail, words.size());
    line.tail.assign(words.begin() + static_cast<std::ptrdiff_t>(tail), words.end());
    words.resize(tail);
    return line;
  }
  return line;
}

}  // namespace berth::control::cli
