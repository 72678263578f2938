#include "agent/stream.h"

#include <string>

#include <gtest/gtest.h>

namespace berth::agent {
namespace {

TEST(OutgoingStreamTest, SendsOnlyWhatIsGranted) {
  OutgoingStream stream;
  stream.add(as_bytes("hello"));
  EXPECT_TRUE(stream.sendable().empty());
  stream.take_credit(0, 3);
  EXPECT_EQ(as_text(stream.sendable()), "hel");
  stream.mark_sent(3);
  EXPECT_TRUE(stream.sendable().empty());
  stream.take_credit(3, 100);
  EXPECT_EQ(as_text(stream.sendable()), "lo");
}

TEST(OutgoingStreamTest, KeepsWhatIsNotAcknowledgedAndSendsItAgain) {
  OutgoingStream stream;
  stream.add(as_bytes("abcdef"));
  stream.take_credit(0, 100);
  stream.mark_sent(6);
  stream.take_credit(2, 100);
  stream.rewind();
  EXPECT_TRUE(stream.sendable().empty());
  stream.take_credit(0, 100);  // of a host that knows nothing: what is forgotten stays so
  EXPECT_EQ(stream.sent(), 2U);
  EXPECT_EQ(as_text(stream.sendable()), "cdef");
  stream.rewind();
  stream.take_credit(4, 100);  // of one that has the rest from the one before
  EXPECT_EQ(as_text(stream.sendable()), "ef");
}

TEST(OutgoingStreamTest, IsBoundedByWhatIsNotAcknowledged) {
  OutgoingStream stream;
  EXPECT_EQ(stream.room(), output_kept_max);
  stream.add(as_bytes(std::string(output_kept_max, 'x')));
  EXPECT_EQ(stream.room(), 0U);
  stream.take_credit(0, 1000);
  EXPECT_EQ(stream.sendable().size(), 1000U);
  stream.mark_sent(1000);
  stream.take_credit(1000, 2000);
  EXPECT_EQ(stream.room(), 1000U);
}

TEST(OutgoingStreamTest, AcknowledgingWhatWasNeverSentChangesNothing) {
  OutgoingStream stream;
  stream.add(as_bytes("abc"));
  stream.take_credit(1'000'000, 10);
  EXPECT_EQ(stream.kept_from(), 0U);
  EXPECT_EQ(as_text(stream.sendable()), "abc");
}

TEST(OutgoingStreamTest, SaysItsEndToEachHostOnce) {
  OutgoingStream stream;
  stream.add(as_bytes("x"));
  stream.finish();
  EXPECT_EQ(stream.room(), 0U);
  stream.take_credit(0, 10);
  EXPECT_FALSE(stream.is_end_due());
  stream.mark_sent(1);
  EXPECT_TRUE(stream.is_end_due());
  stream.mark_end_sent();
  EXPECT_FALSE(stream.is_end_due());
  stream.rewind();
  EXPECT_FALSE(stream.is_end_due());
  stream.take_credit(0, 10);
  EXPECT_FALSE(stream.is_end_due());  // what was not acknowledged goes before it
  stream.mark_sent(1);
  EXPECT_TRUE(stream.is_end_due());
}

TEST(OutgoingStreamTest, IsOverWhenTheEndWasSaidAndAllWasAcknowledged) {
  OutgoingStream stream;
  stream.add(as_bytes("ab"));
  stream.finish();
  stream.take_credit(0, 10);
  stream.mark_sent(2);
  stream.mark_end_sent();
  EXPECT_FALSE(stream.is_over());
  stream.take_credit(2, 10);
  EXPECT_TRUE(stream.is_over());
  stream.rewind();
  EXPECT_FALSE(stream.is_over());  // the next host has not heard of it
}

TEST(OutgoingStreamTest, OneThatNobodyWantsForgetsEverything) {
  OutgoingStream stream;
  stream.add(as_bytes("abc"));
  stream.take_stop();
  for (int i = 0; i < 100; ++i) stream.add(as_bytes(std::string(stream.room(), 'x')));
  EXPECT_EQ(stream.produced(), 3 + 100 * output_kept_max);
  EXPECT_TRUE(stream.sendable().empty());
  stream.finish();
  EXPECT_TRUE(stream.is_end_due());
}

using Gaps = IncomingStream::Gaps;

TEST(IncomingStreamTest, GrantsAWindowAfterWhatWasConsumed) {
  IncomingStream stream(0, 10, Gaps::refused);
  EXPECT_TRUE(stream.is_credit_due());
  stream.mark_credit_sent();
  EXPECT_TRUE(stream.receive(0, as_bytes("0123456789")));
  EXPECT_FALSE(stream.receive(10, as_bytes("x")));
  EXPECT_FALSE(stream.is_credit_due());
  stream.consume(4);
  EXPECT_FALSE(stream.is_credit_due());
  stream.consume(1);
  ASSERT_TRUE(stream.is_credit_due());
  EXPECT_EQ(stream.next_limit(), 15U);
  stream.mark_credit_sent();
  EXPECT_TRUE(stream.receive(10, as_bytes("abcde")));
  EXPECT_EQ(as_text(stream.readable()), "56789abcde");
}

TEST(IncomingStreamTest, PassesOverWhatItHas) {
  IncomingStream stream(0, 100, Gaps::refused);
  EXPECT_TRUE(stream.receive(0, as_bytes("abc")));
  EXPECT_TRUE(stream.receive(1, as_bytes("bcd")));
  EXPECT_TRUE(stream.receive(0, as_bytes("a")));
  EXPECT_EQ(as_text(stream.readable()), "abcd");
}

TEST(IncomingStreamTest, AGapIsRefusedOrCounted) {
  IncomingStream strict(0, 100, Gaps::refused);
  EXPECT_FALSE(strict.receive(5, as_bytes("x")));
  IncomingStream late(0, 100, Gaps::counted);
  EXPECT_TRUE(late.receive(5, as_bytes("x")));
  EXPECT_EQ(late.lost(), 5U);
  EXPECT_EQ(late.received(), 6U);
}

TEST(IncomingStreamTest, PositionsThatMakeNoSenseAreRefused) {
  IncomingStream stream(0, 100, Gaps::counted);
  EXPECT_FALSE(stream.receive(UINT64_MAX, as_bytes("x")));
  EXPECT_FALSE(stream.receive(100, as_bytes("x")));
  EXPECT_FALSE(stream.receive_end(1));
  EXPECT_EQ(stream.received(), 0U);
}

TEST(IncomingStreamTest, EndsWhenEverythingWasConsumed) {
  IncomingStream stream(0, 100, Gaps::refused);
  EXPECT_TRUE(stream.receive(0, as_bytes("ab")));
  EXPECT_TRUE(stream.receive_end(2));
  EXPECT_FALSE(stream.is_at_end());
  EXPECT_FALSE(stream.receive(2, as_bytes("c")));
  stream.consume(2);
  EXPECT_TRUE(stream.is_at_end());
}

TEST(IncomingStreamTest, ItsEndIsAcknowledgedOnce) {
  IncomingStream stream(0, 100, Gaps::refused);
  stream.mark_credit_sent();
  EXPECT_TRUE(stream.receive(0, as_bytes("ab")));
  EXPECT_TRUE(stream.receive_end(2));
  EXPECT_FALSE(stream.is_credit_due());
  stream.consume(2);
  EXPECT_TRUE(stream.is_credit_due());
  EXPECT_FALSE(stream.is_over());
  stream.mark_credit_sent();
  EXPECT_FALSE(stream.is_credit_due());
  EXPECT_TRUE(stream.is_over());
}

TEST(IncomingStreamTest, AStoppedOneDropsWhatComes) {
  IncomingStream stream(0, 10, Gaps::refused);
  EXPECT_TRUE(stream.receive(0, as_bytes("ab")));
  stream.stop();
  EXPECT_TRUE(stream.is_stop_due());
  EXPECT_TRUE(stream.readable().empty());
  EXPECT_TRUE(stream.receive(2, as_bytes("cd")));
  EXPECT_EQ(stream.received(), 4U);
  EXPECT_FALSE(stream.is_over());
  stream.mark_stop_sent();
  EXPECT_FALSE(stream.is_stop_due());
  EXPECT_TRUE(stream.is_over());
}

}  // namespace
}  // namespace berth::agent
