// encode_indices and decode_indices on the CPU: see kernels/reference/index_coding.py for the layout.
#include <algorithm>
#include <cstddef>

#include "fedsynsam.h"
#include "numerics/index_coding.h"

namespace fedsynsam {
namespace {

using index_coding::Layout;

void encode_row(const int32_t* indices, int64_t k, const Layout& layout, uint32_t* words) {
  std::fill_n(words, layout.low_words + layout.high_words, 0u);
  uint32_t* high = words + layout.low_words;
  const int low = layout.low_bits;
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t index = static_cast<uint32_t>(indices[i]);
    for (int b = 0; b < low; ++b) words[(i * low + b) >> 5] |= (index >> b & 1u) << ((i * low + b) & 31);
    const int64_t bit = (static_cast<int64_t>(index) >> low) + i;
    if (bit < layout.high_bits) high[bit >> 5] |= 1u << (bit & 31);
  }
}

bool zero_from(const uint32_t* words, int64_t bit, int64_t count) {
  for (; bit < count * 32; ++bit) {
    if (words[bit >> 5] >> (bit & 31) & 1u) return false;
  }
  return true;
}

bool decode_row(const uint32_t* words, int64_t n, int64_t k, const Layout& layout, int32_t* indices) {
  const uint32_t* high = words + layout.low_words;
  if (!zero_from(words, k * layout.low_bits, layout.low_words)) return false;
  if (!zero_from(high, layout.high_bits, layout.high_words)) return false;
  int64_t i = 0, previous = -1;
  for (int64_t bit = 0; bit < layout.high_bits; ++bit) {
    if (!(high[bit >> 5] >> (bit & 31) & 1u)) continue;
    if (i == k) return false;
    int64_t index = (bit - i) << layout.low_bits;
    if (layout.low_bits) index |= index_coding::low_entry(words, i, layout.low_bits);
    if (index <= previous || index >= n) return false;
    indices[i++] = static_cast<int32_t>(previous = index);
  }
  return i == k;
}

}  // namespace

void encode_indices_cpu(const int32_t* indices, int64_t rows, int64_t k, int64_t n, uint32_t* words, int) {
  const Layout layout = index_coding::layout_of(n, k);
  for (int64_t row = 0; row < rows; ++row) {
    encode_row(indices + row * k, k, layout, words + row * (layout.low_words + layout.high_words));
  }
}

void decode_indices_cpu(const uint32_t* words, int64_t rows, int64_t n, int64_t k, int32_t* indices, bool* valid, int) {
  const Layout layout = index_coding::layout_of(n, k);
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* out = indices + row * k;
    valid[row] = decode_row(words + row * (layout.low_words + layout.high_words), n, k, layout, out);
    if (!valid[row]) {
      for (int64_t i = 0; i < k; ++i) out[i] = static_cast<int32_t>(i);
    }
  }
}

}  // namespace fedsynsam
