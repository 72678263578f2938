#include "container/image_record.h"

#include <algorithm>

#include <fmt/format.h>

#include "container/image_name.h"

namespace berth::container {
namespace {

constexpr int document_version = 1;
constexpr const char* ref_name = "org.opencontainers.image.ref.name";
constexpr const char* index_type = "application/vnd.oci.image.index.v1+json";
constexpr const char* config_type = "application/vnd.oci.image.config.v1+json";
constexpr std::string_view layer_type = "application/vnd.oci.image.layer.v1.tar";
constexpr std::size_t layers_max = 1024;
constexpr std::size_t shown_length_max = 80;

std::string shown(std::string_view text) {
  std::string out(text.substr(0, shown_length_max));
  std::ranges::replace_if(out, [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; }, '?');
  return out;
}

std::unexpected<Error> wrong(std::string_view what, std::string_view expected) {
  return failure(ErrorKind::corrupt, fmt::format("'{}' is not {}", what, expected));
}

/// A member that may be absent or null.
const Json& member(const Json& object, const char* name) {
  static const Json nothing;
  const auto found = object.find(name);
  return found == object.end() ? nothing : *found;
}

/// What is passed on to programs as C strings.
bool is_text(const Json& value) {
  return value.is_string() && !value.get_ref<const std::string&>().contains('\0');
}

Result<std::string> text_of(const Json& object, const char* name) {
  const Json& value = member(object, name);
  if (value.is_null()) return std::string();
  if (!is_text(value)) return wrong(name, "a text");
  return value.get<std::string>();
}

Result<std::uint64_t> number_of(const Json& object, const char* name) {
  const Json& value = member(object, name);
  if (!value.is_number_unsigned()) return wrong(name, "a whole number");
  return value.get<std::uint64_t>();
}

Result<std::vector<std::string>> texts_of(const Json& object, const char* name) {
  const Json& value = member(object, name);
  if (value.is_null()) return std::vector<std::string>();
  if (!value.is_array() || !std::ranges::all_of(value, is_text))
    return wrong(name, "a list of texts");
  return value.get<std::vector<std::string>>();
}

Result<std::map<std::string, std::string>> labels_of(const Json& object, const char* name) {
  const Json& value = member(object, name);
  std::map<std::string, std::string> labels;
  if (value.is_null()) return labels;
  if (!value.is_object()) return wrong(name, "an object");
  for (const auto& [key, text] : value.items()) {
    if (!is_text(text)) return wrong(name, "an object of texts");
    labels.emplace(key, text.get<std::string>());
  }
  return labels;
}

/// The names of an object that stands for a set: {"80/tcp": {}}.
Result<std::vector<std::string>> set_of(const Json& object, const char* name) {
  const Json& value = member(object, name);
  std::vector<std::string> names;
  if (value.is_null()) return names;
  if (!value.is_object()) return wrong(name, "an object");
  for (const auto& [key, ignored] : value.items()) {
    if (key.contains('\0')) return wrong(name, "an object of texts");
    names.push_back(key);
  }
  return names;
}

Result<std::string> digest_of(const Json& object, const char* name) {
  std::string digest = TRY(text_of(object, name));
  if (is_digest(digest)) return digest;
  return failure(
      ErrorKind::unsupported,
      fmt::format("'{}' is the digest of nothing: sha256 alone is known", shown(digest)));
}

Result<Descriptor> descriptor_of(const Json& json) {
  if (!json.is_object()) return wrong("a descriptor", "an object");
  Descriptor descriptor{.media_type = TRY(text_of(json, "mediaType")),
                        .digest = TRY(digest_of(json, "digest")),
                        .size = TRY(number_of(json, "size"))};
  if (const Json& annotations = member(json, "annotations"); annotations.is_object())
    descriptor.name = TRY(text_of(annotations, ref_name));
  return descriptor;
}

Result<Json> object_of(std::string_view what, std::string_view text) {
  auto json = machine::parse_json(text);
  if (json && json->is_object()) return json;
  return failure(ErrorKind::corrupt, json ? fmt::format("{} is no JSON object", what)
                                          : fmt::format("{} is {}", what, json.error().context()));
}

/// One that umoci unpacks: plain, or compressed with gzip.
Result<void> check_layer(const Descriptor& layer) {
  if (layer.media_type == layer_type || layer.media_type == fmt::format("{}+gzip", layer_type))
    return {};
  const std::string_view why = layer.media_type.ends_with("+encrypted") ? ": it is encrypted" : "";
  return failure(ErrorKind::unsupported, fmt::format("its layer {} is of the type '{}'{}",
                                                     layer.digest, shown(layer.media_type), why));
}

Json encode(const RunConfig& config) {
  return {{"entrypoint", config.entrypoint},
          {"command", config.command},
          {"environment", config.environment},
          {"working_directory", config.working_directory},
          {"user", config.user},
          {"exposed_ports", config.exposed_ports},
          {"volumes", config.volumes},
          {"stop_signal", config.stop_signal},
          {"labels", config.labels}};
}

Result<RunConfig> decode_run_config(const Json& json) {
  if (!json.is_object()) return wrong("config", "an object");
  return RunConfig{.entrypoint = TRY(texts_of(json, "entrypoint")),
                   .command = TRY(texts_of(json, "command")),
                   .environment = TRY(texts_of(json, "environment")),
                   .working_directory = TRY(text_of(json, "working_directory")),
                   .user = TRY(text_of(json, "user")),
                   .exposed_ports = TRY(texts_of(json, "exposed_ports")),
                   .volumes = TRY(texts_of(json, "volumes")),
                   .stop_signal = TRY(text_of(json, "stop_signal")),
                   .labels = TRY(labels_of(json, "labels"))};
}

Result<std::vector<ImageLayer>> decode_layers(const Json& json) {
  if (!json.is_array() || json.size() > layers_max) return wrong("layers", "a list of layers");
  std::vector<ImageLayer> layers;
  for (const Json& layer : json) {
    if (!layer.is_object()) return wrong("layers", "a list of objects");
    layers.push_back({.digest = TRY(digest_of(layer, "digest")),
                      .diff_id = TRY(digest_of(layer, "diff_id")),
                      .size = TRY(number_of(layer, "size"))});
  }
  return layers;
}

}  // namespace

Result<ImageManifest> decode_manifest(std::string_view text) {
  const Json json = TRY(object_of("its manifest", text));
  if (!json.contains("config")) return failure(ErrorKind::corrupt, "its manifest names no config");
  ImageManifest manifest{.config = TRY(descriptor_of(json["config"])), .layers = {}};
  if (manifest.config.media_type != config_type) {
    return failure(ErrorKind::unsupported,
                   fmt::format("it is no image of a container: its config is of the type '{}'",
                               shown(manifest.config.media_type)));
  }
  const Json& layers = member(json, "layers");
  if (!layers.is_array() || layers.size() > layers_max)
    return wrong("layers", fmt::format("a list of up to {} layers", layers_max));
  for (const Json& entry : layers) {
    manifest.layers.push_back(TRY(descriptor_of(entry)));
    TRY(check_layer(manifest.layers.back()));
  }
  return manifest;
}

Result<void> decode_config(std::string_view text, ImageRecord& record) {
  const Json json = TRY(object_of("its config", text));
  record.architecture = TRY(text_of(json, "architecture"));
  record.variant = TRY(text_of(json, "variant"));
  record.os = TRY(text_of(json, "os"));
  record.created_at = TRY(text_of(json, "created"));
  const Json& file_system = member(json, "rootfs");
  if (!file_system.is_object()) return wrong("rootfs", "an object");
  const auto diff_ids = TRY(texts_of(file_system, "diff_ids"));
  if (diff_ids.size() != record.layers.size() || !std::ranges::all_of(diff_ids, is_digest)) {
    return failure(ErrorKind::corrupt,
                   fmt::format("its config has {} digests of layers, and its manifest {} layers",
                               diff_ids.size(), record.layers.size()));
  }
  for (std::size_t i = 0; i < diff_ids.size(); ++i) record.layers[i].diff_id = diff_ids[i];
  const Json& config = member(json, "config");
  if (config.is_null()) return {};
  if (!config.is_object()) return wrong("config", "an object");
  record.config = {.entrypoint = TRY(texts_of(config, "Entrypoint")),
                   .command = TRY(texts_of(config, "Cmd")),
                   .environment = TRY(texts_of(config, "Env")),
                   .working_directory = TRY(text_of(config, "WorkingDir")),
                   .user = TRY(text_of(config, "User")),
                   .exposed_ports = TRY(set_of(config, "ExposedPorts")),
                   .volumes = TRY(set_of(config, "Volumes")),
                   .stop_signal = TRY(text_of(config, "StopSignal")),
                   .labels = TRY(labels_of(config, "Labels"))};
  return {};
}

Result<std::vector<Descriptor>> decode_index(std::string_view text) {
  const Json json = TRY(object_of("the index", text));
  const Json& manifests = member(json, "manifests");
  if (!manifests.is_array()) return wrong("manifests", "a list");
  std::vector<Descriptor> entries;
  for (const Json& entry : manifests) entries.push_back(TRY(descriptor_of(entry)));
  return entries;
}

std::string encode_index(const std::vector<Descriptor>& entries) {
  Json manifests = Json::array();
  for (const Descriptor& entry : entries) {
    Json json = {{"mediaType", entry.media_type}, {"digest", entry.digest}, {"size", entry.size}};
    if (!entry.name.empty()) json["annotations"] = {{ref_name, entry.name}};
    manifests.push_back(std::move(json));
  }
  const Json index = {
      {"schemaVersion", 2}, {"mediaType", index_type}, {"manifests", std::move(manifests)}};
  return index.dump(2) + '\n';
}

Result<std::string> platforms_of(std::string_view index) {
  const Json json = TRY(object_of("the manifest list", index));
  const Json& manifests = member(json, "manifests");
  if (!manifests.is_array()) return wrong("manifests", "a list");
  std::vector<std::string> platforms;
  for (const Json& entry : manifests) {
    const Json& platform = entry.is_object() ? member(entry, "platform") : entry;
    if (!platform.is_object()) continue;
    std::string name =
        fmt::format("{}/{}", TRY(text_of(platform, "os")), TRY(text_of(platform, "architecture")));
    if (const std::string variant = TRY(text_of(platform, "variant")); !variant.empty())
      name += '/' + variant;
    name = shown(name);
    if (name != "unknown/unknown" && std::ranges::find(platforms, name) == platforms.end())
      platforms.push_back(std::move(name));
  }
  return platforms.empty() ? std::string("none") : fmt::format("{}", fmt::join(platforms, ", "));
}

Json encode(const ImageRecord& record) {
  Json layers = Json::array();
  for (const ImageLayer& layer : record.layers) {
    layers.push_back({{"digest", layer.digest}, {"diff_id", layer.diff_id}, {"size", layer.size}});
  }
  return {{"version", document_version},
          {"digest", record.digest},
          {"manifest_size", record.manifest_size},
          {"config_digest", record.config_digest},
          {"config_size", record.config_size},
          {"architecture", record.architecture},
          {"variant", record.variant},
          {"os", record.os},
          {"created_at", record.created_at},
          {"imported_at", record.imported_at},
          {"source", record.source},
          {"size", record.size},
          {"layers", std::move(layers)},
          {"config", encode(record.config)}};
}

Result<ImageRecord> decode_image_record(std::string_view text) {
  const Json json = TRY(object_of("the record", text));
  const std::uint64_t version = TRY(number_of(json, "version"));
  if (version != document_version) {
    return failure(ErrorKind::unsupported,
                   fmt::format("it is of version {}, and {} is known", version, document_version));
  }
  return ImageRecord{.digest = TRY(digest_of(json, "digest")),
                     .manifest_size = TRY(number_of(json, "manifest_size")),
                     .config_digest = TRY(digest_of(json, "config_digest")),
                     .config_size = TRY(number_of(json, "config_size")),
                     .architecture = TRY(text_of(json, "architecture")),
                     .variant = TRY(text_of(json, "variant")),
                     .os = TRY(text_of(json, "os")),
                     .created_at = TRY(text_of(json, "created_at")),
                     .imported_at = TRY(text_of(json, "imported_at")),
                     .source = TRY(text_of(json, "source")),
                     .size = TRY(number_of(json, "size")),
                     .layers = TRY(decode_layers(member(json, "layers"))),
                     .config = TRY(decode_run_config(member(json, "config")))};
}

std::vector<std::string> blobs_of(const ImageRecord& record) {
  std::vector<std::string> digests = {record.digest, record.config_digest};
  for (const ImageLayer& layer : record.layers) digests.push_back(layer.digest);
  return digests;
}

}  // namespace berth::container
