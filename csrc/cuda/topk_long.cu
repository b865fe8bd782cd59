// The last kernels of top-k of pieces longer than a tile: see topk_long.h.
#include "topk_long.h"

namespace fedsynsam::topk {
namespace {

// ---- find ----

// What the rounds before `round` found; the first block of a piece writes it down for the kernels that follow.
__device__ Found found_before(const Job& job, int round) {
  Choice& choice = *job.part.choice;
  Found found{0, static_cast<uint32_t>(job.scans ? job.piece.k : job.piece.k - choice.sure)};
  if (round == 0) return found;
  if (round > 1) found = choice.found[round - 1];
  const uint32_t* bins = job.part.bins + (round - 1) * kMostBins;
  const Bin bin =
      round == 1 ? bin_of<kThreads, bins_of(0)>(bins, found.left) : bin_of<kThreads, bins_of(1)>(bins, found.left);
  found = extended(found, bin, round - 1);
  if (job.group == 0 && threadIdx.x == 0) choice.found[round] = found;
  return found;
}

template <int kRound>
__global__ void __launch_bounds__(kThreads) find(TopKArguments args, Pieces pieces, Scratch scratch) {
  __shared__ uint32_t bins[bins_of(kRound)];
  const Job job(args, pieces, scratch);
  if (args.nonfinite[job.piece.row] || job.piece.k == 0) return;
  const Found found = found_before(job, kRound);

  // The block's share of a, or of the list.
  int64_t begin = job.begin * kTile, end = job.end * kTile < job.piece.count ? job.end * kTile : job.piece.count;
  if (!job.scans) {
    const int64_t used = job.part.choice->used, even = (used + scratch.groups - 1) / scratch.groups;
    const int64_t share = even < kTile ? kTile : even;
    begin = job.group * share;
    end = begin + share < used ? begin + share : used;
  }
  if (begin >= end) return;
  for (int b = threadIdx.x; b < bins_of(kRound); b += kThreads) bins[b] = 0;
  __syncthreads();
  const uint32_t* source =
      job.scans ? reinterpret_cast<const uint32_t*>(args.new_residual + job.offset) : job.part.bits;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const uint32_t key = source[i] & 0x7fffffffu;
    if (has_prefix(key, found.prefix, kRound)) atomicAdd(bins + digit_of(key, kRound), 1u);
  }
  __syncthreads();
  uint32_t* all = job.part.bins + kRound * kMostBins;
  for (int b = threadIdx.x; b < bins_of(kRound); b += kThreads) {
    if (bins[b] != 0) atomicAdd(all + b, bins[b]);
  }
}

// ---- count ----

// In the upper half what is above the threshold, in the lower half what equals it: up to kTile each.
__device__ uint32_t tally(uint32_t bits, uint32_t threshold) {
  const uint32_t key = bits & 0x7fffffffu;
  return key > threshold ? 1u << 16 : key == threshold ? 1u : 0u;
}

__global__ void __launch_bounds__(kThreads) count(TopKArguments args, Pieces pieces, Scratch scratch) {
  const Job job(args, pieces, scratch);
  if (args.nonfinite[job.piece.row] || job.piece.k == 0) return;
  const uint32_t threshold = found_before(job, kRounds).prefix;
  const int lane = threadIdx.x % 32;
  uint32_t above = 0, ties = 0;
  for (int64_t t = job.begin + threadIdx.x / 32; t < job.end; t += kWarps) {
    Listed listed = job.part.tiles[t];
    if (job.scans) listed.above = 0;
    const uint32_t* source = job.part.bits + listed.first;
    int length = static_cast<int>(listed.count);
    if (job.scans) {
      source = reinterpret_cast<const uint32_t*>(args.new_residual + job.offset + t * kTile);
      length = length_of(job.piece, t);
    }
    uint32_t sum = 0;
    for (int j = lane; j < length; j += 32) sum += tally(source[j], threshold);
    for (unsigned step = 16; step > 0; step /= 2) sum += __shfl_down_sync(kAllLanes, sum, step);
    if (lane != 0) continue;
    listed.above += sum >> 16;
    listed.ties = sum & 0xffffu;
    job.part.tiles[t] = listed;
    above += listed.above;
    ties += listed.ties;
  }
  uint32_t ignored;
  above = block_scan<kThreads>(above, ignored);
  ties = block_scan<kThreads>(ties, ignored);
  if (threadIdx.x == 0) job.part.groups[job.group] = {above, ties};
}

// ---- emit ----

// The threshold and how many of the keys equal to it win; how many are above or equal before the element at hand.
struct Cut {
  uint32_t threshold, quota;
  uint32_t above, ties;

