// What the threads of a block, and the lanes of a warp, work out together.
#pragma once

#include <cstdint>

#include "launch.h"

namespace fedsynsam {

// The sum of the values of this lane and of the lanes before it.
__device__ inline uint32_t warp_scan(uint32_t value) {
  const unsigned lane = threadIdx.x % 32;
  for (unsigned offset = 1; offset < 32; offset *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += other;
  }
  return value;
}

// Adds one value per warp, given by its lane 31; every thread gets the sum, and in `before` that of the warps before
// its own.
template <int kThreads>
__device__ uint32_t scan_warps(uint32_t warp_sum, uint32_t& before) {
  __shared__ uint32_t warp_sums[kThreads / 32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // a previous call's readers are done
  if (lane == 31) warp_sums[warp] = warp_sum;
  __syncthreads();
  uint32_t sum = 0;
  before = 0;
  for (unsigned w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    sum += warp_sums[w];
  }
  return sum;
}

// Adds one value per thread; every thread gets the sum, and in `before` that of the threads before it.
template <int kThreads>
__device__ uint32_t block_scan(uint32_t value, uint32_t& before) {
  const uint32_t running = warp_scan(value);
  const uint32_t sum = scan_warps<kThreads>(running, before);
  before += running - value;
  return sum;
}

// A bin of a histogram, and how many elements are in it and above it.
struct Bin {
  uint32_t number, inside, above;
};

// The bin of the k-th largest element, 1 <= k <= all elements. kBins is a multiple of the threads; all threads must
// see the bins (a barrier lies behind them).
template <int kThreads, int kBins>
__device__ Bin bin_of(const uint32_t* bins, uint32_t k) {
  constexpr int kEach = kBins / kThreads;
  __shared__ Bin found;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kEach;  // this thread's are top, ..., top - kEach + 1
  uint32_t mine = 0, above;
  for (int i = 0; i < kEach; ++i) mine += bins[top - i];
  block_scan<kThreads>(mine, above);
  if (above < k && k <= above + mine) {
    int bin = top;
    for (; above + bins[bin] < k; --bin) above += bins[bin];
    found = {static_cast<uint32_t>(bin), bins[bin], above};
  }
  __syncthreads();
  return found;
}

}  // namespace fedsynsam
