// A guest's agent behind a socket, for tests: the agent's side of the protocol, with answers that
// the test decides. Only tests include it.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "agent/session.h"
#include "async/event.h"
#include "async/gate.h"
#include "async/socket.h"
#include "async/uring_loop.h"

namespace berth::container {

class FakeGuest {
 public:
  /// Fills in the answer; false: says nothing at all.
  using Serve = std::function<bool(const agent::Fields& request, agent::FieldWriter& answer)>;

  FakeGuest(UringLoop& loop, const std::string& path)
      : loop_(loop),
        listener_(MUST(SocketListener::listen_unix(loop, path))),
        changed_(loop),
        gate_(loop) {
    agent::FieldWriter welcome;
    welcome.text(agent::Tag::kernel, "6.1.0-test").text(agent::Tag::boot_id, "boot");
    set_welcome(welcome);
    gate_.spawn(serve());
  }

  void set_welcome(const agent::FieldWriter& fields) {
    session_.set_welcome({fields.bytes().begin(), fields.bytes().end()});
  }
  void on(agent::Operation operation, Serve serve) { serves_[operation] = std::move(serve); }
  /// Greetings are not answered: it has not booted.
  void set_silent(bool silent) { is_silent_ = silent; }
  void say(std::vector<std::byte> bytes) {
    raw_ = std::move(bytes);
    changed_.notify_all();
  }
  void send_event(std::uint32_t channel, const agent::FieldWriter& fields) {
    session_.event(channel, fields);
    changed_.notify_all();
  }
  agent::Session& session() { return session_; }
  /// After the session was changed.
  void wake() { changed_.notify_all(); }
  Event& changed() { return changed_; }

  void hang_up() {
    if (client_) client_->shutdown();
  }
  Task<> close() {
    closing_ = true;
    listener_->close();
    hang_up();
    changed_.notify_all();
    co_await gate_.drained();
  }

 private:
  Task<> serve() {
    while (!closing_) {
      auto stream = co_await listener_->accept();
      if (!stream) co_return;
      client_ = std::move(*stream);
      is_connected_ = true;
      Gate writing(loop_);
      writing.spawn(write());
      std::vector<std::byte> buffer(65'536);
      while (true) {
        const auto count = co_await client_->read_some(buffer);
        if (!count || *count == 0) break;
        if (is_silent_) continue;
        session_.receive(Bytes(buffer).first(*count));
        while (const auto message = session_.next()) take(*message);
        changed_.notify_all();
      }
      is_connected_ = false;
      changed_.notify_all();
      co_await writing.drained();
      session_.disconnect();
    }
  }

  Task<> write() {
    while (is_connected_) {
      session_.fill_output();
      std::vector<std::byte> piece = std::exchange(raw_, {});
      piece.insert(piece.end(), session_.output().begin(), session_.output().end());
      if (piece.empty()) {
        co_await changed_.wait();
        continue;
      }
      session_.mark_written(session_.output().size());
      const std::array<Bytes, 1> parts = {Bytes(piece)};
      if (!co_await client_->write_all(parts)) co_return;
    }
  }

  void take(const agent::Message& message) {
    if (message.kind != agent::Message::Kind::request) return;
    const auto fields = MUST(agent::Fields::decode(message.fields));
    agent::FieldWriter answer;
    const auto found = serves_.find(static_cast<agent::Operation>(message.head));
    if (found == serves_.end() || found->second(fields, answer))
      session_.answer(message.channel, answer);
  }

  UringLoop& loop_;
  std::unique_ptr<SocketListener> listener_;
  std::unique_ptr<berth::Stream> client_;
  agent::Session session_{agent::Session::Role::agent};
  std::map<agent::Operation, Serve> serves_;
  std::vector<std::byte> raw_;
  Event changed_;
  Gate gate_;
  bool is_connected_ = false;
  bool is_silent_ = false;
  bool closing_ = false;
};

}  // namespace berth::container
