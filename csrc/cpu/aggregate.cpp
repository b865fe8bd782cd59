// aggregate_sparse and aggregate_codes on the CPU: see kernels/reference/aggregate.py for the contract.
//
// A thread owns a range of the output and adds every payload to it, in payload order, tile by tile: the tile stays
// in a cache, no payload is ever dense in memory, and no result depends on the number of threads.
#include "numerics/aggregate.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/isa.h"
#include "cpu/large_output.h"
#include "cpu/parallel.h"
#include "fedsynsam.h"
#include "numerics/quantize.h"

#if FSS_MULTIVERSION
#include <immintrin.h>
#endif

namespace fedsynsam {
namespace {

namespace qz = quantization;

// Below this much work threads cost more than they give.
constexpr int64_t kSerialEntries = 65536;           // sparse: outputs and entries
constexpr int64_t kSerialCodes = int64_t{1} << 20;  // codes: additions
constexpr int64_t kSparseTile = 8192;               // floats; a tile stays in the L1 cache
constexpr int64_t kCodesTile = 4096;                // floats; leaves room for the codes

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
                            int64_t end, bool accumulate, bool streaming, float* out) {
  std::vector<int64_t> cursors(static_cast<size_t>(count));
  for (int64_t p = 0; p < count; ++p) {
    const int32_t* indices = payloads[p].indices;
    cursors[p] = std::lower_bound(indices, indices + payloads[p].count, begin) - indices;
  }
  std::vector<float> total(static_cast<size_t>(std::min(kSparseTile, end - begin)));
  for (int64_t tile = begin; tile < end; tile += kSparseTile) {
    const int64_t tile_end = std::min(end, tile + kSparseTile);
    if (accumulate) {
      std::copy(out + tile, out + tile_end, total.begin());
    } else {
      std::fill(total.begin(), total.end(), 0.0f);
    }
    for (int64_t p = 0; p < count; ++p) add_slice(payloads[p], weights[p], tile, tile_end, total.data(), cursors[p]);
    store(out + tile, total.data(), tile_end - tile, streaming);
  }
  store_fence();
}

// ---- codes ----

// One bucket of one payload. `next` is where the payload after it will be read: fetched meanwhile.
struct CodesBucket {
  const uint8_t* codes;
  const uint8_t* next;
  float step, weight;
};

template <int kBits>
FSS_INLINE void add_bits(float* __restrict total, const CodesBucket& bucket, int64_t size) {
  constexpr int kSlots = 8 / kBits;
  const int64_t stride = size / kSlots;
  const uint8_t* __restrict codes = bucket.codes;
  const float weight = bucket.weight, step = bucket.step;
  for (int slot = 0; slot < kSlots; ++slot) {
    float* __restrict part = total + slot * stride;
    for (int64_t j = 0; j < stride; ++j) {
      part[j] = add_weighted(part[j], weight, qz::value_of<kBits>(qz::level_at<kBits>(codes[j], slot), step));
    }
  }
}

FSS_CLONES void add_bucket(float* total, const CodesBucket& bucket, int64_t size, int bits) {
  switch (bits) {
    case 1:
      return add_bits<1>(total, bucket, size);
    case 2:
      return add_bits<2>(total, bucket, size);
    case 4:
      return add_bits<4>(total, bucket, size);
    default:
      return add_bits<8>(total, bucket, size);
  }
}

#if FSS_MULTIVERSION

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics' undefined operands

// Values of the 16 four-bit patterns as multiples of the step; shorter codes repeat, as the permutation below reads
// four bits of which they only fill some.
template <int kBits>
constexpr float level_of_pattern(int pattern) {
  const int code = pattern & ((1 << kBits) - 1);
  if (kBits == 1) return code ? -1.0f : 1.0f;
  return static_cast<float>(code >= 1 << (kBits - 1) ? code - (1 << kBits) : code);
}

template <int kBits>
struct PatternLevels {
  float level[16];
  constexpr PatternLevels() : level() {
    for (int i = 0; i < 16; ++i) level[i] = level_of_pattern<kBits>(i);
  }
};

// AVX-512 looks 16 weighted values up in one register, which replaces the conversion and both products.
template <int kBits>
FSS_AVX512 void look_up(float* total, const CodesBucket& bucket, int64_t size) {
  static constexpr PatternLevels<kBits> kLevels;
  constexpr int kSlots = 8 / kBits;
  const int64_t stride = size / kSlots;
  const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(kLevels.level), _mm512_set1_ps(bucket.step));
  const __m512 terms = _mm512_mul_ps(_mm512_set1_ps(bucket.weight), values);
  for (int64_t j = 0; j < stride; j += 16) {
    if (j % 64 == 0) __builtin_prefetch(bucket.next + j);
    __m512i pattern = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bucket.codes + j)));
    for (int slot = 0; slot < kSlots; ++slot) {
      float* part = total + slot * stride + j;
      _mm512_storeu_ps(part, _mm512_add_ps(_mm512_loadu_ps(part), _mm512_permutexvar_ps(pattern, terms)));
      pattern = _mm512_srli_epi32(pattern, kBits);
    }
  }
}

