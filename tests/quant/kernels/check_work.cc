// Jobs shared by a caller and helpers, some of which start late: for a thread sanitizer. tests/quant/kernels/test_native_builds.py
// builds and runs it. Prints how many chunks ran that should not have, or did not run that should: 0.
//
// First helpers that have threads of their own, then 8 callers on the 2 threads of a pool that their helpers need too:
// whoever waited for a helper to start would wait for ever.

#include "work.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int kChunks = 37, kHelpers = 3, kJobs = 200;

struct Work {
  std::vector<int> rounded = std::vector<int>(kChunks), multiplied = std::vector<int>(kChunks);

  int wrong() const {
    int count = 0;
    for (const int sum : multiplied) count += sum != kChunks;
    return count;
  }
};

std::shared_ptr<packlight::Job> job_of(Work& work) {
  auto job = std::make_shared<packlight::Job>();
  job->quantize.set(kChunks, [](void* w, int64_t i) {
        std::this_thread::yield();  // another thread claims the next chunk meanwhile
        ++static_cast<Work*>(w)->rounded[i];
      }, &work);
  job->multiply.set(kChunks, [](void* w, int64_t i) {  // reads what every chunk of the first stage wrote
        Work& all = *static_cast<Work*>(w);
        for (const int count : all.rounded) all.multiplied[i] += count;
      }, &work);
  return job;
}

int with_late_helpers() {
  int wrong = 0;
  for (int round = 0; round < kJobs; ++round) {
    auto work = std::make_unique<Work>();
    auto job = job_of(*work);
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
    wrong += work->wrong();
    work.reset();  // a helper that starts now finds no chunk and touches nothing
    for (auto& helper : helpers) helper.join();
  }
  return wrong;
}

// Threads that run tasks in the order in which they were scheduled, until none is left.
class Pool {
 public:
  void schedule(std::function<void()> task) {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  void run(int threads) {
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t) {
      all.emplace_back([this] {
        while (auto task = next()) task();
      });
    }
    for (auto& thread : all) thread.join();
  }

 private:
  std::function<void()> next() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (tasks_.empty()) return nullptr;
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    return task;
  }

  std::mutex mutex_;
  std::deque<std::function<void()>> tasks_;
};

int with_callers_on_the_pool() {
  constexpr int kThreads = 2, kCallers = 8;
  Pool pool;
  std::atomic<int> wrong{0}, finished{0};
  for (int caller = 0; caller < kCallers; ++caller) {
    pool.schedule([&] {
      for (int round = 0; round < kJobs; ++round) {
        Work work;
        auto job = job_of(work);
        for (int h = 0; h < kHelpers; ++h) pool.schedule([job] { job->help(); });
        job->help();
        job->multiply.wait();
        wrong += work.wrong();
      }
      ++finished;
    });
  }
  pool.run(kThreads);
  return wrong + kCallers - finished;
}

}  // namespace

int main() { std::printf("%d\n", with_late_helpers() + with_callers_on_the_pool()); }
