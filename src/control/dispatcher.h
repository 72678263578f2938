// From an HTTP request to its answer, without HTTP's sockets: routing, parameters, the handler, the
// error's status.
//
// On the control plane's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"
#include "control/async.h"
#include "control/events.h"

namespace berth::control {

struct Services;

/// What a client asks for in the header `Upgrade` that wants a connection to a container.
constexpr std::string_view attach_protocol = "berth-attach";

struct HttpRequest {
  std::string method;
  std::string target;
  std::string body;
  std::string upgrade;  // the protocol that the connection shall have from then on; "" for none
};

struct HttpReply {
  unsigned status = 200;
  std::string body;                    // JSON
  std::unique_ptr<LineSource> stream;  // or lines of JSON, for as long as they come
  Fd connection;                       // or, with 101, what the connection is joined with
  std::string allow;                   // with 405: the methods that there are
};

/// Never fails: what goes wrong is an answer.
Async<HttpReply> answer_request(Services& services, HttpRequest request);

/// The answer that stands for an error.
HttpReply error_reply(const Error& error);

}  // namespace berth::control
