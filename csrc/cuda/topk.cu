// topk and chunk_topk on the GPU: see kernels/reference/topk.py for the contract.
//
// Rows are cut into pieces: a row, or its chunks. A piece of at most kTile elements is one block's: it reads them into
// registers, finds the k-th largest key digit by digit with histograms in shared memory, and writes indices, values and
// residual: one pass over memory. Longer pieces are in topk_long.cu. Rows that are not finite are flagged on the way
// and put right by a last kernel, which otherwise returns at once.
#include "topk_tile.h"

namespace fedsynsam {
namespace topk {
namespace {

// The key of rank k of the tile and how many that equal it are to be emitted; `inside` of them there are.
struct Threshold {
  uint32_t key, ties, inside;
};

__device__ Threshold find_threshold(const Tile& tile, uint32_t k) {
  __shared__ uint32_t bins[kMostBins];
  Found found{0, k};
  Bin bin{0, 0, 0};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    for (int b = threadIdx.x; b < bins_of(round); b += kThreads) bins[b] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t key = key_of(tile.a[i]);
      const bool counts = (tile.there >> i & 1u) != 0 && has_prefix(key, found.prefix, round);
      if (counts) atomicAdd(bins + digit_of(key, round), 1u);
    }
    __syncthreads();
    bin = round == 0 ? bin_of<kThreads, bins_of(0)>(bins, found.left) : bin_of<kThreads, bins_of(1)>(bins, found.left);
    found = extended(found, bin, round);
    __syncthreads();  // the next round clears the bins
  }
  return {found.prefix, found.left, bin.inside};
}

template <typename Source, bool kResidual>
__global__ void __launch_bounds__(kThreads, 3) emit_tile(TopKArguments args, Pieces pieces, bool aligned) {
  const Piece piece = pieces.at(blockIdx.x);
  const int64_t offset = piece.row * args.n + piece.begin;
  Tile tile;
  tile.load<Source, kResidual>(args, offset, static_cast<int>(piece.count), aligned);
  if (tile.at_least(kInfinity) != 0) args.nonfinite[piece.row] = true;
  if (piece.k == 0) {
    tile.store(args.new_residual, offset, 0);
    return;
  }
  const Threshold threshold = find_threshold(tile, static_cast<uint32_t>(piece.k));
  Marks wins = tile.at_least(threshold.key);
  if (threshold.inside != threshold.ties) {  // only the first of the equal ones win
    const Marks above = tile.at_least(threshold.key + 1);
    const Ranks ties = ranks_of(wins & ~above);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (ties.marks >> i & 1u && ties.of(i) >= threshold.ties) wins &= ~(1u << i);
    }
  }
  const Ranks ranks = ranks_of(wins);
  tile.store(args.new_residual, offset, wins);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if ((wins >> i & 1u) == 0) continue;
    const int64_t out = piece.out + ranks.of(i);
    args.indices[out] = static_cast<int32_t>(piece.begin + place_of(i));
    args.values[out] = tile.a[i];
  }
}

constexpr int64_t kUndo = 65536;  // elements that a block puts right

// Nothing of a flagged row is emitted, and its residual is as it was, to the bit.
__global__ void __launch_bounds__(kThreads) undo_rows(TopKArguments args, int64_t k, int64_t blocks) {
  const int64_t row = blockIdx.x / blocks, begin = blockIdx.x % blocks * kUndo;
  if (!args.nonfinite[row]) return;
  const int64_t end = args.n < begin + kUndo ? args.n : begin + kUndo;
  const auto* old = reinterpret_cast<const uint32_t*>(args.residual);
  auto* target = reinterpret_cast<uint32_t*>(args.new_residual);
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    target[row * args.n + i] = old ? old[row * args.n + i] : 0u;
    if (i >= k) continue;
    args.indices[row * k + i] = static_cast<int32_t>(i);
    args.values[row * k + i] = 0.0f;
  }
}

// ---- launches ----

int emit_tiles(const TopKArguments& args, const Pieces& pieces, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(args.rows * pieces.per_row());
  const bool aligned = aligned_for_packs(args);
  for_kind(args, [&](auto source, auto residual) {
    FSS_LAUNCH((emit_tile<decltype(source), decltype(residual)::value>), grid, kThreads, stream, args, pieces, aligned);
  });
  return static_cast<int>(cudaGetLastError());
}

int undo_flagged(const TopKArguments& args, int64_t k, cudaStream_t stream) {
  const int64_t blocks = (args.n + kUndo - 1) / kUndo;
  FSS_LAUNCH(undo_rows, static_cast<unsigned>(args.rows * blocks), kThreads, stream, args, k, blocks);
  return static_cast<int>(cudaGetLastError());
}

int emit_all(const TopKArguments& args, const Pieces& pieces, uint32_t* scratch, cudaStream_t stream) {
  if (args.rows == 0) return 0;
  // Of all the launches the one with a block for each tile of each piece has the most.
  const int64_t tiles = pieces.per_row() * ((pieces.longest() + kTile - 1) / kTile);
  if (tiles > 0 && args.rows > kMaxGrid / tiles) return kGridTooLarge;
  if (const int error = cudaMemsetAsync(args.nonfinite, 0, static_cast<size_t>(args.rows), stream)) return error;
  if (args.n == 0) return 0;
  const bool is_long = pieces.longest() > kTile;
  const int error = is_long ? emit_long(args, pieces, scratch, stream) : emit_tiles(args, pieces, stream);
  return error ? error : undo_flagged(args, pieces.emitted_per_row(), stream);
}

}  // namespace
}  // namespace topk

int64_t topk_cuda_scratch(int64_t rows, int64_t n, int64_t chunk) {
  return topk::long_scratch(rows, topk::Pieces(n, chunk, 0, 0));
}

int topk_cuda(const TopKArguments& args, int64_t k, uint32_t* scratch, void* stream) {
  return topk::emit_all(args, {args.n, args.n, k, 0}, scratch, static_cast<cudaStream_t>(stream));
}

int chunk_topk_cuda(const TopKArguments& args, int64_t chunk, int64_t k_chunk, int64_t k_tail, uint32_t* scratch,
                    void* stream) {
  return topk::emit_all(args, {args.n, chunk, k_chunk, k_tail}, scratch, static_cast<cudaStream_t>(stream));
}

}  // namespace fedsynsam
