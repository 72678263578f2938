// One direction of a stream, as the side that sends it and the side that receives it see it.
//
// Positions count the stream's bytes from 0 and outlive connections. The receiver grants a limit,
// so a slow one stops its own stream and no other; and it says how far it has come, so the sender
// can forget. What has not been acknowledged is sent again over the next connection.
//
// Pure. What the other side says is checked, and refused where it makes no sense.
#pragma once

#include <cstdint>

#include "agent/byte_queue.h"
#include "agent/protocol.h"

namespace berth::agent {

class OutgoingStream {
 public:
  /// `position`: where it goes on; `limit`: up to where the other side takes it.
  explicit OutgoingStream(std::uint64_t position = 0, std::uint64_t limit = 0)
      : begin_(position),
        sent_(position),
        sent_max_(position),
        limit_(limit),
        is_wanted_(limit > 0) {}

  /// How many bytes add() takes now.
  std::size_t room() const;
  void add(Bytes bytes);
  /// Nothing comes after what was added.
  void finish() { is_finished_ = true; }

  /// Of the other side: it needs nothing below `acknowledged` again, and takes what is below
  /// `limit`.
  void take_credit(std::uint64_t acknowledged, std::uint64_t limit);
  /// Of the other side: it takes no more. What is added from now on is forgotten.
  void take_stop();
  /// There is a new connection: what was not acknowledged is sent again, once there is credit.
  void rewind();

  /// What may go now, at most data_max bytes from position sent(); count it with mark_sent().
  Bytes sendable() const;
  void mark_sent(std::size_t bytes);
  /// Everything has gone, and that it was the end has not been said.
  bool is_end_due() const {
    return is_finished_ && is_wanted_ && !is_end_sent_ && sent_ == produced();
  }
  void mark_end_sent() { is_end_sent_ = true; }
  /// The end has been said, and everything before it was acknowledged.
  bool is_over() const { return is_end_sent_ && kept_.empty(); }

  std::uint64_t sent() const { return sent_; }
  std::uint64_t kept_from() const { return begin_; }
  std::uint64_t produced() const { return begin_ + kept_.size(); }
  bool is_finished() const { return is_finished_; }
  bool is_stopped() const { return is_stopped_; }

 private:
  ByteQueue kept_;
  std::uint64_t begin_;     // position of kept_
  std::uint64_t sent_;      // over this connection
  std::uint64_t sent_max_;  // over any
  std::uint64_t limit_;
  bool is_wanted_;  // by this connection
  bool is_finished_ = false;
  bool is_end_sent_ = false;
  bool is_stopped_ = false;
};

class IncomingStream {
 public:
  enum class Gaps : std::uint8_t {
    refused,
    counted,  // of a host that comes late
  };
  IncomingStream(std::uint64_t position, std::size_t window, Gaps gaps)
      : begin_(position),
        acknowledged_(position),
        limit_(position + window),
        window_(window),
        gaps_(gaps) {}

  /// False: beyond the limit, after the end, or with a gap; then nothing is taken. What is there
  /// already is passed over.
  bool receive(std::uint64_t position, Bytes bytes);
  bool receive_end(std::uint64_t position);

  Bytes readable() const { return waiting_.view(); }
  void consume(std::size_t bytes);
  /// No more is wanted: what is there is dropped, and what comes.
  void stop();

  /// Whether the other side should be told how far we are: at the beginning, whenever half of the
  /// window has been used up, and when everything before the end was consumed.
  bool is_credit_due() const;
  void mark_credit_sent();
  /// It has to be told again.
  void renew_credit() { is_credit_forced_ = true; }
  bool is_stop_due() const { return is_stopped_ && !is_stop_sent_ && !is_ended_; }
  void mark_stop_sent() { is_stop_sent_ = true; }

  std::uint64_t received() const { return begin_ + waiting_.size(); }
  /// What a credit acknowledges: who has consumed a byte answers for it.
  std::uint64_t consumed() const { return begin_; }
  /// What the next credit grants.
  std::uint64_t next_limit() const { return begin_ + window_; }
  std::uint64_t limit() const { return limit_; }
  std::uint64_t lost() const { return lost_; }  // bytes in gaps
  /// The end has come, and everything before it was consumed.
  bool is_at_end() const { return is_ended_ && waiting_.empty(); }
  bool is_stopped() const { return is_stopped_; }
  /// Nothing comes any more, or nothing is wanted, and whoever sends it has been told.
  bool is_over() const {
    return (is_at_end() && !is_credit_due()) || (is_stopped_ && !is_stop_due());
  }

 private:
  ByteQueue waiting_;
  std::uint64_t begin_;         // position of waiting_
  std::uint64_t acknowledged_;  // said
  std::uint64_t limit_;         // granted
  std::size_t window_;
  Gaps gaps_;
  std::uint64_t lost_ = 0;
  bool is_credit_forced_ = true;
  bool is_ended_ = false;
  bool is_stopped_ = false;
  bool is_stop_sent_ = false;
};

}  // namespace berth::agent
