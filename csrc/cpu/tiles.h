// What the passes of small networks share: blocks of images, vectors, and how many sums the registers hold.
//
// Images lie in blocks of kLanes, the image innermost. A vector is the same pixel, or the same unit, of as many images,
// so that every number of channels fills the registers, and pooling and ReLU are a few operations on whole vectors. The
// loops keep a tile of sums in registers; how large a tile depends on the instruction set.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "fedsynsam.h"

// These sums are no contract between backends, and fused multiply-adds halve their time.
#if defined(__clang__)
#pragma clang fp contract(fast)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif

#define FSS_UNROLL _Pragma("GCC unroll 32")

namespace fedsynsam {

constexpr int kLanes = kImageLanes;

template <int kWidth>
struct Vector;
template <>
struct Vector<16> {
  typedef float type __attribute__((vector_size(64)));
};
template <>
struct Vector<8> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct Vector<4> {
  typedef float type __attribute__((vector_size(16)));
};

// kWidth lanes of a vector. Convolutions: kOutputs channels of 2x2 pixels, kInputs channels of kColumns pixels. Dense
// layers: kUnits units; kTaps units by four vectors of weights.
struct Avx512 {
  static constexpr int kWidth = 16, kOutputs = 4, kInputs = 4, kColumns = 6, kUnits = 8, kTaps = 4;
};
struct Avx2 {
  static constexpr int kWidth = 8, kOutputs = 2, kInputs = 2, kColumns = 6, kUnits = 8, kTaps = 2;
};
struct Baseline {
  static constexpr int kWidth = 4, kOutputs = 2, kInputs = 2, kColumns = 6, kUnits = 8, kTaps = 2;
};

// Which of the three this machine uses: 2, 1 or 0. See network_select_instruction_set.
int tile_level();

// NAME(args) calls BODY<Isa>(args), compiled for each instruction set, with the one of this machine. The choice is made
// here and not by the loader, so that every compiler can have it.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(FSS_NO_CLONES)
#define FSS_TILE_VARIANTS 1
#define FSS_FOR_EACH_ISA(NAME, ARGS, BODY)                                                                      \
  static __attribute__((target("arch=x86-64-v4"))) void NAME##_avx512(const ARGS& args) { BODY<Avx512>(args); } \
  static __attribute__((target("arch=x86-64-v3"))) void NAME##_avx2(const ARGS& args) { BODY<Avx2>(args); }     \
  static void NAME##_baseline(const ARGS& args) { BODY<Baseline>(args); }                                       \
  void NAME(const ARGS& args) {                                                                                 \
    if (tile_level() == 2) return NAME##_avx512(args);                                                          \
    if (tile_level() == 1) return NAME##_avx2(args);                                                            \
    NAME##_baseline(args);                                                                                      \
  }
#else
#define FSS_TILE_VARIANTS 0
#define FSS_FOR_EACH_ISA(NAME, ARGS, BODY) \
  void NAME(const ARGS& args) { BODY<Baseline>(args); }
#endif

// The sum of kWidth values, by halves.
template <int kWidth>
FSS_INLINE float total(const float* values) {
  float sum[kWidth];
  for (int l = 0; l < kWidth; ++l) sum[l] = values[l];
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  }
  return sum[0];
}

}  // namespace fedsynsam
