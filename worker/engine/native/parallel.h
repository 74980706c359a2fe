// The threads of our kernels, which may be others than torch's for its own (`set_threads`).
#pragma once

#include <ATen/Parallel.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace endstop {

inline std::atomic<int> num_threads{0};  // 0: as many as torch's

// Calls `work(begin, end)` for shares of 0 to `size`, of `grain` or more each, on threads of their own.
template <typename Work>
void parallel(int64_t size, int64_t grain, const Work& work) {
  const int64_t wanted = num_threads ? num_threads.load() : at::get_num_threads();
  const int64_t num_shares = std::max<int64_t>(1, std::min(wanted, size / std::max<int64_t>(1, grain)));
  if (num_shares == 1) return work(int64_t{0}, size);
  std::exception_ptr failure;  // that left a thread of OpenMP would end the process
#pragma omp parallel for num_threads(num_shares) schedule(static, 1)
  for (int64_t i = 0; i < num_shares; i++) {
    try {
      work(size * i / num_shares, size * (i + 1) / num_shares);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace endstop
