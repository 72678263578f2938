// Two sessions with a wire between them, which may be cut anywhere.
//
// 1. What one side adds to a stream the other reads, whole and in order, however often the host is
//    replaced by another one.
// 2. A stream that nobody reads stops no other, and neither side keeps more than the limits say.
// 3. Nothing that comes in makes a session fail.
#include "agent/session.h"

#include <random>
#include <string>

#include <gtest/gtest.h>

namespace berth::agent {
namespace {

constexpr std::uint32_t input = stream_of(1, stream_input);
constexpr std::uint32_t output = stream_of(1, stream_output);

struct Wire {
  Session agent{Session::Role::agent};
  Session host{Session::Role::host};
  std::vector<std::string> at_agent;
  std::vector<std::string> at_host;

  Wire() {
    agent.set_welcome({std::byte{'w'}});
    connect(1);
  }
  /// Everything that is to be said is heard; what is left of the last host's words stays in the
  /// wire.
  void connect(std::uint64_t token) {
    host.greet(token);
    run();
  }
  static std::string shown(const Message& message) {
    return std::to_string(static_cast<int>(message.kind)) + ' ' + std::to_string(message.channel) +
           ' ' + std::to_string(message.head) + ' ' + std::string(as_text(message.fields));
  }
  static bool move(Session& from, Session& to, std::vector<std::string>& heard, std::size_t most) {
    from.fill_output();
    const std::size_t count = std::min(from.output().size(), most);
    to.receive(from.output().first(count));
    from.mark_written(count);
    while (const auto message = to.next()) heard.push_back(shown(*message));
    return count > 0;
  }
  void run(std::size_t most = SIZE_MAX) {
    for (bool moved = true; moved;) {
      const bool there = move(host, agent, at_agent, most);
      moved = move(agent, host, at_host, most) || there;
    }
  }
};

/// Both ends of the streams of process 1, as they are when it starts.
void open_streams(Wire& wire) {
  wire.agent.open(input)->in.emplace(0, stream_window, IncomingStream::Gaps::refused);
  wire.agent.open(output)->out.emplace();
  wire.host.open(input)->out.emplace(0, stream_window);
  wire.host.open(output)->in.emplace(0, stream_window, IncomingStream::Gaps::counted);
}

std::string taken(Session& session, std::uint32_t stream) {
  IncomingStream& in = *session.find(stream)->in;
  std::string text(as_text(in.readable()));
  in.consume(text.size());
  return text;
}

TEST(SessionTest, GreetsAsksAndIsAnswered) {
  Wire wire;
  ASSERT_TRUE(wire.agent.is_greeted());
  ASSERT_TRUE(wire.host.is_greeted());
  EXPECT_EQ(wire.at_host, std::vector<std::string>{"0 0 0 w"});
  EXPECT_EQ(wire.host.peer().version, protocol_version);
  const std::uint32_t number = MUST(wire.host.request(FieldWriter(Operation::list)));
  wire.run(1);
  EXPECT_EQ(wire.at_agent.back(), "1 " + std::to_string(number) + " 4 ");
  wire.agent.answer(number, FieldWriter());
  wire.agent.event(7, FieldWriter(EventKind::ended));
  wire.run(1);
  EXPECT_EQ(wire.at_host, (std::vector<std::string>{"0 0 0 w", "2 1 0 ", "3 7 1 "}));
  EXPECT_EQ(wire.host.refused() + wire.agent.refused(), 0U);
}

TEST(SessionTest, NothingIsSaidBeforeAGreeting) {
  Session agent(Session::Role::agent);
  agent.answer(1, FieldWriter());
  agent.event(1, FieldWriter(EventKind::ended));
  agent.open(output)->out.emplace().add(as_bytes("x"));
  agent.fill_output();
  EXPECT_TRUE(agent.output().empty());
}

TEST(SessionTest, StreamsFlowBothWaysToTheirEnd) {
  Wire wire;
  open_streams(wire);
  std::string sent;
  std::string read;
  for (int round = 0; round < 50; ++round) {
    OutgoingStream& out = *wire.agent.find(output)->out;
    const std::string more(std::min<std::size_t>(out.room(), 40'000),
                           static_cast<char>('a' + round % 26));
    out.add(as_bytes(more));
    sent += more;
    wire.run(4096);
    read += taken(wire.host, output);
  }
  wire.agent.find(output)->out->finish();
  wire.host.find(input)->out->add(as_bytes("in"));
  wire.host.find(input)->out->finish();
  while (!wire.host.find(output)->in->is_at_end()) {
    wire.run();
    const std::string more = taken(wire.host, output);
    ASSERT_TRUE(!more.empty() || wire.host.find(output)->in->is_at_end());
    read += more;
  }
  EXPECT_EQ(read.size(), sent.size());
  EXPECT_TRUE(read == sent);
  EXPECT_EQ(taken(wire.agent, input), "in");
  EXPECT_TRUE(wire.agent.find(input)->in->is_at_end());
}

TEST(SessionTest, AStreamThatNobodyReadsStopsNoOther) {
  Wire wire;
  open_streams(wire);
  const std::uint32_t other = stream_of(2, stream_output);
  wire.agent.open(other)->out.emplace();
  wire.host.open(other)->in.emplace(0, stream_window, IncomingStream::Gaps::counted);
  OutgoingStream& stuck = *wire.agent.find(output)->out;
  std::size_t read = 0;
  for (int round = 0; round < 100; ++round) {
    stuck.add(as_bytes(std::string(stuck.room(), 's')));
    wire.agent.find(other)->out->add(as_bytes("fresh"));
    wire.run();
    read += taken(wire.host, other).size();
  }
  EXPECT_EQ(read, 500U);
  EXPECT_EQ(wire.host.find(output)->in->readable().size(), stream_window);
  EXPECT_EQ(stuck.room(), 0U);
  const std::uint32_t number = MUST(wire.host.request(FieldWriter(Operation::list)));
  wire.run();
  EXPECT_EQ(wire.at_agent.back(), "1 " + std::to_string(number) + " 4 ");
}

TEST(SessionTest, PiecesOfStreamsTakeTurns) {
  Wire wire;
  for (std::uint32_t process = 1; process <= 3; ++process) {
    const std::uint32_t number = stream_of(process, stream_output);
    wire.agent.open(number)->out.emplace();
    wire.host.open(number)->in.emplace(0, 3 * data_max, IncomingStream::Gaps::counted);
  }
  wire.run();
  for (std::uint32_t process = 1; process <= 3; ++process) {
    wire.agent.find(stream_of(process, stream_output))
        ->out->add(as_bytes(std::string(3 * data_max, 'x')));
  }
  wire.at_host.clear();
  wire.run();
  std::string order;
  for (const std::string& message : wire.at_host) order += message.substr(0, 4);
  EXPECT_EQ(order, "4 5 4 9 4 134 5 4 9 4 134 5 4 9 4 13");
}

constexpr std::uint32_t connection = first_free_stream + 7;

/// Both ends of a connection, as they are when the host asks for it.
void open_connection(Wire& wire) {
  Stream& agents = *wire.agent.open(connection);
  agents.out.emplace();
  agents.in.emplace(0, stream_window, IncomingStream::Gaps::refused);
  Stream& hosts = *wire.host.open(connection);
  hosts.out.emplace(0, stream_window);
  hosts.in.emplace(0, stream_window, IncomingStream::Gaps::counted);
}

bool is_over(Session& session) {
  const Stream& stream = *session.find(connection);
  return stream.out->is_over() && stream.in->is_over();
}

TEST(SessionTest, AConnectionIsOverForBothWhenBothWaysHaveEnded) {
  Wire wire;
  open_connection(wire);
  wire.host.find(connection)->out->add(as_bytes("question"));
  wire.host.find(connection)->out->finish();
  wire.run(7);
  EXPECT_EQ(taken(wire.agent, connection), "question");
  EXPECT_TRUE(wire.agent.find(connection)->in->is_at_end());
  wire.agent.find(connection)->out->add(as_bytes("answer"));
  wire.run(7);
  EXPECT_FALSE(is_over(wire.agent));
  wire.agent.find(connection)->out->finish();
  wire.run(7);
  EXPECT_FALSE(is_over(wire.agent));  // the host has not taken the answer
  EXPECT_EQ(taken(wire.host, connection), "answer");
  wire.run(7);
  EXPECT_TRUE(is_over(wire.agent));
  EXPECT_TRUE(is_over(wire.host));
  EXPECT_EQ(wire.host.refused() + wire.agent.refused(), 0U);
}

TEST(SessionTest, TheHostSendsNothingBeyondWhatAConnectionTakes) {
  Wire wire;
  open_connection(wire);
  OutgoingStream& out = *wire.host.find(connection)->out;
  const std::string sent(output_kept_max, 'x');
  ASSERT_EQ(out.room(), sent.size());
  out.add(as_bytes(sent));
  wire.run(1000);
  EXPECT_EQ(out.sent(), stream_window);
  EXPECT_EQ(wire.agent.find(connection)->in->readable().size(), stream_window);
  std::string got = taken(wire.agent, connection);
  wire.run(1000);
  got += taken(wire.agent, connection);
  wire.run(1000);
  EXPECT_EQ(out.sent(), sent.size());
  EXPECT_EQ(out.kept_from(), sent.size());
  EXPECT_TRUE(got == sent);
}

TEST(SessionTest, ANewHostGoesOnWithAConnectionOrClosesIt) {
  Wire wire;
  open_connection(wire);
  wire.host.find(connection)->out->add(as_bytes("abc"));
  wire.agent.find(connection)->out->add(as_bytes("123"));
  wire.run();
  EXPECT_EQ(taken(wire.agent, connection), "abc");
  EXPECT_EQ(taken(wire.host, connection), "123");  // and dies before it says so
  wire.host = Session(Session::Role::host);
  wire.connect(2);
  Stream& agents = *wire.agent.find(connection);
  EXPECT_EQ(agents.out->kept_from(), 0U);
  EXPECT_TRUE(agents.out->sendable().empty());
  Stream& hosts = *wire.host.open(connection);
  hosts.out.emplace(agents.in->received(), agents.in->limit());
  hosts.in.emplace(0, stream_window, IncomingStream::Gaps::counted);
  hosts.out->add(as_bytes("def"));
  wire.run();
  EXPECT_EQ(taken(wire.agent, connection), "def");
  EXPECT_EQ(taken(wire.host, connection), "123");
  wire.agent.close(connection);
  hosts.out->add(as_bytes("nobody"));
  wire.run();
  EXPECT_EQ(wire.agent.find(connection), nullptr);
  EXPECT_EQ(wire.agent.refused(), 0U);  // what was on its way is no mistake
}

TEST(SessionTest, TheHostRunsOutOfStreamsAndGoesOn) {
  Wire wire;
  for (std::uint32_t i = 0; i < streams_max; ++i) {
    ASSERT_NE(wire.host.open(first_free_stream + i), nullptr);
  }
  EXPECT_EQ(wire.host.open(first_free_stream + streams_max), nullptr);
  ASSERT_TRUE(wire.host.request(FieldWriter(Operation::list)));
  wire.run();
  EXPECT_TRUE(wire.at_agent.back().starts_with("1 "));
}

TEST(SessionTest, AHostThatComesLateHasWhatWasNotAcknowledged) {
  std::mt19937 random(4711);  // NOLINT: the same every time
  for (int life = 0; life < 300; ++life) {
    Wire wire;
    open_streams(wire);
    std::string sent;
    std::string read;
    std::string put;
    std::string got;
    for (std::uint64_t host = 2; host < 6; ++host) {
      for (int round = 0; round < 5; ++round) {
        OutgoingStream& out = *wire.agent.find(output)->out;
        const std::string more(std::min<std::size_t>(out.room(), random() % 50'000),
                               static_cast<char>('a' + random() % 26));
        out.add(as_bytes(more));
        sent += more;
        OutgoingStream& in = *wire.host.find(input)->out;
        const std::string typed(std::min<std::size_t>(in.room(), random() % 1000),
                                static_cast<char>('A' + random() % 26));
        in.add(as_bytes(typed));
        put += typed;
        for (int step = 0; step < 3; ++step) {
          Wire::move(wire.agent, wire.host, wire.at_host, random() % 60'000);
          Wire::move(wire.host, wire.agent, wire.at_agent, random() % 60'000);
        }
        read += taken(wire.host, output);
        got += taken(wire.agent, input);
      }
      // The host dies with what it had; another one asks how far the streams have come.
      wire.host = Session(Session::Role::host);
      wire.connect(host);
      const std::uint64_t received = wire.agent.find(input)->in->received();
      const std::uint64_t limit = wire.agent.find(input)->in->limit();
      put.resize(received);
      wire.host.open(input)->out.emplace(received, limit);
      wire.host.open(output)->in.emplace(read.size(), stream_window, IncomingStream::Gaps::counted);
    }
    for (int round = 0; round < 100; ++round) {
      wire.run();
      read += taken(wire.host, output);
      got += taken(wire.agent, input);
    }
    ASSERT_TRUE(read == sent) << "life " << life << ": " << read.size() << " of " << sent.size();
    ASSERT_TRUE(got == put) << "life " << life;
    ASSERT_EQ(wire.host.find(output)->in->lost(), 0U);
  }
}

TEST(SessionTest, GarbageIsDroppedAndTheNextHostIsHeard) {
  std::mt19937 random(42);  // NOLINT: the same every time
  Wire wire;
  open_streams(wire);
  for (std::uint64_t token = 2; token < 50; ++token) {
    std::string garbage(random() % 100'000, '\0');
    for (char& byte : garbage) byte = static_cast<char>(random());
    wire.agent.receive(as_bytes(garbage));
    wire.host.receive(as_bytes(garbage));
    wire.run();
    if (garbage.size() > 100) ASSERT_TRUE(wire.host.is_lost());
    wire.connect(token);
    ASSERT_TRUE(wire.host.is_greeted());
    ASSERT_FALSE(wire.host.is_lost());
    ASSERT_TRUE(wire.host.request(FieldWriter(Operation::sync)));
    wire.run();
    ASSERT_TRUE(wire.at_agent.back().starts_with("1 ")) << wire.at_agent.back();
  }
  EXPECT_GT(wire.agent.refused(), 0U);
}

TEST(SessionTest, FramesOfTheWrongSideAreRefused) {
  Wire wire;
  open_streams(wire);
  ByteQueue bytes;
  for (const FrameType type : {FrameType::welcome, FrameType::answer, FrameType::event}) {
    append_frame(bytes, type, 1, as_bytes("x"));
  }
  append_frame(bytes, FrameType::request, 1, as_bytes("x"));
  append_frame(bytes, FrameType::data, input, as_bytes("short"));
  append_frame(bytes, FrameType::data, output, as_bytes("12345678x"));
  append_frame(bytes, FrameType::credit, output, as_bytes("12345678"));
  append_frame(bytes, FrameType::credit, input, as_bytes("1234567812345678"));
  append_frame(bytes, FrameType::stop, input, {});
  append_frame(bytes, FrameType::end, output, as_bytes("12345678"));
  wire.agent.receive(bytes.view());
  EXPECT_FALSE(wire.agent.next());
  EXPECT_EQ(wire.agent.refused(), 10U);
}

TEST(SessionTest, ARequestThatIsTooLongIsRefusedHere) {
  Wire wire;
  FieldWriter request(Operation::start);
  request.text(Tag::argument, std::string(frame_payload_max, 'x'));
  const auto refused = wire.host.request(request);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::limit);
}

TEST(SessionTest, ThereAreOnlySoManyStreams) {
  Session session(Session::Role::agent);
  for (std::uint32_t i = 0; i < streams_max; ++i) ASSERT_NE(session.open(i), nullptr);
  EXPECT_EQ(session.open(streams_max), nullptr);
  session.close(0);
  EXPECT_NE(session.open(streams_max), nullptr);
}

}  // namespace
}  // namespace berth::agent
