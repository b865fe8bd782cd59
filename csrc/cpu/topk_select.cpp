// Selection by bisection of the key's bits: counting is so cheap in vectors that a histogram would be slower.
#include "cpu/topk_select.h"

#include <algorithm>

namespace fedsynsam::topk {
namespace {

int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

int64_t count_all(const Segment* segments, int64_t segment_count, uint32_t lo) {
  int64_t count = 0;
  for (int64_t s = 0; s < segment_count; ++s) count += count_at_least(segments[s], lo);
  return count;
}

uint32_t smallest_of_all(const Segment* segments, int64_t segment_count, uint32_t lo) {
  uint32_t smallest = kNever;
  for (int64_t s = 0; s < segment_count; ++s) {
    smallest = std::min(smallest, kernels().smallest_at_least(segments[s].bits, padded(segments[s].count), lo));
  }
  return smallest;
}

}  // namespace

void Candidates::pad() { std::fill(bits_.get() + count, bits_.get() + padded(count), 0u); }

int64_t count_at_least(const Segment& segment, uint32_t lo) {
  if (lo == 0) return segment.count;  // the padding is not an element
  return kernels().count_at_least(segment.bits, padded(segment.count), lo);
}

uint32_t kth_largest(const Segment* segments, int64_t segment_count, int64_t k, uint32_t lo, uint32_t hi) {
  if (lo >= hi) return lo;
  const int top = 31 - __builtin_clz(lo ^ hi);
  uint32_t threshold = hi >> top >> 1 << top << 1;  // the bits that lo and hi share
  for (int bit = top; bit >= 0; --bit) {
    const uint32_t trial = threshold | 1u << bit;
    const int64_t count = count_all(segments, segment_count, trial);
    if (count == k) return smallest_of_all(segments, segment_count, trial);
    if (count > k) threshold = trial;
  }
  return threshold;
}

}  // namespace fedsynsam::topk
