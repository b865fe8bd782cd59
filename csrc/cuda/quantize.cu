// quantize on the GPU: see kernels/reference/quantize.py for the contract.
//
// A bucket of B values has B/8 counters; counter c draws for the eight values c + l * B/8. Buckets of up to 1024 values
// stay in the registers of a group of at most 32 lanes between their scale and their codes: update and residual are
// read once. A lane owns kVector neighbouring counters in each of kSteps steps, so that its loads and stores are
// vectors, and no value crosses lanes but the maximum or the sum of squares. Larger buckets take two kernels, the
// second of which reads again. A row that is not finite is flagged, and retracted by a last kernel that reads one flag
// a block.
#include <cstdint>

#include "fedsynsam.h"
#include "launch.h"
#include "quantize_counters.h"

namespace fedsynsam {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargestInRegisters = 1024;

// ---- buckets in registers ----

template <typename Type, int kVector, int kSteps>
struct Values {
  float a[kSteps][8][kVector];

  // Reads the lane's values; zeros where the row has ended. Returns the largest magnitude, as bits.
  __device__ int32_t load(const QuantizeArgs& args, const Place& place, int lane, int lanes) {
    const int64_t eighth = args.coding.bucket / 8;
    int32_t largest = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int l = 0; l < 8; ++l) {
        const int64_t i = (step * lanes + lane) * kVector + l * eighth;
        if (i + kVector <= place.count) {
          load_sum<Type, kVector>(args, place.offset + i, a[step][l]);
        } else {
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            a[step][l][j] = 0.0f;
            if (i + j < place.count) load_sum<Type, 1>(args, place.offset + i + j, &a[step][l][j]);
          }
        }
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const int32_t bits = qz::magnitude_bits(a[step][l][j]);
          largest = bits > largest ? bits : largest;
        }
      }
    }
    return largest;
  }

  // The bucket's sum of squares in the tree's order; right in the group's first lane.
  __device__ double squares(int lanes) const {
    double t[kSteps][kVector];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) t[step][j] = counter_squares<kVector>(a[step], j);
    }
#pragma unroll
    for (int half = kSteps / 2; half > 0; half /= 2) {
#pragma unroll
      for (int step = 0; step < half; ++step) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) t[step][j] += t[step + half][j];
      }
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) t[0][j] += __shfl_down_sync(kAllLanes, t[0][j], offset);
    }
#pragma unroll
    for (int half = kVector / 2; half > 0; half /= 2) {
#pragma unroll
      for (int j = 0; j < half; ++j) t[0][j] += t[0][j + half];
    }
    return t[0][0];
  }

  __device__ void store_residual(const QuantizeArgs& args, const Place& place, int64_t c, int step) const {
    const int64_t eighth = args.coding.bucket / 8;
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      const int64_t i = c + l * eighth;
      if (i + kVector <= place.count) {
        Pack<float, kVector> pack;
#pragma unroll
        for (int j = 0; j < kVector; ++j) pack.at[j] = a[step][l][j];
        store_pack<kVector>(args.new_residual, place.offset + i, pack);
      } else {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          if (i + j < place.count) args.new_residual[place.offset + i + j] = a[step][l][j];
        }
      }
    }
  }
};

