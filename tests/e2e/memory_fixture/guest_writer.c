// Runs in the guest of the memory tests: writes memory all the time, and looks at what it has
// written.
//
//   guest-writer MIB MIB_PER_SECOND STATUS_FILE
//
// Every page of MIB mebibytes holds, eight times, the number of the pass that wrote it last, and
// its own number. A pass visits all pages, far apart from each other, and expects in each the
// number of the pass before: a page that was restored from another instant is found. STATUS_FILE
// gets the line "PASSES BAD" a hundred times a second: full passes so far, pages that were wrong.
//
// No C library: a program of a few KiB goes through the guest agent in one call.
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/time.h>
#include <stddef.h>
#include <stdint.h>

enum { page_size = 4096, marks = 8, step = 7919 /* prime, and no divisor of a power of two */ };

static long call(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static uint64_t number_of(const char* text) {
  uint64_t value = 0;
  for (; *text >= '0' && *text <= '9'; ++text) value = value * 10 + (uint64_t)(*text - '0');
  return value;
}

static char* put_number(char* at, uint64_t value, char end) {
  char digits[20];
  int count = 0;
  do {
    digits[count++] = (char)('0' + value % 10);
    value /= 10;
  } while (value != 0);
  while (count > 0) *at++ = digits[--count];
  *at++ = end;
  return at;
}

static int64_t now_ns(void) {
  struct __kernel_timespec time;
  call(__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, (long)&time, 0, 0, 0, 0);
  return time.tv_sec * 1000000000 + time.tv_nsec;
}

static void sleep_ns(int64_t nanoseconds) {
  const struct __kernel_timespec time = {.tv_sec = 0, .tv_nsec = nanoseconds};
  call(__NR_nanosleep, (long)&time, 0, 0, 0, 0, 0);
}

static void report(int fd, uint64_t passes, uint64_t bad) {
  char line[64];
  char* end = put_number(put_number(line, passes, ' '), bad, '\n');
  call(__NR_pwrite64, fd, (long)line, end - line, 0, 0, 0);
}

static void run(uint64_t pages, uint64_t pages_per_second, const char* status_path) {
  const int fd = (int)call(__NR_open, (long)status_path, O_WRONLY | O_CREAT, 0644, 0, 0, 0);
  uint8_t* memory = (uint8_t*)call(__NR_mmap, 0, (long)(pages * page_size), PROT_READ | PROT_WRITE,
                                   0x22 /* MAP_PRIVATE | MAP_ANONYMOUS */, -1, 0);
  if (fd < 0 || (intptr_t)memory < 0) call(__NR_exit, 1, 0, 0, 0, 0, 0);
  const int64_t slice_ns = 10000000;
  const uint64_t slice_pages = pages_per_second / 100 + 1;
  int64_t next = now_ns();
  uint64_t in_slice = 0;
  uint64_t bad = 0;
  for (uint64_t pass = 1;; ++pass) {
    uint64_t page = 0;
    for (uint64_t i = 0; i < pages; ++i) {
      page = (page + step) % pages;
      const uint64_t before = pass == 1 ? 0 : (pass - 1) << 32 | page;
      int good = 1;
      for (int mark = 0; mark < marks; ++mark) {
        volatile uint64_t* at = (volatile uint64_t*)(memory + page * page_size) + mark * 64;
        good = good && *at == before;
        *at = pass << 32 | page;
      }
      if (!good) ++bad;
      if (++in_slice < slice_pages) continue;
      in_slice = 0;
      report(fd, pass - 1, bad);
      next += slice_ns;
      const int64_t left = next - now_ns();
      if (left > 0) sleep_ns(left < slice_ns ? left : slice_ns);
      if (left < -10 * slice_ns) next = now_ns();  // after a pause: do not catch up
    }
  }
}

__attribute__((noreturn, used)) void start(long* stack) {
  char** argv = (char**)(stack + 1);
  if (stack[0] == 4) {
    // An odd number of pages that shares no divisor with the step: every page is visited.
    uint64_t pages = (number_of(argv[1]) << 20) / page_size;
    run(pages, (number_of(argv[2]) << 20) / page_size, argv[3]);
  }
  call(__NR_exit, 2, 0, 0, 0, 0, 0);
  __builtin_unreachable();
}

__asm__(".globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call start\n");
