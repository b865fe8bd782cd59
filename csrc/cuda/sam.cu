// sam_norm, sam_perturb and sam_step on the GPU: see kernels/reference/sam.py for the contract.
//
// Every kernel cuts its rows into chunks of kChunk elements, one thread block each. A norm is two-level: each
// chunk's sum of squares in float64 goes to `partials`, and the row's partials are added in a fixed order, by the
// perturbation itself while they are few, by a launch of their own when they are many. So a norm is the same
// in every run, without atomics. Elementwise results equal the reference bit for bit (built with -fmad=false).
//
// Loads and stores are 16 bytes wide: a chunk's elements up to the next 16-byte boundary and after the last one
// are done one by one. Arrays that are not 16-byte aligned take the kernels with kVector = 1.
#include <cstdint>

#include "fedsynsam.h"
#include "launch.h"
#include "numerics/sam.h"
#include "packs.h"

namespace fedsynsam {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPerThread = 16;  // elements of a chunk per thread: enough loads in flight, few enough registers
constexpr int64_t kChunk = kThreads * kPerThread;
constexpr int64_t kInlinePartials = 1024;  // up to here each block of the perturbation adds a row's partials itself

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// The part of [begin, end) that consists of whole packs; what is before and after it is shorter than a pack each.
struct Span {
  int64_t first, last;
};

template <int kVector>
__device__ Span packs_of(int64_t begin, int64_t end) {
  const int64_t first = (begin + kVector - 1) / kVector * kVector;
  const int64_t last = end / kVector * kVector;
  return first < last ? Span{first, last} : Span{end, end};
}

// Calls body.run<count>(index) for each piece of this thread: packs, then the single elements around them.
template <int kVector, typename Body>
__device__ void for_each_piece(int64_t begin, int64_t end, Body& body) {
  const Span span = packs_of<kVector>(begin, end);
#pragma unroll
  for (int step = 0; step < kPerThread / kVector; ++step) {
    const int64_t index = span.first + (static_cast<int64_t>(step) * kThreads + threadIdx.x) * kVector;
    if (index < span.last) body.template run<kVector>(index);
  }
  if (kVector == 1) return;
  // At most kVector - 1 elements on each side, or fewer than 2 * kVector - 1 before `end` if there is no whole pack:
  // the first threads take one each.
  const int64_t head = begin + threadIdx.x, tail = span.last + threadIdx.x;
  if (head < span.first) body.template run<1>(head);
  if (tail < end) body.template run<1>(tail);
}

// d at `index`: the gradient, or its mixture with the synthetic one.
template <typename Type, int kVector>
__device__ Pack<float, kVector> direction(const SamDirection& from, int64_t index) {
  using Storage = typename Type::Storage;
  const auto gradient = load_pack<kVector, Storage>(from.gradient, index);
  Pack<float, kVector> d;
#pragma unroll
  for (int i = 0; i < kVector; ++i) d.at[i] = Type::load(gradient.at[i]);
  if (from.synthetic == nullptr) return d;
  const auto synthetic = load_pack<kVector, Storage>(from.synthetic, index);
#pragma unroll
  for (int i = 0; i < kVector; ++i) d.at[i] = sam::mix(d.at[i], Type::load(synthetic.at[i]), from.beta, from.keep);
  return d;
}

// ---- norm ----

// Adds one value per thread in a fixed order; every thread gets the sum.
__device__ double block_sum(double value) {
  __shared__ double warp_sums[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(kAllLanes, value, offset);
  __syncthreads();  // a previous call's readers are done
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) sum += warp_sums[warp];
  return sum;
}

__device__ double sum_partials(const double* partials, int64_t count) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  return block_sum(sum);
}

template <typename Type>
struct AddSquares {
  const float* weights;
  SamDirection from;
  double sum;

