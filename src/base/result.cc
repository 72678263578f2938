#include "base/result.h"

#include <cstdio>
#include <cstdlib>

namespace berth {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, condition);
  std::abort();
}

void must_failed(const char* expression, const Error& error, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: MUST failed: %s: %s\n", file, line, expression,
               error.message().c_str());
  std::abort();
}

}  // namespace berth
