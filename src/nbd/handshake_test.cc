#include "nbd/handshake.h"

#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nbd/wire.h"

namespace berth::nbd {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Step = Handshake::Step;

ExportInfo volume_info() {
  return {.name = "volume",
          .description = "a disk",
          .size = 64 * MiB,
          .contexts = {"berth:changed:monday", "qemu:dirty-bitmap:monday",
                       "qemu:dirty-bitmap:tuesday"}};
}

/// A handshake with a client that has said its flags.
struct Client {
  explicit Client(TlsMode tls = TlsMode::off) : handshake(tls) {
    handshake.take_output();
    EXPECT_EQ(send(client_flags()), Step::receive);
  }

  Step send(const Wire& wire) {
    Bytes input = wire.bytes();
    const Result<Step> step = handshake.receive(input);
    EXPECT_TRUE(step) << step.error().message();
    EXPECT_THAT(input, IsEmpty());
    return step ? *step : Step::end;
  }

  std::vector<OptionAnswer> answers() {
    const std::vector<std::byte> output = handshake.take_output();
    WireReader reader(output);
    std::vector<OptionAnswer> answers;
    while (reader.left() != 0) answers.push_back(read_option_answer(reader));
    EXPECT_TRUE(reader.ok());
    return answers;
  }
  OptionReply only_answer() {
    const auto all = answers();
    EXPECT_THAT(all, SizeIs(1));
    return all.empty() ? OptionReply{} : all.front().type;
  }

  /// Asks for contexts of "volume"; their names.
  std::vector<std::string> contexts(Option which, const std::vector<std::string>& queries) {
    EXPECT_EQ(send(option(which, context_data("volume", queries).bytes())), Step::find_export);
    EXPECT_EQ(handshake.found(volume_info()), Step::receive);
    std::vector<std::string> names;
    for (const OptionAnswer& answer : answers()) {
      if (answer.type != OptionReply::meta_context) {
        EXPECT_EQ(answer.type, OptionReply::ack);
        continue;
      }
      WireReader reader(answer.data);
      const auto id = reader.number<std::uint32_t>();
      EXPECT_EQ(id, which == Option::set_meta_context ? names.size() : 0);
      names.push_back(reader.text(reader.left()));
    }
    return names;
  }
  void negotiate_structured_replies() {
    EXPECT_EQ(send(option(Option::structured_reply)), Step::receive);
    EXPECT_EQ(only_answer(), OptionReply::ack);
  }

