#include "control/cli/client.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "control/cli/api_client.h"
#include "control/cli/console.h"
#include "control/cli/container_commands.h"
#include "control/cli/render.h"
#include "control/cli/render_doctor.h"
#include "control/cli/stop_keepers.h"
#include "control/cli/template_commands.h"
#include "control/exit_code.h"
#include "control/host_doctor.h"
#include "control/volume_check.h"
#include "machine/control_protocol.h"
#include "machine/layout.h"

namespace berth::control::cli {
namespace {

using Json = nlohmann::json;

std::string start_hint(const Globals& globals) {
  std::string hint = "berth daemon";
  const Globals defaults;
  if (globals.state_dir != defaults.state_dir) hint += " --state-dir " + globals.state_dir;
  if (globals.run_dir != defaults.run_dir) hint += " --run-dir " + globals.run_dir;
  return hint;
}

void print(std::string_view text) { (void)std::fwrite(text.data(), 1, text.size(), stdout); }

void print_json(const Json& value) {
  print(value.dump(2, ' ', false, Json::error_handler_t::replace) + '\n');
}

/// What the person asked to see of an answer.
void show(const ParsedLine& line, std::string_view schema, const Json& answer) {
  if (line.globals.json) {
    print_json(answer);
  } else {
    print(render(schema, answer));
  }
}

int report(const Error& error) {
  (void)std::fflush(stdout);
  fmt::print(stderr, "berth: {}\n", render_error(error));
  return exit_code(error.kind());
}

/// SIGINT and SIGTERM as something to poll, for as long as it lives.
class Interrupts {
 public:
  Interrupts() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    ::sigprocmask(SIG_BLOCK, &signals_, &before_);
    fd_ = Fd(::signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;
  ~Interrupts() {
    consume();
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  int fd() const { return fd_.get(); }
  void consume() const {
    signalfd_siginfo info{};
    while (::read(fd_.get(), &info, sizeof info) > 0) {
    }
  }

 private:
  sigset_t signals_{};
  sigset_t before_{};
  Fd fd_;
};

/// One line on a terminal that is written over and over; nothing where there is none.
class ProgressDisplay {
 public:
  ProgressDisplay() : enabled_(::isatty(STDERR_FILENO) == 1) {}
  ~ProgressDisplay() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
  }
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;
  void draw(const Json& job) {
    if (!enabled_) return;
    winsize size{};
    const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    fmt::print(stderr, "\r\033[K{}", progress_line(job, known ? size.ws_col - 1U : 79));
    (void)std::fflush(stderr);
    drawn_ = true;
  }

 private:
  bool enabled_;
  bool drawn_ = false;
};

/// Follows a job to its end. The first interrupt cancels it, the second one leaves it alone.
Result<Json> follow_job(const ApiClient& client, const std::string& id) {
  const Interrupts interrupts;
  ProgressDisplay display;
  Json last;
  bool cancelling = false;
  while (true) {
    const auto watched = client.stream(
        *find_action("job.watch"), {{"job", id}},
        [&](const Json& job) {
          last = job;
          display.draw(job);
          return job["state"] == "running";
        },
        interrupts.fd());
    if (watched) return last;
    if (watched.error().kind() != ErrorKind::cancelled) return failure(watched.error());
    interrupts.consume();
    if (cancelling) {
      return failure(ErrorKind::cancelled,
                     fmt::format("not waiting for it any more; see: berth job info {}", id));
    }
    cancelling = true;
    const auto cancelled = client.call(*find_action("job.cancel"), {{"job", id}});
    // A precondition: it has just ended by itself.
    if (!cancelled && cancelled.error().kind() != ErrorKind::precondition)
      return failure(cancelled.error());
  }
}

/// The result of a job that has ended, or why there is none.
Result<Json> result_of(const Json& job) {
  if (job.value("state", "") == "done") return job["result"];
  if (job["error"].is_object()) {
    return failure(error_kind_from_string(job["error"].value("kind", "")),
                   job["error"].value("message", ""));
  }
  return failure(ErrorKind::internal, fmt::format("the job is {}", job.value("state", "gone")));
}

Result<void> run_call(const ParsedLine& line, const ApiClient& client, const Action& action,
                      const Json& parameters) {
  const Json answer = TRY(client.call(action, parameters));
  if (action.answer != Answer::job) {
    show(line, action.result, answer);
  } else if (line.has("--detach")) {
    show(line, "Job", answer);
  } else {
    const Json ended = TRY(follow_job(client, answer.value("id", "")));
    show(line, action.result, TRY(result_of(ended)));
  }
  return {};
}

Result<void> run_changes(const ParsedLine& line, const ApiClient& client, Json parameters) {
  const std::uint64_t begin = parameters.value("offset", std::uint64_t{0});
  const std::uint64_t length = parameters.value("length", UINT64_MAX);
  Json all = Json::array();
  std::uint64_t extents = 0;
  std::uint64_t bytes = 0;
  bool exact = true;
  Json page;
  bool headed = line.globals.json;
  do {
    page = TRY(client.call(*line.command->action, parameters));
    // Not before: a refusal must not look like an empty list.
    if (!std::exchange(headed, true)) print(changes_heading());
    exact = exact && page["exact"] == true;
    for (const Json& extent : page["extents"]) bytes += extent[1].get<std::uint64_t>();
    extents += page["extents"].size();
    if (line.globals.json) {
      all.insert(all.end(), page["extents"].begin(), page["extents"].end());
    } else {
      print(render_extents(page["extents"]));
    }
    const auto next = page["next_offset"].get<std::uint64_t>();
    parameters["offset"] = next;
    if (length != UINT64_MAX) parameters["length"] = length - std::min(length, next - begin);
  } while (page["complete"] != true);
  if (line.globals.json) {
    page["extents"] = std::move(all);
    page["exact"] = exact;
    print_json(page);
  } else {
    print(changes_summary(extents, bytes, exact));
  }
  return {};
}

Result<void> run_refpoint_export(const ParsedLine& line, const ApiClient& client,
                                 const Json& parameters) {
  const Json exported = TRY(client.call(*line.command->action, parameters));
  if (!line.has("FILE") || line.text("FILE") == "-") {
    print_json(exported);
    return {};
  }
  std::ofstream file(line.text("FILE"));
  file << exported.dump(2) << '\n';
  file.close();
  if (!file) return errno_failure(errno, fmt::format("cannot write '{}'", line.text("FILE")));
  return {};
}

Result<void> run_refpoint_import(const ParsedLine& line, const ApiClient& client,
                                 const Json& parameters) {
  std::ifstream file(line.text("FILE"));
  if (!file) return errno_failure(errno, fmt::format("cannot read '{}'", line.text("FILE")));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  auto record = machine::parse_json(text);
  if (!record || !record->is_object()) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("'{}' is no exported reference point", line.text("FILE")));
  }
  record->update(parameters);
  show(line, line.command->action->result, TRY(client.call(*line.command->action, *record)));
  return {};
}

Result<void> run_job_watch(const ParsedLine& line, const ApiClient& client,
                           const Json& parameters) {
  ProgressDisplay display;
  Json last;
  TRY(client.stream(
      *line.command->action, parameters,
      [&](const Json& job) {
        last = job;
        if (line.globals.json) print(machine::format_json(job) + '\n');
        display.draw(job);
        return true;
      },
      -1));
  if (!line.globals.json) show(line, "Job", last);
  TRY(result_of(last));
  return {};
}

Result<void> run_events(const ParsedLine& line, const ApiClient& client, const Json& parameters) {
  return client.stream(
      *line.command->action, parameters,
      [&](const Json& event) {
        print(line.globals.json ? machine::format_json(event) + '\n' : render("Event", event));
        (void)std::fflush(stdout);
        return true;
      },
      -1);
}

/// A name, or a directory; one that lies where volumes lie is as good as its name.
VolumeCheckRequest check_request(const ParsedLine& line) {
  const std::string word = line.text("NAME|DIR");
  const machine::StateLayout layout{line.globals.state_dir};
  VolumeCheckRequest request{.shown_as = word, .repair = line.has("--repair")};
  request.directory = machine::is_valid_name(word) ? layout.volume(word) : absolute_path(word);
  const std::string name = request.directory.substr(request.directory.find_last_of('/') + 1);
  if (machine::is_valid_name(name) && request.directory == layout.volume(name)) {
    request.volume = name;
    request.run_dir = line.globals.run_dir;
  }
  return request;
}

/// Through the daemon where there is one, so that no keeper starts meanwhile and an idle one is
/// ended; else here.
Result<Json> checked_volume(const ApiClient& client, const VolumeCheckRequest& request) {
  if (request.volume.empty()) return check_volume(request);
  const auto job = client.call(*find_action("volume.check"),
                               {{"volume", request.volume}, {"repair", request.repair}});
  if (job) return result_of(TRY(follow_job(client, job->value("id", ""))));
  const ErrorKind kind = job.error().kind();
  if (kind != ErrorKind::disconnected && kind != ErrorKind::permission) return failure(job.error());
  return check_volume(request);
}

Result<void> run_check(const ParsedLine& line, const ApiClient& client) {
  const VolumeCheckRequest request = check_request(line);
  const Json report = TRY(checked_volume(client, request));
  show(line, "CheckReport", report);
  if (report["sound"] == true) return {};
  return failure(ErrorKind::corrupt, fmt::format("'{}' is damaged{}", request.shown_as,
                                                 request.repair ? "" : "; try --repair"));
}

Coloring coloring_of_output() {
  const char* no_color = std::getenv("NO_COLOR");  // no-color.org
  const bool wanted = no_color == nullptr || *no_color == '\0';
  return wanted && ::isatty(STDOUT_FILENO) == 1 ? Coloring::terminal : Coloring::plain;
}

/// Here, and not in the daemon: it is for when things do not work.
Result<void> run_doctor(const ParsedLine& line, const ApiClient& client, const Json& parameters) {
  const Json report = line.has("--daemon") ? TRY(client.call(*line.command->action, parameters))
                                           : host_report({.state_dir = line.globals.state_dir,
                                                          .run_dir = line.globals.run_dir,
                                                          .api_socket = line.globals.socket});
  if (line.globals.json) {
    print_json(report);
  } else {
    print(render_doctor(report, coloring_of_output()));
  }
  if (report.at("able") == true) return {};
  return failure(ErrorKind::precondition, fmt::format("Berth cannot work on this host without: {}",
                                                      missing_essentials_of(report)));
}

Result<void> run_vm_create(const ParsedLine& line, const ApiClient& client, Json parameters) {
  const std::string name = line.text("--file");
  std::string text;
  if (name == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
    parameters["directory"] = absolute_path(".");
  } else {
    std::ifstream file(name);
    if (!file) return errno_failure(errno, fmt::format("cannot read '{}'", name));
    text.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    const std::string path = absolute_path(name);
    parameters["directory"] = path.substr(0, std::max<std::size_t>(path.rfind('/'), 1));
  }
  parameters["specification"] = std::move(text);
  parameters["file"] = name == "-" ? "standard input" : name;
  return run_call(line, client, *line.command->action, parameters);
}

/// Whether the command's first name is a machine's.
Result<bool> names_machine(const ParsedLine& line, const ApiClient& client) {
  if (line.command->machine_action == nullptr || line.command->positionals.empty()) return false;
  const std::string word = line.text(line.command->positionals.front().name);
  const std::string name = word.substr(0, word.find('@'));
  if (name.empty()) return false;
  const Json list = TRY(client.call(*find_action("vm.list"), Json::object()));
  for (const Json& machine : list.at("machines")) {
    if (machine.at("name") == name) return true;
  }
  return false;
}

Result<void> run_on_machine(const ParsedLine& line, const ApiClient& client) {
  const Json parameters = TRY(machine_parameters(line));
  if (!line.has("--tree") || line.globals.json)
    return run_call(line, client, *line.command->machine_action, parameters);
  const Json list = TRY(client.call(*line.command->machine_action, parameters));
  print(render_checkpoint_tree(list["checkpoints"]));
  return {};
}

/// The socket of a machine's console.
Result<std::string> find_console(const ParsedLine& line) {
  const Json parameters = TRY(action_parameters(line));
  const Json machine = TRY(client_of(line.globals).call(*find_action("vm.info"), parameters));
  if (machine["console"].is_string()) return machine["console"].get<std::string>();
  return failure(ErrorKind::precondition, fmt::format("the machine '{}' is not running",
                                                      machine["name"].get<std::string>()));
}

Result<void> run(const ParsedLine& line) {
  const ApiClient client = client_of(line.globals);
  if (TRY(names_machine(line, client))) return run_on_machine(line, client);
  const Json parameters = TRY(action_parameters(line));
  switch (line.command->flow) {
    case Flow::changes: return run_changes(line, client, parameters);
    case Flow::refpoint_export: return run_refpoint_export(line, client, parameters);
    case Flow::refpoint_import: return run_refpoint_import(line, client, parameters);
    case Flow::job_watch: return run_job_watch(line, client, parameters);
    case Flow::events: return run_events(line, client, parameters);
    case Flow::check: return run_check(line, client);
    case Flow::vm_create: return run_vm_create(line, client, parameters);
    case Flow::doctor: return run_doctor(line, client, parameters);
    default: return run_call(line, client, *line.command->action, parameters);
  }
}

}  // namespace

