// What a container is to be, out of what was asked for and what its image says. Pure.
#pragma once

#include <string>

#include "base/result.h"
#include "container/container_record.h"
#include "container/image_record.h"

namespace berth::control {

/// `request`: members of a ContainerSpecification, all of which may be missing, and in place of
/// `arguments` the members `entrypoint` and `command`, each in place of the image's; an entrypoint
/// also replaces the image's command. The environment is the image's with what was asked for over
/// it. invalid_argument, with the member that is wrong.
Result<container::ContainerSpecification> complete_container(nlohmann::json request,
                                                             const container::ImageRecord& image,
                                                             const std::string& image_name);

}  // namespace berth::control
