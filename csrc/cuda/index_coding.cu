// encode_indices and decode_indices on the GPU: see kernels/reference/index_coding.py for the layout.
//
// Encoding: a memset of the high vector, then one kernel whose blocks own kRanks ranks each. These are a whole number
// of words of the low vector, which one thread each gathers. In the high vector the blocks meet, anywhere if the
// indices do not ascend: a block collects its ones in shared memory and adds them by atomicOr, which has no order.
//
// Decoding: (1) each block counts the ones in its share of the high vector; (2) each block adds the counts of the
// blocks before it, and writes the index of every one in its share; (3) rows found to be illegal get 0..k-1. A row has
// at most kMaxBlocks blocks, so that adding their counts costs less than a launch. Words are never trusted: a row that
// does not hold exactly k ones writes nothing in (2).
#include <cstdint>

#include "block.h"
#include "fedsynsam.h"
#include "launch.h"
#include "numerics/index_coding.h"

namespace fedsynsam {
namespace {

using index_coding::Layout;

constexpr int kThreads = 256;

// ---- encoding ----

constexpr int kRanksPerThread = 8;
constexpr int kRanks = kThreads * kRanksPerThread;
constexpr int kWindow = kThreads;  // words of the high vector; kRanks ranks take 128 to 192 if they lie evenly

// Where a block keeps the index of its rank i: eight consecutive ones a thread without bank conflicts.
__device__ int slot_of(int i) { return i + i / kRanksPerThread; }
constexpr int kSlots = kRanks + kThreads;

// The words of the low vector for `count` ranks of which the first starts a word.
__device__ void write_low(const uint32_t* index, int count, int low, uint32_t* words) {
  const uint32_t mask = index_coding::low_mask(low);
  const int length = (count * low + 31) / 32;
  for (int w = threadIdx.x; w < length; w += kThreads) {
    int i = 32 * w / low;
    int bit = i * low - 32 * w;
    uint32_t word = (index[slot_of(i)] & mask) >> -bit;
    for (++i, bit += low; bit < 32 && i < count; ++i, bit += low) word |= (index[slot_of(i)] & mask) << bit;
    words[w] = word;
  }
}

// A block's ones on their way to the high vector: those in the kWindow words from `base` on meet in shared memory.
struct Window {
  uint32_t* shared;
  int64_t base;
  uint32_t* words;

  __device__ void add(int64_t word, uint32_t bits) {
    if (bits == 0) return;
    const int64_t place = word - base;
    if (place >= 0 && place < kWindow) {
      atomicOr(shared + place, bits);
    } else {
      atomicOr(words + word, bits);
    }
  }
};

// The ones of this thread's consecutive ranks; a one behind the end of the vector is left out.
__device__ void collect_high(const uint32_t* index, int64_t first, int count, const Layout& layout, Window& window) {
  const int begin = threadIdx.x * kRanksPerThread;
  int64_t current = window.base;
  uint32_t waiting = 0;
#pragma unroll
  for (int i = begin; i < begin + kRanksPerThread; ++i) {
    if (i >= count) break;
    const int64_t bit = index_coding::high_bit(index[slot_of(i)], first + i, layout.low_bits);
    if (bit >= layout.high_bits) continue;
    if (bit >> 5 != current) {
      window.add(current, waiting);
      current = bit >> 5;
      waiting = 0;
    }
    waiting |= 1u << (bit & 31);
  }
  window.add(current, waiting);
}

__global__ void __launch_bounds__(kThreads)
    encode_ranks(const int32_t* indices, int64_t k, int64_t blocks, Layout layout, uint32_t* words) {
  __shared__ uint32_t index[kSlots];
  __shared__ uint32_t collected[kWindow];
  const int64_t row = blockIdx.x / blocks, first = blockIdx.x % blocks * kRanks;
  const int count = static_cast<int>(k - first < kRanks ? k - first : kRanks);
  const int32_t* mine = indices + row * k + first;
  uint32_t* low = words + row * (layout.low_words + layout.high_words);
  uint32_t* high = low + layout.low_words;

  collected[threadIdx.x] = 0;
#pragma unroll
  for (int step = 0; step < kRanksPerThread; ++step) {
    const int i = step * kThreads + threadIdx.x;
    if (i < count) index[slot_of(i)] = static_cast<uint32_t>(mine[i]);
  }
  __syncthreads();
  Window window{collected, index_coding::high_bit(index[0], first, layout.low_bits) >> 5, high};
  collect_high(index, first, count, layout, window);
  if (layout.low_bits > 0) write_low(index, count, layout.low_bits, low + first / 32 * layout.low_bits);
  __syncthreads();
  const uint32_t bits = collected[threadIdx.x];
  if (bits != 0) atomicOr(high + window.base + threadIdx.x, bits);
}

// ---- decoding ----

constexpr int64_t kTile = kThreads;  // words of the high vector that a block takes at once, one a thread
constexpr int64_t kMaxBlocks = 4 * kThreads;

// How a row's high vector is shared: `blocks` blocks of `tiles` tiles each; the last may have less.
struct Shares {
  int64_t tiles, blocks;

