#include "control/container_creation.h"

#include <set>

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

namespace berth::control {
namespace {

using container::ContainerSpecification;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::MatchesRegex;

const std::string digest = "sha256:" + std::string(64, '0');

container::ImageRecord image() {
  container::ImageRecord record;
  record.digest = digest;
  record.config.entrypoint = {"/entry", "--of-image"};
  record.config.command = {"serve"};
  record.config.environment = {"PATH=/bin", "A=image", "B=image"};
  record.config.working_directory = "/srv";
  record.config.user = "web";
  record.config.stop_signal = "SIGQUIT";
  return record;
}

Result<ContainerSpecification> complete(json request, const container::ImageRecord& of = image()) {
  return complete_container(std::move(request), of, "app:1");
}

std::string refusal(json request) {
  const auto made = complete(std::move(request));
  if (made) return "nothing";
  EXPECT_EQ(made.error().kind(), ErrorKind::invalid_argument);
  return made.error().message();
}

TEST(ContainerCreationTest, WhatIsNotSaidIsAsTheImageSays) {
  const auto made = MUST(complete(json::object()));
  EXPECT_EQ(made.image, digest);
  EXPECT_EQ(made.image_name, "app:1");
  EXPECT_THAT(made.arguments, ElementsAre("/entry", "--of-image", "serve"));
  EXPECT_EQ(MUST(complete({{"entrypoint", nullptr}, {"command", nullptr}})).arguments,
            made.arguments);
  EXPECT_THAT(made.environment, ElementsAre("PATH=/bin", "A=image", "B=image"));
  EXPECT_EQ(made.working_directory, "/srv");
  EXPECT_EQ(made.user, "web");
  EXPECT_EQ(made.stop_signal, "SIGQUIT");
}

TEST(ContainerCreationTest, WhatIsSaidComesFirst) {
  const auto made = MUST(complete({{"working_directory", "/tmp"},
                                   {"user", "0:0"},
                                   {"stop_signal", "SIGINT"},
                                   {"hostname", "somebody"},
                                   {"name", "web"}}));
  EXPECT_EQ(made.working_directory, "/tmp");
  EXPECT_EQ(made.user, "0:0");
  EXPECT_EQ(made.stop_signal, "SIGINT");
  EXPECT_EQ(made.hostname, "somebody");
  EXPECT_EQ(made.name, "web");
}

TEST(ContainerCreationTest, ACommandReplacesTheImagesAndAnEntrypointBoth) {
  EXPECT_THAT(MUST(complete({{"command", {"check", "it"}}})).arguments,
              ElementsAre("/entry", "--of-image", "check", "it"));
  EXPECT_THAT(MUST(complete({{"entrypoint", {"/other"}}})).arguments, ElementsAre("/other"));
  EXPECT_THAT(MUST(complete({{"entrypoint", {"/other"}}, {"command", {"x"}}})).arguments,
              ElementsAre("/other", "x"));
  EXPECT_THAT(MUST(complete({{"entrypoint", json::array()}, {"command", {"x"}}})).arguments,
              ElementsAre("x"));
  EXPECT_THAT(MUST(complete({{"command", json::array()}})).arguments,
              ElementsAre("/entry", "--of-image"));
}

TEST(ContainerCreationTest, SomethingHasToBeRun) {
  EXPECT_NE(refusal({{"entrypoint", json::array()}}), "nothing");
  EXPECT_FALSE(complete(json::object(), {.digest = digest}));
}

TEST(ContainerCreationTest, AVariableReplacesThatOfTheSameNameAlone) {
  const auto made = MUST(complete({{"environment", {"A=mine", "AB=1", "C=1", "C=2", "B="}}}));
  EXPECT_THAT(made.environment, ElementsAre("PATH=/bin", "A=mine", "AB=1", "C=2", "B="));
}

TEST(ContainerCreationTest, ItHasAStopSignalInAnyCase) {
  auto silent = image();
  silent.config.stop_signal.clear();
  EXPECT_EQ(MUST(complete(json::object(), silent)).stop_signal, "SIGTERM");
  EXPECT_NE(refusal({{"stop_signal", "SIGNONE"}}), "nothing");
}

TEST(ContainerCreationTest, ItHasANameInAnyCaseAndItsHostNameIsOne) {
  const auto made = MUST(complete(json::object()));
  EXPECT_THAT(made.name, MatchesRegex("c-[0-9a-f]+"));
  EXPECT_EQ(made.name.size(), 10U);
  EXPECT_EQ(made.hostname, made.name);
  EXPECT_NE(MUST(complete(json::object())).name, made.name);
  EXPECT_EQ(MUST(complete({{"name", "my_web_1"}})).hostname, "my-web-1");
}

TEST(ContainerCreationTest, WhatIsWrongIsNamed) {
  EXPECT_THAT(refusal({{"command", "true"}}), HasSubstr("command"));
  EXPECT_THAT(refusal({{"entrypoint", {1}}}), HasSubstr("entrypoint"));
  EXPECT_THAT(refusal({{"colour", "red"}}), HasSubstr("colour"));
  EXPECT_THAT(refusal({{"memory", 1}}), HasSubstr("memory"));
  EXPECT_THAT(refusal({{"memory", "much"}}), HasSubstr("memory"));
  EXPECT_THAT(refusal({{"name", "-x"}}), HasSubstr("name"));
  EXPECT_THAT(refusal({{"arguments", {"/x"}}}), HasSubstr("command"));
  EXPECT_THAT(refusal({{"image", digest}}), HasSubstr("image"));
}

TEST(ContainerCreationTest, WhatTheDaemonKnowsItsOwnByIsRefused) {
  EXPECT_THAT(refusal({{"labels", {{"berth.template", "web"}}}}), HasSubstr("berth.template"));
  EXPECT_THAT(refusal({{"name", "pool-0123abcd"}}), HasSubstr("pool-0123abcd"));
  for (const char* name :
       {"pool-", "pool-0123abc", "pool-0123abcde", "pool-swimming", "template-web"})
    EXPECT_EQ(refusal({{"name", name}}), "nothing");
}

container::TemplateRecipe of_template() {
  return {.name = "app",
          .specification = {.name = "app",
                            .image = digest,
                            .image_name = "app:1",
                            .arguments = {"/entry"},
                            .hostname = "app",
                            .stop_signal = "SIGQUIT",
                            .labels = {{"of", "template"}, {"more", "yes"}}}};
}

std::string clone_refusal(json request, std::size_t count) {
  const auto made = clone_specifications(std::move(request), of_template(), count);
  if (made) return "nothing";
  EXPECT_EQ(made.error().kind(), ErrorKind::invalid_argument);
  return made.error().message();
}

TEST(CloneSpecificationsTest, AreAsTheTemplateButForWhatIsTheirOwn) {
  const auto all = MUST(clone_specifications({{"name", "web_x"},
                                              {"labels", {{"of", "clone"}}},
                                              {"ports", json::array({{{"guest_port", 80U}}})},
                                              {"park_after", "never"},
                                              {"remove", true}},
                                             of_template(), 2));
  ASSERT_EQ(all.size(), 2);
  EXPECT_EQ(all[1].park_after, "never");
  EXPECT_EQ(all[0].name, "web_x-1");
  EXPECT_EQ(all[1].name, "web_x-2");
  EXPECT_EQ(all[1].hostname, "web-x-2");
  EXPECT_EQ(all[0].template_name, "app");
  EXPECT_EQ(all[0].image, digest);
  EXPECT_EQ(all[0].stop_signal, "SIGQUIT");
  EXPECT_EQ(all[0].ports.size(), 1);
  EXPECT_TRUE(all[0].remove);
  EXPECT_EQ(all[0].labels.at("of"), "clone");
  EXPECT_EQ(all[0].labels.at("more"), "yes");
}

TEST(CloneSpecificationsTest, NobodyElseHasTheirNames) {
  const auto all = MUST(clone_specifications(json::object(), of_template(), 3));
  std::set<std::string> names;
  for (const ContainerSpecification& one : all) {
    EXPECT_THAT(one.name, MatchesRegex("c-[0-9a-f]{8}"));
    EXPECT_EQ(one.hostname, one.name);
    names.insert(one.name);
  }
  EXPECT_EQ(names.size(), 3);
}

TEST(CloneSpecificationsTest, WhatAClonesCannotBeIsRefused) {
  EXPECT_EQ(clone_refusal({{"hostname", "one"}}, 1), "nothing");
  EXPECT_THAT(clone_refusal({{"hostname", "one"}}, 2), HasSubstr("hostname"));
  EXPECT_THAT(clone_refusal({{"memory", 1}}, 1), HasSubstr("memory: a clone has that"));
  EXPECT_THAT(clone_refusal({{"command", {"x"}}}, 1), HasSubstr("command: a clone has that"));
  EXPECT_THAT(
      clone_refusal({{"ports", json::array({{{"guest_port", 80U}, {"host_port", 8080U}}})}}, 2),
      HasSubstr("8080"));
  EXPECT_THAT(clone_refusal({{"name", std::string(48, 'x')}}, 2), HasSubstr("at most 48"));
  EXPECT_THAT(clone_refusal(json::array(), 1), HasSubstr("an object"));
  EXPECT_THAT(clone_refusal({{"name", "pool-0123abcd"}}, 1), HasSubstr("a clone that waits"));
  EXPECT_THAT(clone_refusal({{"labels", {{"berth.template", "app"}}}}, 1), HasSubstr("labels"));
  EXPECT_THAT(refusal({{"template", "app"}}), HasSubstr("container.clone"));
}

}  // namespace
}  // namespace berth::control
