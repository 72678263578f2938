#include "machine/nbd_listeners.h"

#include <algorithm>
#include <utility>

#include <unistd.h>

#include <fmt/format.h>

#include "async/gate.h"
#include "async/tls_context.h"
#include "base/log.h"
#include "machine/small_file.h"

namespace berth::machine {
namespace {

constexpr Duration dead_socket_wait_max = std::chrono::seconds(2);
constexpr Duration dead_socket_wait_step = std::chrono::milliseconds(10);

/// What a listener is known by.
const std::string& key_of(const ServeRequest& request) {
  return request.unix_path.empty() ? request.tcp : request.unix_path;
}

std::string host_of(const ServeRequest& request) {
  if (request.tcp.empty()) return {};
  const auto address = TcpAddress::parse(request.tcp);
  return address ? address->host : std::string();
}

}  // namespace

struct NbdListeners::Entry {
  ServeRequest request;  // port 0 has become the one that was free
  ListenerAddress address;
  int fd = -1;  // the server's
  std::unique_ptr<VolumeExports> exports;
  std::shared_ptr<const TlsContext> tls;
  std::unique_ptr<nbd::Server> server;
};

NbdListeners::NbdListeners(UringLoop& loop, ControlServer& server, Options options,
                           std::vector<Fd> inherited)
    : loop_(loop), options_(std::move(options)), inherited_(std::move(inherited)), changing_(loop) {
  add(server, "serve.start", &NbdListeners::start);
  add(server, "serve.stop", &NbdListeners::stop);
  add(server, "serve.list", &NbdListeners::list);
}

NbdListeners::~NbdListeners() = default;

void NbdListeners::add(ControlServer& server, const char* name, Method method) {
  server.add(name, [this, method](ControlCall& call) { return guarded(method, call); });
}

Task<Result<Json>> NbdListeners::guarded(Method method, ControlCall& call) {
  const auto guard = co_await changing_.lock();
  if (volume_ == nullptr) {
    co_return failure(ErrorKind::precondition,
                      fmt::format("the volume '{}' is not open", options_.volume));
  }
  co_return co_await (this->*method)(call);
}

Task<Result<void>> NbdListeners::open(disk::Volume& volume) {
  const auto guard = co_await changing_.lock();
  volume_ = &volume;
  if (!options_.private_socket.empty()) CO_TRY(serve_private());
  co_await serve_remembered();
  co_return Result<void>{};
}

Result<void> NbdListeners::serve_private() {
  // The volume is ours, so a socket that is there is a dead keeper's; it may take connections for a
  // while yet.
  ::unlink(options_.private_socket.c_str());
  auto listener = TRY(SocketListener::listen_unix(loop_, options_.private_socket));
  private_exports_ = std::make_unique<VolumeExports>(
      *volume_, options_.readers,
      VolumeExports::Options{.name = options_.volume, .checkpoints_only = true});
  private_server_ = std::make_unique<nbd::Server>(loop_, *private_exports_, nbd::ServerOptions{});
  private_server_->serve(std::move(listener));
  return {};
}

Task<> NbdListeners::serve_remembered() {
  const auto remembered = load();
  if (!remembered) {
    log_warning("cannot serve what was served before: {}", remembered.error().message());
    co_return;
  }
  const Instant deadline = loop_.now() + dead_socket_wait_max;
  for (const ServeRequest& request : *remembered) {
    auto served = co_await serve(request);
    // The kernel lets go of a dead keeper's sockets a moment after the process has gone.
    while (!served && served.error().kind() == ErrorKind::in_use && loop_.now() < deadline) {
      co_await loop_.sleep(dead_socket_wait_step);
      served = co_await serve(request);
    }
    if (served) {
      log_info("serving again: {}", uri_of(**served));
    } else {
      log_error("not served again: {}", served.error().message());
      not_served_.emplace(key_of(request), request);
    }
  }
}

Task<> NbdListeners::close() {
  const auto guard = co_await changing_.lock();
  volume_ = nullptr;
  Gate stopping(loop_);  // all at once: each may have to wait for a slow client
  if (private_server_) {
    stopping.spawn(private_server_->stop());
    ::unlink(options_.private_socket.c_str());
  }
  for (const auto& [key, entry] : entries_) stopping.spawn(entry->server->stop());
  co_await stopping.drained();
  private_server_.reset();
  entries_.clear();
}

// --- The methods.

Task<Result<Json>> NbdListeners::start(ControlCall& call) {
  const ServeRequest request = CO_TRY(decode_serve(call.params()));
  const auto existing = entries_.find(key_of(request));
  if (existing != entries_.end()) {
    if (existing->second->request == request) {
      co_return Json{{"uri", uri_of(*existing->second)}, {"fd", existing->second->fd}};
    }
    co_return failure(ErrorKind::in_use,
                      fmt::format("'{}' is served already, with other options", key_of(request)));
  }
  if (entries_.size() >= nbd_listeners_max) {
    co_return failure(ErrorKind::limit,
                      fmt::format("a keeper has at most {} listeners", nbd_listeners_max));
  }
  CO_TRY(check_export(request));
  const Entry* entry = CO_TRY(co_await serve(request));
  not_served_.erase(key_of(request));
  if (auto saved = save(); !saved) {
    log_warning("the listener will not be served again by itself: {}", saved.error().message());
  }
  log_info("serving {}", uri_of(*entry));
  co_return Json{{"uri", uri_of(*entry)}, {"fd", entry->fd}};
}

Task<Result<Json>> NbdListeners::stop(ControlCall& call) {
  const ServeRequest request = CO_TRY(decode_serve(call.params()));
  const std::string& key = key_of(request);
  const auto found = entries_.find(key);
  if (found == entries_.end() && not_served_.erase(key) == 0) {
    co_return failure(ErrorKind::not_found, fmt::format("nothing is served at '{}'", key));
  }
  if (found != entries_.end()) {
    const std::unique_ptr<Entry> entry = std::move(found->second);
    entries_.erase(found);
    log_info("no longer serving {}", uri_of(*entry));
    co_await entry->server->stop();
    if (entry->address.is_unix()) ::unlink(entry->address.unix_path.c_str());
  }
  CO_TRY(save());
  co_return Json::object();
}

Task<Result<Json>> NbdListeners::list(ControlCall& /*call*/) {
  Json listeners = Json::array();
  for (const auto& [key, entry] : entries_) {
    Json listener = encode(entry->request);
    listener["uri"] = uri_of(*entry);
    listener["tls"] = entry->tls != nullptr;
    listener["connections"] = entry->server->connection_count();
    listener["fd"] = entry->fd;
    listeners.push_back(std::move(listener));
  }
  co_return Json{{"listeners", std::move(listeners)}};
}

// --- How a listener comes to be.

Result<void> NbdListeners::check_export(const ServeRequest& request) const {
  const std::string& name = request.export_name;
  if (name.empty() || name == options_.volume) return {};
  if (name.starts_with(options_.volume + '@')) {
    const std::string checkpoint = name.substr(options_.volume.size() + 1);
    const auto checkpoints = volume_->checkpoints();
    if (std::ranges::find(checkpoints, checkpoint, &disk::CheckpointInfo::name) !=
        checkpoints.end())
      return {};
  }
  return failure(ErrorKind::not_found, fmt::format("there is no '{}' to be served", name));
}

Task<Result<NbdListeners::Entry*>> NbdListeners::serve(ServeRequest request) {
  auto entry = std::make_unique<Entry>();
  if (!request.tls_dir.empty()) {
    entry->tls =
        CO_TRY(TlsContext::server(request.tls_dir, TlsContext::ClientCertificates::required));
  }
  auto listener = CO_TRY(co_await take_listener(request));
  entry->fd = listener->fd();
  entry->address = CO_TRY(address_of(entry->fd));
  if (!entry->tls && !request.insecure && !entry->address.is_loopback()) {
    co_return failure(
        ErrorKind::precondition,
        fmt::format(
            "'{}' would serve the disk to other machines without TLS: give a TLS directory, "
            "listen on a loopback address, or say that it may be insecure",
            request.tcp));
  }
  if (!entry->address.is_unix()) {
    request.tcp = TcpAddress{.host = host_of(request), .port = entry->address.port}.to_string();
  }
  entry->exports =
      std::make_unique<VolumeExports>(*volume_, options_.readers,
                                      VolumeExports::Options{.name = options_.volume,
                                                             .default_export = request.export_name,
                                                             .read_only = request.read_only});
  nbd::ServerOptions options;
  options.connection.tls = entry->tls;
  entry->server = std::make_unique<nbd::Server>(loop_, *entry->exports, options);
  entry->server->serve(std::move(listener));
  entry->request = request;
  co_return entries_.insert_or_assign(key_of(request), std::move(entry)).first->second.get();
}

/// An inherited socket with that address, or a new one.
Task<Result<std::unique_ptr<SocketListener>>> NbdListeners::take_listener(
    const ServeRequest& request) {
  TcpAddress wanted;
  if (!request.tcp.empty()) wanted = CO_TRY(TcpAddress::parse(request.tcp));
  for (auto fd = inherited_.begin(); fd != inherited_.end(); ++fd) {
    const auto address = address_of(fd->get());
    if (!address) continue;
    const bool matches = request.tcp.empty() ? address->unix_path == request.unix_path
                                             : is_at(*address, wanted.host, wanted.port);
    if (!matches) continue;
    Fd taken = std::move(*fd);
    inherited_.erase(fd);
    co_return SocketListener::adopt(loop_, std::move(taken));
  }
  if (request.tcp.empty()) {
    auto listener = CO_TRY(SocketListener::listen_unix(loop_, request.unix_path));
    if (request.owner &&
        ::chown(request.unix_path.c_str(), *request.owner, static_cast<gid_t>(-1)) != 0) {
      co_return errno_failure(
          errno, fmt::format("cannot give '{}' to user {}", request.unix_path, *request.owner));
    }
    co_return std::move(listener);
  }
  co_return SocketListener::listen_tcp(loop_, wanted);
}

std::string NbdListeners::uri_of(const Entry& entry) const {
  const std::string& name =
      entry.request.export_name.empty() ? options_.volume : entry.request.export_name;
  return nbd_uri(entry.address, host_of(entry.request), name, entry.tls != nullptr);
}

// --- Memory.

Result<std::vector<ServeRequest>> NbdListeners::load() const {
  const auto text = read_small_file(options_.serve_file);
  if (!text && text.error().kind() == ErrorKind::not_found) return std::vector<ServeRequest>();
  if (!text) return failure(text.error());
  const Json json = TRY(parse_json(*text));
  if (!json.is_object() || !json.contains("listeners") || !json["listeners"].is_array()) {
    return failure(ErrorKind::corrupt,
                   fmt::format("'{}' has no list of listeners", options_.serve_file));
  }
  std::vector<ServeRequest> requests;
  for (const Json& listener : json["listeners"]) {
    if (!listener.is_object())
      return failure(ErrorKind::corrupt, "a remembered listener is not an object");
    requests.push_back(TRY(decode_serve(listener)));
  }
  return requests;
}

Result<void> NbdListeners::save() const {
  Json listeners = Json::array();
  for (const auto& [key, entry] : entries_) listeners.push_back(encode(entry->request));
  for (const auto& [key, request] : not_served_) listeners.push_back(encode(request));
  return write_small_file(
      options_.serve_file,
      format_json({{"volume", options_.volume}, {"listeners", std::move(listeners)}}) + '\n');
}

}  // namespace berth::machine
