// Runs the .cu kernels on the CPU, for the tests: a stand-in for the CUDA runtime, chosen by cuda/launch.h.
//
// Each thread of a block is a fiber; blocks run one after the other. A fiber runs until it waits at __syncthreads or
// in a shuffle, or ends; when all that live have arrived, they go on. It shows wrong results and waits that never end,
// not races: two threads never run at the same time.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

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
  uint64_t exchanged = 0;  // what this lane offers in a shuffle
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  unsigned current = 0;
  std::function<void()> body;
};

inline Block block;

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
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned i = 0; i < threads; ++i) {
      if (block.fibers[i].state != State::ready) continue;
      block.current = i;
      threadIdx = {i, 0, 0};
      swapcontext(&block.scheduler, &block.fibers[i].context);
      progress = true;
    }
    for (unsigned warp = 0; warp < threads; warp += 32) {
      progress |= release(warp, warp + 32 < threads ? warp + 32 : threads, State::at_warp_barrier);
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
  block.fibers.resize(threads);
  block.body = std::move(body);
  gridDim = {grid, 1, 1};
  blockDim = {threads, 1, 1};
  for (unsigned i = 0; i < grid; ++i) {
    blockIdx = {i, 0, 0};
    run_block();
  }
}

}  // namespace fedsynsam::emulation

#define FSS_LAUNCH(kernel, grid, threads, stream, ...) \
  (static_cast<void>(stream), fedsynsam::emulation::launch(grid, threads, [&] { kernel(__VA_ARGS__); }))

inline void __syncthreads() { fedsynsam::emulation::wait(fedsynsam::emulation::State::at_block_barrier); }

// All live lanes of the warp take part: `mask` must name them all.
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned offset) {
  using namespace fedsynsam::emulation;
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  const unsigned self = block.current, source = self % 32 + offset < 32 ? self + offset : self;
  std::memcpy(&block.fibers[self].exchanged, &value, sizeof value);
  wait(State::at_warp_barrier);
  std::memcpy(&value, &block.fibers[source].exchanged, sizeof value);
  wait(State::at_warp_barrier);  // nobody offers the next value before all have read this one
  return value;
}