  explicit Shares(const Layout& layout) {
    const int64_t all = (layout.high_words + kTile - 1) / kTile;
    tiles = (all + kMaxBlocks - 1) / kMaxBlocks;
    blocks = tiles == 0 ? 0 : (all + tiles - 1) / tiles;
  }
};

// Also opens the row's verdict, with what needs no index: the padding.
__global__ void __launch_bounds__(kThreads)
    count_ones(const uint32_t* words, int64_t k, Layout layout, Shares shares, uint32_t* counts, bool* valid) {
  const int64_t row = blockIdx.x / shares.blocks, share = blockIdx.x % shares.blocks;
  const uint32_t* low = words + row * (layout.low_words + layout.high_words);
  const uint32_t* high = low + layout.low_words;
  uint32_t count = 0, before;
  int64_t w = share * shares.tiles * kTile + threadIdx.x;
  for (int64_t tile = 0; tile < shares.tiles && w < layout.high_words; ++tile, w += kTile) count += __popc(high[w]);
  count = block_scan<kThreads>(count, before);
  if (threadIdx.x != 0) return;
  counts[blockIdx.x] = count;
  if (share != 0) return;
  valid[row] = index_coding::padding_is_zero(low, k * layout.low_bits, layout.low_words) &&
               index_coding::padding_is_zero(high, layout.high_bits, layout.high_words);
}

// The ones of a row before its share and in all. A row has at most 2^32 places: a sum that wraps around is 0, never k.
struct Ranks {
  uint32_t before, all;
};

__device__ Ranks add_counts(const uint32_t* counts, Shares shares, int64_t share) {
  uint32_t mine_before = 0, mine = 0, ignored;
  for (int64_t b = threadIdx.x; b < shares.blocks; b += kThreads) {
    const uint32_t count = counts[b];
    mine += count;
    if (b < share) mine_before += count;
  }
  const uint32_t before = block_scan<kThreads>(mine_before, ignored);
  return {before, block_scan<kThreads>(mine, ignored)};
}

// Whether the index of rank i, whose one is at `bit`, is above that of rank i - 1. High parts never descend; they are
// equal if and only if the two ones are neighbours.
__device__ bool ascends(const uint32_t* low, const uint32_t* high, int64_t bit, int64_t i, uint32_t low_part,
                        int low_bits) {
  if (bit == 0 || (high[(bit - 1) >> 5] >> ((bit - 1) & 31) & 1u) == 0) return true;
  return low_part > index_coding::low_part(low, i - 1, low_bits);
}

// Places of a tile's ones, in shared memory by rank.
struct Tile {
  uint16_t* places;
  int count;
};

__device__ Tile list_ones(uint32_t ones) {
  __shared__ uint16_t places[kTile * 32];
  uint32_t rank;
  const uint32_t count = block_scan<kThreads>(static_cast<uint32_t>(__popc(ones)), rank);
  for (; ones != 0; ones &= ones - 1u, ++rank) {
    places[rank] = static_cast<uint16_t>(threadIdx.x * 32 + __ffs(static_cast<int>(ones)) - 1);
  }
  __syncthreads();
  return {places, static_cast<int>(count)};
}

__global__ void __launch_bounds__(kThreads)
    select_ones(const uint32_t* words, int64_t n, int64_t k, Layout layout, Shares shares, const uint32_t* counts,
                int32_t* indices, bool* valid) {
  const int64_t row = blockIdx.x / shares.blocks, share = blockIdx.x % shares.blocks;
  const uint32_t* low = words + row * (layout.low_words + layout.high_words);
  const uint32_t* high = low + layout.low_words;
  int32_t* out = indices + row * k;
  const Ranks ranks = add_counts(counts + row * shares.blocks, shares, share);
  if (ranks.all != static_cast<uint32_t>(k)) {
    if (share == 0 && threadIdx.x == 0) valid[row] = false;
    return;
  }
  bool legal = true;
  int64_t first = ranks.before;
  for (int64_t tile = share * shares.tiles; tile < (share + 1) * shares.tiles; ++tile) {
    const int64_t w = tile * kTile + threadIdx.x;
    const Tile found = list_ones(w < layout.high_words ? high[w] : 0u);
    for (int j = threadIdx.x; j < found.count; j += kThreads) {
      const int64_t i = first + j, bit = tile * kTile * 32 + found.places[j];
      const uint32_t low_part = index_coding::low_part(low, i, layout.low_bits);
      const uint32_t index = index_coding::index_at(bit, i, low_part, layout.low_bits);
      legal = legal && ascends(low, high, bit, i, low_part, layout.low_bits) && (i + 1 < k || index < n);
      out[i] = static_cast<int32_t>(index);
    }
    first += found.count;
    __syncthreads();  // the next tile's places go where these are
  }
  if (!legal) valid[row] = false;
}

constexpr int64_t kFill = kThreads * 64;  // indices of an illegal row that a block replaces

__global__ void __launch_bounds__(kThreads)
    fill_illegal(int64_t k, int64_t blocks, const bool* valid, int32_t* indices) {
  const int64_t row = blockIdx.x / blocks, begin = blockIdx.x % blocks * kFill;
  if (valid[row]) return;
  const int64_t end = k < begin + kFill ? k : begin + kFill;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) indices[row * k + i] = static_cast<int32_t>(i);
}

}  // namespace

