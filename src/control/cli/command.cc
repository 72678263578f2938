#include "control/cli/command.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/result.h"
#include "control/cli/container_commands.h"
#include "control/cli/template_commands.h"
#include "machine/host/doctor.h"

namespace berth::control::cli {
namespace {

using Type = Parameter::Type;

std::string value_name(const Parameter& parameter) {
  switch (parameter.type) {
    case Type::volume_name: return "VOLUME";
    case Type::machine_name: return "VM";
    case Type::point_name: return "NAME";
    case Type::path: return "FILE";
    case Type::address: return "HOST:PORT";
    case Type::size: return "SIZE";
    case Type::count: return "N";
    case Type::id: return "ID";
    case Type::choice: return fmt::format("{}", fmt::join(parameter.choices, "|"));
    case Type::flag: return {};
    case Type::text:
    case Type::object:
    case Type::volume_names:
    case Type::texts: return "TEXT";
  }
  return {};
}

Names completed_with(const Parameter& parameter) {
  if (parameter.type == Type::volume_name) return Names::volumes;
  if (parameter.type == Type::machine_name) return Names::machines;
  if (parameter.type == Type::path) return Names::files;
  if (parameter.type == Type::choice) return Names::choices;
  return Names::none;
}

/// Where a parameter is spelled otherwise than "--its-name".
struct Spelling {
  std::string_view parameter;
  std::string_view name;        // "" leaves the parameter out
  std::string_view value = {};  // "" for the type's
  std::string_view flag_value = {};
  Names names = Names::none;
};

/// The options for those parameters that no positional gives.
std::vector<Option> options_for(const Action& action, const std::vector<Positional>& positionals,
                                const std::vector<Spelling>& spellings) {
  std::vector<Option> options;
  for (const Parameter& parameter : action.parameters) {
    const bool positional = std::ranges::any_of(positionals, [&parameter](const Positional& each) {
      return each.parameter == parameter.name ||
             each.parameter.starts_with(fmt::format("{}@", parameter.name)) ||
             each.parameter.ends_with(fmt::format("@{}", parameter.name));
    });
    if (positional) continue;
    Option option{.name = fmt::format("--{}", parameter.name),
                  .value = value_name(parameter),
                  .description = std::string(parameter.description),
                  .parameter = std::string(parameter.name),
                  .required = parameter.required,
                  .names = completed_with(parameter),
                  .choices = {parameter.choices.begin(), parameter.choices.end()}};
    std::ranges::replace(option.name, '_', '-');
    const auto spelling = std::ranges::find(spellings, parameter.name, &Spelling::parameter);
    if (spelling != spellings.end()) {
      if (spelling->name.empty()) continue;
      option.name = spelling->name;
      if (!spelling->value.empty()) option.value = spelling->value;
      if (spelling->names != Names::none) option.names = spelling->names;
      if (!spelling->flag_value.empty()) {
        option.flag_value = spelling->flag_value;
        option.value.clear();
        option.choices.clear();
      }
    }
    options.push_back(std::move(option));
  }
  return options;
}

/// A command that is one action.
struct ActionCommand {
  std::string_view action;
  std::vector<Positional> positionals = {};
  std::vector<Spelling> spellings = {};
  std::vector<Example> examples = {};
  Flow flow = Flow::call;
  std::string_view machine_action = {};
};

/// What only the action on a machine takes.
void add_machine_options(Command& command) {
  const auto has = [&command](const Parameter& parameter) {
    return std::ranges::any_of(command.options, [&parameter](const Option& option) {
      return option.parameter == parameter.name;
    });
  };
  for (Option& option : options_for(*command.machine_action, command.positionals, {})) {
    const auto parameter =
        std::ranges::find(command.machine_action->parameters, option.parameter, &Parameter::name);
    if (parameter->place == Parameter::Place::path || has(*parameter)) continue;
    option.machine_only = true;
    if (option.name.ends_with("-s")) {
      option.name.resize(option.name.size() - 2);
      option.value = "SECONDS";
    }
    option.description += " (of a machine)";
    command.options.push_back(std::move(option));
  }
}

Command make(const ActionCommand& from) {
  const Action* action = find_action(from.action);
  CHECK(action != nullptr);
  Command command{.flow = from.flow,
                  .action = action,
                  .positionals = from.positionals,
                  .examples = from.examples};
  const std::size_t dot = from.action.find('.');
  command.words = {std::string(from.action.substr(0, dot)),
                   std::string(from.action.substr(dot + 1))};
  command.summary = action->summary;
  if (!action->precondition.empty())
    command.description = fmt::format("Precondition: {}.", action->precondition);
  command.options = options_for(*action, from.positionals, from.spellings);
  if (!from.machine_action.empty()) {
    command.machine_action = find_action(from.machine_action);
    CHECK(command.machine_action != nullptr);
    add_machine_options(command);
  }
  if (action->answer == Answer::job ||
      (command.machine_action != nullptr && command.machine_action->answer == Answer::job)) {
    command.options.push_back(
        {.name = "--detach", .description = "Do not wait: print the job, and leave it running"});
  }
  return command;
}

Positional volume() {
  return {"VOLUME", "Name of the volume", "volume", true, false, Names::volumes};
}
Positional checkpoint() {
  return {"VOLUME@CHECKPOINT", "The checkpoint", "volume@checkpoint", true, false,
          Names::checkpoints};
}
Positional refpoint() {
  return {"VOLUME@REFPOINT", "The reference point", "volume@refpoint", true, false,
          Names::refpoints};
}
Positional volumes() {
  return {"VOLUME",  "Name of a volume; several are cut at the same instant",
          "volumes", true,
          true,      Names::volumes};
}
Positional job() { return {"JOB", "Id of the job", "job", true, false, Names::jobs}; }
Positional volume_filter() {
  return {"VOLUME", "Only those of this volume", "volume", false, false, Names::volumes};
}

void add_volume_commands(std::vector<Command>& all) {
  all.push_back(make(
      {.action = "volume.create",
       .positionals = {{"NAME", "Name of the new volume", "name"}},
       .spellings = {{"block_size", "--block"},
                     {"backing", "--backing", "SPEC", {}, Names::files},
                     {"file_system", "--file-system"}},
       .examples = {{"berth volume create disk1 --size 10G", "an empty disk of 10 GiB"},
                    {"berth volume create web --backing debian.qcow2",
                     "over an image, which stays as it is"},
                    {"berth volume create clone --backing volume:disk1@before",
                     "over a checkpoint of another volume"},
                    {"berth volume create old --import old.vmdk", "a copy of another disk"},
                    {"berth volume create db --adopt /dev/vg0/db", "a block device, in place"},
                    {"berth volume create data --size 5G --file-system ext4", "for containers"}}}));
  all.push_back(make({.action = "volume.list"}));
  all.push_back(make({.action = "volume.info", .positionals = {volume()}}));
  all.push_back(make({.action = "volume.resize",
                      .positionals = {volume()},
                      .examples = {{"berth volume resize disk1 --size 20G", ""}}}));
  all.push_back(make({.action = "volume.delete", .positionals = {volume()}}));
  all.push_back(
      make({.action = "volume.serve",
            .positionals = {volume()},
            .spellings = {{"tcp", "--nbd"},
                          {"unix", "--nbd-socket", "PATH"},
                          {"tls_dir", "--tls-dir", "DIR"}},
            .examples = {
                {"berth volume serve disk1", "on a socket in the run directory; prints the URI"},
                {"berth volume serve disk1 --nbd-socket /run/vm1/disk.sock", ""},
                {"berth volume serve disk1 --nbd 0.0.0.0:10809 --tls-dir /etc/berth/tls",
                 "to other machines"},
                {"nbdinfo \"$(berth volume serve disk1)\"", "the URI is all that is printed"}}}));
  all.push_back(make({.action = "volume.unserve",
                      .positionals = {volume()},
                      .spellings = {{"tcp", "--nbd"}, {"unix", "--nbd-socket", "PATH"}}}));
  all.push_back(
      make({.action = "volume.populate",
            .positionals = {volume()},
            .examples = {{"berth volume populate web --rate 50M", "at most 50 MiB a second"}}}));

  all.push_back(make(
      {.action = "volume.export",
       .positionals = {volume(), {"DIR", "The directory to make", "to", true, false, Names::files}},
       .examples = {{"berth volume export disk1 /mnt/usb/disk1",
                     "all of it: the disk, its checkpoints, its reference points"}}}));
  all.push_back(
      make({.action = "volume.import",
            .positionals = {{"NAME", "Name that the volume gets", "volume"},
                            {"DIR", "Its directory, as `berth volume export` or `cp -a` made it",
                             "directory", true, false, Names::files}},
            .examples = {
                {"berth volume import disk1 /mnt/usb/disk1 --moved",
                 "the original is gone: the next backup is an increment, as it would have been"},
                {"berth volume import test /mnt/usb/disk1 --copied",
                 "the original goes on: another volume with the same content"},
                {"berth volume import disk1 /var/lib/berth/volumes/disk1 --moved",
                 "it lies where it should already: before anything opens it there"}}}));

  Command check{
      .words = {"volume", "check"},
      .summary = std::string(find_action("volume.check")->summary),
      .description =
          "Where a daemon runs, it does this, and ends an idle keeper of the volume first. Else it "
          "is "
          "done here, on a volume's name or directory.",
      .flow = Flow::check,
      .action = find_action("volume.check"),
      .positionals = {{"NAME|DIR",
                       "Name of a volume of the state directory, or a volume's directory", "", true,
                       false, Names::volumes}},
      .options = {{.name = "--repair", .description = "Mend what can be mended"}},
      .examples = {{"berth volume check disk1", ""},
                   {"berth volume check /srv/rescued/disk1 --repair", "without any daemon"}}};
  all.push_back(std::move(check));
}

void add_checkpoint_commands(std::vector<Command>& all) {
  all.push_back(make(
      {.action = "checkpoint.create",
       .positionals = {volumes()},
       .spellings = {{"durability", "--volatile", {}, "volatile"}},
       .examples = {{"berth checkpoint create disk1 --name before-upgrade", ""},
                    {"berth checkpoint create db-data db-log --name nightly --refpoint nightly",
                     "two disks at one instant, and a reference point for the next backup"},
                    {"berth checkpoint create disk1 --name quick --volatile",
                     "costs no sync; lost at a power loss"},
                    {"berth checkpoint create web --name nightly",
                     "a machine: its guest at rest, all of its disks at one instant"},
                    {"berth checkpoint create web --name here --memory",
                     "with its memory, while it runs"}},
       .machine_action = "vm_checkpoint.create"}));
  Command list = make({.action = "checkpoint.list",
                       .positionals = {volume_filter()},
                       .examples = {{"berth checkpoint list web --tree",
                                     "a machine's, as they follow one another"}},
                       .machine_action = "vm_checkpoint.list"});
  list.options.push_back({.name = "--tree",
                          .description = "As a tree: each below the one before it (of a machine)",
                          .machine_only = true});
  all.push_back(std::move(list));
  all.push_back(make({.action = "checkpoint.info",
                      .positionals = {checkpoint()},
                      .machine_action = "vm_checkpoint.info"}));
  all.push_back(
      make({.action = "checkpoint.revert",
            .positionals = {checkpoint()},
            .examples = {{"berth checkpoint revert disk1@before-upgrade", "stop the guest first"},
                         {"berth checkpoint revert web@here --force",
                          "the machine goes on where it was"}},
            .machine_action = "vm_checkpoint.revert"}));
  all.push_back(
      make({.action = "checkpoint.export",
            .positionals = {checkpoint(),
                            {"FILE", "The raw file to write", "to", true, false, Names::files}},
            .spellings = {{"since", "--since", "REFPOINT"}},
            .examples = {{"berth checkpoint export disk1@sunday full.raw", "the whole disk"},
                         {"berth checkpoint export disk1@monday full.raw --since sunday",
                          "patch the full image to what the disk was on Monday"},
                         {"berth checkpoint export disk1@monday monday.raw --since sunday",
                          "where monday.raw does not exist: the changed extents alone, with their "
                          "list beside them"},
                         {"berth checkpoint export web@monday /backup/web --since sunday",
                          "every disk of a machine, to /backup/web/DISK.raw"}},
            .machine_action = "vm_checkpoint.export"}));
  all.push_back(make({.action = "checkpoint.delete",
                      .positionals = {checkpoint()},
                      .machine_action = "vm_checkpoint.delete"}));
  Command convert = make({.action = "refpoint.convert",
                          .positionals = {checkpoint()},
                          .spellings = {{"refpoint", "--name"}},
                          .examples = {{"berth checkpoint convert web@sunday", "after its backup"}},
                          .machine_action = "vm_checkpoint.convert"});
  convert.words = {"checkpoint", "convert"};
  all.push_back(std::move(convert));
}

void add_refpoint_commands(std::vector<Command>& all) {
  all.push_back(make({.action = "refpoint.create",
                      .positionals = {volumes()},
                      .examples = {{"berth refpoint create disk1 --name sunday", ""}}}));
  all.push_back(make({.action = "refpoint.convert",
                      .positionals = {checkpoint()},
                      .spellings = {{"refpoint", "--name"}},
                      .examples = {{"berth refpoint convert disk1@sunday",
                                    "after its backup: the space comes back"}},
                      .machine_action = "vm_checkpoint.convert"}));
  all.push_back(make({.action = "refpoint.list",
                      .positionals = {volume_filter()},
                      .machine_action = "vm_refpoint.list"}));
  all.push_back(make({.action = "refpoint.export",
                      .positionals = {refpoint(),
                                      {"FILE", "Where to write it; standard output when left out",
                                       "", false, false, Names::files}},
                      .examples = {{"berth refpoint export disk1@sunday sunday.json", ""}},
                      .flow = Flow::refpoint_export}));
  Command import = make({.action = "refpoint.import",
                         .positionals = {volume(),
                                         {"FILE", "What `berth refpoint export` wrote", "", true,
                                          false, Names::files}},
                         .examples = {{"berth refpoint import disk1 sunday.json",
                                       "is an increment since then still possible?"}},
                         .flow = Flow::refpoint_import});
  import.options.clear();  // they are in the file
  all.push_back(std::move(import));
  all.push_back(make({.action = "refpoint.delete",
                      .positionals = {refpoint()},
                      .machine_action = "vm_refpoint.delete"}));

  Command changes =
      make({.action = "changes.list",
            .positionals = {volume()},
            .spellings = {{"extents_max", ""},
                          {"since", "--since", "REFPOINT"},
                          {"until", "--until", "CHECKPOINT"}},
            .examples = {{"berth changes disk1 --since sunday", ""},
                         {"berth changes disk1 --since sunday --until monday -o json", ""},
                         {"berth changes disk1 --since sunday --offset 1G --length 1G",
                          "in a part of the disk"}},
            .flow = Flow::changes});
  changes.words = {"changes"};
  all.push_back(std::move(changes));
}

Positional machine() {
  return {"VM", "Name of the machine", "machine", true, false, Names::machines};
}

void add_machine_commands(std::vector<Command>& all) {
  Command create =
      make({.action = "vm.create",
            .examples = {{"berth vm create -f web.toml", ""},
                         {"berth vm create -f web.toml --name web2", "another one like it"}},
            .flow = Flow::vm_create});
  std::erase_if(create.options, [](const Option& option) {
    return option.name == "--specification" || option.name == "--file" ||
           option.name == "--directory";
  });
  create.options.insert(create.options.begin(),
                        {.name = "--file",
                         .short_name = "-f",
                         .value = "FILE",
                         .description = "The machine's vm.toml; - for standard input",
                         .required = true,
                         .names = Names::files});
  all.push_back(std::move(create));
  all.push_back(make({.action = "vm.list"}));
  all.push_back(make({.action = "vm.info", .positionals = {machine()}}));
  all.push_back(make({.action = "vm.start", .positionals = {machine()}}));
  all.push_back(make({.action = "vm.stop",
                      .positionals = {machine()},
                      .spellings = {{"timeout_s", "--timeout", "SECONDS"}},
                      .examples = {{"berth vm stop web", "the guest shuts down"},
                                   {"berth vm stop web --force", "as if its power were cut"}}}));
  all.push_back(make({.action = "vm.restart",
                      .positionals = {machine()},
                      .spellings = {{"timeout_s", "--timeout", "SECONDS"}}}));
  all.push_back(make(
      {.action = "vm.suspend",
       .positionals = {machine()},
       .examples = {{"berth vm suspend web", ""},
                    {"berth vm suspend web --level parked", "its memory on disk"},
                    {"berth vm suspend web --level hibernated", "nothing but files is left"}}}));
  all.push_back(make({.action = "vm.resume", .positionals = {machine()}}));
  all.push_back(make({.action = "vm.set",
                      .positionals = {machine()},
                      .spellings = {{"limit_cpus", "--limit-cpus", "CPUS"},
                                    {"limit_memory", "--limit-memory", "SIZE"}},
                      .examples = {{"berth vm set web --limit-cpus 1.5", "at once"},
                                   {"berth vm set web --memory 2G", "from its next start on"}}}));
  all.push_back(make(
      {.action = "vm.attach",
       .positionals = {machine(), {"VOLUME", "The volume", "volume", true, false, Names::volumes}},
       .spellings = {{"disk", "--as", "NAME"}},
       .examples = {{"berth vm attach web data", "also while it runs"}}}));
  all.push_back(
      make({.action = "vm.detach",
            .positionals = {machine(), {"DISK", "Name of the disk in the machine", "disk"}}}));
  all.push_back(
      make({.action = "vm.export",
            .positionals = {machine(),
                            {"DIR", "The directory to make", "to", true, false, Names::files}},
            .examples = {{"berth vm export web /mnt/usb/web", ""}}}));
  all.push_back(make(
      {.action = "vm.import",
       .positionals = {{"DIR", "A machine's directory", "from", true, false, Names::files}},
       .examples = {{"berth vm import /mnt/usb/web --moved", "the same machine, now here"},
                    {"berth vm import /mnt/usb/web --copied --name web2", "another machine"}}}));
  all.push_back(make({.action = "vm.delete", .positionals = {machine()}}));
  all.push_back({.words = {"vm", "console"},
                 .summary = "Be at the machine's serial console; ^] leaves it",
                 .description = "Precondition: the machine is running, on this host.",
                 .flow = Flow::vm_console,
                 .action = find_action("vm.info"),
                 .positionals = {machine()}});
}

Positional image() {
  return {"IMAGE", "Name of the image, or at least 12 digits of its digest",
          "image", true,
          false,   Names::images};
}

void add_kernel_commands(std::vector<Command>& all) {
  all.push_back(make(
      {.action = "kernel.import",
       .positionals = {{"PACKAGE",
                        "A linux-image package; Debian's cloud kernel is downloaded when left out",
                        "package", false, false, Names::files}},
       .examples = {
           {"berth kernel import", "Debian's, as apt offers it today"},
           {"berth kernel import linux-image-6.1.0-28-cloud-amd64_6.1.119-1_amd64.deb", ""}}}));
  all.push_back(make({.action = "kernel.list"}));
}

void add_image_commands(std::vector<Command>& all) {
  all.push_back(
      make({.action = "image.pull",
            .positionals = {{"IMAGE", "Its name, docker:// before it or not", "image"}},
            .spellings = {{"tls_verify", "--tls-verify", "true|false"},
                          {"timeout_s", "--timeout", "SECONDS"}},
            .examples = {{"berth image pull docker://nginx", "docker.io/library/nginx:latest"},
                         {"berth image pull registry.example.org/team/app:1.2", ""},
                         {"berth image pull localhost:5000/app --tls-verify=false",
                          "from a registry without TLS"}}}));
  all.push_back(
      make({.action = "image.import",
            .positionals = {{"DIR|FILE", "An OCI layout, or a tar; oci: before it or not",
                             "archive", true, false, Names::files}},
            .examples = {{"berth image import oci:build/app --name app:1.2", "an OCI image layout"},
                         {"berth image import app.tar",
                          "as `docker save`, `podman save` or `skopeo copy` wrote it"}}}));
  all.push_back(make({.action = "image.list"}));
  all.push_back(make({.action = "image.info", .positionals = {image()}}));
  all.push_back(make({.action = "image.delete", .positionals = {image()}}));
}

void add_job_commands(std::vector<Command>& all) {
  all.push_back(make({.action = "job.list"}));
  all.push_back(make({.action = "job.info", .positionals = {job()}}));
  all.push_back(make({.action = "job.watch", .positionals = {job()}, .flow = Flow::job_watch}));
  all.push_back(make({.action = "job.cancel", .positionals = {job()}}));
  Command events =
      make({.action = "events.watch",
            .examples = {{"berth events --since 0", "all that is remembered, then what comes"}},
            .flow = Flow::events});
  events.words = {"events"};
  all.push_back(std::move(events));
}

void add_host_commands(std::vector<Command>& all) {
  all.push_back(make({.action = "host.info"}));
  Command doctor =
      make({.action = "host.doctor",
            .examples = {{"berth host doctor", ""},
                         {"berth host doctor -o json --state-dir /srv/berth", "of another place"},
                         {"berth host doctor --daemon", "with the daemon's user, limits and PATH"}},
            .flow = Flow::doctor});
  doctor.description = fmt::format(
      "It needs no daemon, and leaves nothing behind. Essential are: {}. Where one of these is "
      "missing Berth cannot work, and the exit code is 4.",
      fmt::join(machine::essential_checks(), ", "));
  doctor.options.push_back({.name = "--daemon",
                            .description = "Let the daemon look, which must run: what it is "
                                           "allowed may differ from what you are"});
  all.push_back(std::move(doctor));
  Command swap =
      make({.action = "host.swap",
            .spellings = {{"zswap", "--zswap", "on|off"}},
            .examples = {{"berth host swap", "what there is"},
                         {"berth host swap --zram 4G", "compressed in RAM"},
                         {"berth host swap --file 16G --zswap on", "on disk, with a cache before"},
                         {"berth host swap --undo", ""}}});
  swap.description =
      "What is set up lasts until the host restarts. Containers that are paused to "
      "`trimmed` need some.";
  all.push_back(std::move(swap));
  all.push_back(
      {.words = {"daemon"},
       .summary = "Run the daemon, in the foreground; or end the one that runs",
       .description =
           "At SIGTERM the daemon ends and the keepers go on serving; the next daemon finds them. "
           "TCP is off unless --listen is given, and needs a client certificate of the CA in "
           "--tls-dir.",
       .flow = Flow::daemon,
       .options = {{.name = "--listen",
                    .value = "HOST:PORT",
                    .description = "Serve the API over TCP with TLS too"},
                   {.name = "--tls-dir",
                    .value = "DIR",
                    .description = "Directory with server-cert.pem, server-key.pem and ca-cert.pem",
                    .names = Names::files},
                   {.name = "--config",
                    .value = "FILE",
                    .description = "The configuration (docs/berth-toml.md); /etc/berth/berth.toml "
                                   "when left out, where that is there",
                    .environment = "BERTH_CONFIG",
                    .names = Names::files},
                   {.name = "--keeper-idle",
                    .value = "SECONDS",
                    .description = "End a keeper that nobody used for so long and that serves "
                                   "nothing; 60 when left out"},
                   {.name = "--stop", .description = "End the daemon that runs; keepers go on"},
                   {.name = "--stop-machines",
                    .description =
                        "Have every machine shut down, the last one that was started first, "
                        "then end the daemon"},
                   {.name = "--memory-dir",
                    .value = "DIR",
                    .description =
                        "Where machines' memory is, a tmpfs; /dev/shm/berth when left out",
                    .environment = "BERTH_MEMORY_DIR",
                    .names = Names::files},
                   {.name = "--stop-keepers",
                    .description = "End the daemon that runs, if one does, and every keeper, "
                                   "closing its volume cleanly"}},
       .examples = {{"berth daemon", ""},
                    {"berth daemon --state-dir /srv/berth --run-dir /run/berth-test",
                     "one of several on a machine"},
                    {"berth daemon --stop-keepers", "before the machine is shut down"}}});
  all.push_back(
      {.words = {"completion"},
       .summary = "Print a completion script for a shell",
       .flow = Flow::completion,
       .positionals = {{"SHELL", "bash, zsh or fish", "", true, false, Names::choices}},
       .examples = {{"berth completion bash > /etc/bash_completion.d/berth", ""},
                    {"berth completion fish > ~/.config/fish/completions/berth.fish", ""}}});
}

void add_hidden_commands(std::vector<Command>& all) {
  all.push_back(
      {.words = {"keeper"},
       .summary = "Keep one volume open and serve it; the daemon starts this",
       .flow = Flow::keeper,
       .options =
           {{.name = "--id", .value = "NAME", .description = "Of a volume's keeper"},
            {.name = "--volume", .value = "VOLUME", .description = "The volume"},
            {.name = "--machine",
             .value = "VM",
             .description = "The machine, in place of a volume"},
            {.name = "--container",
             .value = "CONTAINER",
             .description = "The container, in place of a volume"},
            {.name = "--memory-dir", .value = "DIR", .description = "Where machines' memory is"},
            {.name = "--preload", .value = "FILE", .description = "What tracks QEMU's memory"},
            {.name = "--listen-fd",
             .value = "FD",
             .description = "A listening socket to go on with",
             .repeated = true}},
       .hidden = true});
  all.push_back({.words = {"watchdog"},
                 .summary = "Thaw a guest when its keeper does not; a keeper starts this",
                 .flow = Flow::watchdog,
                 .options = {{.name = "--agent-socket",
                              .value = "PATH",
                              .description = "Of the guest's agent",
                              .required = true},
                             {.name = "--fd",
                              .value = "FD",
                              .description = "A pipe that the keeper holds the other end of",
                              .required = true},
                             {.name = "--limit-ms",
                              .value = "N",
                              .description = "Milliseconds until it thaws all the same",
                              .required = true}},
                 .hidden = true});
  all.push_back({.words = {"internal"},
                 .summary = "Print what documents and tests are made from",
                 .flow = Flow::internal,
                 .positionals = {{"WHAT", "actions, openapi, openapi-json, man or complete", ""},
                                 {"WORD", "For complete: the words so far", "", false, true}},
                 .hidden = true});
}

}  // namespace

const std::vector<Command>& commands() {
  static const std::vector<Command> all = [] {
    std::vector<Command> list;
    add_host_commands(list);
    add_volume_commands(list);
    add_checkpoint_commands(list);
    add_refpoint_commands(list);
    add_machine_commands(list);
    add_image_commands(list);
    for (Command& command : container_commands()) list.push_back(std::move(command));
    for (Command& command : template_commands()) list.push_back(std::move(command));
    add_kernel_commands(list);
    add_job_commands(list);
    add_hidden_commands(list);
    return list;
  }();
  return all;
}

const std::vector<Option>& global_options() {
  static const std::vector<Option> all = {
      {.name = "--state-dir",
       .value = "DIR",
       .description = "Where volumes and the catalogue are; /var/lib/berth when left out",
       .environment = "BERTH_STATE_DIR",
       .names = Names::files},
      {.name = "--run-dir",
       .value = "DIR",
       .description = "Where sockets are; /run/berth when left out",
       .environment = "BERTH_RUN_DIR",
       .names = Names::files},
      {.name = "--socket",
       .value = "PATH",
       .description = "The daemon's socket; RUN_DIR/api.sock when left out",
       .environment = "BERTH_SOCKET",
       .names = Names::files},
      {.name = "--output",
       .short_name = "-o",
       .value = "table|json",
       .description = "For people, or for programs: the names in JSON are stable",
       .names = Names::choices,
       .choices = {"table", "json"}},
  };
  return all;
}

std::string_view noun_summary(std::string_view noun) {
  if (noun == "host") return "The daemon and its machine";
  if (noun == "volume") return "Virtual disks";
  if (noun == "vm") return "Virtual machines";
  if (noun == "image") return "Images of containers";
  if (noun == "template") return "Containers that were started once, for clones";
  if (noun == "container") return "Containers, each in a microVM of its own";
  if (noun == "kernel") return "Kernels of microVMs";
  if (noun == "checkpoint") return "Restorable images of volumes";
  if (noun == "refpoint") return "Reference points: moments that changes can be asked about";
  if (noun == "job") return "Work that is under way";
  return "";
}

std::string words_of(const Command& command) {
  return fmt::format("{}", fmt::join(command.words, " "));
}

}  // namespace berth::control::cli
