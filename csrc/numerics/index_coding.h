// Sizes of an Elias-Fano index stream and its bit accesses, once, for CPU, CUDA and emulation.
// kernels/reference/index_coding.py gives the layout.
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

// The low vector's entry i: `low` bits (at most 31) from bit i * low, which touch at most two words.
FSS_HD uint32_t low_entry(const uint32_t* words, int64_t i, int low) {
  const int64_t bit = i * low;
  const int64_t word = bit >> 5;
  const int shift = static_cast<int>(bit & 31);
  uint64_t pair = words[word];
  if (shift + low > 32) pair |= static_cast<uint64_t>(words[word + 1]) << 32;
  return static_cast<uint32_t>(pair >> shift) & ((1u << low) - 1u);
}

}  // namespace fedsynsam::index_coding
