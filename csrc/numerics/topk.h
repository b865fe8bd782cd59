// The arithmetic of topk, once, for CPU, CUDA and emulation: the order of magnitudes, and how rows are cut into pieces.
#pragma once

#include <cstdint>

#include "element.h"

namespace fedsynsam::topk {

// Keys from here on are infinity or NaN.
constexpr uint32_t kInfinity = 0x7f800000u;

// No key is at least this one: a threshold that takes nothing.
constexpr uint32_t kNever = 0x80000000u;

// The order of magnitudes: |x| < |y| iff key(x) < key(y), with -0 equal to +0 and denormals in their place.
FSS_HD uint32_t key_of(float value) { return bits_of_float(value) & 0x7fffffffu; }

// Elements [begin, begin + count) of `row`; the k emitted ones go to `out`, an offset into indices and values.
struct Piece {
  int64_t row, begin, count, k, out;
};

// `full` pieces of `length` in each row, with k elements emitted of each, and a shorter last one if `tail` > 0.
struct Pieces {
  int64_t length, k, full, tail, k_tail;

  Pieces(int64_t n, int64_t length, int64_t k, int64_t k_tail)
      : length(length), k(k), full(length ? n / length : 0), tail(length ? n % length : 0), k_tail(k_tail) {}

  FSS_HD int64_t per_row() const { return full + (tail > 0 ? 1 : 0); }
  FSS_HD int64_t emitted_per_row() const { return full * k + (tail > 0 ? k_tail : 0); }
  FSS_HD int64_t longest() const { return full > 0 ? length : tail; }
  FSS_HD Piece at(int64_t i) const {
    const int64_t row = i / per_row(), p = i % per_row();
    const bool is_full = p < full;
    return {row, p * length, is_full ? length : tail, is_full ? k : k_tail, row * emitted_per_row() + p * k};
  }
};

}  // namespace fedsynsam::topk
