// image.*: container images. The actions, and what carries them out.

#include <algorithm>
#include <functional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "container/image_making.h"
#include "control/action_list.h"
#include "control/keeper_job.h"
#include "control/operations.h"
#include "control/spawn.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;
using Place = Parameter::Place;
using Type = Parameter::Type;
using container::ImageRecord;
using container::ImageStore;

constexpr std::uint64_t pull_timeout_s_max = 86'400;

Parameter image_in_path() {
  return {"image",
          Place::path,
          Type::text,
          true,
          "A name of the image, or its digest, or at least 12 digits of it",
          {}};
}

std::string text(const Json& params, const char* name) { return params.value(name, std::string()); }

Json shown_summary(const ImageRecord& image) {
  return {{"digest", image.digest},
          {"names", image.names},
          {"created_at", image.created_at},
          {"imported_at", image.imported_at},
          {"size", image.size}};
}

Json shown(const ImageStore& store, const ImageRecord& image) {
  Json json = encode(image);
  for (const char* kept : {"version", "manifest_size", "config_size"}) json.erase(kept);
  json["names"] = image.names;
  json["file_system"] = store.file_system(image.digest);
  return json;
}

/// What an image is called in an event.
std::string named(const std::string& digest, const std::vector<std::string>& names) {
  return names.empty() ? digest : fmt::format("{} ({})", names.front(), digest);
}

using Maker = std::function<Result<ImageRecord>(ImageStore&, const machine::VolumeJob&)>;

Async<Result<Json>> run_making(Services& services, Maker make, std::shared_ptr<JobProgress> job) {
  ImageStore* store = &services.images;
  const auto image = CO_TRY(co_await on_worker(
      services.image_makers,
      [store, make, work = work_for(services, std::move(job))] { return make(*store, work); }));
  services.events.publish("image_created", {}, named(image.digest, image.names));
  co_return shown(*store, image);
}

Async<Result<Json>> image_pull(Services& services, Json params) {
  const container::PullRequest request{
      .image = text(params, "image"),
      .tls_verify = text(params, "tls_verify") != "false",
      .stall = std::chrono::seconds(std::clamp(params.value("timeout_s", std::uint64_t{60}),
                                               std::uint64_t{1}, pull_timeout_s_max))};
  const std::string name = CO_TRY(container::name_to_pull(request));
  co_return co_await services.jobs.start(
      {.kind = "image.pull", .target = name, .volume = {}},
      [&services, request](std::shared_ptr<JobProgress> job) {
        return run_making(
            services,
            [request](ImageStore& store, const machine::VolumeJob& work) {
              return container::pull_image(store, request, work);
            },
            std::move(job));
      });
}

Async<Result<Json>> image_import(Services& services, Json params) {
  const container::ImportRequest request{.archive = text(params, "archive"),
                                         .image = text(params, "image"),
                                         .name = text(params, "name")};
  co_return co_await services.jobs.start(
      {.kind = "image.import", .target = request.archive, .volume = {}},
      [&services, request](std::shared_ptr<JobProgress> job) {
        return run_making(
            services,
            [request](ImageStore& store, const machine::VolumeJob& work) {
              return container::import_image(store, request, work);
            },
            std::move(job));
      });
}

Async<Result<Json>> image_list(Services& services, Json /*params*/) {
  const ImageStore* store = &services.images;
  Json list = Json::array();
  for (const ImageRecord& image :
       CO_TRY(co_await on_worker(services.workers, [store] { return store->list(); })))
    list.push_back(shown_summary(image));
  co_return Json{{"images", std::move(list)}};
}

Async<Result<Json>> image_info(Services& services, Json params) {
  const ImageStore* store = &services.images;
  const std::string reference = text(params, "image");
  const auto image = CO_TRY(
      co_await on_worker(services.workers, [store, reference] { return store->find(reference); }));
  co_return shown(*store, image);
}