  template <int kVector>
  __device__ void run(int64_t index) {
    auto d = direction<Type, kVector>(from, index);
    if (from.adaptive) {
      const auto w = load_pack<kVector, float>(weights, index);
#pragma unroll
      for (int i = 0; i < kVector; ++i) d.at[i] = w.at[i] * d.at[i];
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fma(static_cast<double>(d.at[i]), static_cast<double>(d.at[i]), sum);
  }
};

template <typename Type, int kVector>
__global__ void __launch_bounds__(kThreads)
    chunk_squares(const float* weights, SamDirection from, int64_t n, int64_t chunks, double* partials) {
  const int64_t row = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  const int64_t begin = row * n + chunk * kChunk;
  const int64_t end = chunk + 1 == chunks ? (row + 1) * n : begin + kChunk;
  AddSquares<Type> body{weights, from, 0.0};
  for_each_piece<kVector>(begin, end, body);
  const double sum = block_sum(body.sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block a row. Leaves the sum in the row's first partial and, if asked, the norm in `norm`.
__global__ void __launch_bounds__(kThreads) finish_norm(double* partials, int64_t chunks, float* norm) {
  double* mine = partials + blockIdx.x * chunks;
  const double sum = sum_partials(mine, chunks);
  if (threadIdx.x != 0) return;
  if (norm != nullptr) {
    norm[blockIdx.x] = sam::norm_of(sum);
  } else {
    mine[0] = sum;
  }
}

// ---- perturbation ----

template <typename Type>
struct Perturb {
  const float* weights;
  SamDirection from;
  float norm, scale;
  float* out;

  template <int kVector>
  __device__ void run(int64_t index) {
    auto w = load_pack<kVector, float>(weights, index);
    if (norm != 0.0f) {
      const auto d = direction<Type, kVector>(from, index);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        w.at[i] =
            from.adaptive ? sam::perturbed_adaptive(w.at[i], d.at[i], scale) : sam::perturbed(w.at[i], d.at[i], scale);
      }
    }
    store_pack<kVector>(out, index, w);
  }
};

// Where a row's norm comes from: `norm` if not null, else the first `count` of its `stride` partial sums.
struct NormSource {
  const float* norm;
  const double* partials;
  int64_t count, stride;
};

template <typename Type, int kVector>
__global__ void __launch_bounds__(kThreads) perturb_chunk(const float* weights, SamDirection from, int64_t n,
                                                          int64_t chunks, float rho, NormSource source, float* out) {
  // Last chunk first: the norm's pass left the end of the rows in the L2 cache.
  const int64_t block = static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x;
  const int64_t row = block / chunks, chunk = block % chunks;
  const int64_t begin = row * n + chunk * kChunk;
  const int64_t end = chunk + 1 == chunks ? (row + 1) * n : begin + kChunk;
  const float norm = source.norm != nullptr
                         ? source.norm[row]
                         : sam::norm_of(sum_partials(source.partials + row * source.stride, source.count));
  Perturb<Type> body{weights, from, norm, sam::scale_of(rho, norm), out};
  for_each_piece<kVector>(begin, end, body);
}

// ---- step ----

template <typename Type>
struct Step {
  SamStep s;

  template <int kVector>
  __device__ void run(int64_t index) {
    const auto gradient = load_pack<kVector, typename Type::Storage>(s.gradient, index);
    auto w = load_pack<kVector, float>(s.weights, index);
    Pack<float, kVector> u;
#pragma unroll
    for (int i = 0; i < kVector; ++i) u.at[i] = Type::load(gradient.at[i]);
    if (s.weight_decay != 0.0f) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) u.at[i] = sam::decayed(u.at[i], w.at[i], s.weight_decay);
    }
    if (s.correction != nullptr) {
      const auto correction = load_pack<kVector, float>(s.correction, index);
#pragma unroll
      for (int i = 0; i < kVector; ++i) u.at[i] = u.at[i] + correction.at[i];
    }
    if (s.momentum_buffer != nullptr) {
      const auto buffer = load_pack<kVector, float>(s.momentum_buffer, index);
#pragma unroll
      for (int i = 0; i < kVector; ++i) u.at[i] = sam::with_momentum(buffer.at[i], u.at[i], s.momentum);
      store_pack<kVector>(s.momentum_buffer, index, u);
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) w.at[i] = sam::stepped(w.at[i], u.at[i], s.lr);
    store_pack<kVector>(s.weights, index, w);
  }
};

template <typename Type, int kVector>
__global__ void __launch_bounds__(kThreads) step_chunk(SamStep arguments, int64_t total) {
  const int64_t begin = blockIdx.x * kChunk;
  const int64_t end = begin + kChunk < total ? begin + kChunk : total;
  Step<Type> body{arguments};
  for_each_piece<kVector>(begin, end, body);
}

// ---- launches ----

bool both_aligned(const SamDirection& from) { return aligned(from.gradient) && aligned(from.synthetic); }

