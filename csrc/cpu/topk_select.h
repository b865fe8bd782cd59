// Finding the k-th largest key among candidates, and the memory that holds them.
#pragma once

#include <cstdint>
#include <memory>

#include "cpu/topk_kernels.h"

namespace fedsynsam::topk {

// An array that is not cleared: memory that is never touched is never made resident.
template <typename T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

// Index and float32 bits of up to `capacity` elements, ascending by index.
class Candidates {
 public:
  explicit Candidates(int64_t capacity = 0)
      : index_(uninitialized<uint32_t>(capacity)), bits_(uninitialized<uint32_t>(capacity + kPad)) {}

  Sink sink() { return {index_.get(), bits_.get(), count}; }
  const uint32_t* index() const { return index_.get(); }
  const uint32_t* bits() const { return bits_.get(); }
  // Fills the last vector up with zeros, as the counting loops want it.
  void pad();

  int64_t count = 0;

 private:
  std::unique_ptr<uint32_t[]> index_, bits_;
};

// Bits of elements, followed by zeros up to a multiple of kPad.
struct Segment {
  const uint32_t* bits;
  int64_t count;
};

inline Segment segment_of(const Candidates& candidates) { return {candidates.bits(), candidates.count}; }

// How many keys of the segment are at least lo.
int64_t count_at_least(const Segment& segment, uint32_t lo);

// The k-th largest key (k >= 1) of all segments together, known to lie in [lo, hi].
uint32_t kth_largest(const Segment* segments, int64_t segment_count, int64_t k, uint32_t lo, uint32_t hi);

}  // namespace fedsynsam::topk
