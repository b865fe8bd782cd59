// The first kernels of top-k of pieces longer than a tile: see topk_long.h.
#include <cmath>

#include "topk_long.h"

namespace fedsynsam::topk {
namespace {

// ---- estimate ----

constexpr int kRun = 8;  // consecutive elements of the sample: 32 bytes
constexpr int64_t kMostRuns = 16384;
constexpr int kSamplers = 512;    // threads
constexpr int kSampleShift = 18;  // the sample's histogram is of the key's upper 13 bits
constexpr int kSampleBins = 8192;
// How far the rank in a sample may be off: standard deviations of a count whose elements come in pairs, and a little
// for counts too small for that to mean much.
constexpr double kDeviations = 3.0, kSlack = 8.0;

// The sample of a piece, and the ranks in it between which the k-th largest probably lies. most = 0: all may be above
// lo; least = 0: there is no hi.
struct Sample {
  int64_t runs, drawn;
  uint32_t most, least;

  Sample(int64_t count, int64_t k) : runs(count / kRun), drawn(runs < kMostRuns ? runs : kMostRuns) {
    const double size = static_cast<double>(drawn * kRun);
    const double rank = size * static_cast<double>(k) / static_cast<double>(count > 0 ? count : 1);
    const double spread = drawn < runs ? std::sqrt(2.0 * rank * (1.0 - rank / size)) : 0.0;
    const double slack = kDeviations * spread + kSlack;
    most = rank + slack < size ? static_cast<uint32_t>(rank + slack) : 0;
    least = k * kSparse > count && rank - slack >= 1.0 ? static_cast<uint32_t>(rank - slack) + 1 : 0;
  }
};

template <typename Source, bool kResidual>
__global__ void __launch_bounds__(kSamplers)
    estimate(TopKArguments args, Pieces pieces, Scratch scratch, Sample full, Sample tail) {
  __shared__ uint32_t bins[kSampleBins];
  const Piece piece = pieces.at(blockIdx.x);
  const Part part = scratch.of(blockIdx.x);
  for (int b = threadIdx.x; b < kSampleBins; b += kSamplers) bins[b] = 0;
  for (int b = threadIdx.x; b < kRounds * kMostBins; b += kSamplers) part.bins[b] = 0;
  __syncthreads();

  const bool is_full = piece.count == pieces.length;
  const int64_t runs = is_full ? full.runs : tail.runs, drawn = is_full ? full.drawn : tail.drawn;
  const uint32_t most = is_full ? full.most : tail.most, least = is_full ? full.least : tail.least;
  const int64_t offset = piece.row * args.n + piece.begin;
  for (int64_t s = threadIdx.x; s < drawn * kRun; s += kSamplers) {
    // One run of each of `drawn` equal shares; a hash places it within its share, so that no period of the data is met.
    const uint64_t hash = static_cast<uint64_t>(s / kRun) * 0x9E3779B97F4A7C15u >> 33;
    const int64_t run = (s / kRun * runs + static_cast<int64_t>(hash % static_cast<uint64_t>(runs))) / drawn;
    const int64_t at = offset + run * kRun + s % kRun;
    float a = Source::load(static_cast<const typename Source::Storage*>(args.update)[at]);
    if (kResidual) a += args.residual[at];
    atomicAdd(bins + (key_of(a) >> kSampleShift), 1u);
  }
  __syncthreads();

  uint32_t lo = 0, hi = kNever;
  if (most) lo = bin_of<kSamplers, kSampleBins>(bins, most).number << kSampleShift;
  __syncthreads();  // bin_of's memory is free again
  if (least) hi = (bin_of<kSamplers, kSampleBins>(bins, least).number + 1) << kSampleShift;
  if (threadIdx.x != 0) return;
  part.choice->lo = lo, part.choice->hi = hi;
  part.choice->used = part.choice->sure = part.choice->overflow = 0;
}

// ---- collect ----

template <typename Source, bool kResidual>
__global__ void __launch_bounds__(kThreads, 4)
    collect(TopKArguments args, Pieces pieces, Scratch scratch, bool aligned) {
  const int64_t p = blockIdx.x / scratch.tiles, t = blockIdx.x % scratch.tiles;
  const Piece piece = pieces.at(p);
  if (t * kTile >= piece.count) return;  // a last piece that is shorter
  const Part part = scratch.of(p);
  Choice& choice = *part.choice;
  const int64_t offset = piece.row * args.n + piece.begin + t * kTile;
  Tile tile;
  tile.load<Source, kResidual>(args, offset, length_of(piece, t), aligned);
  if (tile.at_least(kInfinity) != 0) args.nonfinite[piece.row] = true;
  const uint32_t lo = choice.lo, hi = choice.hi;
  const Marks above = hi == kNever ? 0u : tile.at_least(hi);
  const Ranks listed = ranks_of(tile.at_least(lo) & ~above);
  uint32_t ignored;
  const uint32_t sure = hi == kNever ? 0 : block_scan<kThreads>(static_cast<uint32_t>(__popc(above)), ignored);

  __shared__ uint32_t first;
  if (threadIdx.x == 0) {
    uint32_t at = listed.all ? atomicAdd(&choice.used, listed.all) : 0;
    if (int64_t{at} + listed.all > scratch.room) {
      choice.overflow = 1;
      at = kNever;
    }
    if (sure) atomicAdd(&choice.sure, sure);
    part.tiles[t] = {at, at == kNever ? 0 : listed.all, sure, 0};
    first = at;
  }
  __syncthreads();
  const bool fits = first != kNever;
  tile.store(args.new_residual, offset, fits && hi == kNever ? listed.marks : 0u);
  if (!fits) return;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if ((listed.marks >> i & 1u) == 0) continue;
    const uint32_t at = first + listed.of(i);
    part.bits[at] = bits_of_float(tile.a[i]);
    part.places[at] = static_cast<uint16_t>(place_of(i));
  }
}

__global__ void __launch_bounds__(kThreads) put_back(TopKArguments args, Pieces pieces, Scratch scratch) {
  const Job job(args, pieces, scratch);
  if (args.nonfinite[job.piece.row] || !job.scans || !job.part.choice->zeroed()) return;
  for (int64_t t = job.begin; t < job.end; ++t) {
    const Listed listed = job.part.tiles[t];
    for (uint32_t j = threadIdx.x; j < listed.count; j += kThreads) {
      const uint32_t at = listed.first + j;
      args.new_residual[job.offset + t * kTile + job.part.places[at]] = float_of_bits(job.part.bits[at]);
    }
  }
}

}  // namespace

// ---- launches ----

void collect_all(const TopKArguments& args, const Pieces& pieces, const Scratch& scratch, cudaStream_t stream) {
  const int64_t count = args.rows * pieces.per_row();
  const Sample full(pieces.length, pieces.k), tail(pieces.tail, pieces.k_tail);
  const bool aligned = aligned_for_packs(args);
  for_kind(args, [&](auto source, auto residual) {
    using Source = decltype(source);
    constexpr bool kResidual = decltype(residual)::value;
    const auto one_a_piece = static_cast<unsigned>(count), one_a_tile = static_cast<unsigned>(count * scratch.tiles);
    FSS_LAUNCH((estimate<Source, kResidual>), one_a_piece, kSamplers, stream, args, pieces, scratch, full, tail);
    FSS_LAUNCH((collect<Source, kResidual>), one_a_tile, kThreads, stream, args, pieces, scratch, aligned);
  });
  FSS_LAUNCH(put_back, static_cast<unsigned>(count * scratch.groups), kThreads, stream, args, pieces, scratch);
}

}  // namespace fedsynsam::topk