// `lanes` lanes a bucket. Lanes behind the last bucket do as the last one does, without storing.
template <typename Type, int kVector, int kSteps>
__global__ void __launch_bounds__(kThreads) quantize_groups(QuantizeArgs args, int64_t buckets, int lanes) {
  const int64_t group = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / lanes;
  const int64_t total = args.rows * buckets;
  const bool stores = group < total;
  const Place place = place_of(args, stores ? group : total - 1, buckets);
  const int lane = static_cast<int>(threadIdx.x) % lanes;

  Values<Type, kVector, kSteps> values;
  int32_t largest = values.load(args, place, lane, lanes);
  for (int offset = lanes / 2; offset > 0; offset /= 2) {
    const int32_t other = __shfl_xor_sync(kAllLanes, largest, offset);
    largest = other > largest ? other : largest;
  }
  const bool finite = static_cast<uint32_t>(largest) < qz::kInfinityBits;
  float scale = qz::legal_scale(float_of_bits(static_cast<uint32_t>(largest)));
  if (args.norm == Norm::l2) {
    const double sum = __shfl_sync(kAllLanes, values.squares(lanes), static_cast<unsigned>(threadIdx.x % 32 - lane));
    scale = qz::scale_of_squares(sum);
  }
  if (!finite) scale = 0.0f;
  if (!stores) return;
  if (lane == 0) {
    args.scales[group] = scale;
    if (!finite) args.nonfinite[place.row] = true;
  }
  const float inverse = scale == 0.0f ? 0.0f : qz::inverse_step(scale, args.coding.bits);
  const float step_size = scale == 0.0f ? 0.0f : qz::step_of(scale, args.coding.bits);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int64_t c = (step * lanes + lane) * kVector;
    int32_t q[8][kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      find_levels<kVector>(args, place, c + j, j, scale, inverse, step_size, values.a[step], q);
    }
    store_codes<kVector>(args.codes + place.code_offset + c, args.coding.bucket / 8, q, args.coding.bits);
    if (args.new_residual != nullptr) values.store_residual(args, place, c, step);
  }
}

// ---- buckets that are read twice: a block each ----

constexpr int kTree = 4096;  // counters whose squares a block holds

template <typename Type>
__device__ void load_counter(const QuantizeArgs& args, const Place& place, int c, float (&a)[8][1]) {
  const int eighth = static_cast<int>(args.coding.bucket / 8);
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const int i = c + l * eighth;
    a[l][0] = 0.0f;
    if (i < place.count) load_sum<Type, 1>(args, place.offset + i, a[l]);
  }
}

template <typename Type>
__global__ void __launch_bounds__(kThreads) scale_block(QuantizeArgs args, int64_t buckets) {
  __shared__ double tree[kTree];
  __shared__ int32_t largest_bits;
  const Place place = place_of(args, blockIdx.x, buckets);
  const int eighth = static_cast<int>(args.coding.bucket / 8);
  if (threadIdx.x == 0) largest_bits = 0;
  __syncthreads();
  int32_t largest = 0;
#pragma unroll 1
  for (int c = static_cast<int>(threadIdx.x); c < eighth; c += kThreads) {
    float a[8][1];
    load_counter<Type>(args, place, c, a);
#pragma unroll
    for (int l = 0; l < 8; ++l) {
      const int32_t bits = qz::magnitude_bits(a[l][0]);
      largest = bits > largest ? bits : largest;
    }
    // A thread owns the counters c and c + kTree alike, so that the tree's first halving can be done on the way.
    const double squares = counter_squares<1>(a, 0);
    if (c < kTree) {
      tree[c] = squares;
    } else {
      tree[c - kTree] += squares;
    }
  }
  atomicMax(&largest_bits, largest);
  __syncthreads();
  for (int half = (eighth < kTree ? eighth : kTree) / 2; half > 0; half /= 2) {
    for (int c = static_cast<int>(threadIdx.x); c < half; c += kThreads) tree[c] += tree[c + half];
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const bool finite = static_cast<uint32_t>(largest_bits) < qz::kInfinityBits;
  float scale = 0.0f;
  if (finite && args.norm == Norm::max) scale = qz::legal_scale(float_of_bits(static_cast<uint32_t>(largest_bits)));
  if (finite && args.norm == Norm::l2) scale = qz::scale_of_squares(tree[0]);
  args.scales[blockIdx.x] = scale;
  if (!finite) args.nonfinite[place.row] = true;
}

template <typename Type>
__global__ void __launch_bounds__(kThreads) quantize_counters(QuantizeArgs args, int64_t buckets, int64_t total) {
  const int64_t at = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x, eighth = args.coding.bucket / 8;
  if (at >= total) return;
  const int64_t bucket = at / eighth;
  const int c = static_cast<int>(at % eighth);
  const Place place = place_of(args, bucket, buckets);
  const float scale = args.scales[bucket];
  float a[8][1];
  int32_t q[8][1];
  load_counter<Type>(args, place, c, a);
  const float inverse = scale == 0.0f ? 0.0f : qz::inverse_step(scale, args.coding.bits);
  const float step = scale == 0.0f ? 0.0f : qz::step_of(scale, args.coding.bits);
  find_levels<1>(args, place, c, 0, scale, inverse, step, a, q);
  store_codes<1>(args.codes + place.code_offset + c, eighth, q, args.coding.bits);
  if (args.new_residual == nullptr) return;
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const int64_t i = c + l * eighth;
    if (i < place.count) args.new_residual[place.offset + i] = a[l][0];
  }
}

