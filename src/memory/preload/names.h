// What the preload and whoever starts QEMU with it have to agree about. Only constants.
#pragma once

namespace berth::memory {

/// Path of the memory object whose mapping is to be tracked; or
constexpr const char* memory_object_variable = "BERTH_MEMORY_OBJECT";
/// path of the template whose clone this process is to be. One of the two.
constexpr const char* memory_template_variable = "BERTH_MEMORY_TEMPLATE";
/// Path of the socket that the preload serves (preload/channel_format.h); without it there is none.
constexpr const char* memory_channel_variable = "BERTH_MEMORY_CHANNEL";
constexpr const char* preload_library_name = "libberth-preload.so";

}  // namespace berth::memory
