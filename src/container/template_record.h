// What a template is, and what its clones need to find as it was: template.json
// (docs/formats/templates.md).
//
// Pure: no I/O. Documents may hold anything: what does not fit is `corrupt`, a request that cannot
// be met `invalid_argument` with the member that is wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "container/container_record.h"

namespace berth::container {

constexpr std::size_t template_name_length_max = 32;  // bytes
constexpr std::size_t template_warm_max = 32;         // commands
constexpr std::uint32_t template_pool_default = 2;
constexpr std::uint32_t template_pool_max = 256;
constexpr std::uint32_t template_timeout_s_default = 120;
constexpr std::uint32_t template_timeout_s_max = 24 * 60 * 60;

/// What a saved memory fits to. All of it has to be the same where it is mapped again.
struct TemplateStamp {
  std::string image;        // digest
  std::string kernel;       // release
  std::string agent;        // digits of its build
  std::string qemu;         // version
  std::string accelerator;  // kvm or tcg
  std::string cpu;          // the host's model; CPU clocks run at its speed
  friend bool operator==(const TemplateStamp&, const TemplateStamp&) = default;
};
/// What differs, for people: "QEMU 7.2.21, now 7.2.22"; "" for nothing.
std::string difference(const TemplateStamp& then, const TemplateStamp& now);

/// How it is made.
struct TemplateRecipe {
  std::string name;
  /// As the container is that becomes the template. It has neither ports nor volumes.
  ContainerSpecification specification;
  std::string ready;              // a ready probe
  std::vector<std::string> warm;  // shell commands, run in it once it is ready
  std::uint32_t timeout_s = template_timeout_s_default;  // until it is ready, and for each command
  std::uint32_t pool = template_pool_default;            // how many clones of it wait for a name
  std::string container;          // that it was made of while that ran; "": of its image
  Json request = Json::object();  // what was asked for, which an image that changes is run with
  friend bool operator==(const TemplateRecipe&, const TemplateRecipe&) = default;
};
Result<void> check(const TemplateRecipe& recipe);

struct TemplateRecord {
  TemplateRecipe recipe;
  std::string created_at;  // RFC 3339
  // What was made last.
  Id128 id;  // of its memory object too
  std::string built_at;
  TemplateStamp stamp;
  std::uint64_t memory_bytes = 0;  // of its memory that are not zero, rounded up to pages
  std::uint64_t device_bytes = 0;
  std::string memory_checksum;  // 16 hexadecimal digits (docs/formats/templates.md)
  friend bool operator==(const TemplateRecord&, const TemplateRecord&) = default;
};

Json encode(const TemplateStamp& stamp);
Json encode(const TemplateRecord& record);
Result<TemplateRecord> decode_template_record(std::string_view text);

}  // namespace berth::container
