// The unit of top-k's work: a piece of a row (all of it, or a chunk), from which k elements are emitted.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/topk_select.h"
#include "fedsynsam.h"
#include "numerics/topk.h"

namespace fedsynsam::topk {

// Pieces up to this length are held in a core's cache; longer ones stream through it.
constexpr int64_t kCachedPiece = 65536;

// Half-precision elements are converted, and streamed pieces handled, this many at a time: a few fit the L1 cache.
constexpr int64_t kTile = 4096;

// Memory of one thread for pieces of up to `count` elements.
struct Scratch {
  explicit Scratch(int64_t count);
  std::unique_ptr<float[]> a;
  std::unique_ptr<uint32_t[]> maxima;
  Candidates candidates;
  uint32_t guess = kNever;  // a key that the next piece's k largest probably reach: the last piece's, lowered
};

// Emit the piece: indices, values and residual. False, with outputs unspecified, if the piece is not finite.
bool emit_cached(const TopKArguments& args, const Piece& piece, Store store, Scratch& scratch);
bool emit_streamed(const TopKArguments& args, const Piece& piece, Store store, int threads);

// `absorb` of the kernels for `count` elements at `offset` of the whole update, of any dtype.
uint32_t absorb(const TopKArguments& args, int64_t offset, int64_t count, float* target, Store store, Taken taken,
                uint32_t lo, uint32_t base, Sink* sink);

// The same with nothing taken.
uint32_t accumulate(const TopKArguments& args, int64_t offset, int64_t count, float* target, Store store);

// Where an emitted element of a piece goes.
struct Output {
  int32_t* index;
  float* value;

  Output(const TopKArguments& args, const Piece& piece, int64_t skip)
      : index(args.indices + piece.out + skip), value(args.values + piece.out + skip) {}

  void emit(uint32_t i, uint32_t bits) {
    *index++ = static_cast<int32_t>(i);
    memcpy(value++, &bits, sizeof bits);
  }
  // As the sink of a kernel that emits by itself.
  Sink sink() const { return {reinterpret_cast<uint32_t*>(index), reinterpret_cast<uint32_t*>(value), 0}; }
};

// Which elements are emitted: all above the threshold and the first `ties` of those equal to it.
struct Cut {
  uint32_t threshold;
  int64_t ties;

  bool takes(uint32_t bits) {
    const uint32_t key = bits & 0x7fffffffu;
    return key > threshold || (key == threshold && ties-- > 0);
  }
};

}  // namespace fedsynsam::topk
