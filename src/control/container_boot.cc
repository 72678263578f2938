#include "control/container_boot.h"

#include <nlohmann/json.hpp>

#include "control/spawn.h"

namespace berth::control {

Async<Result<Containers::Start>> boot_of(boost::asio::thread_pool& workers,
                                         const container::KernelStore& kernels,
                                         const container::ImageStore& images,
                                         container::ContainerSpecification of) {
  auto start =
      CO_TRY(co_await on_worker(workers, [store = &kernels, of]() -> Result<Containers::Start> {
        if (of.isolation == container::ContainerSpecification::Isolation::process) {
          Containers::Start in_host;
          in_host.agent = TRY(container::find_agent());
          return in_host;
        }
        const container::KernelRecord kernel = TRY(store->current());
        return Containers::Start{.kernel = store->image(kernel.release),
                                 .unpacked_kernel = store->unpacked(kernel.release),
                                 .initrd = TRY(store->initrd(kernel.release))};
      }));
  start.image = images.file_system(of.image);
  co_return start;
}

}  // namespace berth::control
