// dequantize, aggregate_codes and aggregate_sparse on the GPU: see kernels/reference/quantize.py and aggregate.py.
//
// A sum runs in payload order, in registers (codes) or in shared memory (sparse), one rounding for the product and one
// for the sum; there are no atomics. Payloads reach the kernel by value, kPayloads a launch: a longer list continues
// the sum in the next launch, which is the same sum. So a captured graph holds all it needs.
#include <cstdint>

#include "fedsynsam.h"
#include "launch.h"
#include "numerics/aggregate.h"
#include "numerics/quantize.h"
#include "packs.h"

namespace fedsynsam {
namespace {

namespace qz = quantization;

constexpr int kThreads = 256;
constexpr int kPayloads = 32;

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

// The eight values of each of kVector neighbouring counters: level of value l + t * kBits at bit t * kBits of byte l.
template <int kBits, int kVector>
__device__ void load_values(const uint8_t* codes, int64_t eighth, float step, float (&x)[8][kVector]) {
#pragma unroll
  for (int l = 0; l < kBits; ++l) {
    const auto bytes = load_pack<kVector, uint8_t>(codes, l * eighth);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
#pragma unroll
      for (int t = 0; t < 8 / kBits; ++t) {
        x[l + t * kBits][j] = qz::value_of<kBits>(qz::level_at<kBits>(bytes.at[j], t), step);
      }
    }
  }
}

// `count` values are there of the bucket, of which x holds those of the counters from c on.
template <int kVector>
__device__ void store_values(float* out, int64_t c, int64_t eighth, int64_t count, const float (&x)[8][kVector]) {
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const int64_t i = c + l * eighth;
    if (i + kVector <= count) {
      Pack<float, kVector> pack;
#pragma unroll
      for (int j = 0; j < kVector; ++j) pack.at[j] = x[l][j];
      store_pack<kVector>(out, i, pack);
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        if (i + j < count) out[i + j] = x[l][j];
      }
    }
  }
}

// A thread's bucket and first counter.
struct Share {
  int64_t bucket, c, eighth;
};

template <int kVector>
__device__ Share share_of(const Coding& coding) {
  const int64_t at = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t eighth = coding.bucket / 8, per_bucket = eighth / kVector;
  return {at / per_bucket, at % per_bucket * kVector, eighth};
}

// ---- dequantize ----

template <int kBits, int kVector>
__global__ void __launch_bounds__(kThreads) dequantize_counters(const uint8_t* codes, const float* scales, int64_t rows,
                                                                int64_t n, int64_t buckets, Coding coding, float* out) {
  const Share share = share_of<kVector>(coding);
  if (share.bucket >= rows * buckets) return;
  const int64_t row = share.bucket / buckets, begin = share.bucket % buckets * coding.bucket;
  float x[8][kVector];
  const float step = qz::step_of(scales[share.bucket], kBits);
  load_values<kBits, kVector>(codes + share.bucket * share.eighth * kBits + share.c, share.eighth, step, x);
  store_values<kVector>(out + row * n + begin, share.c, share.eighth, n - begin, x);
}

// ---- aggregate_codes ----

struct CodesBatch {
  CodesPayload payload[kPayloads];
  int count;
};

template <int kBits, int kVector>
__global__ void __launch_bounds__(kThreads) add_codes(CodesBatch batch, const float* weights, int64_t n,
                                                      int64_t buckets, Coding coding, bool accumulate, float* out) {
  const Share share = share_of<kVector>(coding);
  if (share.bucket >= buckets) return;
  const int64_t begin = share.bucket * coding.bucket, count = n - begin;
  float total[8][kVector];
#pragma unroll
  for (int l = 0; l < 8; ++l) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const int64_t i = share.c + j + l * share.eighth;
      total[l][j] = accumulate && i < count ? out[begin + i] : 0.0f;
    }
  }
  for (int p = 0; p < batch.count; ++p) {
    float x[8][kVector];
    const CodesPayload payload = batch.payload[p];
    const float step = qz::step_of(payload.scales[share.bucket], kBits), weight = weights[p];
    load_values<kBits, kVector>(payload.codes + share.bucket * share.eighth * kBits + share.c, share.eighth, step, x);
#pragma unroll
    for (int l = 0; l < 8; ++l) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) total[l][j] = add_weighted(total[l][j], weight, x[l][j]);
    }
  }
  store_values<kVector>(out + begin, share.c, share.eighth, count, total);
}

// ---- aggregate_sparse ----

constexpr int64_t kRange = 4096;  // outputs that a block owns

struct SparseBatch {
  SparsePayload payload[kPayloads];
  int count;
};

// The first of `count` ascending indices that is not below `bound`.
__device__ int64_t lower_bound(const int32_t* indices, int64_t count, int64_t bound) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    if (indices[first + half] < bound) {
      first += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return first;
}

