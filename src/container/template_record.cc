#include "container/template_record.h"

#include <array>
#include <utility>

#include <fmt/format.h>

#include "container/ready_probe.h"
#include "container/record_members.h"
#include "machine/layout.h"

namespace berth::container {
namespace {

constexpr const char* record_format = "berth-template";
constexpr unsigned record_version = 1;

Result<TemplateStamp> decode_stamp(const Json& json) {
  Members members(json, "stamp");
  TRY(members.check_object());
  TemplateStamp stamp;
  TRY(members.take("image", stamp.image));
  TRY(members.take("kernel", stamp.kernel));
  TRY(members.take("agent", stamp.agent));
  TRY(members.take("qemu", stamp.qemu));
  TRY(members.take("accelerator", stamp.accelerator));
  TRY(members.take("cpu", stamp.cpu));
  TRY(members.check_all_known());
  return stamp;
}

Result<TemplateRecord> decode_record(const Json& json) {
  Members members(json, "");
  TRY(members.check_object());
  TemplateRecord record;
  TRY(check_format(members, record_format, record_version));
  TemplateRecipe& recipe = record.recipe;
  TRY(members.take("name", recipe.name));
  TRY(members.take("ready", recipe.ready));
  TRY(members.take("warm", recipe.warm, template_warm_max));
  TRY(members.take("timeout_s", recipe.timeout_s));
  TRY(members.take("pool", recipe.pool));
  TRY(members.take("container", recipe.container));
  TRY(members.take("created_at", record.created_at));
  TRY(members.take("id", record.id));
  TRY(members.take("built_at", record.built_at));
  TRY(members.take("memory_bytes", record.memory_bytes));
  TRY(members.take("device_bytes", record.device_bytes));
  TRY(members.take("memory_checksum", record.memory_checksum));
  if (!json.contains("specification") || !json.contains("stamp"))
    return wrong("specification, stamp", "objects");
  recipe.specification = TRY(decode_container(json["specification"]));
  recipe.request = json.value("request", Json::object());
  record.stamp = TRY(decode_stamp(json["stamp"]));
  TRY(check(recipe));
  return record;
}

}  // namespace

std::string difference(const TemplateStamp& then, const TemplateStamp& now) {
  const std::array<std::pair<const char*, std::pair<std::string, std::string>>, 6> members = {
      {{"the image", {then.image, now.image}},
       {"the kernel", {then.kernel, now.kernel}},
       {"the agent", {then.agent, now.agent}},
       {"QEMU", {then.qemu, now.qemu}},
       {"the accelerator", {then.accelerator, now.accelerator}},
       {"the CPU", {then.cpu, now.cpu}}}};
  std::string text;
  for (const auto& [what, values] : members) {
    if (values.first == values.second) continue;
    text += fmt::format("{}{} was {}, and is {} now", text.empty() ? "" : "; ", what, values.first,
                        values.second);
  }
  return text;
}

Result<void> check(const TemplateRecipe& recipe) {
  TRY(machine::check_name("template", recipe.name));
  if (recipe.name.size() > template_name_length_max) {
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the name of a template has at most {} characters; '{}' has {}",
                               template_name_length_max, recipe.name, recipe.name.size()));
  }
  TRY(parse_ready_probe(recipe.ready));
  if (recipe.warm.size() > template_warm_max)
    return wrong("warm", fmt::format("a list of up to {} texts", template_warm_max));
  for (const std::string& command : recipe.warm)
    if (command.empty()) return wrong("warm", "commands");
  if (recipe.timeout_s == 0 || recipe.timeout_s > template_timeout_s_max)
    return wrong("timeout_s", fmt::format("1 to {}", template_timeout_s_max));
  if (recipe.pool > template_pool_max)
    return wrong("pool", fmt::format("up to {}", template_pool_max));
  const ContainerSpecification& container = recipe.specification;
  if (!container.ports.empty() || !container.mounts.empty() || !container.overlay.empty()) {
    return failure(ErrorKind::invalid_argument,
                   "a template has neither ports nor volumes: its clones would share them");
  }
  if (container.terminal || container.input) {
    return failure(ErrorKind::invalid_argument,
                   "a template has neither a terminal nor an input: nobody is there to use them");
  }
  return check(container);
}

Json encode(const TemplateStamp& stamp) {
  return {{"image", stamp.image}, {"kernel", stamp.kernel},           {"agent", stamp.agent},
          {"qemu", stamp.qemu},   {"accelerator", stamp.accelerator}, {"cpu", stamp.cpu}};
}

Json encode(const TemplateRecord& record) {
  const TemplateRecipe& recipe = record.recipe;
  return {{"format", record_format},
          {"version", record_version},
          {"name", recipe.name},
          {"created_at", record.created_at},
          {"specification", encode(recipe.specification)},
          {"ready", recipe.ready},
          {"warm", recipe.warm},
          {"timeout_s", recipe.timeout_s},
          {"pool", recipe.pool},
          {"container", recipe.container},
          {"request", recipe.request},
          {"id", record.id.to_string()},
          {"built_at", record.built_at},
          {"stamp", encode(record.stamp)},
          {"memory_bytes", record.memory_bytes},
          {"device_bytes", record.device_bytes},
          {"memory_checksum", record.memory_checksum}};
}

Result<TemplateRecord> decode_template_record(std::string_view text) {
  return as_document(decode_record(TRY(parse_document(text))));
}

}  // namespace berth::container
