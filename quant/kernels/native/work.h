// Sharing a call's work between the calling thread and whoever comes to help.
//
// The calling thread takes chunks itself and never waits for a task that has not started: helpers scheduled on the
// pool are optional, and one that starts late finds no chunk left. So 8 devices that call at once on a pool of 2
// threads, all of them busy calling, still finish.
#ifndef PACKLIGHT_WORK_H_
#define PACKLIGHT_WORK_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace packlight {

// Chunks 0 .. chunks - 1 of one stage, each run exactly once by whoever claims it.
class Stage {
 public:
  using Run = void (*)(void* context, int64_t chunk);

  void set(int64_t chunks, Run run, void* context) { chunks_ = chunks, run_ = run, context_ = context; }

  // Runs chunks until none is left to claim. The context is touched only with a claimed chunk in hand: the caller,
  // who waits for claimed chunks, may be gone when a late helper looks.
  void help() {
    for (;;) {
      const int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks_) return;
      run_(context_, chunk);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  // Waits for chunks that other threads have claimed, hence are running; call it after help().
  void wait() const {
    for (int spins = 0; done_.load(std::memory_order_acquire) < chunks_; ++spins) {
      if (spins > 200) std::this_thread::yield();  // more threads than cores: let the one with the chunk run
    }
  }

 private:
  std::atomic<int64_t> next_{0}, done_{0};
  int64_t chunks_ = 0;
  Run run_ = nullptr;
  void* context_ = nullptr;
};

// Two stages, the second reading what the first made. Lives on the heap, owned by the caller and every helper.
struct Job {
  Stage quantize, multiply;

  void help() {
    quantize.help();
    quantize.wait();
    multiply.help();
  }
};

// Has up to `threads` threads help with a job of so many units, the calling one among them.
template <typename Pool, typename Work>
void share(Pool& pool, const std::shared_ptr<Work>& job, int64_t threads, int64_t units) {
  for (int64_t i = 1; i < std::min(threads, units); ++i) pool.Schedule([job] { job->help(); });
  job->help();
}

}  // namespace packlight

#endif  // PACKLIGHT_WORK_H_
