// Mappings that outlive their files: where a page cannot be read any more, the process goes on and is told.
//
// The system sends SIGBUS where a mapping is read behind the end of a file that became shorter, or from a disk that fails.
// What is left of that mapping then becomes zeros, and counts as lost: whoever used it has to throw away what came of it.

#include <cstdint>

#include "export.h"

#if defined(_WIN32)

PACKLIGHT_EXPORT int64_t packlight_guard(const void*, int64_t) { return 0; }
PACKLIGHT_EXPORT void packlight_unguard(int64_t) {}
PACKLIGHT_EXPORT int packlight_is_lost(int64_t) { return 0; }

#else

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>

namespace packlight {
namespace {

struct Guarded {
  std::atomic<uintptr_t> begin{0}, end{0};  // both 0: free
  std::atomic<bool> lost{false};
};

constexpr int64_t kMost = 256;
Guarded guarded[kMost];
std::mutex changing;
uintptr_t page;
struct sigaction before;

// Only what a handler of signals may do.
bool replace(uintptr_t address) {
  for (Guarded& each : guarded) {
    const uintptr_t end = each.end.load();
    if (address < each.begin.load() || address >= end) continue;
    each.lost.store(true);
    const uintptr_t from = address / page * page;
    void* zeros = mmap(reinterpret_cast<void*>(from), end - from, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    return zeros != MAP_FAILED;
  }
  return false;
}

void handle(int signal, siginfo_t* info, void* context) {
  const int kept = errno;
  const bool replaced = replace(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = kept;
  if (replaced) return;
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    sigaction(signal, &before, nullptr);  // the same instruction ends the process
  }
}

}  // namespace
}  // namespace packlight

// Guards `size` bytes from a page's beginning on; the number of the guard, or -1 where there are too many.
PACKLIGHT_EXPORT int64_t packlight_guard(const void* begin, int64_t size) {
  using namespace packlight;
  const std::lock_guard<std::mutex> lock(changing);
  if (!page) {
    page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction ours = {};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &before);
  }
  for (int64_t number = 0; number < kMost; ++number) {
    Guarded& free = guarded[number];
    if (free.end.load()) continue;
    free.lost.store(false);
    free.begin.store(reinterpret_cast<uintptr_t>(begin));
    free.end.store(reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(size));
    return number;
  }
  return -1;
}

PACKLIGHT_EXPORT void packlight_unguard(int64_t number) {
  const std::lock_guard<std::mutex> lock(packlight::changing);
  packlight::guarded[number].end.store(0);
  packlight::guarded[number].begin.store(0);
}

// Whether a page of what is guarded could not be read.
PACKLIGHT_EXPORT int packlight_is_lost(int64_t number) { return packlight::guarded[number].lost.load(); }

#endif  // _WIN32