// Calls launch.run<Type, kVector>() for the dtype and the alignment.
template <typename Launch>
int by_type(Dtype dtype, bool is_aligned, const Launch& launch) {
  if (dtype == Dtype::f32) {
    is_aligned ? launch.template run<F32, 4>() : launch.template run<F32, 1>();
  } else if (dtype == Dtype::bf16) {
    is_aligned ? launch.template run<BF16, 8>() : launch.template run<BF16, 1>();
  } else {
    is_aligned ? launch.template run<F16, 8>() : launch.template run<F16, 1>();
  }
  return static_cast<int>(cudaGetLastError());
}

struct LaunchSquares {
  const float* weights;
  const SamDirection& from;
  int64_t rows, n;
  double* partials;
  cudaStream_t stream;

  template <typename Type, int kVector>
  void run() const {
    const int64_t chunks = chunks_of(n);
    FSS_LAUNCH((chunk_squares<Type, kVector>), static_cast<unsigned>(rows * chunks), kThreads, stream, weights, from, n,
               chunks, partials);
  }
};

struct LaunchPerturb {
  const float* weights;
  const SamDirection& from;
  int64_t rows, n;
  float rho;
  NormSource source;
  float* out;
  cudaStream_t stream;

  template <typename Type, int kVector>
  void run() const {
    const int64_t chunks = chunks_of(n);
    FSS_LAUNCH((perturb_chunk<Type, kVector>), static_cast<unsigned>(rows * chunks), kThreads, stream, weights, from, n,
               chunks, rho, source, out);
  }
};

struct LaunchStep {
  const SamStep& arguments;
  int64_t total;
  cudaStream_t stream;

  template <typename Type, int kVector>
  void run() const {
    FSS_LAUNCH((step_chunk<Type, kVector>), static_cast<unsigned>(chunks_of(total)), kThreads, stream, arguments,
               total);
  }
};

int squares(const float* weights, const SamDirection& from, int64_t rows, int64_t n, double* partials,
            cudaStream_t stream) {
  const bool wide = both_aligned(from) && (!from.adaptive || aligned(weights));
  return by_type(from.dtype, wide, LaunchSquares{weights, from, rows, n, partials, stream});
}

int finish(double* partials, int64_t rows, int64_t chunks, float* norm, cudaStream_t stream) {
  FSS_LAUNCH(finish_norm, static_cast<unsigned>(rows), kThreads, stream, partials, chunks, norm);
  return static_cast<int>(cudaGetLastError());
}

bool grid_too_large(int64_t rows, int64_t n) { return rows > kMaxGrid || rows * chunks_of(n) > kMaxGrid; }

}  // namespace

int64_t sam_cuda_partials(int64_t n) { return chunks_of(n); }

int sam_norm_cuda(const float* weights, const SamDirection& from, int64_t rows, int64_t n, double* partials,
                  float* norm, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (grid_too_large(rows, n)) return kGridTooLarge;
  if (rows == 0) return 0;
  if (n > 0) {
    if (const int error = squares(weights, from, rows, n, partials, stream)) return error;
  }
  return finish(partials, rows, chunks_of(n), norm, stream);
}

int sam_perturb_cuda(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float rho,
                     const float* norm, double* partials, float* out, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (grid_too_large(rows, n)) return kGridTooLarge;
  if (rows * n == 0) return 0;
  const int64_t chunks = chunks_of(n);
  NormSource source{norm, partials, chunks, chunks};
  if (norm == nullptr) {
    if (const int error = squares(weights, from, rows, n, partials, stream)) return error;
    if (chunks > kInlinePartials) {
      if (const int error = finish(partials, rows, chunks, nullptr, stream)) return error;
      source.count = 1;
    }
  }
  const bool wide = aligned(weights) && both_aligned(from) && aligned(out);
  return by_type(from.dtype, wide, LaunchPerturb{weights, from, rows, n, rho, source, out, stream});
}

int sam_step_cuda(const SamStep& arguments, int64_t rows, int64_t n, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (grid_too_large(1, rows * n)) return kGridTooLarge;
  if (rows * n == 0) return 0;
  const bool wide = aligned(arguments.weights) && aligned(arguments.gradient) && aligned(arguments.correction) &&
                    aligned(arguments.momentum_buffer);
  return by_type(arguments.dtype, wide, LaunchStep{arguments, rows * n, stream});
}

}  // namespace fedsynsam