Async<Result<Json>> image_delete(Services& services, Json params) {
  ImageStore* store = &services.images;
  const std::string reference = text(params, "image");
  const auto image =
      co_await on_worker(services.workers, [store, reference] { return store->find(reference); });
  // Of one whose record is lost, its digest is all that is known.
  const std::string digest = image ? image->digest : reference;
  const bool only_name = image && !digest.ends_with(reference) && image->names.size() > 1;
  if (const std::string user = co_await services.containers.user_of_image(digest);
      !user.empty() && !only_name) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("the image '{}' is that of the container '{}'", reference, user));
  }
  if (const std::string user = co_await services.templates.user_of_image(digest);
      !user.empty() && !only_name) {
    co_return failure(ErrorKind::in_use,
                      fmt::format("the image '{}' is that of the template '{}'", reference, user));
  }
  const auto removed = CO_TRY(co_await on_worker(
      services.workers, [store, reference] { return store->remove(reference); }));
  if (removed.deleted)
    services.events.publish("image_deleted", {}, named(removed.digest, removed.names));
  co_return Json{{"digest", removed.digest},
                 {"names", removed.names},
                 {"deleted", removed.deleted},
                 {"freed", removed.freed}};
}

}  // namespace

std::vector<Action> image_actions() {
  return {
      {.name = "image.pull",
       .method = Method::post,
       .path = "/v1/images/pull",
       .summary =
           "Fetch a container image from a registry; what is here already is not fetched again",
       .precondition =
           "The registry has it (not_found) for this host's architecture (unsupported), "
           "and skopeo, umoci and mkfs.erofs are there; another image that has the name "
           "loses it",
       .answer = Answer::job,
       .result = "Image",
       .parameters =
           {{"image",
             Place::body,
             Type::text,
             true,
             "Its name; what is left out is docker.io, library/ and :latest",
             {}},
            {"tls_verify",
             Place::body,
             Type::choice,
             false,
             "false: take a registry without TLS, or with a certificate that nobody vouches "
             "for",
             {"true", "false"}},
            {"timeout_s",
             Place::body,
             Type::count,
             false,
             "Give up when nothing has come for so many seconds; 60 when left out",
             {}}},
       .errors = {ErrorKind::not_found, ErrorKind::permission, ErrorKind::disconnected,
                  ErrorKind::timed_out, ErrorKind::unsupported, ErrorKind::no_space,
                  ErrorKind::precondition, ErrorKind::limit}},
      {.name = "image.import",
       .method = Method::post,
       .path = "/v1/images/import",
       .summary = "Take in a container image from an OCI layout, or from a tar as `docker save`, "
                  "`podman save` and `skopeo copy` write it",
       .precondition = "It is for this host's architecture (unsupported), and skopeo, umoci and "
                       "mkfs.erofs are there; another image that has the name loses it",
       .answer = Answer::job,
       .result = "Image",
       .parameters = {{"archive",
                       Place::body,
                       Type::path,
                       true,
                       "The directory of an OCI layout, or a tar, on the daemon's host",
                       {}},
                      {"image",
                       Place::body,
                       Type::text,
                       false,
                       "Which of the archive's images, where it has several: as it is called there",
                       {}},
                      {"name",
                       Place::body,
                       Type::text,
                       false,
                       "Name that it gets; its own in the archive when left out",
                       {}}},
       .errors = {ErrorKind::not_found, ErrorKind::permission, ErrorKind::timed_out,
                  ErrorKind::unsupported, ErrorKind::no_space, ErrorKind::precondition,
                  ErrorKind::limit}},
      {.name = "image.list",
       .method = Method::get,
       .path = "/v1/images",
       .summary = "List the container images",
       .result = "ImageList"},
      {.name = "image.info",
       .method = Method::get,
       .path = "/v1/images/{image}",
       .summary = "Show a container image, and how it is meant to be run",
       .result = "Image",
       .parameters = {image_in_path()},
       .errors = {ErrorKind::not_found}},
      {.name = "image.delete",
       .method = Method::remove,
       .path = "/v1/images/{image}",
       .summary = "Delete a container image, and what no other one needs of it; by one of several "
                  "names, only that name",
       .precondition = "No container or template is of it (in_use), unless only a name goes",
       .result = "DeletedImage",
       .parameters = {image_in_path()},
       .errors = {ErrorKind::not_found, ErrorKind::in_use, ErrorKind::no_space}},
  };
}

HandlerTable image_handlers() {
  return {{"image.pull", image_pull},
          {"image.import", image_import},
          {"image.list", image_list},
          {"image.info", image_info},
          {"image.delete", image_delete}};
}

}  // namespace berth::control