ApiClient client_of(const Globals& globals) {
  return ApiClient(globals.socket, start_hint(globals));
}

Result<Json> wait_for_job(const ApiClient& client, const std::string& id) {
  return result_of(TRY(follow_job(client, id)));
}

int run_client(const ParsedLine& line) {
  Result<void> done;
  try {
    if (is_container_flow(line.command->flow)) return run_container_command(line);
    if (is_template_flow(line.command->flow)) return run_template_command(line);
    if (line.command->flow == Flow::vm_console) {
      const auto console = find_console(line);
      return console ? run_console(*console) : report(console.error());
    }
    done = run(line);
  } catch (const std::exception& exception) {
    done =
        failure(ErrorKind::protocol,
                fmt::format("the daemon's answer is not what was expected: {}", exception.what()));
  }
  if (!done) return report(done.error());
  if (std::fflush(stdout) != 0)
    return report(Error::from_errno(errno, "cannot write to standard output"));
  return exit_done;
}

int run_stop(const ParsedLine& line) {
  const bool keepers = line.has("--stop-keepers");
  const bool machines = line.has("--stop-machines");
  const auto stopped =
      client_of(line.globals)
          .call(*find_action("host.shutdown"), {{"keepers", keepers}, {"machines", machines}});
  if (stopped) {
    show(line, "Shutdown", *stopped);
    return exit_done;
  }
  if (stopped.error().kind() != ErrorKind::disconnected || !keepers) return report(stopped.error());
  // No daemon: the keepers hear it from us.
  const auto ended = stop_keepers(line.globals.state_dir, line.globals.run_dir);
  if (!ended) return report(ended.error());
  show(line, "Shutdown",
       {{"keepers_stopped", ended->keepers}, {"machines_stopped", ended->machines}});
  return exit_done;
}

