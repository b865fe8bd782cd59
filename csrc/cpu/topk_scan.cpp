// The second pass of streamed top-k, over the residual that holds a: for dense pieces, and where the estimate failed.
#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/topk_stream.h"

namespace fedsynsam::topk {
namespace {

// The key's upper 15 and lower 16 bits: two tables that fit the L2 cache.
constexpr int kLowBits = 16;
constexpr uint32_t kUpperBins = 1u << 15, kLowerBins = 1u << kLowBits;

using Histogram = std::vector<uint32_t>;

const float* residual_of(const TopKArguments& args, const Piece& piece, const Share& share) {
  return args.new_residual + piece.row * args.n + piece.begin + share.begin;
}

// Calls bin(histogram, key) for every element of the piece, a histogram per share, and adds these up.
template <typename Bin>
std::vector<int64_t> histogram(const TopKArguments& args, const Piece& piece, const std::vector<Share>& shares,
                               uint32_t bins, const Bin& bin) {
  std::vector<Histogram> parts(shares.size(), Histogram(bins));
  const int64_t count = static_cast<int64_t>(shares.size());
  parallel_for(count, static_cast<int>(count), 1, [&](int64_t s, int) {
    const Share& share = shares[static_cast<size_t>(s)];
    uint32_t* part = parts[static_cast<size_t>(s)].data();
    const float* a = residual_of(args, piece, share);
    for (int64_t i = 0; i < share.count; ++i) bin(part, key_of(a[i]));
  });
  std::vector<int64_t> total(bins);
  for (const Histogram& part : parts) {
    for (size_t b = 0; b < bins; ++b) total[b] += part[b];
  }
  return total;
}

// The bin that holds the k-th largest; k becomes its rank within the bin.
uint32_t bin_of(const std::vector<int64_t>& counts, int64_t* k) {
  size_t bin = counts.size() - 1;
  while (counts[bin] < *k) *k -= counts[bin--];
  return static_cast<uint32_t>(bin);
}

void emit_some_ties(const TopKArguments& args, const Piece& piece, const Share& share, Cut cut, Output output) {
  float* a = args.new_residual + piece.row * args.n + piece.begin;
  Candidates found(kTile);
  for (int64_t i = share.begin; i < share.begin + share.count; i += kTile) {
    Sink sink = found.sink();
    kernels().collect(a + i, std::min(kTile, share.begin + share.count - i), cut.threshold, &sink);
    for (int64_t j = 0; j < sink.count; ++j) {
      if (!cut.takes(sink.bits[j])) continue;
      const int64_t index = i + sink.index[j];
      output.emit(static_cast<uint32_t>(piece.begin + index), sink.bits[j]);
      a[index] = 0.0f;
    }
  }
}

}  // namespace

void survey(const TopKArguments& args, const Piece& piece, const Bracket& bracket, Store store, Share& share) {
  const int64_t base = piece.row * args.n + piece.begin;
  Candidates found(kTile);
  Sink kept = share.candidates.sink();
  for (int64_t i = share.begin; i < share.begin + share.count; i += kTile) {
    const int64_t count = std::min(kTile, share.begin + share.count - i);
    share.overflow |= kept.count + count > share.capacity;
    Sink sink = found.sink();
    const uint32_t lo = share.overflow ? kNever : bracket.lo;
    const uint32_t top = absorb(args, base + i, count, args.new_residual + base + i, store, Taken::kept, lo, 0, &sink);
    share.top = std::max(share.top, top);
    for (int64_t j = 0; j < sink.count; ++j) {  // without branches: most are sure, and it is hard to predict which
      const bool sure = (sink.bits[j] & 0x7fffffffu) >= bracket.hi;
      kept.bits[kept.count] = sink.bits[j];
      kept.count += sure ? 0 : 1;
      share.sure += sure ? 1 : 0;
    }
  }
  share.candidates.count = kept.count;
  share.candidates.pad();
  kernels().finish_streaming();
}

uint32_t exact_threshold(const TopKArguments& args, const Piece& piece, std::vector<Share>& shares) {
  int64_t k = piece.k;
  const uint32_t upper = bin_of(
      histogram(args, piece, shares, kUpperBins, [](uint32_t* bins, uint32_t key) { ++bins[key >> kLowBits]; }), &k);
  const auto lower = histogram(args, piece, shares, kLowerBins, [upper](uint32_t* bins, uint32_t key) {
    bins[key & (kLowerBins - 1)] += key >> kLowBits == upper ? 1u : 0u;
  });
  const uint32_t threshold = upper << kLowBits | bin_of(lower, &k);
  const int64_t count = static_cast<int64_t>(shares.size());
  parallel_for(count, static_cast<int>(count), 1, [&](int64_t s, int) {
    Share& share = shares[static_cast<size_t>(s)];
    share.above = share.ties = 0;
    const float* a = residual_of(args, piece, share);
    for (int64_t i = 0; i < share.count; ++i) {
      share.above += key_of(a[i]) > threshold ? 1 : 0;
      share.ties += key_of(a[i]) == threshold ? 1 : 0;
    }
  });
  grant_ties(shares, k);
  return threshold;
}

void emit_by_scan(const TopKArguments& args, const Piece& piece, uint32_t threshold, std::vector<Share>& shares) {
  const int64_t count = static_cast<int64_t>(shares.size());
  parallel_for(count, static_cast<int>(count), 1, [&](int64_t s, int) {
    const Share& share = shares[static_cast<size_t>(s)];
    const Output output(args, piece, emitted_before(shares, share));
    if (share.all_ties) {
      float* a = args.new_residual + piece.row * args.n + piece.begin + share.begin;
      Sink sink = output.sink();
      kernels().absorb(a, nullptr, share.count, a, Store::changed, Taken::zeroed, threshold,
                       static_cast<uint32_t>(piece.begin + share.begin), &sink);
    } else {
      emit_some_ties(args, piece, share, {threshold, share.ties}, output);
    }
  });
}

}  // namespace fedsynsam::topk
