// A tile of top-k: 4096 elements in the registers of a block, and what both forms of top-k do with it.
#pragma once

#include <cstdint>

#include "block.h"
#include "fedsynsam.h"
#include "launch.h"
#include "numerics/topk.h"
#include "packs.h"

namespace fedsynsam::topk {

constexpr int kThreads = 256;
constexpr int kPack = 4;               // elements that a thread moves at once
constexpr int kPacks = 4;              // packs a thread
constexpr int kEach = kPack * kPacks;  // elements a thread
constexpr int kTile = kThreads * kEach;
constexpr int kWarpTile = 32 * kEach;  // consecutive elements of a warp, in kPacks runs of 32 packs

// The digits of a key, from the top: 11, 10 and 10 bits.
constexpr int kRounds = 3;
FSS_HD constexpr int shift_of(int round) { return round == 0 ? 20 : round == 1 ? 10 : 0; }
FSS_HD constexpr int bins_of(int round) { return round == 0 ? 2048 : 1024; }
constexpr int kMostBins = 2048;

// The upper digits of the k-th largest key, after some rounds, and the rank that is left among the keys that have them.
struct Found {
  uint32_t prefix, left;
};

FSS_HD bool has_prefix(uint32_t key, uint32_t prefix, int round) {
  return round == 0 || key >> shift_of(round) >> 10 == prefix;
}
FSS_HD uint32_t digit_of(uint32_t key, int round) {
  return key >> shift_of(round) & static_cast<uint32_t>(bins_of(round) - 1);
}
FSS_HD Found extended(Found found, const Bin& bin, int round) {
  return {round == 0 ? bin.number : found.prefix << 10 | bin.number, found.left - bin.above};
}

// Where this thread's element i lies in the tile.
__device__ inline int place_of(int i) {
  const int thread = static_cast<int>(threadIdx.x);
  return thread / 32 * kWarpTile + i / kPack * (32 * kPack) + thread % 32 * kPack + i % kPack;
}

// Which of a thread's elements: bit i for element i.
using Marks = uint32_t;
constexpr Marks kAllMarks = (1u << kEach) - 1;

struct Tile {
  float a[kEach];
  Marks there;    // not behind the end
  bool in_packs;  // full, and aligned for packs

  // Reads `count` elements of a = update + residual at `offset`.
  template <typename Source, bool kResidual>
  __device__ void load(const TopKArguments& args, int64_t offset, int count, bool aligned) {
    using Storage = typename Source::Storage;
    in_packs = aligned && count == kTile && offset % kPack == 0;
    there = kAllMarks;
    if (in_packs) {
#pragma unroll
      for (int g = 0; g < kPacks; ++g) {
        const int64_t at = offset + place_of(g * kPack);
        const auto update = load_pack<kPack, Storage>(args.update, at);
        Pack<float, kPack> residual{};
        if (kResidual) residual = load_pack<kPack, float>(args.residual, at);
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          const float value = Source::load(update.at[j]);
          a[g * kPack + j] = kResidual ? value + residual.at[j] : value;
        }
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = place_of(i);
      a[i] = 0.0f;
      if (place >= count) {
        there &= ~(1u << i);
        continue;
      }
      const float value = Source::load(static_cast<const Storage*>(args.update)[offset + place]);
      a[i] = kResidual ? value + args.residual[offset + place] : value;
    }
  }

  // Writes them, with 0 for those in `zeroed`.
  __device__ void store(float* target, int64_t offset, Marks zeroed) const {
#pragma unroll
    for (int g = 0; g < kPacks; ++g) {
      Pack<float, kPack> pack;
#pragma unroll
      for (int j = 0; j < kPack; ++j) pack.at[j] = zeroed >> (g * kPack + j) & 1u ? 0.0f : a[g * kPack + j];
      if (in_packs) {
        store_pack<kPack>(target, offset + place_of(g * kPack), pack);
        continue;
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const int i = g * kPack + j;
        if (there >> i & 1u) target[offset + place_of(i)] = pack.at[j];
      }
    }
  }

  // Those whose key is at least lo.
  __device__ Marks at_least(uint32_t lo) const {
    Marks marks = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) marks |= key_of(a[i]) >= lo ? 1u << i : 0u;
    return marks & there;
  }
};

// The ranks of marked elements in the order of their places.
struct Ranks {
  uint32_t before[kPacks];  // marked elements before this thread's pack
  uint32_t all;
  Marks marks;

  // For element i, marked or not: the marked ones before it.
  __device__ uint32_t of(int i) const {
    const Marks earlier = marks >> (i / kPack * kPack) & ((1u << i % kPack) - 1u);
    return before[i / kPack] + static_cast<uint32_t>(__popc(earlier));
  }
};

// All threads of the block, together. A warp's sums for its four runs fit a byte each: one scan does them all.
__device__ inline Ranks ranks_of(Marks marks) {
  static_assert(kPacks == 4 && 32 * kPack < 256, "four sums in a word");
  uint32_t counts = 0;
#pragma unroll
  for (int g = 0; g < kPacks; ++g) counts |= static_cast<uint32_t>(__popc(marks >> (g * kPack) & 15u)) << (8 * g);
  const uint32_t running = warp_scan(counts), sums = __shfl_sync(kAllLanes, running, 31);
  const uint32_t own = running - counts;
  Ranks ranks;
  ranks.marks = marks;
  uint32_t run = 0;
#pragma unroll
  for (int g = 0; g < kPacks; ++g) {
    ranks.before[g] = run + (own >> (8 * g) & 255u);
    run += sums >> (8 * g) & 255u;
  }
  uint32_t warps_before;
  ranks.all = scan_warps<kThreads>(run, warps_before);
#pragma unroll
  for (int g = 0; g < kPacks; ++g) ranks.before[g] += warps_before;
  return ranks;
}

// ---- launches ----

inline bool aligned_for_packs(const TopKArguments& args) {
  return aligned(args.update) && aligned(args.new_residual) && (!args.residual || aligned(args.residual));
}

// Calls launch(source, with_residual) with the element type and a constant that tells whether there is a residual.
template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};
template <typename Launch>
void for_kind(const TopKArguments& args, const Launch& launch) {
  const auto with = [&](auto source) {
    if (args.residual) {
      launch(source, Constant<true>{});
    } else {
      launch(source, Constant<false>{});
    }
  };
  if (args.dtype == Dtype::f32) {
    with(F32{});
  } else if (args.dtype == Dtype::bf16) {
    with(BF16{});
  } else {
    with(F16{});
  }
}

// Of topk_long.cu: emits pieces longer than a tile, with scratch of `long_scratch` words; returns CUDA's code.
int64_t long_scratch(int64_t rows, const Pieces& pieces);
int emit_long(const TopKArguments& args, const Pieces& pieces, uint32_t* scratch, cudaStream_t stream);

}  // namespace fedsynsam::topk
