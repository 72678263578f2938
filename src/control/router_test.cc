#include "control/router.h"

#include <set>

#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "control/operations.h"
#include "control/schema.h"

namespace berth::control {
namespace {

using nlohmann::json;
using testing::HasSubstr;

Result<json> gather(std::string_view method, std::string_view target, std::string_view body = {}) {
  const Route route = MUST(find_route(method, target));
  return gather_parameters(route, body);
}

std::string refusal(std::string_view method, std::string_view target, std::string_view body = {}) {
  const auto gathered = gather(method, target, body);
  if (gathered) return "nothing";
  EXPECT_EQ(gathered.error().kind(), ErrorKind::invalid_argument);
  return gathered.error().message();
}

TEST(ActionsTest, EachHasOneHandlerAndAnswersWithASchemaThatThereIs) {
  std::set<std::string> places;
  for (const Action& action : actions()) {
    const bool streams = action.answer == Answer::stream;
    const bool upgrades = action.answer == Answer::upgrade;
    EXPECT_EQ(find_handler(action.name) != nullptr, !streams && !upgrades) << action.name;
    EXPECT_EQ(find_stream_handler(action.name) != nullptr, streams) << action.name;
    EXPECT_EQ(find_upgrade_handler(action.name) != nullptr, upgrades) << action.name;
    EXPECT_NE(find_schema(action.result), nullptr) << action.name;
    EXPECT_TRUE(
        places.insert(std::string(to_string(action.method)) + ' ' + std::string(action.path))
            .second)
        << action.name << " is where another is";
  }
}

TEST(ActionsTest, ParametersOfThePathAreInThePath) {
  for (const Action& action : actions()) {
    for (const Parameter& parameter : action.parameters) {
      const bool in_path =
          action.path.find('{' + std::string(parameter.name) + '}') != std::string_view::npos;
      EXPECT_EQ(in_path, parameter.place == Parameter::Place::path)
          << action.name << ' ' << parameter.name;
    }
  }
}

TEST(SchemaTest, EveryTypeIsKnown) {
  const std::set<std::string_view> plain = {"string", "integer", "number", "boolean",
                                            "time",   "id",      "object"};
  for (const Schema& schema : schemas()) {
    for (const Field& field : schema.fields) {
      const auto base = parse_type(field.type).base;
      EXPECT_TRUE(plain.contains(base) || find_schema(base) != nullptr)
          << schema.name << '.' << field.name;
    }
  }
  EXPECT_EQ(parse_type("integer[][]").list_depth, 2);
  EXPECT_TRUE(parse_type("Job?").nullable);
}

TEST(RouterTest, FindsTheActionAndWhatIsInThePath) {
  const Route route = MUST(find_route("POST", "/v1/volumes/disk1/checkpoints/be%66ore/export"));
  EXPECT_EQ(route.action->name, "checkpoint.export");
  EXPECT_EQ(route.path_parameters.at("volume"), "disk1");
  EXPECT_EQ(route.path_parameters.at("checkpoint"), "before");
}

TEST(RouterTest, TellsAnUnknownPathFromAnUnknownMethod) {
  EXPECT_EQ(find_route("GET", "/v1/nothing").error().kind(), ErrorKind::not_found);
  EXPECT_EQ(find_route("GET", "/v1/volumes/disk1/").error().kind(), ErrorKind::not_found);
  std::string allowed;
  EXPECT_EQ(find_route("PUT", "/v1/volumes", &allowed).error().kind(), ErrorKind::unsupported);
  EXPECT_EQ(allowed, "POST, GET");
  EXPECT_EQ(find_route("GET", "nonsense").error().kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(find_route("GET", "/v1/host?a=%zz").error().kind(), ErrorKind::invalid_argument);
}

TEST(RouterTest, GathersParametersFromEverywhere) {
  const auto changes = gather("GET", "/v1/volumes/disk1/changes?since=a&offset=4096");
  ASSERT_TRUE(changes) << changes.error().message();
  EXPECT_EQ(*changes, (json{{"volume", "disk1"}, {"since", "a"}, {"offset", 4096}}));
  const auto resize = gather("POST", "/v1/volumes/disk1/resize", R"({"size": 8192})");
  ASSERT_TRUE(resize) << resize.error().message();
  EXPECT_EQ(*resize, (json{{"volume", "disk1"}, {"size", 8192}}));
}

TEST(RouterTest, RefusesWhatDoesNotFit) {
  EXPECT_THAT(refusal("GET", "/v1/volumes/disk1/changes"), HasSubstr("'since' is missing"));
  EXPECT_THAT(refusal("GET", "/v1/volumes/disk1/changes?since=a&offset=-1"), HasSubstr("'offset'"));
  EXPECT_THAT(refusal("GET", "/v1/volumes/disk1/changes?since=a&color=red"), HasSubstr("'color'"));
  EXPECT_THAT(refusal("GET", "/v1/volumes/..%2f..%2fetc/changes?since=a"),
              HasSubstr("'../../etc'"));
  EXPECT_THAT(refusal("POST", "/v1/volumes/disk1/resize", R"({"size": "8192"})"),
              HasSubstr("'size'"));
  EXPECT_THAT(refusal("POST", "/v1/volumes/disk1/resize", R"({"size": 1.5})"), HasSubstr("'size'"));
  EXPECT_THAT(refusal("POST", "/v1/volumes/disk1/resize", R"({"size": -1})"), HasSubstr("'size'"));
  EXPECT_THAT(refusal("POST", "/v1/volumes/disk1/resize", R"({"size": 1, "sise": 2})"),
              HasSubstr("'sise'"));
  EXPECT_THAT(refusal("POST", "/v1/volumes/disk1/resize", "nonsense"), HasSubstr("body"));
  EXPECT_THAT(refusal("POST", "/v1/volumes/disk1/resize", "[1]"), HasSubstr("body"));
  EXPECT_THAT(refusal("POST", "/v1/checkpoints", R"({"volumes": ["a", "a"], "name": "x"})"),
              HasSubstr("repetition"));
  EXPECT_THAT(refusal("POST", "/v1/checkpoints", R"({"volumes": "a", "name": "x"})"),
              HasSubstr("list"));
  EXPECT_THAT(
      refusal("POST", "/v1/checkpoints", R"({"volumes": ["a"], "name": "x", "durability": "b"})"),
      HasSubstr("durable, volatile"));
  EXPECT_THAT(refusal("POST", "/v1/checkpoints", R"({"volumes": ["a"], "name": "x\u0000y"})"),
              HasSubstr("'name'"));
  EXPECT_EQ(find_route("GET", "/v1/host?a=1&a=2").error().kind(), ErrorKind::invalid_argument);
}

TEST(RouterTest, AClientsCallComesBackAsItWas) {
  const json parameters = {{"volume", "disk1"}, {"since", "a.b_c-d"}, {"offset", 7}};
  const HttpCall call = make_call(*find_action("changes.list"), parameters);
  EXPECT_EQ(call.method, "GET");
  EXPECT_EQ(*gather(call.method, call.target, call.body), parameters);

  const json export_parameters = {
      {"volume", "disk1"}, {"checkpoint", "x"}, {"to", "/a file/with?odd&names"}, {"since", "y"}};
  const HttpCall export_call = make_call(*find_action("checkpoint.export"), export_parameters);
  EXPECT_EQ(*gather(export_call.method, export_call.target, export_call.body), export_parameters);
  const json unserve = {{"volume", "disk1"}, {"unix", "/a file/with?odd&names"}};
  const HttpCall unserve_call = make_call(*find_action("volume.unserve"), unserve);
  EXPECT_EQ(*gather(unserve_call.method, unserve_call.target, unserve_call.body), unserve);
}

}  // namespace
}  // namespace berth::control
