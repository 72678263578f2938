// What a container starts with: its image's file system; a kernel and an initramfs, or our agent
// alone.
#pragma once

#include <string>

#include <boost/asio/thread_pool.hpp>

#include "base/result.h"
#include "container/container_record.h"
#include "container/image_store.h"
#include "container/kernel_store.h"
#include "control/async.h"
#include "control/containers.h"

namespace berth::control {

/// `precondition` where there is no kernel, with how to get one; in the host's own it needs none.
Async<Result<Containers::Start>> boot_of(boost::asio::thread_pool& workers,
                                         const container::KernelStore& kernels,
                                         const container::ImageStore& images,
                                         container::ContainerSpecification of);

}  // namespace berth::control
