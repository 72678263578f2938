// A guest with qemu-guest-agent, behind a socket like that of QEMU's character device. Only tests
// include it.
//
// One client at a time; others wait. What a client leaves goes on to the next one: half a request
// stays in the agent's parser, answers that nobody took stay on their way. 0xFF empties the parser,
// with an error, as the real one does (QEMU 7.2).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "async/event.h"
#include "async/gate.h"
#include "async/socket.h"
#include "machine/control_protocol.h"

namespace berth::machine {

class FakeAgent {
 public:
  /// What is answered to a command, in place of the agent's own: bytes, or nothing at all.
  using Answer = std::function<std::optional<std::string>(const Json& arguments)>;

  FakeAgent(UringLoop& loop, const std::string& path)
      : loop_(loop),
        listener_(MUST(SocketListener::listen_unix(loop, path))),
        changed_(loop),
        gate_(loop) {
    gate_.spawn(serve());
  }

  /// Before it goes.
  Task<> close() {
    closing_ = true;
    listener_->close();
    if (client_) client_->shutdown();
    changed_.notify_all();
    co_await gate_.drained();
  }

  /// Without an agent, bytes go nowhere; when it starts, it finds those that waited.
  void set_running(bool running) {
    is_running_ = running;
    changed_.notify_all();
  }
  void on(const std::string& command, Answer answer) { answers_[command] = std::move(answer); }
  void on(const std::string& command, std::string bytes) {
    on(command, [bytes = std::move(bytes)](const Json&) { return bytes; });
  }
  /// Bytes on their way to the client that there is, or to the next one.
  void say(std::string_view bytes) {
    outgoing_ += bytes;
    changed_.notify_all();
  }

  /// As the agent has understood them, without those of the synchronisation.
  const std::vector<std::string>& commands() const { return commands_; }
  bool was_asked(const std::string& command) const {
    return std::ranges::find(commands_, command) != commands_.end();
  }
  std::size_t clients() const { return clients_; }
  bool has_to_say() const { return !outgoing_.empty(); }
  bool has_client() const { return client_ != nullptr; }
  bool is_frozen = false;

  /// Changes of any of these, for `while (!…) co_await agent.changed().wait()`.
  Event& changed() { return changed_; }

 private:
  Task<> serve() {
    while (!closing_) {
      auto stream = co_await listener_->accept();
      if (!stream) co_return;
      ++clients_;
      client_ = std::move(*stream);
      changed_.notify_all();
      Gate writer(loop_);
      writer.spawn(write());
      co_await read();
      client_->shutdown();
      client_has_gone_ = true;
      changed_.notify_all();
      co_await writer.drained();
      client_has_gone_ = false;
      client_.reset();
      changed_.notify_all();
    }
  }

  Task<> read() {
    std::vector<std::byte> buffer(4096);
    while (true) {
      while (!is_running_ && !closing_) co_await changed_.wait();
      const auto got = co_await client_->read_some(buffer);
      if (!got || *got == 0) co_return;
      for (const std::byte byte : Bytes(buffer).first(*got)) take(static_cast<char>(byte));
      changed_.notify_all();
    }
  }

  Task<> write() {
    while (true) {
      while (outgoing_.empty() && !client_has_gone_) co_await changed_.wait();
      if (client_has_gone_) co_return;
      const std::string bytes = std::exchange(outgoing_, {});
      const Bytes part = as_bytes(bytes);
      if (!co_await client_->write_all(std::span(&part, 1))) co_return;
    }
  }

  void take(char byte) {
    if (byte == '\xff') {
      pending_.clear();
      return refuse("GenericError", "JSON parse error, stray '\xEF\xBF\xBD'");
    }
    if (byte != '\n') {
      pending_ += byte;
      return;
    }
    const auto request = parse_json(std::exchange(pending_, {}));
    if (!request || !request->is_object() || !request->contains("execute"))
      return refuse("GenericError", "JSON parse error");
    execute((*request)["execute"].get<std::string>(), request->value("arguments", Json::object()));
  }

  void execute(const std::string& command, const Json& arguments) {
    if (command == "guest-sync-delimited") {
      return say("\xff" + format_json({{"return", arguments["id"]}}) + "\n");
    }
    commands_.push_back(command);
    if (const auto own = answers_.find(command); own != answers_.end()) {
      if (const auto bytes = own->second(arguments)) say(*bytes);
      return;
    }
    if (command == "guest-ping") return answer(Json::object());
    if (command == "guest-fsfreeze-status") return answer(is_frozen ? "frozen" : "thawed");
    if (command == "guest-fsfreeze-thaw") return answer(std::exchange(is_frozen, false) ? 2 : 0);
    if (command == "guest-fsfreeze-freeze") {
      if (!std::exchange(is_frozen, true)) return answer(2);
      return refuse("CommandNotFound",
                    "Command guest-fsfreeze-freeze has been disabled: the agent is in frozen "
                    "state");
    }
    refuse("CommandNotFound", "The command " + command + " has not been found");
  }

  void answer(const Json& result) { say(format_json({{"return", result}}) + "\n"); }
  void refuse(const char* error_class, const std::string& description) {
    say(format_json({{"error", {{"class", error_class}, {"desc", description}}}}) + "\n");
  }

  UringLoop& loop_;
  std::unique_ptr<SocketListener> listener_;
  Event changed_;
  std::unique_ptr<Stream> client_;
  bool client_has_gone_ = false;
  std::size_t clients_ = 0;
  bool is_running_ = true;
  bool closing_ = false;
  std::string pending_;   // in the agent's parser
  std::string outgoing_;  // on its way to a client
  std::map<std::string, Answer> answers_;
  std::vector<std::string> commands_;
  Gate gate_;
};

}  // namespace berth::machine
