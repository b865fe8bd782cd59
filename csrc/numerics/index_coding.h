// The layout of an Elias-Fano index stream and its bit accesses, once, for CPU, CUDA and emulation.
// kernels/reference/index_coding.py describes it.
#pragma once

#include <cstdint>

#include "common.h"

namespace fedsynsam::index_coding {

// l, the words of the low vector, the bits and the words of the high vector.
struct Layout {
  int low_bits;
  int64_t low_words, high_bits, high_words;
};

FSS_HD Layout layout_of(int64_t n, int64_t k) {
  if (k == 0) return {0, 0, 0, 0};
  int low = 0;
  while ((n / k) >> (low + 1)) ++low;
  const int64_t high_bits = k + ((n - 1) >> low);
  return {low, (k * low + 31) / 32, high_bits, (high_bits + 31) / 32};
}

FSS_HD uint32_t low_mask(int low) { return (1u << low) - 1u; }

// The bit of the high vector for the index of rank i.
FSS_HD int64_t high_bit(uint32_t index, int64_t i, int low) { return static_cast<int64_t>(index >> low) + i; }

// The index of rank i, from its bit in the high vector and its low part.
FSS_HD uint32_t index_at(int64_t bit, int64_t i, uint32_t low_part, int low) {
  return static_cast<uint32_t>(bit - i) << low | low_part;
}

// The low part of rank i: `low` bits (at most 30) from bit i * low on, in at most two words.
FSS_HD uint32_t low_part(const uint32_t* words, int64_t i, int low) {
  if (low == 0) return 0;
  const int64_t bit = i * low;
  const int shift = static_cast<int>(bit & 31);
  uint64_t pair = words[bit >> 5];
  if (shift + low > 32) pair |= static_cast<uint64_t>(words[(bit >> 5) + 1]) << 32;
  return static_cast<uint32_t>(pair >> shift) & low_mask(low);
}

// Whether the bits from `bit` on are zero in the last of `count` words; bit lies in it or just behind it.
FSS_HD bool padding_is_zero(const uint32_t* words, int64_t bit, int64_t count) {
  return bit == count * 32 || words[count - 1] >> (bit & 31) == 0;
}

}  // namespace fedsynsam::index_coding