std::vector<std::string> known_names(const Globals& globals, Names kind) {
  struct Source {
    const char* action;
    const char* list;
    bool with_volume;
  };
  const Source source = kind == Names::checkpoints ? Source{"checkpoint.list", "checkpoints", true}
                        : kind == Names::refpoints ? Source{"refpoint.list", "refpoints", true}
                        : kind == Names::jobs      ? Source{"job.list", "jobs", false}
                        : kind == Names::machines  ? Source{"vm.list", "machines", false}
                        : kind == Names::images    ? Source{"image.list", "images", false}
                                                   : Source{"volume.list", "volumes", false};
  std::vector<std::string> names;
  try {
    const auto answer = client_of(globals).call(*find_action(source.action), Json::object());
    if (!answer) return {};
    for (const Json& entry : answer->at(source.list)) {
      if (kind == Names::images) {
        for (const Json& name : entry.at("names")) names.push_back(name.get<std::string>());
        continue;
      }
      const auto name = entry.at(kind == Names::jobs ? "id" : "name").get<std::string>();
      names.push_back(source.with_volume ? entry.at("volume").get<std::string>() + '@' + name
                                         : name);
    }
  } catch (const std::exception&) {
    names.clear();  // no completion is better than a wrong one
  }
  return names;
}

}  // namespace berth::control::cli
