// A loop over threads that hands exceptions (bad_alloc) to the caller; one may not leave an OpenMP region.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdint>
#include <exception>

namespace fedsynsam {

// Which thread of a parallel region this is; 0 where the compiler has no OpenMP, and everything runs on one.
inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Calls body(i, thread) for i in [0, count), `batch` consecutive ones at a time, on up to `threads` threads.
template <typename Body>
void parallel_for(int64_t count, int threads, int64_t batch, const Body& body) {
  if (threads <= 1 || count <= batch) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel for num_threads(threads) schedule(dynamic, batch)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i, thread_number());
    } catch (...) {
#pragma omp critical(fedsynsam_parallel_for)
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fedsynsam