  Handshake handshake;
};

TEST(Handshake, GreetsAsFixedNewstyle) {
  Handshake handshake(TlsMode::off);
  const std::vector<std::byte> greeting = handshake.take_output();
  WireReader reader(greeting);
  EXPECT_EQ(reader.number<std::uint64_t>(), init_magic);
  EXPECT_EQ(reader.number<std::uint64_t>(), option_magic);
  EXPECT_EQ(reader.number<std::uint16_t>(), flag_fixed_newstyle | flag_no_zeroes);
  EXPECT_EQ(reader.left(), 0U);
}

TEST(Handshake, EndsWithAClientWhoseFlagsItDoesNotKnow) {
  Handshake handshake(TlsMode::off);
  const Wire flags = client_flags(4);
  Bytes input = flags.bytes();
  const auto step = handshake.receive(input);
  ASSERT_FALSE(step);
  EXPECT_EQ(step.error().kind(), ErrorKind::protocol);
}

TEST(Handshake, EndsWithAClientThatSendsSomethingElse) {
  Client client;
  const std::string nonsense = "GET / HTTP/1.1\r\n\r\n";
  Bytes input = as_bytes(nonsense);
  const auto step = client.handshake.receive(input);
  ASSERT_FALSE(step);
  EXPECT_EQ(step.error().kind(), ErrorKind::protocol);
}

TEST(Handshake, TakesMessagesInPiecesOfAnySize) {
  for (std::size_t piece = 1; piece < 60; ++piece) {
    Handshake handshake(TlsMode::off);
    handshake.take_output();
    Wire wire = client_flags();
    wire.raw(option(Option::structured_reply).bytes())
        .raw(option(Option::go, info_data("volume").bytes()).bytes());
    std::vector<std::byte> pending;
    Step step = Step::receive;
    Bytes left = wire.bytes();
    while (step == Step::receive && !left.empty()) {
      const Bytes part = left.first(std::min(piece, left.size()));
      left = left.subspan(part.size());
      pending.insert(pending.end(), part.begin(), part.end());
      Bytes input = pending;
      std::size_t before = 0;
      do {
        before = input.size();
        step = MUST(handshake.receive(input));
      } while (step == Step::receive && input.size() != before);
      pending.erase(pending.begin(), pending.end() - static_cast<std::ptrdiff_t>(input.size()));
    }
    ASSERT_EQ(step, Step::find_export) << piece;
    EXPECT_EQ(handshake.export_name(), "volume");
    EXPECT_EQ(handshake.found(volume_info()), Step::transmit);
    EXPECT_TRUE(handshake.session().structured_replies);
  }
}

TEST(Handshake, EntersTransmissionByExportName) {
  for (const bool no_zeroes : {false, true}) {
    Handshake handshake(TlsMode::off);
    handshake.take_output();
    Wire wire = client_flags(no_zeroes ? flag_no_zeroes : 0);
    wire.raw(option(Option::export_name, as_bytes("volume")).bytes());
    Bytes input = wire.bytes();
    ASSERT_EQ(MUST(handshake.receive(input)), Step::find_export);
    EXPECT_EQ(handshake.export_name(), "volume");
    EXPECT_EQ(handshake.found(volume_info()), Step::transmit);
    const std::vector<std::byte> output = handshake.take_output();
    WireReader reader(output);
    EXPECT_EQ(reader.number<std::uint64_t>(), 64 * MiB);
    EXPECT_EQ(reader.number<std::uint16_t>(), transmission_flags(volume_info(), false));
    EXPECT_EQ(reader.left(), no_zeroes ? 0U : 124U);
  }
}

TEST(Handshake, HasNoWordsForAnExportNameThatIsNotThere) {
  Client client;
  EXPECT_EQ(client.send(option(Option::export_name, as_bytes("other"))), Step::find_export);
  EXPECT_EQ(client.handshake.not_found(Error(ErrorKind::not_found, "no")), Step::end);
  EXPECT_THAT(client.answers(), IsEmpty());
}

TEST(Handshake, TellsAllAboutAnExport) {
  Client client;
  const Wire data =
      info_data("", {Info::name, Info::description, Info::block_size, static_cast<Info>(99)});
  for (const Option which : {Option::info, Option::go}) {
    EXPECT_EQ(client.send(option(which, data.bytes())), Step::find_export);
    EXPECT_EQ(client.handshake.found(volume_info()),
              which == Option::go ? Step::transmit : Step::receive);
    const auto answers = client.answers();
    ASSERT_THAT(answers, SizeIs(5));
    EXPECT_EQ(answers[0].data, Wire()
                                   .number<std::uint16_t>(0)
                                   .number<std::uint64_t>(64 * MiB)
                                   .number(transmission_flags(volume_info(), false))
                                   .bytes());
    EXPECT_EQ(answers[1].data, Wire().number<std::uint16_t>(1).text("volume").bytes());
    EXPECT_EQ(answers[2].data, Wire().number<std::uint16_t>(2).text("a disk").bytes());
    EXPECT_EQ(answers[3].data, Wire()
                                   .number<std::uint16_t>(3)
                                   .number<std::uint32_t>(1)
                                   .number<std::uint32_t>(65536)
                                   .number<std::uint32_t>(32 * MiB)
                                   .bytes());
    EXPECT_EQ(answers[4].type, OptionReply::ack);
  }
}

TEST(Handshake, TellsOfItsBlocksUnaskedWhereTheyMatter) {
  Client client;
  EXPECT_EQ(client.send(option(Option::go, info_data("volume").bytes())), Step::find_export);
  ExportInfo info = volume_info();
  info.block_minimum = 4096;
  EXPECT_EQ(client.handshake.found(info), Step::transmit);
  EXPECT_THAT(client.answers(), SizeIs(3));
}

TEST(Handshake, KeepsBlockSizesWithinTheProtocol) {
  Client client;
  EXPECT_EQ(client.send(option(Option::go, info_data("volume", {Info::block_size}).bytes())),
            Step::find_export);
  ExportInfo info = volume_info();
  info.block_minimum = MiB;
  info.block_preferred = 1;
  info.block_maximum = 1;
  EXPECT_EQ(client.handshake.found(info), Step::transmit);
  const Session& session = client.handshake.session();
  EXPECT_EQ(session.block_minimum, 64 * KiB);
  EXPECT_EQ(session.block_maximum, 64 * KiB);
}

TEST(Handshake, GoesOnAfterAnExportThatIsNotThere) {
  Client client;
  EXPECT_EQ(client.send(option(Option::go, info_data("other").bytes())), Step::find_export);
  EXPECT_EQ(client.handshake.not_found(Error(ErrorKind::not_found, "no")), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_unknown);
  EXPECT_EQ(client.send(option(Option::go, info_data("volume").bytes())), Step::find_export);
  EXPECT_EQ(client.handshake.found(volume_info()), Step::transmit);
}

TEST(Handshake, ListsExports) {
  Client client;
  EXPECT_EQ(client.send(option(Option::list)), Step::list_exports);
  EXPECT_EQ(client.handshake.listed({{"a", ""}, {"bc", "the live disk"}}), Step::receive);
  const auto answers = client.answers();
  ASSERT_THAT(answers, SizeIs(3));
  EXPECT_EQ(answers[0].data, Wire().counted("a").bytes());
  EXPECT_EQ(answers[1].data, Wire().counted("bc").text("the live disk").bytes());
  EXPECT_EQ(answers[1].option, static_cast<std::uint32_t>(Option::list));
  EXPECT_EQ(answers[2].type, OptionReply::ack);
}

TEST(Handshake, AcknowledgesAbort) {
  Client client;
  EXPECT_EQ(client.send(option(Option::abort, as_bytes("whatever"))), Step::end);
  EXPECT_EQ(client.only_answer(), OptionReply::ack);
}

TEST(Handshake, SaysThatItDoesNotKnowAnOption) {
  Client client;
  for (const std::uint32_t number : {0U, 4U, 11U, 12U, 0xffffffffU}) {
    EXPECT_EQ(client.send(option(number, as_bytes("data"))), Step::receive);
    EXPECT_EQ(client.only_answer(), OptionReply::error_unsupported);
  }
}

TEST(Handshake, RefusesDataWhereThereIsNone) {
  Client client;
  for (const Option which : {Option::list, Option::structured_reply, Option::starttls}) {
    EXPECT_EQ(client.send(option(which, as_bytes("x"))), Step::receive);
    EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  }
}

TEST(Handshake, RefusesMalformedData) {
  Client client;
  client.negotiate_structured_replies();
  const std::vector<Wire> informations{
      Wire(),
      Wire().counted("volume"),  // no count
      Wire().number<std::uint32_t>(99).text("volume").number<std::uint16_t>(
          0),  // a name beyond the end
      Wire().counted("volume").number<std::uint16_t>(2).number<std::uint16_t>(
          0),  // fewer than it says
      Wire().counted("volume").number<std::uint16_t>(0).number<std::uint16_t>(
          0),                                                                // more than it says
      Wire().counted(std::string_view("a\0b", 3)).number<std::uint16_t>(0),  // NUL
      Wire().number(~0U),
  };
  for (const Wire& data : informations) {
    EXPECT_EQ(client.send(option(Option::go, data.bytes())), Step::receive);
    EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  }
  const std::vector<Wire> contexts{
      Wire(),
      Wire().counted("volume"),
      Wire().counted("volume").number<std::uint32_t>(1),
      Wire().counted("volume").number<std::uint32_t>(1).number<std::uint32_t>(5).text("base"),
      Wire().counted("volume").number<std::uint32_t>(0).text("more"),
  };
  for (const Wire& data : contexts) {
    EXPECT_EQ(client.send(option(Option::set_meta_context, data.bytes())), Step::receive);
    EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  }
}

TEST(Handshake, RefusesStringsAndOptionsThatAreTooLong) {
  Client client;
  client.negotiate_structured_replies();
  const std::string longest(string_length_max, 'n');
  EXPECT_EQ(client.send(option(Option::info, info_data(longest).bytes())), Step::find_export);
  EXPECT_EQ(client.handshake.not_found(Error(ErrorKind::not_found, longest)), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_unknown);

  EXPECT_EQ(client.send(option(Option::info, info_data(longest + "n").bytes())), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_too_big);
  EXPECT_EQ(
      client.send(option(Option::list_meta_context, context_data("", {longest + "n"}).bytes())),
      Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_too_big);
  EXPECT_EQ(client.send(option(Option::set_meta_context,
                               context_data("", std::vector<std::string>(257)).bytes())),
            Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_too_big);

  const std::vector<std::byte> much(option_length_max + 1);
  EXPECT_EQ(client.send(option(Option::info, much)), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_too_big);
  EXPECT_EQ(client.send(option(Option::list)), Step::list_exports);

  const Wire more = Wire()
                        .number(option_magic)
                        .number<std::uint32_t>(6)
                        .number<std::uint32_t>(option_length_skipped_max + 1);
  Bytes input = more.bytes();
  EXPECT_FALSE(client.handshake.receive(input));
}

TEST(Handshake, EndsWithAClientThatNegotiatesWithoutEnd) {
  Client client;
  for (std::size_t i = 0; i < options_max; ++i) client.send(option(99U));
  const Wire one_more = option(99U);
  Bytes input = one_more.bytes();
  EXPECT_FALSE(client.handshake.receive(input));
}

TEST(Handshake, ListsContextsByNameAndByNamespace) {
  Client client;
  client.negotiate_structured_replies();
  const auto list = [&](const std::vector<std::string>& queries) {
    return client.contexts(Option::list_meta_context, queries);
  };
  EXPECT_THAT(list({}), ElementsAre("base:allocation", "berth:changed:monday",
                                    "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday"));
  EXPECT_THAT(list({"base:"}), ElementsAre("base:allocation"));
  EXPECT_THAT(list({"berth:"}), ElementsAre("berth:changed:monday"));
  EXPECT_THAT(list({"qemu:"}),
              ElementsAre("qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday"));
  EXPECT_THAT(
      list({"qemu:dirty-bitmap:", "base:"}),
      ElementsAre("base:allocation", "qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday"));
  EXPECT_THAT(list({"berth:changed:monday", "berth:changed:monday"}),
              ElementsAre("berth:changed:monday"));
  EXPECT_THAT(list({"x-unknown:", "base:unknown", "qemu", "", "mon"}), IsEmpty());
}

TEST(Handshake, SelectsContextsByTheirFullNameAlone) {
  Client client;
  client.negotiate_structured_replies();
  const auto set = [&](const std::vector<std::string>& queries) {
    return client.contexts(Option::set_meta_context, queries);
  };
  EXPECT_THAT(set({}), IsEmpty());
  EXPECT_THAT(set({"base:", "qemu:", "qemu:dirty-bitmap:"}), IsEmpty());
  EXPECT_THAT(set({"qemu:dirty-bitmap:tuesday", "base:allocation", "x-other:thing"}),
              ElementsAre("base:allocation", "qemu:dirty-bitmap:tuesday"));
  EXPECT_EQ(client.send(option(Option::go, info_data("volume").bytes())), Step::find_export);
  EXPECT_EQ(client.handshake.found(volume_info()), Step::transmit);
  EXPECT_THAT(client.handshake.contexts(),
              ElementsAre("base:allocation", "qemu:dirty-bitmap:tuesday"));
  EXPECT_EQ(client.handshake.session().context_count, 2U);
}

TEST(Handshake, ForgetsContextsThatWereSelectedForAnotherExport) {
  Client client;
  client.negotiate_structured_replies();
  EXPECT_THAT(client.contexts(Option::set_meta_context, {"base:allocation"}), SizeIs(1));
  EXPECT_EQ(client.send(option(Option::info, info_data("other").bytes())), Step::find_export);
  EXPECT_EQ(client.handshake.found(volume_info()), Step::receive);
  client.answers();
  EXPECT_THAT(client.handshake.contexts(), SizeIs(1));  // asking about another changes nothing

  EXPECT_EQ(client.send(option(Option::go, info_data("other").bytes())), Step::find_export);
  EXPECT_EQ(client.handshake.found(volume_info()), Step::transmit);
  EXPECT_THAT(client.handshake.contexts(), IsEmpty());
  EXPECT_EQ(client.handshake.session().context_count, 0U);
}

TEST(Handshake, ForgetsContextsWhenTheNextSelectionFails) {
  Client client;
  client.negotiate_structured_replies();
  EXPECT_THAT(client.contexts(Option::set_meta_context, {"base:allocation"}), SizeIs(1));
  EXPECT_EQ(client.send(option(Option::set_meta_context, as_bytes("x"))), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  EXPECT_THAT(client.handshake.contexts(), IsEmpty());

  EXPECT_THAT(client.contexts(Option::set_meta_context, {"base:allocation"}), SizeIs(1));
  const std::vector<std::byte> much(option_length_max + 1);
  EXPECT_EQ(client.send(option(Option::set_meta_context, much)), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_too_big);
  EXPECT_THAT(client.handshake.contexts(), IsEmpty());
}

TEST(Handshake, BoundsTheContextsOfAClient) {
  Client client;
  client.negotiate_structured_replies();
  ExportInfo info = volume_info();
  std::vector<std::string> queries;
  for (std::size_t i = 0; i <= contexts_max; ++i)
    info.contexts.push_back("berth:changed:" + std::to_string(i));
  for (std::size_t i = 0; i <= contexts_max; ++i)
    queries.push_back("berth:changed:" + std::to_string(i));
  EXPECT_EQ(client.send(option(Option::set_meta_context, context_data("volume", queries).bytes())),
            Step::find_export);
  EXPECT_EQ(client.handshake.found(info), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_too_big);
}

TEST(Handshake, NeedsStructuredRepliesForContexts) {
  Client client;
  for (const Option which : {Option::list_meta_context, Option::set_meta_context}) {
    EXPECT_EQ(client.send(option(which, context_data("volume", {}).bytes())), Step::receive);
    EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  }
}

TEST(Handshake, HasNoTlsWhereItIsOff) {
  Client client;
  EXPECT_EQ(client.send(option(Option::starttls)), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_policy);
}

TEST(Handshake, AllowsNothingBeforeTlsWhereItIsRequired) {
  Client client(TlsMode::required);
  for (std::uint32_t number = 3; number < 13; ++number) {
    if (number == static_cast<std::uint32_t>(Option::starttls)) continue;
    EXPECT_EQ(client.send(option(number)), Step::receive);
    EXPECT_EQ(client.only_answer(), OptionReply::error_tls_required);
  }
  EXPECT_EQ(Client(TlsMode::required).send(option(Option::abort)), Step::end);
  EXPECT_EQ(Client(TlsMode::required).send(option(Option::export_name, as_bytes("volume"))),
            Step::end);
}

TEST(Handshake, StartsTlsOnceAndThenKnowsNothingOfWhatWasBefore) {
  Client client(TlsMode::required);
  EXPECT_EQ(client.send(option(Option::starttls)), Step::start_tls);
  EXPECT_EQ(client.only_answer(), OptionReply::ack);
  client.handshake.tls_started();
  EXPECT_EQ(client.send(option(Option::starttls)), Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  EXPECT_EQ(client.send(option(Option::set_meta_context, context_data("volume", {}).bytes())),
            Step::receive);
  EXPECT_EQ(client.only_answer(), OptionReply::error_invalid);
  client.negotiate_structured_replies();
}

}  // namespace
}  // namespace berth::nbd
