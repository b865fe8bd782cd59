// Top-k of a piece far larger than the caches, in one pass over memory when it is sparse.
//
// A sample gives a threshold that a little more than k elements reach. The pass writes a into the residual, with 0 for
// those candidates, and lists them; the exact selection is among them, and the losers are put back. Dense pieces list
// only what lies close to the threshold and need a second pass that emits. An estimate that failed costs time only:
// then the threshold comes from histograms of the residual.
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/topk_stream.h"

namespace fedsynsam::topk {
namespace {

// One candidate takes 8 bytes: below this density they stay a small part of the input.
constexpr int64_t kSparse = 48;

std::vector<Share> shares_of(const Piece& piece, const Bracket& bracket, int threads) {
  const int64_t tiles = (piece.count + kTile - 1) / kTile;
  const int64_t length = (tiles + threads - 1) / threads * kTile;
  std::vector<Share> shares;
  for (int64_t begin = 0; begin < piece.count; begin += length) {
    const int64_t count = std::min(length, piece.count - begin);
    // The candidates may all lie in one share. What is not used is never touched.
    const int64_t capacity = std::min(count, bracket.expected + bracket.expected / 4 + 2 * kTile);
    shares.push_back({begin, count, Candidates(capacity), capacity, false, 0, 0, 0, 0, false});
  }
  return shares;
}

template <typename Body>
void for_each(std::vector<Share>& shares, const Body& body) {
  const int64_t count = static_cast<int64_t>(shares.size());
  parallel_for(count, static_cast<int>(count), 1, [&](int64_t s, int) { body(shares[static_cast<size_t>(s)]); });
}

// One pass over a share: all from lo on are listed and zeroed.
void absorb_share(const TopKArguments& args, const Piece& piece, uint32_t lo, Store store, Share& share) {
  const int64_t base = piece.row * args.n + piece.begin;
  Sink sink = share.candidates.sink();
  for (int64_t i = share.begin; i < share.begin + share.count; i += kTile) {
    const int64_t count = std::min(kTile, share.begin + share.count - i);
    if (sink.count + count > share.capacity) lo = kNever, share.overflow = true;
    const uint32_t top = absorb(args, base + i, count, args.new_residual + base + i, store, Taken::zeroed, lo,
                                static_cast<uint32_t>(i), &sink);
    share.top = std::max(share.top, top);
  }
  share.candidates.count = sink.count;
  share.candidates.pad();
  kernels().finish_streaming();
}

void put_back(const TopKArguments& args, const Piece& piece, const Share& share) {
  float* a = args.new_residual + piece.row * args.n + piece.begin;
  for (int64_t j = 0; j < share.candidates.count; ++j) {
    a[share.candidates.index()[j]] = float_of_bits(share.candidates.bits()[j]);
  }
}

void emit_candidates(const TopKArguments& args, const Piece& piece, uint32_t threshold, int64_t skip, Share& share) {
  float* a = args.new_residual + piece.row * args.n + piece.begin;
  Output output(args, piece, skip);
  Cut cut{threshold, share.ties};
  for (int64_t j = 0; j < share.candidates.count; ++j) {
    const uint32_t index = share.candidates.index()[j], bits = share.candidates.bits()[j];
    if (cut.takes(bits)) {
      output.emit(static_cast<uint32_t>(piece.begin) + index, bits);
    } else {
      a[index] = float_of_bits(bits);
    }
  }
}

// The k-th largest key given the candidates and what is surely above them; sets above and ties. False if the
// estimate failed: it is not among the candidates.
bool select(std::vector<Share>& shares, int64_t k, const Bracket& bracket, uint32_t* threshold) {
  std::vector<Segment> segments;
  int64_t sure = 0, listed = 0;
  uint32_t top = 0;
  for (const Share& share : shares) {
    if (share.overflow) return false;
    segments.push_back(segment_of(share.candidates));
    sure += share.sure;
    listed += share.candidates.count;
    top = std::max(top, share.top);
  }
  if (sure >= k || sure + listed < k) return false;
  const int64_t count = static_cast<int64_t>(segments.size());
  *threshold = kth_largest(segments.data(), count, k - sure, bracket.lo, std::min(top, bracket.hi - 1));
  int64_t above = 0;
  for (Share& share : shares) {
    const Segment segment = segment_of(share.candidates);
    share.above = share.sure + count_at_least(segment, *threshold + 1);
    share.ties = share.sure + count_at_least(segment, *threshold) - share.above;
    above += share.above;
  }
  grant_ties(shares, k - above);
  return true;
}

bool finite(const std::vector<Share>& shares) {
  return std::all_of(shares.begin(), shares.end(), [](const Share& share) { return share.top < kInfinity; });
}

}  // namespace

uint32_t absorb(const TopKArguments& args, int64_t offset, int64_t count, float* target, Store store, Taken taken,
                uint32_t lo, uint32_t base, Sink* sink) {
  const Kernels& k = kernels();
  const float* residual = args.residual ? args.residual + offset : nullptr;
  if (args.dtype == Dtype::f32) {
    return k.absorb(static_cast<const float*>(args.update) + offset, residual, count, target, store, taken, lo, base,
                    sink);
  }
  const auto convert = args.dtype == Dtype::bf16 ? k.convert_bf16 : k.convert_f16;
  alignas(64) float tile[1024];
  uint32_t top = 0;
  for (int64_t i = 0; i < count; i += 1024) {
    const int64_t length = std::min<int64_t>(1024, count - i);
    convert(static_cast<const uint16_t*>(args.update) + offset + i, length, tile);
    top = std::max(top, k.absorb(tile, residual ? residual + i : nullptr, length, target + i, store, taken, lo,
                                 base + static_cast<uint32_t>(i), sink));
  }
  return top;
}

uint32_t accumulate(const TopKArguments& args, int64_t offset, int64_t count, float* target, Store store) {
  Sink nowhere{nullptr, nullptr, 0};
  return absorb(args, offset, count, target, store, Taken::kept, kNever, 0, &nowhere);
}

void grant_ties(std::vector<Share>& shares, int64_t ties) {
  for (Share& share : shares) {
    share.all_ties = share.ties <= ties;
    share.ties = std::min(share.ties, ties);
    ties -= share.ties;
  }
}

int64_t emitted_before(const std::vector<Share>& shares, const Share& share) {
  int64_t skip = 0;
  for (const Share* s = shares.data(); s < &share; ++s) skip += s->above + s->ties;
  return skip;
}

bool emit_streamed(const TopKArguments& args, const Piece& piece, Store store, int threads) {
  const bool sparse = piece.k * kSparse <= piece.count;
  const Bracket bracket = piece.k ? estimate(args, piece, sparse) : Bracket{kNever, kNever, 0};
  std::vector<Share> shares = shares_of(piece, bracket, threads);
  for_each(shares, [&](Share& share) {
    if (sparse) {
      absorb_share(args, piece, bracket.lo, store, share);
    } else {
      survey(args, piece, bracket, store, share);
    }
  });
  if (!finite(shares)) return false;
  if (piece.k == 0) return true;

  uint32_t threshold;
  const bool estimated = select(shares, piece.k, bracket, &threshold);
  if (estimated && sparse) {
    for_each(shares,
             [&](Share& share) { emit_candidates(args, piece, threshold, emitted_before(shares, share), share); });
    return true;
  }
  if (!estimated) {
    if (sparse) for_each(shares, [&](Share& share) { put_back(args, piece, share); });
    threshold = exact_threshold(args, piece, shares);
  }
  emit_by_scan(args, piece, threshold, shares);
  return true;
}

}  // namespace fedsynsam::topk
