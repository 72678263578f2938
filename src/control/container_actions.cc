// container.*: the actions.

#include "control/action_list.h"

namespace berth::control {
namespace {

using Place = Parameter::Place;
using Type = Parameter::Type;

Parameter container_in_path() {
  return {"container",
          Place::path,
          Type::text,
          true,
          "Name of the container, or its id, or at least 4 digits that it begins with",
          {}};
}

}  // namespace

std::vector<Action> container_actions() {
  return {
      {.name = "container.create",
       .method = Method::post,
       .path = "/v1/containers",
       .summary = "Make a container of an image; it does not run yet",
       .precondition = "The image and the volumes are there (not_found), and the name is free "
                       "(already_exists)",
       .answer = Answer::created,
       .result = "Container",
       .parameters =
           {{"image", Place::body, Type::text, true, "Name or digest of the image", {}},
            {"specification",
             Place::body,
             Type::object,
             false,
             "Members of a ContainerSpecification that are not to be as the image has them; "
             "`entrypoint` and `command` in place of `arguments`",
             {}}},
       .errors = {ErrorKind::not_found, ErrorKind::already_exists, ErrorKind::no_space,
                  ErrorKind::limit}},
      {.name = "container.start",
       .method = Method::post,
       .path = "/v1/containers/{container}/start",
       .summary = "Run a container in a microVM of its own",
       .precondition = "It does not run, there is a kernel (precondition), the ports are free "
                       "(in_use), and its memory fits beside what runs (limit)",
       .result = "Container",
       .parameters = {container_in_path(),
                      {"hold",
                       Place::body,
                       Type::flag,
                       false,
                       "Its command is started when somebody attaches to it, or after 30 s",
                       {}}},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::in_use,
                  ErrorKind::limit, ErrorKind::timed_out, ErrorKind::disconnected,
                  ErrorKind::no_space}},
      {.name = "container.stop",
       .method = Method::post,
       .path = "/v1/containers/{container}/stop",
       .summary = "Ask a container to end, and end it when that takes longer",
       .precondition = "It runs (precondition)",
       .result = "Container",
       .parameters = {container_in_path(),
                      {"timeout_s",
                       Place::body,
                       Type::count,
                       false,
                       "Seconds that it may take; its own when left out; 0: by force, at once",
                       {}}},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::timed_out,
                  ErrorKind::disconnected}},
      {.name = "container.kill",
       .method = Method::post,
       .path = "/v1/containers/{container}/kill",
       .summary = "Send a signal to a container's command",
       .precondition = "It runs (precondition)",
       .result = "Container",
       .parameters = {container_in_path(),
                      {"signal",
                       Place::body,
                       Type::text,
                       false,
                       "Its name or number; SIGKILL when left out",
                       {}}},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::timed_out,
                  ErrorKind::disconnected}},
      {.name = "container.pause",
       .method = Method::post,
       .path = "/v1/containers/{container}/pause",
       .summary = "Have a container stand still, and its memory go to a cheaper place",
       .precondition = "It runs, or is paused at a lighter level; trimmed: the host has swap "
                       "(precondition)",
       .result = "Container",
       .parameters =
           {container_in_path(),
            {"level",
             Place::body,
             Type::choice,
             false,
             "frozen (when left out): its virtual CPUs are not scheduled; trimmed: and "
             "its private memory is swapped out; parked: or in page files in its "
             "directory. Connections to its ports live through these. hibernated: and its "
             "QEMU ends; it takes no memory, and survives a restart of the host, and "
             "connections end. Any request resumes it, and a connection to a port",
             {"frozen", "trimmed", "parked", "hibernated"}}},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::timed_out,
                  ErrorKind::disconnected, ErrorKind::no_space, ErrorKind::limit}},
      {.name = "container.resume",
       .method = Method::post,
       .path = "/v1/containers/{container}/resume",
       .summary = "Have a container that is paused go on, with the right time",
       .precondition = "It is paused; of one that is hibernated: the host has QEMU and accelerator "
                       "as they were (precondition)",
       .result = "Container",
       .parameters = {container_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::timed_out,
                  ErrorKind::disconnected}},
      {.name = "container.list",
       .method = Method::get,
       .path = "/v1/containers",
       .summary = "List the containers, those that have ended too",
       .result = "ContainerList"},
      {.name = "container.inspect",
       .method = Method::get,
       .path = "/v1/containers/{container}",
       .summary = "Show a container",
       .result = "Container",
       .parameters = {container_in_path()},
       .errors = {ErrorKind::not_found}},
      {.name = "container.logs",
       .method = Method::get,
       .path = "/v1/containers/{container}/logs",
       .summary = "Read what a container has written, an entry each",
       .answer = Answer::stream,
       .result = "LogEntry",
       .parameters = {container_in_path(),
                      {"follow",
                       Place::query,
                       Type::flag,
                       false,
                       "And what it will write, until it ends",
                       {}},
                      {"tail",
                       Place::query,
                       Type::count,
                       false,
                       "The last so many lines alone; all when left out",
                       {}}},
       .errors = {ErrorKind::not_found}},
      {.name = "container.attach",
       .method = Method::post,
       .path = "/v1/containers/{container}/attach",
       .summary = "Be a client of a container: of its main process, of another one that is started "
                  "for this, or of its files",
       .precondition =
           "It runs, or is paused, and then resumed (precondition); the request has the "
           "headers 'Connection: Upgrade' and 'Upgrade: berth-attach' "
           "(invalid_argument)",
       .answer = Answer::upgrade,
       .result = "Nothing",
       .parameters = {container_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::limit,
                  ErrorKind::disconnected, ErrorKind::unsupported, ErrorKind::timed_out}},
      {.name = "container.delete",
       .method = Method::remove,
       .path = "/v1/containers/{container}",
       .summary = "Delete a container, with its log; its volumes and its image stay",
       .precondition = "It does not run (precondition), unless `force` is given",
       .result = "Nothing",
       .parameters = {container_in_path(),
                      {"force", Place::query, Type::flag, false, "End it first, by force", {}}},
       .errors = {ErrorKind::not_found, ErrorKind::precondition, ErrorKind::timed_out,
                  ErrorKind::disconnected}},
  };
}

}  // namespace berth::control
