// Runs the .cu kernels on the CPU, for the tests: a stand-in for the CUDA runtime, chosen by cuda/launch.h.
//
// Each thread of a block is a fiber. A fiber runs until it waits at a barrier or in an exchange between lanes, meets
// an atomic operation and loses its turn there by lot, or ends. Blocks run one after the other. The order of the
// blocks, of the fibers and of those lots is drawn from a seed (`set_seed`), so that a result that depends on the order
// differs between seeds. It shows wrong results, waits that never end and dependence on the order; not races between
// plain loads and stores. Shared memory keeps what the block before left in it, so that what is not set shows.
//
// The subset: static __shared__, one-dimensional grids and blocks, block and warp barriers, exchanges, ballots and
// atomics below. Exchanges and ballots name all lanes of the warp that live: a mask other than the full one aborts.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__
#define __forceinline__ inline
#define __noinline__

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

struct Index3 {
  unsigned x, y, z;
};
inline Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace fedsynsam::emulation {

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 * 1024);
  State state = State::done;
  uint64_t exchanged = 0;  // what this lane offers to the others
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  unsigned current = 0;
  std::function<void()> body;
  std::minstd_rand order{1};
};

inline Block block;

// The order of everything from here on.
inline void set_seed(unsigned seed) { block.order.seed(seed + 1); }

inline void fiber_main() {
  block.body();
  block.fibers[block.current].state = State::done;
  swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

inline void wait(State state) {
  Fiber& fiber = block.fibers[block.current];
  fiber.state = state;
  swapcontext(&fiber.context, &block.scheduler);
}

// Lets another fiber go first, now and then.
inline void maybe_yield() {
  if (block.order() % 4 == 0) wait(State::ready);
}

// Lets the fibers [begin, end) go on if all of them that live wait in `state`. Returns whether any did.
inline bool release(unsigned begin, unsigned end, State state) {
  bool any = false;
  for (unsigned i = begin; i < end; ++i) {
    if (block.fibers[i].state == State::done) continue;
    if (block.fibers[i].state != state) return false;
    any = true;
  }
  for (unsigned i = begin; any && i < end; ++i) {
    if (block.fibers[i].state == state) block.fibers[i].state = State::ready;
  }
  return any;
}

// A random order of 0, ..., count - 1.
inline std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), block.order);
  return order;
}

inline void run_block() {
  const unsigned threads = blockDim.x;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.state = State::ready;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  const std::vector<unsigned> order = shuffled(threads);
  for (bool progress = true; progress;) {
    progress = false;
    for (const unsigned i : order) {
      if (block.fibers[i].state != State::ready) continue;
      block.current = i;
      threadIdx = {i, 0, 0};
      swapcontext(&block.scheduler, &block.fibers[i].context);
      progress = true;
    }
    for (unsigned warp = 0; warp < threads; warp += 32) {
      progress |= release(warp, std::min(warp + 32, threads), State::at_warp_barrier);
    }
    progress |= release(0, threads, State::at_block_barrier);
  }
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == State::done) continue;
    std::fprintf(stderr, "emulation: threads of block %u wait for each other forever\n", blockIdx.x);
    std::abort();
  }
}

inline void launch(unsigned grid, unsigned threads, std::function<void()> body) {
  if (threads == 0 || threads > 1024) {
    std::fprintf(stderr, "emulation: a block of %u threads\n", threads);
    std::abort();
  }
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  for (Fiber& fiber : block.fibers) fiber.state = State::done;
  block.body = std::move(body);
  gridDim = {grid, 1, 1};
  blockDim = {threads, 1, 1};
  for (const unsigned i : shuffled(grid)) {
    blockIdx = {i, 0, 0};
    run_block();
  }
}

inline void check_mask(unsigned mask) {
  if (mask == 0xffffffffu) return;
  std::fprintf(stderr, "emulation: lane mask %08x; only the full one is emulated\n", mask);
  std::abort();
}

// Offers `value` to the warp, calls read(first lane of the warp) when all lanes have offered theirs, and returns what
// it returns when all have read.
template <typename T, typename Read>
auto exchange(unsigned mask, T value, const Read& read) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "an exchange moves at most 8 bytes");
  check_mask(mask);
  Fiber& self = block.fibers[block.current];
  self.exchanged = 0;
  std::memcpy(&self.exchanged, &value, sizeof value);
  wait(State::at_warp_barrier);
  const auto result = read(block.current / 32 * 32);
  wait(State::at_warp_barrier);  // nobody offers the next value before all have read this one
  return result;
}

// What lane `source` of this warp offers; a lane that is not there offers what the reader does.
template <typename T>
T offered(unsigned first, unsigned source) {
  const unsigned other = first + source;
  const bool there = source < 32 && other < blockDim.x && block.fibers[other].state != State::done;
  T value;
  std::memcpy(&value, &block.fibers[there ? other : block.current].exchanged, sizeof value);
  return value;
}

template <typename T, typename Change>
T atomically(T* address, const Change& change) {
  maybe_yield();
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace fedsynsam::emulation

#define FSS_LAUNCH(kernel, grid, threads, stream, ...) \
  (static_cast<void>(stream), fedsynsam::emulation::launch(grid, threads, [&] { kernel(__VA_ARGS__); }))

// ---- barriers ----

inline void __syncthreads() { fedsynsam::emulation::wait(fedsynsam::emulation::State::at_block_barrier); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  fedsynsam::emulation::check_mask(mask);
  fedsynsam::emulation::wait(fedsynsam::emulation::State::at_warp_barrier);
}
inline void __threadfence() {}

// ---- exchanges between the lanes of a warp ----

template <typename T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
  using namespace fedsynsam::emulation;
  return exchange(mask, value, [&](unsigned first) { return offered<T>(first, lane % 32); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned offset) {
  using namespace fedsynsam::emulation;
  const unsigned lane = block.current % 32;
  return exchange(mask, value, [&](unsigned first) { return offered<T>(first, lane + offset); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned offset) {
  using namespace fedsynsam::emulation;
  const unsigned lane = block.current % 32;
  return exchange(mask, value, [&](unsigned first) { return offered<T>(first, lane < offset ? lane : lane - offset); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
  using namespace fedsynsam::emulation;
  const unsigned lane = block.current % 32;
  return exchange(mask, value, [&](unsigned first) { return offered<T>(first, lane ^ bits); });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using namespace fedsynsam::emulation;
  return exchange(mask, static_cast<unsigned>(predicate != 0), [&](unsigned first) {
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32 && first + lane < blockDim.x; ++lane) {
      const Fiber& fiber = block.fibers[first + lane];
      if (fiber.state != State::done && fiber.exchanged != 0) votes |= 1u << lane;
    }
    return votes;
  });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

// ---- atomic operations, on shared and on global memory ----

template <typename T>
T atomicAdd(T* address, T value) {
  return fedsynsam::emulation::atomically(address, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, T value) {
  return fedsynsam::emulation::atomically(address, [&](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* address, T value) {
  return fedsynsam::emulation::atomically(address, [&](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* address, T value) {
  return fedsynsam::emulation::atomically(address, [&](T old) { return static_cast<T>(old | value); });
}

// ---- intrinsics ----

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
