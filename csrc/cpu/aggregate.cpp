// aggregate_sparse and aggregate_codes on the CPU: see kernels/reference/aggregate.py for the contract.
//
// A thread owns a range of the output and adds every payload to it, in payload order, tile by tile: the tile stays
// in a cache, no payload is ever dense in memory, and no result depends on the number of threads.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/isa.h"
#include "fedsynsam.h"
#include "numerics/aggregate.h"
#include "numerics/quantize.h"

namespace fedsynsam {
namespace {

namespace qz = quantization;

constexpr int64_t kSerial = 65536;       // below this many additions threads cost more than they give
constexpr int64_t kSparseTile = 32768;   // floats; with the slices of the payloads they fit the L2 cache
constexpr int64_t kCodesTile = 4096;     // floats; they stay in the L1 cache
constexpr int64_t kStreaming = int64_t{1} << 22;  // outputs of this many floats bypass the caches

// ---- sparse ----

// Adds the entries of [begin, end) from the cursor on, and moves the cursor behind them.
void add_slice(const SparsePayload& payload, float weight, int64_t begin, int64_t end, float* total, int64_t& cursor) {
  int64_t i = cursor;
  for (; i < payload.count && payload.indices[i] < end; ++i) {
    const int64_t at = payload.indices[i] - begin;
    if (at >= 0) total[at] = add_weighted(total[at], weight, payload.values[i]);
  }
  cursor = i;
}

void aggregate_sparse_range(const SparsePayload* payloads, const float* weights, int64_t count, int64_t begin,
                            int64_t end, bool accumulate, float* out) {
  std::vector<int64_t> cursors(static_cast<size_t>(count));
  for (int64_t p = 0; p < count; ++p) {
    const int32_t* indices = payloads[p].indices;
    cursors[p] = std::lower_bound(indices, indices + payloads[p].count, begin) - indices;
  }
  for (int64_t tile = begin; tile < end; tile += kSparseTile) {
    const int64_t tile_end = std::min(end, tile + kSparseTile);
    if (!accumulate) std::fill(out + tile, out + tile_end, 0.0f);
    for (int64_t p = 0; p < count; ++p) add_slice(payloads[p], weights[p], tile, tile_end, out + tile, cursors[p]);
  }
}

// ---- codes ----

template <int kBits>
FSS_INLINE void add_bits(float* __restrict total, const uint8_t* __restrict codes, float weight, float step,
                         int64_t size) {
  constexpr int kSlots = 8 / kBits;
  const int64_t stride = size / kSlots;
  for (int slot = 0; slot < kSlots; ++slot) {
    float* __restrict part = total + slot * stride;
    for (int64_t j = 0; j < stride; ++j) {
      part[j] = add_weighted(part[j], weight, qz::value_of<kBits>(qz::level_at<kBits>(codes[j], slot), step));
    }
  }
}

FSS_CLONES void add_bucket(float* total, const uint8_t* codes, float weight, float step, int64_t size, int bits) {
  switch (bits) {
    case 1: return add_bits<1>(total, codes, weight, step, size);
    case 2: return add_bits<2>(total, codes, weight, step, size);
    case 4: return add_bits<4>(total, codes, weight, step, size);
    default: return add_bits<8>(total, codes, weight, step, size);
  }
}

void add_payload(float* total, const CodesPayload& payload, float weight, Coding coding, int64_t first, int64_t last) {
  const int64_t bytes = coding.bucket * coding.bits / 8;
  for (int64_t b = first; b < last; ++b) {
    const float step = qz::step_of(payload.scales[b], coding.bits);
    add_bucket(total + (b - first) * coding.bucket, payload.codes + b * bytes, weight, step, coding.bucket,
               coding.bits);
  }
}

}  // namespace

void aggregate_sparse_cpu(const SparsePayload* payloads, const float* weights, int64_t count, int64_t n,
                          bool accumulate, float* out, int threads) {
  int64_t work = n;
  for (int64_t p = 0; p < count; ++p) work += payloads[p].count;
  const int64_t parts = work < kSerial ? 1 : threads;
#pragma omp parallel for num_threads(parts) schedule(static)
  for (int64_t part = 0; part < parts; ++part) {
    aggregate_sparse_range(payloads, weights, count, n * part / parts, n * (part + 1) / parts, accumulate, out);
  }
}

void aggregate_codes_cpu(const CodesPayload* payloads, const float* weights, int64_t count, int64_t n, Coding coding,
                         bool accumulate, float* out, int threads) {
  const int64_t buckets = (n + coding.bucket - 1) / coding.bucket;
  const int64_t per_tile = std::max<int64_t>(1, kCodesTile / coding.bucket), tiles = (buckets + per_tile - 1) / per_tile;
#pragma omp parallel num_threads(n * (count + 1) < kSerial ? 1 : threads)
  {
    std::vector<float> total(static_cast<size_t>(per_tile * coding.bucket));
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = tile * per_tile, last = std::min(buckets, first + per_tile);
      const int64_t begin = first * coding.bucket, length = std::min(n, last * coding.bucket) - begin;
      if (accumulate) {
        std::copy_n(out + begin, length, total.data());
      } else {
        std::fill(total.begin(), total.end(), 0.0f);
      }
      for (int64_t p = 0; p < count; ++p) add_payload(total.data(), payloads[p], weights[p], coding, first, last);
      store(out + begin, total.data(), length, n >= kStreaming);
    }
    store_fence();
  }
}

}  // namespace fedsynsam
