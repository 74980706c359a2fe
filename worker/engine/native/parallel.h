// The threads of our kernels.
//
// Why not OpenMP's: it gives each thread its share beforehand, and waits for all of them at the end of every loop. A
// decode step has hundreds of such loops, of some ten microseconds each. On a machine with something else to do, one
// thread or another is always away for milliseconds, and a step took twenty times as long as with a single thread.
// Here shares are small and taken one by one: who is away takes none, and nobody waits for it.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

namespace endstop {

// Below this many multiplications the threads would wait for each other longer than they work.
constexpr int64_t kWorkPerThread = 1 << 16;

inline std::atomic<int> num_threads{0};  // 0: as many as torch's

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Helpers of the thread that computes. They are started when first wanted and never end: the process's end takes them.
class Helpers {
 public:
  static Helpers& instance() {
    static Helpers* helpers = new Helpers;  // not destroyed at exit, when they may still look at it
    return *helpers;
  }

  // Calls `work(begin, end)` for shares of 0 to `size`, here and on up to `num_helpers` other threads. Raises what one
  // of the calls has raised; the shares that were not begun by then are left out.
  template <typename Work>
  void run(int64_t size, int64_t share, int num_helpers, const Work& work) {
    const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock || num_helpers < 1) return work(int64_t{0}, size);  // another thread computes: they are its helpers now
    try {
      for (; num_started_ < num_helpers; num_started_++) std::thread([this, i = num_started_] { help(i); }).detach();
    } catch (const std::system_error&) {
      // No more threads are to be had. The work is done with those that there are.
    }
    Job job;
    job.size = size;
    job.share = share;
    job.num_helpers = num_helpers;
    job.work = &work;
    job.call = [](const void* work, int64_t begin, int64_t end) { (*static_cast<const Work*>(work))(begin, end); };
    job_.store(&job);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    take_shares(job);
    job_.store(nullptr);  // whoever has not seen the job yet does not see it any more
    for (int i = 0, inside; (inside = num_inside_.load()) != 0; i++) {
      if (i < kSpins) pause();
      else num_inside_.wait(inside);
    }
    if (job.failure) std::rethrow_exception(job.failure);
  }

 private:
  struct Job {
    std::atomic<int64_t> next{0};
    int64_t size, share;
    int num_helpers;
    const void* work;
    void (*call)(const void*, int64_t, int64_t);
    std::mutex failing;
    std::exception_ptr failure;
  };

  // Some 50 microseconds: longer than from one loop of a step to the next, shorter than anybody would notice.
  static constexpr int kSpins = 3000;

  static void take_shares(Job& job) {
    try {
      for (int64_t begin; (begin = job.next.fetch_add(job.share)) < job.size;) {
        job.call(job.work, begin, std::min(job.size, begin + job.share));
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(job.failing);
      job.failure = std::current_exception();
      job.next = job.size;
    }
  }

  void help(int number) {
    for (uint32_t seen = 0;;) {
      for (int i = 0; epoch_.load() == seen && i < kSpins; i++) pause();
      epoch_.wait(seen);
      seen = epoch_.load();
      // Counted before it looks: who takes the job away sees either that it is inside or that it has seen none.
      num_inside_.fetch_add(1);
      Job* job = job_.load();
      if (job && number < job->num_helpers) take_shares(*job);
      if (num_inside_.fetch_sub(1) == 1) num_inside_.notify_all();
    }
  }

  std::mutex busy_;
  int num_started_ = 0;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<int> num_inside_{0};
};

// Calls `work(begin, end)` for shares of 0 to `size`, of `grain` or more each, on as many threads as there are to be.
template <typename Work>
void parallel(int64_t size, int64_t grain, const Work& work) {
  const int threads = num_threads ? num_threads.load() : at::get_num_threads();
  grain = std::max<int64_t>(1, grain);
  if (threads < 2 || size < 2 * grain) return work(int64_t{0}, size);
  const int64_t share = std::max(grain, size / (8 * threads));
  Helpers::instance().run(size, share, threads - 1, work);
}

}  // namespace endstop