FSS_AVX512 bool add_by_lookup(float* total, const CodesBucket& bucket, int64_t size, int bits) {
  if (size * bits / 8 % 16 != 0) return false;
  switch (bits) {
    case 1:
      look_up<1>(total, bucket, size);
      return true;
    case 2:
      look_up<2>(total, bucket, size);
      return true;
    case 4:
      look_up<4>(total, bucket, size);
      return true;
    default:
      return false;
  }
}

#pragma GCC diagnostic pop
#endif  // FSS_MULTIVERSION

FSS_DEFAULT bool add_by_lookup(float*, const CodesBucket&, int64_t, int) { return false; }

void add_payload(float* total, const CodesPayload& payload, const CodesPayload& next, float weight, Coding coding,
                 int64_t first, int64_t last) {
  const int64_t bytes = coding.bucket * coding.bits / 8;
  for (int64_t b = first; b < last; ++b) {
    const CodesBucket bucket{payload.codes + b * bytes, next.codes + b * bytes,
                             qz::step_of(payload.scales[b], coding.bits), weight};
    float* part = total + (b - first) * coding.bucket;
    if (!add_by_lookup(part, bucket, coding.bucket, coding.bits)) add_bucket(part, bucket, coding.bucket, coding.bits);
  }
}

}  // namespace

void aggregate_sparse_cpu(const SparsePayload* payloads, const float* weights, int64_t count, int64_t n,
                          bool accumulate, float* out, int threads) {
  int64_t work = n;
  for (int64_t p = 0; p < count; ++p) work += payloads[p].count;
  const int parts = work < kSerialEntries ? 1 : threads;
  const bool streaming = is_large_output(out, n);
#pragma omp parallel for num_threads(parts) schedule(static)
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = n * part / parts, end = n * (part + 1) / parts;
    aggregate_sparse_range(payloads, weights, count, begin, end, accumulate, streaming, out);
  }
}

void aggregate_codes_cpu(const CodesPayload* payloads, const float* weights, int64_t count, int64_t n, Coding coding,
                         bool accumulate, float* out, int threads) {
  const int64_t buckets = (n + coding.bucket - 1) / coding.bucket;
  const int64_t per_tile = std::max<int64_t>(1, kCodesTile / coding.bucket);
  const int64_t tiles = (buckets + per_tile - 1) / per_tile;
  const int used = n * (count + 1) < kSerialCodes ? 1 : threads;
  const bool streaming = is_large_output(out, n);
  std::vector<std::vector<float>> scratch(static_cast<size_t>(used),
                                          std::vector<float>(static_cast<size_t>(per_tile * coding.bucket)));
#pragma omp parallel num_threads(used)
  {
    std::vector<float>& total = scratch[static_cast<size_t>(thread_number())];
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t first = tile * per_tile, last = std::min(buckets, first + per_tile);
      const int64_t begin = first * coding.bucket, length = std::min(n, last * coding.bucket) - begin;
      if (accumulate) {
        std::copy_n(out + begin, length, total.data());
      } else {
        std::fill(total.begin(), total.end(), 0.0f);
      }
      for (int64_t p = 0; p < count; ++p) {
        const CodesPayload& next = payloads[p + 1 < count ? p + 1 : 0];
        add_payload(total.data(), payloads[p], next, weights[p], coding, first, last);
      }
      store(out + begin, total.data(), length, streaming);
    }
    store_fence();
  }
}

}  // namespace fedsynsam
