#include "agent/stream.h"

#include <algorithm>

namespace berth::agent {

std::size_t OutgoingStream::room() const {
  if (is_finished_) return 0;
  return is_stopped_ ? output_kept_max : output_kept_max - kept_.size();
}

void OutgoingStream::add(Bytes bytes) {
  if (is_stopped_) {
    begin_ += bytes.size();
    sent_ = sent_max_ = begin_;
  } else {
    kept_.append(bytes);
  }
}

void OutgoingStream::mark_sent(std::size_t bytes) {
  sent_ += bytes;
  sent_max_ = std::max(sent_max_, sent_);
}

void OutgoingStream::take_credit(std::uint64_t acknowledged, std::uint64_t limit) {
  // A position that was never sent is nonsense; one that is forgotten is answered by a gap.
  acknowledged = std::clamp(acknowledged, begin_, sent_max_);
  kept_.drop(acknowledged - begin_);
  begin_ = acknowledged;
  sent_ = std::max(sent_, begin_);
  limit_ = std::max(limit_, limit);
  is_wanted_ = true;
}

void OutgoingStream::take_stop() {
  is_stopped_ = true;
  is_wanted_ = true;
  begin_ = produced();
  sent_ = sent_max_ = begin_;
  kept_.clear();
}

void OutgoingStream::rewind() {
  sent_ = begin_;
  limit_ = 0;
  is_wanted_ = false;
  is_end_sent_ = false;
}

Bytes OutgoingStream::sendable() const {
  if (sent_ >= limit_) return {};
  const Bytes left = kept_.view().subspan(sent_ - begin_);
  return left.first(std::min({left.size(), data_max, static_cast<std::size_t>(limit_ - sent_)}));
}

bool IncomingStream::receive(std::uint64_t position, Bytes bytes) {
  if (is_ended_ || position > limit_ || bytes.size() > limit_ - position) return false;
  const std::uint64_t expected = received();
  if (position > expected) {
    if (gaps_ == Gaps::refused || !waiting_.empty()) return false;
    lost_ += position - expected;
    begin_ = position;
  } else {
    bytes = bytes.subspan(std::min<std::uint64_t>(expected - position, bytes.size()));
  }
  if (is_stopped_) {
    begin_ += bytes.size();
  } else {
    waiting_.append(bytes);
  }
  return true;
}

bool IncomingStream::receive_end(std::uint64_t position) {
  if (position != received()) return false;
  is_ended_ = true;
  return true;
}

void IncomingStream::consume(std::size_t bytes) {
  waiting_.drop(bytes);
  begin_ += bytes;
}

void IncomingStream::stop() {
  begin_ = received();
  waiting_.clear();
  is_stopped_ = true;
}

bool IncomingStream::is_credit_due() const {
  if (is_credit_forced_) return true;
  if (is_ended_) return waiting_.empty() && acknowledged_ != begin_;
  return next_limit() - limit_ >= window_ / 2;
}

void IncomingStream::mark_credit_sent() {
  limit_ = next_limit();
  acknowledged_ = begin_;
  is_credit_forced_ = false;
}

}  // namespace berth::agent
