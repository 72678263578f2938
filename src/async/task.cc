#include "async/task.h"

#include <array>
#include <new>

namespace berth::detail {
namespace {

constexpr std::size_t class_size = 128;     // bytes between size classes
constexpr std::size_t class_count = 32;     // frames of up to 4 KiB are recycled
constexpr std::size_t free_list_max = 256;  // frames kept of each class

struct FreeFrame {
  FreeFrame* next;
};

struct FreeLists {
  std::array<FreeFrame*, class_count> head{};
  std::array<std::size_t, class_count> length{};

  ~FreeLists() {
    for (FreeFrame* frame : head) {
      while (frame != nullptr) {
        FreeFrame* next = frame->next;
        ::operator delete(frame);
        frame = next;
      }
    }
  }
};

thread_local FreeLists free_lists;

}  // namespace

// A recycled frame would hide a use after free from the address sanitizer.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BERTH_NO_FRAME_RECYCLING 1
#endif
#endif

#ifdef BERTH_NO_FRAME_RECYCLING

void* allocate_frame(std::size_t size) { return ::operator new(size); }
void free_frame(void* frame, std::size_t /*size*/) { ::operator delete(frame); }

#else

void* allocate_frame(std::size_t size) {
  const std::size_t index = (size - 1) / class_size;
  if (index >= class_count) return ::operator new(size);
  if (FreeFrame* frame = free_lists.head[index]; frame != nullptr) {
    free_lists.head[index] = frame->next;
    --free_lists.length[index];
    return frame;
  }
  return ::operator new((index + 1) * class_size);
}

void free_frame(void* frame, std::size_t size) {
  const std::size_t index = (size - 1) / class_size;
  if (index >= class_count || free_lists.length[index] >= free_list_max) {
    ::operator delete(frame);
    return;
  }
  free_lists.head[index] = ::new (frame) FreeFrame{free_lists.head[index]};
  ++free_lists.length[index];
}

#endif

}  // namespace berth::detail
