// Top-k of a piece that fits a core's cache: one pass over memory, the rest within the cache.
//
// The k-th largest of the maxima of disjoint sets is a lower bound of the k-th largest element, and a close one if
// there are many more sets than k. What reaches the bound is a short list, and selecting from it is cheap.
#include <algorithm>

#include "cpu/topk_piece.h"

namespace fedsynsam::topk {
namespace {

constexpr int64_t kLargestSet = 16;
constexpr int64_t kSetsPerElement = 4;  // sets for each element to be emitted

constexpr uint32_t kLowered = 1u << 20;  // an eighth of an octave, as a difference of keys

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A key that at least k of the `count` elements reach.
uint32_t lower_bound(Scratch& scratch, int64_t count, int64_t k, uint32_t top) {
  int64_t set = kLargestSet;
  while (set > 1 && set * kSetsPerElement * k > count) set /= 2;
  if (set == 1) return 0;  // too dense for a bound to shorten anything
  float* a = scratch.a.get();
  const int64_t padded = round_up(count, 16 * set);
  std::fill(a + count, a + padded, 0.0f);
  kernels().maxima(a, padded, set, scratch.maxima.get());
  const Segment sets{scratch.maxima.get(), padded / set};
  return kth_largest(&sets, 1, k, 0, top);
}

// Ties stand across the cut: emit one by one from the candidates.
void emit_with_ties(const TopKArguments& args, const Piece& piece, Cut cut, Scratch& scratch) {
  Output output(args, piece, 0);
  const uint32_t* index = scratch.candidates.index();
  const uint32_t* bits = scratch.candidates.bits();
  for (int64_t j = 0; j < scratch.candidates.count; ++j) {
    if (!cut.takes(bits[j])) continue;
    output.emit(static_cast<uint32_t>(piece.begin) + index[j], bits[j]);
    scratch.a[index[j]] = 0.0f;
  }
}

}  // namespace

Scratch::Scratch(int64_t count)
    : a(uninitialized<float>(count + 16 * kLargestSet)),
      maxima(uninitialized<uint32_t>(count + 16 * kLargestSet)),
      candidates(count) {}

bool emit_cached(const TopKArguments& args, const Piece& piece, Store store, Scratch& scratch) {
  const int64_t offset = piece.row * args.n + piece.begin;
  float* target = args.new_residual + offset;
  if (piece.k == 0) return accumulate(args, offset, piece.count, target, store) < kInfinity;

  // Pieces resemble their neighbours: with the last threshold, lowered a little, the first pass may find enough.
  float* a = scratch.a.get();
  scratch.candidates.count = 0;
  Sink sink = scratch.candidates.sink();
  uint32_t lo = scratch.guess;
  const uint32_t top = absorb(args, offset, piece.count, a, Store::plain, Taken::kept, lo, 0, &sink);
  if (top >= kInfinity) return false;
  if (sink.count < piece.k) {
    lo = lower_bound(scratch, piece.count, piece.k, top);
    sink = scratch.candidates.sink();
    kernels().collect(a, piece.count, lo, &sink);
  }
  scratch.candidates.count = sink.count;
  scratch.candidates.pad();
  const Segment candidates = segment_of(scratch.candidates);
  const uint32_t threshold = kth_largest(&candidates, 1, piece.k, lo, top);
  scratch.guess = threshold > kLowered ? threshold - kLowered : kNever;

  if (count_at_least(candidates, threshold) == piece.k) {  // the copy to the residual emits on its way
    Sink output = Output(args, piece, 0).sink();
    kernels().absorb(a, nullptr, piece.count, target, store, Taken::zeroed, threshold,
                     static_cast<uint32_t>(piece.begin), &output);
  } else {
    const int64_t above = count_at_least(candidates, threshold + 1);
    emit_with_ties(args, piece, {threshold, piece.k - above}, scratch);
    Sink nowhere{nullptr, nullptr, 0};
    kernels().absorb(a, nullptr, piece.count, target, store, Taken::kept, kNever, 0, &nowhere);
  }
  return true;
}

}  // namespace fedsynsam::topk