// ---- launches ----

int encode_indices_cuda(const int32_t* indices, int64_t rows, int64_t k, int64_t n, uint32_t* words,
                        void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (rows * k == 0) return 0;
  const int64_t blocks = (k + kRanks - 1) / kRanks;
  if (rows > kMaxGrid / blocks) return kGridTooLarge;
  const Layout layout = index_coding::layout_of(n, k);
  // Of one row the high vector alone; of several rows all, which is one piece of memory.
  const int64_t skipped = rows == 1 ? layout.low_words : 0;
  const int64_t cleared = rows * (layout.low_words + layout.high_words) - skipped;
  if (const int error = cudaMemsetAsync(words + skipped, 0, static_cast<size_t>(cleared) * 4, stream)) return error;
  FSS_LAUNCH(encode_ranks, static_cast<unsigned>(rows * blocks), kThreads, stream, indices, k, blocks, layout, words);
  return static_cast<int>(cudaGetLastError());
}

int64_t decode_indices_cuda_counts(int64_t n, int64_t k) { return Shares(index_coding::layout_of(n, k)).blocks; }

int decode_indices_cuda(const uint32_t* words, int64_t rows, int64_t n, int64_t k, uint32_t* counts, int32_t* indices,
                        bool* valid, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (rows == 0) return 0;
  if (k == 0) return static_cast<int>(cudaMemsetAsync(valid, 1, static_cast<size_t>(rows), stream));
  const Layout layout = index_coding::layout_of(n, k);
  const Shares shares(layout);
  const int64_t fills = (k + kFill - 1) / kFill;
  if (rows > kMaxGrid / shares.blocks || rows > kMaxGrid / fills) return kGridTooLarge;
  const auto grid = static_cast<unsigned>(rows * shares.blocks);
  FSS_LAUNCH(count_ones, grid, kThreads, stream, words, k, layout, shares, counts, valid);
  FSS_LAUNCH(select_ones, grid, kThreads, stream, words, n, k, layout, shares, counts, indices, valid);
  FSS_LAUNCH(fill_illegal, static_cast<unsigned>(rows * fills), kThreads, stream, k, fills, valid, indices);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace fedsynsam