__global__ void __launch_bounds__(kThreads)
    add_sparse(SparseBatch batch, const float* weights, int64_t n, bool accumulate, float* out) {
  __shared__ float total[kRange];
  __shared__ int64_t slices[2 * kPayloads];
  const int64_t begin = blockIdx.x * kRange, end = n < begin + kRange ? n : begin + kRange;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) total[i - begin] = accumulate ? out[i] : 0.0f;
  if (threadIdx.x < 2 * batch.count) {
    const SparsePayload& payload = batch.payload[threadIdx.x / 2];
    slices[threadIdx.x] = lower_bound(payload.indices, payload.count, threadIdx.x % 2 == 0 ? begin : end);
  }
  __syncthreads();
  for (int p = 0; p < batch.count; ++p) {
    const SparsePayload& payload = batch.payload[p];
    const float weight = weights[p];
    for (int64_t at = slices[2 * p] + threadIdx.x; at < slices[2 * p + 1]; at += kThreads) {
      const int64_t index = payload.indices[at];
      if (index < begin || index >= end) continue;  // indices that do not ascend must not reach other memory
      total[index - begin] = add_weighted(total[index - begin], weight, payload.values[at]);
    }
    __syncthreads();
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) out[i] = total[i - begin];
}

// ---- launches ----

// Calls launch.run<kBits, kVector>().
template <typename Launch>
int by_bits(int bits, bool wide, const Launch& launch) {
  if (bits == 1) return wide ? launch.template run<1, 4>() : launch.template run<1, 1>();
  if (bits == 2) return wide ? launch.template run<2, 4>() : launch.template run<2, 1>();
  if (bits == 4) return wide ? launch.template run<4, 4>() : launch.template run<4, 1>();
  return wide ? launch.template run<8, 4>() : launch.template run<8, 1>();
}

int64_t bucket_count(int64_t n, Coding coding) { return (n + coding.bucket - 1) / coding.bucket; }

struct LaunchDequantize {
  const uint8_t* codes;
  const float* scales;
  int64_t rows, n;
  Coding coding;
  float* out;
  cudaStream_t stream;

  template <int kBits, int kVector>
  int run() const {
    const int64_t buckets = bucket_count(n, coding),
                  blocks = blocks_for(rows * buckets * (coding.bucket / 8 / kVector));
    if (blocks > kMaxGrid) return kGridTooLarge;
    FSS_LAUNCH((dequantize_counters<kBits, kVector>), static_cast<unsigned>(blocks), kThreads, stream, codes, scales,
               rows, n, buckets, coding, out);
    return static_cast<int>(cudaGetLastError());
  }
};

struct LaunchAddCodes {
  const CodesBatch& batch;
  const float* weights;
  int64_t n;
  Coding coding;
  bool accumulate;
  float* out;
  cudaStream_t stream;

  template <int kBits, int kVector>
  int run() const {
    const int64_t buckets = bucket_count(n, coding), blocks = blocks_for(buckets * (coding.bucket / 8 / kVector));
    if (blocks > kMaxGrid) return kGridTooLarge;
    FSS_LAUNCH((add_codes<kBits, kVector>), static_cast<unsigned>(blocks), kThreads, stream, batch, weights, n, buckets,
               coding, accumulate, out);
    return static_cast<int>(cudaGetLastError());
  }
};

}  // namespace

int dequantize_cuda(const uint8_t* codes, const float* scales, int64_t rows, int64_t n, Coding coding, float* out,
                    void* stream_handle) {
  if (rows * n == 0) return 0;
  const bool wide = coding.bucket >= 32 && n % 4 == 0 && aligned(codes) && aligned(out);
  return by_bits(coding.bits, wide,
                 LaunchDequantize{codes, scales, rows, n, coding, out, static_cast<cudaStream_t>(stream_handle)});
}

int aggregate_codes_cuda(const CodesPayload* payloads, const float* weights, int64_t count, int64_t n, Coding coding,
                         bool accumulate, float* out, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (n == 0) return 0;
  for (int64_t first = 0; first == 0 || first < count; first += kPayloads) {
    CodesBatch batch{};
    bool wide = coding.bucket >= 32 && aligned(out);
    for (; batch.count < kPayloads && first + batch.count < count; ++batch.count) {
      batch.payload[batch.count] = payloads[first + batch.count];
      wide = wide && aligned(payloads[first + batch.count].codes);
    }
    const LaunchAddCodes launch{batch, weights + first, n, coding, accumulate || first > 0, out, stream};
    if (const int error = by_bits(coding.bits, wide, launch)) return error;
  }
  return 0;
}

int aggregate_sparse_cuda(const SparsePayload* payloads, const float* weights, int64_t count, int64_t n,
                          bool accumulate, float* out, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const int64_t blocks = (n + kRange - 1) / kRange;
  if (n == 0) return 0;
  if (blocks > kMaxGrid) return kGridTooLarge;
  for (int64_t first = 0; first == 0 || first < count; first += kPayloads) {
    SparseBatch batch{};
    for (; batch.count < kPayloads && first + batch.count < count; ++batch.count) {
      batch.payload[batch.count] = payloads[first + batch.count];
    }
    FSS_LAUNCH(add_sparse, static_cast<unsigned>(blocks), kThreads, stream, batch, weights + first, n,
               accumulate || first > 0, out);
    if (const int error = static_cast<int>(cudaGetLastError())) return error;
  }
  return 0;
}

}  // namespace fedsynsam
