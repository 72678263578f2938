// What a container is to be, out of what was asked for and what its image says. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "container/container_record.h"
#include "container/image_record.h"
#include "container/template_record.h"

namespace berth::control {

/// Clones that wait for a name are called so, with digits of their ids; nobody else is.
constexpr std::string_view waiting_prefix = "pool-";
constexpr std::size_t waiting_digits = 8;
/// On the container that becomes a template: its name.
constexpr const char* template_label = "berth.template";

/// `request`: members of a ContainerSpecification, all of which may be missing, and in place of
/// `arguments` the members `entrypoint` and `command`, each in place of the image's; an entrypoint
/// also replaces the image's command. The environment is the image's with what was asked for over
/// it. invalid_argument, with the member that is wrong.
Result<container::ContainerSpecification> complete_container(nlohmann::json request,
                                                             const container::ImageRecord& image,
                                                             const std::string& image_name);

/// What a clone of it is that has no name yet.
container::ContainerSpecification clone_of(const container::TemplateRecipe& recipe);

/// What `count` clones of a template are to be: as the template is, but for the members that are a
/// clone's own. `request` as for the action container.clone; several are called NAME-1, NAME-2 and
/// so on. invalid_argument, with the member that is wrong.
Result<std::vector<container::ContainerSpecification>> clone_specifications(
    nlohmann::json request, const container::TemplateRecipe& of, std::size_t count);

}  // namespace berth::control
