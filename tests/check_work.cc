// Jobs shared by a caller and helpers, some of which start late: for a thread sanitizer. tests/test_native_builds.py
// builds and runs it. Prints how many chunks ran that should not have, or did not run that should: 0.

#include "work.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

int main() {
  constexpr int kChunks = 37, kHelpers = 3, kJobs = 200;
  struct Work {
    std::vector<int> rounded = std::vector<int>(kChunks), multiplied = std::vector<int>(kChunks);
  };
  int wrong = 0;
  for (int round = 0; round < kJobs; ++round) {
    auto work = std::make_unique<Work>();
    auto job = std::make_shared<packlight::Job>();
    job->quantize.set(kChunks, [](void* w, int64_t i) {
          std::this_thread::yield();  // another thread claims the next chunk meanwhile
          ++static_cast<Work*>(w)->rounded[i];
        }, work.get());
    job->multiply.set(
        kChunks,
        [](void* w, int64_t i) {  // reads what every chunk of the first stage wrote
          Work& all = *static_cast<Work*>(w);
          for (const int count : all.rounded) all.multiplied[i] += count;
        },
        work.get());
    std::vector<std::thread> helpers;
    auto ready = std::make_shared<std::atomic<int>>(0);
    for (int h = 0; h < kHelpers; ++h) {
      helpers.emplace_back([job, ready, h] {
        ready->fetch_add(1, std::memory_order_relaxed);
        if (h == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        job->help();
      });
    }
    while (ready->load(std::memory_order_relaxed) < kHelpers) std::this_thread::yield();
    job->help();
    job->multiply.wait();
    for (const int count : work->multiplied) wrong += count != kChunks;
    work.reset();  // a helper that starts now finds no chunk and touches nothing
    for (auto& helper : helpers) helper.join();
  }
  std::printf("%d\n", wrong);
}
