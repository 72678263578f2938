// Writes memory inside the guest of scripts/guest-image, at a rate, and knows what must be in it.
//
//   dirty-memory MIB_PER_SECOND MIB_TOTAL
//
// MIB_TOTAL of private memory, filled at the start; then whole pages at random places,
// MIB_PER_SECOND of them (0: none). Every word of a page follows from the page's number and from
// how often it was written, which is kept elsewhere. A page is compared before it is written anew,
// so one that was lost, torn or taken back to an older state is found as soon as it comes up;
// SIGUSR1 has every page compared at once. What was found is in /run/berth/dirty, a word and a
// number a line, replaced four times a second and after each such sweep:
//
//   written     pages written, those of the start not counted
//   compared    pages compared
//   mismatches  of those, pages that were not as they were left; and 1 more for each sweep that
//   finds that the
//               counts of the pages do not add up to `written`
//   sweeps      how often all pages were compared
//   pages       of the working set
//   late        ticks of 5 ms in which the pages that were due could not be written: the rate is
//   too high here
//
// Linked statically, and built with the guest's image: needs nothing but Linux.
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
  PAGE_BYTES = 4096,
  PAGE_WORDS = PAGE_BYTES / sizeof(uint64_t),
  PAGES_PER_MIB = (1 << 20) / PAGE_BYTES,
  TICK_NS = 5 * 1000 * 1000,
  TICKS_PER_SECOND = 200,
  TICKS_PER_REPORT = 50,
  MIB_MAX = 1 << 20,
};

static const char report_path[] = "/run/berth/dirty";
static const char new_report_path[] = "/run/berth/dirty.new";

static uint64_t (*pages)[PAGE_WORDS];
// How often each page was written.
static uint32_t* writes;
static uint64_t page_count;
static uint64_t written, compared, mismatches, sweeps, late;
static volatile sig_atomic_t sweep_wanted;

static void want_sweep(int signal_number) {
  (void)signal_number;
  sweep_wanted = 1;
}

static void die(const char* what) {
  fprintf(stderr, "dirty-memory: %s: %s\n", what, strerror(errno));
  exit(1);
}

// The finalizer of SplitMix64: neighbouring inputs have nothing in common.
static uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

// A page's words are seed, seed + step, seed + 2 step, ...: cheap even where every instruction is
// emulated.
static uint64_t seed_of(uint64_t page) { return mix(page << 32 | writes[page]); }
static uint64_t step_of(uint64_t seed) { return mix(~seed) | 1; }

static void fill(uint64_t page) {
  const uint64_t seed = seed_of(page), step = step_of(seed);
  uint64_t* words = pages[page];
  uint64_t value = seed;
  for (int i = 0; i < PAGE_WORDS; ++i, value += step) {
    words[i] = value;
  }
}

static void compare(uint64_t page) {
  const uint64_t seed = seed_of(page), step = step_of(seed);
  const uint64_t* words = pages[page];
  uint64_t value = seed, difference = 0;
  for (int i = 0; i < PAGE_WORDS; ++i, value += step) {
    difference |= words[i] ^ value;
  }
  ++compared;
  mismatches += difference != 0;
}

static void report(void) {
  FILE* file = fopen(new_report_path, "w");
  if (file == NULL) {
    die(new_report_path);
  }
  fprintf(file,
          "written %llu\ncompared %llu\nmismatches %llu\nsweeps %llu\npages %llu\nlate %llu\n",
          (unsigned long long)written, (unsigned long long)compared, (unsigned long long)mismatches,
          (unsigned long long)sweeps, (unsigned long long)page_count, (unsigned long long)late);
  if (fclose(file) != 0 || rename(new_report_path, report_path) != 0) {
    die(report_path);
  }
}

static void sweep(void) {
  uint64_t sum = 0;
  for (uint64_t page = 0; page < page_count; ++page) {
    compare(page);
    sum += writes[page];
  }
  mismatches += sum != written;
  ++sweeps;
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t deadline_ns) {
  const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000),
                                    .tv_nsec = (long)(deadline_ns % 1000000000)};
  // A signal ends it early, which does no harm.
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL);
}

static uint64_t mib(const char* text) {
  char* end;
  errno = 0;
  const unsigned long long value = strtoull(text, &end, 10);
  if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || value > MIB_MAX) {
    fprintf(stderr, "dirty-memory: not a number of MiB: %s\n", text);
    exit(2);
  }
  return value;
}

static void* memory(size_t bytes) {
  void* result = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (result == MAP_FAILED) {
    die("no memory");
  }
  return result;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: dirty-memory MIB_PER_SECOND MIB_TOTAL\n");
    return 2;
  }
  const uint64_t pages_per_second = mib(argv[1]) * PAGES_PER_MIB;
  page_count = mib(argv[2]) * PAGES_PER_MIB;
  if (page_count == 0) {
    fprintf(stderr, "dirty-memory: MIB_TOTAL must not be 0\n");
    return 2;
  }
  pages = memory(page_count * PAGE_BYTES);
  writes = memory(page_count * sizeof *writes);
  const struct sigaction action = {.sa_handler = want_sweep};
  sigaction(SIGUSR1, &action, NULL);
  for (uint64_t page = 0; page < page_count; ++page) {
    fill(page);
  }

  // Reproducible in itself; who looks at the guest's memory sees something else each time anyway.
  uint64_t random = 1;
  uint64_t next_ns = now_ns();
  for (uint64_t tick = 0;; ++tick) {
    if (tick % TICKS_PER_REPORT == 0 || sweep_wanted) {
      if (sweep_wanted) {
        sweep_wanted = 0;
        sweep();
        next_ns = now_ns();
      }
      report();
    }
    // What a whole second has too many or too few is spread over its ticks.
    const uint64_t place = tick % TICKS_PER_SECOND;
    const uint64_t due = pages_per_second * (place + 1) / TICKS_PER_SECOND -
                         pages_per_second * place / TICKS_PER_SECOND;
    for (uint64_t i = 0; i < due; ++i) {
      const uint64_t page = mix(random++) % page_count;
      compare(page);
      ++writes[page];
      ++written;
      fill(page);
    }
    next_ns += TICK_NS;
    const uint64_t now = now_ns();
    if (now < next_ns) {
      sleep_until(next_ns);
    } else if (now > next_ns + TICK_NS) {
      // Nothing is made up for: neither after a tick that took too long, nor after a pause of the
      // whole machine.
      ++late;
      next_ns = now;
    }
  }
}
