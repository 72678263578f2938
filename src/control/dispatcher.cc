#include "control/dispatcher.h"

#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "control/operations.h"
#include "control/router.h"
#include "machine/control_protocol.h"

namespace berth::control {
namespace {

using Json = nlohmann::json;

Async<Result<HttpReply>> carry_out(Services& services, const Route& route, Json params,
                                   std::string upgrade) {
  HttpReply reply{.status = success_status(*route.action)};
  if (route.action->answer == Answer::stream) {
    const StreamHandler open_stream = find_stream_handler(route.action->name);
    CHECK(open_stream != nullptr);
    reply.stream = CO_TRY(co_await open_stream(services, std::move(params)));
    co_return reply;
  }
  if (route.action->answer == Answer::upgrade) {
    if (upgrade != attach_protocol) {
      co_return failure(ErrorKind::invalid_argument,
                        fmt::format("{} needs the headers 'Connection: Upgrade' and 'Upgrade: {}'",
                                    route.action->name, attach_protocol));
    }
    const UpgradeHandler connect = find_upgrade_handler(route.action->name);
    CHECK(connect != nullptr);
    reply.connection = CO_TRY(co_await connect(services, std::move(params)));
    co_return reply;
  }
  const Handler handle = find_handler(route.action->name);
  CHECK(handle != nullptr);
  reply.body = machine::format_json(CO_TRY(co_await handle(services, std::move(params))));
  co_return reply;
}

Async<HttpReply> answer_route(Services& services, Route route, std::string body,
                              std::string upgrade) {
  auto params = gather_parameters(route, body);
  if (!params) co_return error_reply(params.error());
  auto reply = co_await carry_out(services, route, std::move(*params), std::move(upgrade));
  if (!reply) {
    const Error& error = reply.error();
    if (http_status(error.kind()) >= 500)
      log_warning("{}: {}: {}", route.action->name, to_string(error.kind()), error.message());
    co_return error_reply(error);
  }
  co_return std::move(*reply);
}

}  // namespace

HttpReply error_reply(const Error& error) {
  const Json body = {{"error", {{"kind", to_string(error.kind())}, {"message", error.message()}}}};
  return {.status = http_status(error.kind()), .body = machine::format_json(body)};
}

Async<HttpReply> answer_request(Services& services, HttpRequest request) {
  std::string failed;
  try {
    std::string allowed_methods;
    auto route = find_route(request.method, request.target, &allowed_methods);
    if (!route) {
      HttpReply reply = error_reply(route.error());
      if (!allowed_methods.empty()) {
        reply.status = 405;
        reply.allow = std::move(allowed_methods);
      }
      co_return reply;
    }
    co_return co_await answer_route(services, std::move(*route), std::move(request.body),
                                    std::move(request.upgrade));
  } catch (const std::exception& exception) {
    failed = exception.what();
  }
  log_error("{} {}: unexpected exception: {}", request.method, request.target, failed);
  co_return error_reply(
      Error(ErrorKind::internal, fmt::format("an unexpected exception: {}", failed)));
}

}  // namespace berth::control
