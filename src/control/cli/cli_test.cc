// The command line without a daemon: parsing, parameters, completion, what people see.

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "control/cli/man_page.h"
#include "control/cli/parser.h"
#include "control/cli/render.h"

namespace berth::control::cli {
namespace {

using nlohmann::json;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

ParseOutcome parse(std::vector<const char*> words) {
  words.insert(words.begin(), "berth");
  return parse_line(static_cast<int>(words.size()), words.data());
}

Result<json> parameters(std::vector<const char*> words) {
  const auto outcome = parse(std::move(words));
  EXPECT_TRUE(outcome.line.has_value());
  return action_parameters(*outcome.line);
}

TEST(ParserTest, WordsBecomeTheActionsParameters) {
  const auto made = parameters({"volume", "create", "disk1", "--size", "10G", "--block", "64K"});
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_EQ(*made, (json{{"name", "disk1"}, {"size", 10737418240}, {"block_size", 65536}}));

  const auto cut = parameters({"checkpoint", "create", "a", "b", "--name", "x", "--volatile"});
  ASSERT_TRUE(cut) << cut.error().message();
  EXPECT_EQ(*cut, (json{{"volumes", {"a", "b"}}, {"name", "x"}, {"durability", "volatile"}}));

  const auto exported =
      parameters({"checkpoint", "export", "disk1@x", "/tmp/../tmp/out", "--since", "y"});
  ASSERT_TRUE(exported) << exported.error().message();
  EXPECT_EQ(*exported,
            (json{{"volume", "disk1"}, {"checkpoint", "x"}, {"to", "/tmp/out"}, {"since", "y"}}));

  const auto changes = parameters({"changes", "disk1", "--since", "a", "--offset", "1M"});
  ASSERT_TRUE(changes) << changes.error().message();
  EXPECT_EQ(*changes, (json{{"volume", "disk1"}, {"since", "a"}, {"offset", 1048576}}));
}

TEST(ParserTest, WhatDoesNotFitIsAMistakeOfUsage) {
  EXPECT_EQ(parameters({"volume", "create", "disk1", "--size", "much"}).error().kind(),
            ErrorKind::invalid_argument);
  EXPECT_EQ(parameters({"volume", "info", "../x"}).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(parameters({"checkpoint", "info", "disk1"}).error().kind(),
            ErrorKind::invalid_argument);
  EXPECT_EQ(parameters({"checkpoint", "info", "@x"}).error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(parameters({"checkpoint", "create", "a", "a", "--name", "x"}).error().kind(),
            ErrorKind::invalid_argument);
}

TEST(ParserTest, MistakesEndWithTwoAndHelpWithZero) {
  EXPECT_EQ(parse({"volume", "create"}).exit_code, 2);
  EXPECT_EQ(parse({"volume"}).exit_code, 2);
  EXPECT_EQ(parse({"nonsense"}).exit_code, 2);
  EXPECT_EQ(parse({"volume", "list", "-o", "xml"}).exit_code, 2);
  EXPECT_EQ(parse({"volume", "info", "a", "b"}).exit_code, 2);
  EXPECT_EQ(parse({"--help"}).exit_code, 0);
  EXPECT_EQ(parse({"volume", "create", "--help"}).exit_code, 0);
}

TEST(ParserTest, AWordThatIsNotKnownIsNamed) {
  for (const std::vector<const char*>& words :
       {std::vector{"nonsense"}, std::vector{"volume", "nonsense"}, std::vector{"--nonsense"}}) {
    testing::internal::CaptureStderr();
    EXPECT_EQ(parse(words).exit_code, 2);
    EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("nonsense"));
  }
}

TEST(ParserTest, GlobalOptionsMayStandAnywhere) {
  const auto before = parse({"--run-dir", "/tmp/r", "-o", "json", "volume", "list"});
  const auto after = parse({"volume", "list", "-o", "json", "--run-dir", "/tmp/r/"});
  for (const auto* outcome : {&before, &after}) {
    ASSERT_TRUE(outcome->line.has_value());
    EXPECT_TRUE(outcome->line->globals.json);
    EXPECT_EQ(outcome->line->globals.run_dir, "/tmp/r");
    EXPECT_EQ(outcome->line->globals.socket, "/tmp/r/api.sock");
  }
}

std::vector<std::string> complete_with_names(const std::vector<std::string>& words) {
  return complete(words, [](Names kind) -> std::vector<std::string> {
    if (kind == Names::volumes) return {"disk1", "disk2", "web"};
    if (kind == Names::checkpoints) return {"disk1@a", "disk1@b"};
    return {};
  });
}

TEST(CompletionTest, KnowsCommandsOptionsNamesAndFiles) {
  EXPECT_THAT(complete_with_names({"vol"}), ElementsAre("volume"));
  EXPECT_THAT(complete_with_names({""}), Not(Contains("internal")));
  EXPECT_THAT(complete_with_names({"volume", "re"}), ElementsAre("resize"));
  EXPECT_THAT(complete_with_names({"volume", "info", "disk"}), ElementsAre("disk1", "disk2"));
  EXPECT_THAT(complete_with_names({"volume", "info", "disk1", ""}), IsEmpty());
  EXPECT_THAT(complete_with_names({"checkpoint", "create", "disk1", "w"}), ElementsAre("web"));
  EXPECT_THAT(complete_with_names({"checkpoint", "export", "disk1@"}),
              ElementsAre("disk1@a", "disk1@b"));
  EXPECT_THAT(complete_with_names({"checkpoint", "export", "disk1@a", ""}), ElementsAre(":files"));
  EXPECT_THAT(complete_with_names({"volume", "create", "--si"}), ElementsAre("--size"));
  EXPECT_THAT(complete_with_names({"volume", "create", "--import", ""}), ElementsAre(":files"));
  EXPECT_THAT(complete_with_names({"volume", "list", "-o", ""}), ElementsAre("table", "json"));
  EXPECT_THAT(complete_with_names({"--run-dir", "/x", "volume", "li"}), ElementsAre("list"));
}

TEST(RenderTest, TablesAreAsWideAsTheyNeedToBe) {
  EXPECT_EQ(table({"NAME", ">SIZE"}, {{"a", "1"}, {"längst", "1000"}}),
            "NAME    SIZE\n"
            "a          1\n"
            "längst  1000\n");
}

TEST(RenderTest, ProgressShowsWhatIsKnown) {
  json job = {{"kind", "checkpoint.export"},
              {"target", "disk1@a"},
              {"phase", "copying"},
              {"bytes_done", 1 << 20},
              {"bytes_total", 4 << 20},
              {"bytes_per_second", 1 << 20},
              {"eta_seconds", 3}};
  EXPECT_EQ(progress_line(job, 200),
            "checkpoint.export disk1@a: copying  [######                  ]  25%  1.0 MiB of 4.0 "
            "MiB  1.0 MiB/s  0:03 left");
  EXPECT_EQ(progress_line(job, 20).size(), 20);
  job["bytes_total"] = nullptr;
  job["eta_seconds"] = nullptr;
  EXPECT_EQ(progress_line(job, 200), "checkpoint.export disk1@a: copying  1.0 MiB  1.0 MiB/s");
}

TEST(RenderTest, AnErrorIsOneLineAndSaysWhatToDo) {
  const Error odd(ErrorKind::not_found, "there is no volume 'a\nb\x1b[2Jü'");
  EXPECT_EQ(render_error(odd), "there is no volume 'a?b?[2Jü'");
  const Error stale(ErrorKind::full_backup_required, "this volume has no reference point 'x'");
  EXPECT_EQ(render_error(stale), "this volume has no reference point 'x': make a full backup");
}

TEST(ManPageTest, HasEveryCommandThatPeopleSee) {
  const std::string page = man_page();
  for (const Command& command : commands()) {
    EXPECT_EQ(page.find(".SS \"" + words_of(command) + "\"") != std::string::npos, !command.hidden)
        << words_of(command);
  }
  EXPECT_THAT(page, HasSubstr("BERTH_STATE_DIR"));
}

}  // namespace
}  // namespace berth::control::cli