  __device__ bool takes(uint32_t tallied, uint32_t ties_before) const {
    return tallied >> 16 != 0 || (tallied != 0 && ties_before < quota);
  }
};

__device__ void write(const TopKArguments& args, const Piece& piece, const Cut& cut, uint32_t above, uint32_t ties,
                      int64_t index, uint32_t bits) {
  const int64_t out = piece.out + above + (ties < cut.quota ? ties : cut.quota);
  args.indices[out] = static_cast<int32_t>(piece.begin + index);
  args.values[out] = float_of_bits(bits);
}

// A warp emits the listed winners of a tile, whose places hold 0, and puts the losers back.
__device__ void emit_listed(const TopKArguments& args, const Job& job, int64_t t, Cut cut) {
  const unsigned lane = threadIdx.x % 32;
  const uint32_t earlier = (1u << lane) - 1u;
  const Listed listed = job.part.tiles[t];
  for (uint32_t base = 0; base < listed.count; base += 32) {
    const bool is_there = base + lane < listed.count;
    const uint32_t at = listed.first + base + lane;
    const uint32_t bits = is_there ? job.part.bits[at] : 0u;
    const uint32_t tallied = is_there ? tally(bits, cut.threshold) : 0u;
    const uint32_t above = __ballot_sync(kAllLanes, tallied >> 16 != 0), ties = __ballot_sync(kAllLanes, tallied == 1u);
    const uint32_t above_before = cut.above + static_cast<uint32_t>(__popc(above & earlier));
    const uint32_t ties_before = cut.ties + static_cast<uint32_t>(__popc(ties & earlier));
    if (is_there) {
      const int64_t index = t * kTile + job.part.places[at];
      if (cut.takes(tallied, ties_before)) {
        write(args, job.piece, cut, above_before, ties_before, index, bits);
      } else {
        args.new_residual[job.offset + index] = float_of_bits(bits);
      }
    }
    cut.above += static_cast<uint32_t>(__popc(above));
    cut.ties += static_cast<uint32_t>(__popc(ties));
  }
}

// A warp emits the winners of a tile of a, and zeroes them.
__device__ void emit_scanned(const TopKArguments& args, const Job& job, int64_t t, Cut cut, bool aligned) {
  const int lane = threadIdx.x % 32, length = length_of(job.piece, t);
  const int64_t offset = job.offset + t * kTile;
  const bool in_packs = aligned && length == kTile && offset % kPack == 0;
  for (int base = 0; base < length; base += 32 * kPack) {
    const int begin = base + lane * kPack;
    Pack<float, kPack> a;
    uint32_t tallied[kPack], mine = 0;
    if (in_packs) {
      a = load_pack<kPack, float>(args.new_residual, offset + begin);
    } else {
#pragma unroll
      for (int j = 0; j < kPack; ++j) a.at[j] = begin + j < length ? args.new_residual[offset + begin + j] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      tallied[j] = begin + j < length ? tally(bits_of_float(a.at[j]), cut.threshold) : 0u;
      mine += tallied[j];
    }
    if (!__any_sync(kAllLanes, mine != 0)) continue;
    const uint32_t running = warp_scan(mine), all = __shfl_sync(kAllLanes, running, 31);
    uint32_t above = cut.above + (running - mine >> 16), ties = cut.ties + (running - mine & 0xffffu);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      if (cut.takes(tallied[j], ties)) {
        write(args, job.piece, cut, above, ties, t * kTile + begin + j, bits_of_float(a.at[j]));
        args.new_residual[offset + begin + j] = 0.0f;
      }
      above += tallied[j] >> 16;
      ties += tallied[j] & 0xffffu;
    }
    cut.above += all >> 16;
    cut.ties += all & 0xffffu;
  }
}

__global__ void __launch_bounds__(kThreads) emit(TopKArguments args, Pieces pieces, Scratch scratch, bool aligned) {
  __shared__ uint32_t above_before[kThreads], ties_before[kThreads];
  const Job job(args, pieces, scratch);
  if (args.nonfinite[job.piece.row] || job.piece.k == 0) return;
  const Found found = job.part.choice->found[kRounds];
  const bool from_list = !job.scans && job.part.choice->zeroed();
  uint32_t above = 0, ties = 0, ignored;
  for (int64_t g = threadIdx.x; g < job.group; g += kThreads) {
    above += job.part.groups[g].above;
    ties += job.part.groups[g].ties;
  }
  above = block_scan<kThreads>(above, ignored);
  ties = block_scan<kThreads>(ties, ignored);
  for (int64_t base = job.begin; base < job.end; base += kThreads) {
    const int64_t mine = base + threadIdx.x;
    const Listed listed = mine < job.end ? job.part.tiles[mine] : Listed{0, 0, 0, 0};
    uint32_t earlier;
    const uint32_t all_above = block_scan<kThreads>(listed.above, earlier);
    above_before[threadIdx.x] = above + earlier;
    const uint32_t all_ties = block_scan<kThreads>(listed.ties, earlier);
    ties_before[threadIdx.x] = ties + earlier;
    __syncthreads();
    for (int64_t t = base + threadIdx.x / 32; t < job.end && t < base + kThreads; t += kWarps) {
      const Cut cut{found.prefix, found.left, above_before[t - base], ties_before[t - base]};
      if (from_list) {
        emit_listed(args, job, t, cut);
      } else {
        emit_scanned(args, job, t, cut, aligned);
      }
    }
    above += all_above;
    ties += all_ties;
    __syncthreads();  // the next tiles' counts go where these are
  }
}

}  // namespace

// ---- launches ----

int64_t long_scratch(int64_t rows, const Pieces& pieces) {
  if (pieces.longest() <= kTile) return 0;
  return rows * pieces.per_row() * Scratch(nullptr, pieces.longest()).words;
}

int emit_long(const TopKArguments& args, const Pieces& pieces, uint32_t* memory, cudaStream_t stream) {
  const Scratch scratch(memory, pieces.longest());
  const auto one_a_group = static_cast<unsigned>(args.rows * pieces.per_row() * scratch.groups);
  collect_all(args, pieces, scratch, stream);
  FSS_LAUNCH((find<0>), one_a_group, kThreads, stream, args, pieces, scratch);
  FSS_LAUNCH((find<1>), one_a_group, kThreads, stream, args, pieces, scratch);
  FSS_LAUNCH((find<2>), one_a_group, kThreads, stream, args, pieces, scratch);
  FSS_LAUNCH(count, one_a_group, kThreads, stream, args, pieces, scratch);
  FSS_LAUNCH(emit, one_a_group, kThreads, stream, args, pieces, scratch, aligned_for_packs(args));
  return static_cast<int>(cudaGetLastError());
}

}  // namespace fedsynsam::topk
