#include "container/process_bundle.h"

#include <algorithm>

#include <gmock/gmock.h>

#include "container/container_store.h"

namespace berth::container {
namespace {

using machine::Json;
using testing::Contains;
using testing::ElementsAre;
using testing::Not;

BundleSpecification specification() {
  return {.hostname = "box",
          .root = "/run/root",
          .agent = "/lib/agent",
          .first_user = 2'000'027'648,
          .cpus = 1.5,
          .memory = std::uint64_t{64} << 20,
          .files_max = 4096,
          .control_group = "berth/container-1"};
}

TEST(ProcessBundle, HasLimitsUsersAndNamespacesOfItsOwn) {
  const Json config = bundle_config(specification(), Json{{"filter", true}});
  EXPECT_EQ(config["hostname"], "box");
  EXPECT_EQ(config["root"]["path"], "/run/root");
  const Json& host = config["linux"];
  EXPECT_EQ(host["resources"]["memory"]["limit"], 64 << 20);
  EXPECT_EQ(host["resources"]["cpu"]["quota"], 150'000);
  EXPECT_EQ(host["resources"]["devices"][0]["allow"], false);
  EXPECT_EQ(host["cgroupsPath"], "berth/container-1");
  EXPECT_EQ(host["seccomp"]["filter"], true);
  for (const char* map : {"uidMappings", "gidMappings"}) {
    EXPECT_EQ(
        host[map],
        Json::array({{{"containerID", 0}, {"hostID", 2'000'027'648}, {"size", sandbox_users}}}));
  }
  std::vector<std::string> types;
  for (const Json& one : host["namespaces"]) {
    types.push_back(one["type"]);
    EXPECT_FALSE(one.contains("path")) << "somebody else's";
  }
  EXPECT_THAT(types, ElementsAre("pid", "network", "ipc", "uts", "mount", "cgroup", "user"));
}

TEST(ProcessBundle, GivesItsRootNoMoreThanDockerDoes) {
  const Json process = bundle_config(specification(), Json())["process"];
  EXPECT_EQ(process["noNewPrivileges"], true);
  for (const char* set : {"bounding", "effective", "permitted"}) {
    const auto all = process["capabilities"][set].get<std::vector<std::string>>();
    EXPECT_EQ(all.size(), 14U);
    EXPECT_THAT(all, Not(Contains("CAP_SYS_ADMIN")));
  }
  EXPECT_FALSE(process["capabilities"].contains("ambient"));
  EXPECT_TRUE(std::ranges::is_sorted(sandbox_capabilities()));
}

TEST(ProcessBundle, OpensNoMoreFilesThanItsKeeperMay) {
  BundleSpecification few = specification();
  const auto limit = [&few] {
    const Json one = bundle_config(few, Json())["process"]["rlimits"][0];
    return std::pair(one["soft"].get<int>(), one["hard"].get<int>());
  };
  EXPECT_EQ(limit(), std::pair(1024, 4096));
  few.files_max = 512;
  EXPECT_EQ(limit(), std::pair(512, 512));
  few.files_max = UINT64_MAX;
  EXPECT_EQ(limit(), std::pair(1024, 524'288));
}

TEST(ProcessBundle, BringsTheAgentInReadOnly) {
  const Json mounts = bundle_config(specification(), Json())["mounts"];
  const Json& agent = mounts.back();
  EXPECT_EQ(agent["source"], "/lib/agent");
  EXPECT_THAT(agent["options"].get<std::vector<std::string>>(), Contains("ro"));
  EXPECT_EQ(std::ranges::count_if(mounts, [](const Json& one) { return one["type"] == "bind"; }),
            1);
}

TEST(ProcessBundle, RangesOfUsersDoNotMeet) {
  const std::uint32_t first = MUST(first_sandbox_user(container_uid_first));
  EXPECT_EQ(MUST(first_sandbox_user(container_uid_first + 1)), first + sandbox_users);
  EXPECT_GT(first, container_uid_first + container_uid_count);
  // The last that fits, and the first that does not.
  std::uint32_t last = container_uid_first;
  while (first_sandbox_user(last + 1)) ++last;
  EXPECT_LE(std::uint64_t{MUST(first_sandbox_user(last))} + sandbox_users, std::uint64_t{1} << 32);
  EXPECT_EQ(first_sandbox_user(last + 1).error().kind(), ErrorKind::limit);
  EXPECT_EQ(first_sandbox_user(33).error().kind(), ErrorKind::limit);
}

Json rule(const char* name, Json more) {
  Json made = {{"names", {name}}, {"action", "SCMP_ACT_ALLOW"}};
  made.update(more);
  return made;
}

bool is_allowed(const Json& filter, const char* name) {
  return std::ranges::any_of(filter["syscalls"], [name](const Json& one) {
    return one["action"] == "SCMP_ACT_ALLOW" &&
           std::ranges::find(one["names"], name) != one["names"].end();
  });
}

TEST(SeccompFilter, TakesTheRulesOfThisArchitectureAndItsCapabilities) {
  const Json profile = {
      {"defaultAction", "SCMP_ACT_ERRNO"},
      {"syscalls",
       {rule("read", Json::object()), rule("arch_prctl", {{"includes", {{"arches", {"amd64"}}}}}),
        rule("s390", {{"includes", {{"arches", {"s390"}}}}}),
        rule("chroot", {{"includes", {{"caps", {"CAP_SYS_CHROOT"}}}}}),
        rule("bpf", {{"includes", {{"caps", {"CAP_SYS_ADMIN"}}}}}),
        rule("without", {{"excludes", {{"caps", {"CAP_SYS_CHROOT"}}}}}),
        rule("elsewhere", {{"excludes", {{"arches", {"amd64"}}}}})}}};
  const Json filter = MUST(seccomp_filter(profile.dump()));
  for (const char* name : {"read", "arch_prctl", "chroot"}) EXPECT_TRUE(is_allowed(filter, name));
  for (const char* name : {"s390", "bpf", "without", "elsewhere"})
    EXPECT_FALSE(is_allowed(filter, name));
  EXPECT_EQ(filter["defaultAction"], "SCMP_ACT_ERRNO");
}

TEST(SeccompFilter, AllowsNoNamespacesAndNoMounts) {
  const Json profile = {{"defaultAction", "SCMP_ACT_ERRNO"},
                        {"syscalls",
                         {{{"names", {"read", "mount", "unshare", "clone", "clone3", "setns"}},
                           {"action", "SCMP_ACT_ALLOW"}}}}};
  const Json filter = MUST(seccomp_filter(profile.dump()));
  EXPECT_TRUE(is_allowed(filter, "read"));
  for (const char* name : {"mount", "unshare", "clone3", "setns", "open_tree"})
    EXPECT_FALSE(is_allowed(filter, name));
  // Only without the flags of new namespaces.
  const auto clone = std::ranges::find_if(
      filter["syscalls"], [](const Json& one) { return one["names"] == Json{"clone"}; });
  ASSERT_NE(clone, filter["syscalls"].end());
  EXPECT_EQ((*clone)["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
  EXPECT_EQ((*clone)["args"][0]["value"], 0x7E020000);
}

TEST(SeccompFilter, RefusesWhatIsNoProfile) {
  for (const char* text : {"", "[]", "{}", R"({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []})",
                           R"({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{}]})",
                           R"({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": [1],
                               "action": "SCMP_ACT_ALLOW"}]})"})
    EXPECT_FALSE(seccomp_filter(text)) << text;
}

}  // namespace
}  // namespace berth::container
