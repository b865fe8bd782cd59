// What every .cu file starts from: the CUDA runtime and one way to launch, so that the emulation can stand in.
#pragma once

#include <cstdint>

#ifdef FEDSYNSAM_EMULATION
#include "emulation/cuda.h"
#else
#include <cuda_runtime.h>

// A launch on the caller's stream; a kernel template with commas in its arguments goes in parentheses.
#define FSS_LAUNCH(kernel, grid, threads, stream, ...) kernel<<<(grid), (threads), 0, (stream)>>>(__VA_ARGS__)
#endif

namespace fedsynsam {

constexpr int64_t kMaxGrid = 2147483647;  // blocks of one launch
constexpr int kGridTooLarge = -1;         // returned by launchers besides CUDA's own codes; `cuda_error` explains both
constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace fedsynsam
