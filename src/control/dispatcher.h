// From an HTTP request to its answer, without HTTP's sockets: routing, parameters, the handler, the
// error's status.
//
// On the control plane's thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "control/async.h"
#include "control/events.h"

namespace berth::control {

struct Services;

struct HttpRequest {
  std::string method;
  std::string target;
  std::string body;
};

struct HttpReply {
  unsigned status = 200;
  std::string body;                    // JSON
  std::unique_ptr<LineSource> stream;  // or lines of JSON, for as long as they come
  std::string allow;                   // with 405: the methods that there are
};

/// Never fails: what goes wrong is an answer.
Async<HttpReply> answer_request(Services& services, HttpRequest request);

/// The answer that stands for an error.
HttpReply error_reply(const Error& error);

}  // namespace berth::control
