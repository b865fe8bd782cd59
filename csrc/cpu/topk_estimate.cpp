// Where the k-th largest key probably lies, from a sample of short runs spread over the piece.
#include <algorithm>
#include <cmath>

#include "cpu/topk_stream.h"

namespace fedsynsam::topk {
namespace {

constexpr int64_t kRun = 16;  // consecutive elements: a cache line
constexpr int64_t kLeastRuns = 256, kMostRuns = 4096;
constexpr int64_t kShare = 256;  // one run of so many is looked at, within those bounds
constexpr double kDeviations = 4.0;
constexpr double kSlack = 8.0;  // for counts too small for their deviation to mean much

struct Sample {
  std::unique_ptr<float[]> a;
  int64_t runs;
  uint32_t top = 0;

  Segment segment() const { return {reinterpret_cast<const uint32_t*>(a.get()), runs * kRun}; }
};

Sample draw(const TopKArguments& args, const Piece& piece) {
  const int64_t runs = piece.count / kRun;
  const int64_t drawn = std::min(runs, std::clamp(runs / kShare, kLeastRuns, kMostRuns));
  Sample sample{uninitialized<float>(drawn * kRun), drawn};
  const int64_t base = piece.row * args.n + piece.begin;
  for (int64_t j = 0; j < drawn; ++j) {
    // One run of each of `drawn` equal shares; a hash places it within its share, so that no period of the data is met.
    const uint64_t hash = static_cast<uint64_t>(j) * 0x9E3779B97F4A7C15u >> 33;
    const int64_t run = (j * runs + static_cast<int64_t>(hash % static_cast<uint64_t>(runs))) / drawn;
    float* a = sample.a.get() + j * kRun;
    sample.top = std::max(sample.top, accumulate(args, base + run * kRun, kRun, a, Store::plain));
  }
  return sample;
}

// The standard deviation of how many sampled elements reach the key: large ones may come in clusters, so it is
// measured from run to run.
double deviation(const Sample& sample, uint32_t key) {
  double sum = 0, squares = 0;
  for (int64_t j = 0; j < sample.runs; ++j) {
    const Segment run{sample.segment().bits + j * kRun, kRun};
    const double count = static_cast<double>(count_at_least(run, key));
    sum += count;
    squares += count * count;
  }
  return std::sqrt(std::max(0.0, squares - sum * sum / static_cast<double>(sample.runs)));
}

}  // namespace

Bracket estimate(const TopKArguments& args, const Piece& piece, bool sparse) {
  const Sample sample = draw(args, piece);
  const Segment segment = sample.segment();
  const double size = static_cast<double>(segment.count), total = static_cast<double>(piece.count);
  if (segment.count == 0) return {0, kNever, piece.count};
  const double rank = size * static_cast<double>(piece.k) / total;
  const int64_t nearest = std::clamp<int64_t>(std::llround(rank), 1, segment.count);
  const uint32_t middle = kth_largest(&segment, 1, nearest, 0, sample.top);
  const double slack = kDeviations * deviation(sample, middle) + kSlack;

  const int64_t most = static_cast<int64_t>(rank + slack), least = sparse ? 0 : static_cast<int64_t>(rank - slack);
  const uint32_t lo = most >= segment.count ? 0 : kth_largest(&segment, 1, most, 0, sample.top);
  const uint32_t hi = least < 1 ? kNever : kth_largest(&segment, 1, least, 0, sample.top) + 1;
  const double between = static_cast<double>(std::min(most, segment.count) - std::max<int64_t>(least, 0));
  return {lo, hi, static_cast<int64_t>(between * total / size)};
}

}  // namespace fedsynsam::topk