// ---- rows that are not finite ----

constexpr int64_t kRetracted = kThreads * 64;  // values that a block puts back

// Nothing of a flagged row is emitted, and its residual is what it was.
__global__ void __launch_bounds__(kThreads) retract_rows(QuantizeArgs args, int64_t buckets, int64_t blocks) {
  const int64_t row = blockIdx.x / blocks, block = blockIdx.x % blocks;
  if (!args.nonfinite[row]) return;
  const int64_t begin = block * kRetracted, bytes = buckets * args.coding.bucket * args.coding.bits / 8;
  for (int64_t i = begin + threadIdx.x; i < begin + kRetracted; i += kThreads) {
    if (i < bytes) args.codes[row * bytes + i] = 0;
    if (i < buckets) args.scales[row * buckets + i] = 0.0f;
    if (args.new_residual != nullptr && i < args.n)
      args.new_residual[row * args.n + i] = args.residual[row * args.n + i];
  }
}

// ---- launches ----

// Calls launch.run<Type>() for the dtype.
template <typename Launch>
int by_type(Dtype dtype, const Launch& launch) {
  if (dtype == Dtype::f32) return launch.template run<F32>();
  if (dtype == Dtype::bf16) return launch.template run<BF16>();
  return launch.template run<F16>();
}

int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

struct LaunchQuantize {
  const QuantizeArgs& args;
  int64_t buckets;
  cudaStream_t stream;

  template <typename Type, int kVector, int kSteps>
  int groups() const {
    const int lanes = static_cast<int>(args.coding.bucket / 8 / kVector / kSteps);
    const int64_t blocks = blocks_for(args.rows * buckets * lanes);
    if (blocks > kMaxGrid) return kGridTooLarge;
    FSS_LAUNCH((quantize_groups<Type, kVector, kSteps>), static_cast<unsigned>(blocks), kThreads, stream, args, buckets,
               lanes);
    return static_cast<int>(cudaGetLastError());
  }

  template <typename Type>
  int run() const {
    const int64_t bucket = args.coding.bucket, total = args.rows * buckets;
    if (bucket > kLargestInRegisters) {
      const int64_t counters = total * (bucket / 8);
      if (total > kMaxGrid || blocks_for(counters) > kMaxGrid) return kGridTooLarge;
      FSS_LAUNCH(scale_block<Type>, static_cast<unsigned>(total), kThreads, stream, args, buckets);
      FSS_LAUNCH(quantize_counters<Type>, static_cast<unsigned>(blocks_for(counters)), kThreads, stream, args, buckets,
                 counters);
      return static_cast<int>(cudaGetLastError());
    }
    const bool wide = bucket >= 32 && args.n % 4 == 0 && aligned(args.update) && aligned(args.residual) &&
                      aligned(args.new_residual) && aligned(args.codes);
    if (wide) return groups<Type, 4, 1>();
    if (bucket <= 256) return groups<Type, 1, 1>();
    return bucket == 512 ? groups<Type, 1, 2>() : groups<Type, 1, 4>();
  }
};

}  // namespace

int quantize_cuda(const QuantizeArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (args.rows == 0) return 0;
  if (const int error = cudaMemsetAsync(args.nonfinite, 0, static_cast<size_t>(args.rows), stream)) return error;
  if (args.n == 0) return 0;
  const int64_t buckets = (args.n + args.coding.bucket - 1) / args.coding.bucket;
  const int64_t bytes = buckets * args.coding.bucket * args.coding.bits / 8;
  const int64_t blocks = ((bytes > args.n ? bytes : args.n) + kRetracted - 1) / kRetracted;
  if (args.rows > kMaxGrid / blocks) return kGridTooLarge;
  if (const int error = by_type(args.dtype, LaunchQuantize{args, buckets, stream})) return error;
  FSS_LAUNCH(retract_rows, static_cast<unsigned>(args.rows * blocks), kThreads, stream, args, buckets, blocks);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace fedsynsam
