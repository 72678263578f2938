#include "disk/volume.h"

#include <utility>

namespace berth::disk {
namespace {

constexpr Duration lease = std::chrono::seconds(60);

}  // namespace

Task<Result<CutOutcome>> Volume::cut(CutRequest request, std::function<void()> writes_go_on) {
  const CutTicket ticket = CO_TRY(co_await begin_cut(std::move(request), lease));
  co_return co_await commit_cut(ticket, std::move(writes_go_on));
}

}  // namespace berth::disk
