// sam_norm, sam_perturb and sam_step on the CPU: see kernels/reference/sam.py for the contract.
//
// A row is cut into blocks of kBlock elements (the unit of the float64 partial sums and of the threads'
// work), a block into tiles that stay in the L1 cache. Half-precision and mixed directions are first turned
// into a float32 tile; then one vectorized loop does the operation, so no combination of dtype and option needs a
// loop of its own.
#include "numerics/sam.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/isa.h"
#include "cpu/large_output.h"
#include "fedsynsam.h"
#include "numerics/element.h"

namespace fedsynsam {
namespace {

constexpr int64_t kBlock = 16384;      // elements of a float64 partial sum, whatever the number of threads
constexpr int64_t kTile = 1024;        // floats; a handful of tiles fit the L1 cache
constexpr int kLanes = 32;             // float64 accumulators: element i of a block goes to lane i % 32
constexpr int64_t kSerial = 65536;     // below this many elements threads cost more than they give
constexpr int64_t kFusedRow = 262144;  // rows up to this length stay in a core's cache between norm and use
static_assert(kBlock % kTile == 0 && kTile % kLanes == 0, "tiles must not straddle blocks or lanes");

// ---- vectorized loops over one tile ----

FSS_CLONES void convert_bf16(float* out, const uint16_t* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of_bf16(in[i]);
}

FSS_CLONES void convert_f16(float* out, const uint16_t* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of_f16(in[i]);
}

FSS_CLONES void mix(float* out, const float* gradient, const float* synthetic, float beta, float keep, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = sam::mix(gradient[i], synthetic[i], beta, keep);
}

FSS_CLONES void multiply(float* out, const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] * b[i];
}

// lanes[i % kLanes] += d[i]^2. The lanes are copied to locals so that they live in registers.
FSS_CLONES void add_squares(double* lanes, const float* d, int64_t count) {
  double sum[kLanes];
  for (int l = 0; l < kLanes; ++l) sum[l] = lanes[l];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) sum[l] += sam::square(d[i + l]);
  }
  for (int l = 0; i + l < count; ++l) sum[l] += sam::square(d[i + l]);
  for (int l = 0; l < kLanes; ++l) lanes[l] = sum[l];
}

FSS_CLONES void perturb(float* out, const float* w, const float* d, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = sam::perturbed(w[i], d[i], scale);
}

FSS_CLONES void perturb_adaptive(float* out, const float* w, const float* d, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = sam::perturbed_adaptive(w[i], d[i], scale);
}

FSS_CLONES void decay(float* out, const float* u, const float* w, float weight_decay, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = sam::decayed(u[i], w[i], weight_decay);
}

FSS_CLONES void add(float* out, const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
}

FSS_CLONES void step(float* w, const float* u, float lr, int64_t count) {
  for (int64_t i = 0; i < count; ++i) w[i] = sam::stepped(w[i], u[i], lr);
}

FSS_CLONES void step_momentum(float* w, float* buffer, const float* u, float lr, float momentum, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float next = sam::with_momentum(buffer[i], u[i], momentum);
    buffer[i] = next;
    w[i] = sam::stepped(w[i], next, lr);
  }
}

// ---- directions ----

const float* as_float(float* tile, const void* source, Dtype dtype, int64_t offset, int64_t count) {
  if (dtype == Dtype::f32) return static_cast<const float*>(source) + offset;
  const uint16_t* halves = static_cast<const uint16_t*>(source) + offset;
  if (dtype == Dtype::bf16) {
    convert_bf16(tile, halves, count);
  } else {
    convert_f16(tile, halves, count);
  }
  return tile;
}

// The float32 tile of d at `offset`: the gradient in place where it can be, else `tiles` (room for two).
const float* direction(float* tiles, const SamDirection& from, int64_t offset, int64_t count) {
  const float* gradient = as_float(tiles, from.gradient, from.dtype, offset, count);
  if (from.synthetic == nullptr) return gradient;
  const float* synthetic = as_float(tiles + kTile, from.synthetic, from.dtype, offset, count);
  mix(tiles, gradient, synthetic, from.beta, from.keep, count);
  return tiles;
}

// ---- one block ----

double block_squares(const float* weights, const SamDirection& from, int64_t begin, int64_t count) {
  alignas(64) float tiles[2 * kTile];
  alignas(64) double lanes[kLanes] = {};
  for (int64_t at = 0; at < count; at += kTile) {
    const int64_t size = std::min(kTile, count - at);
    const float* d = direction(tiles, from, begin + at, size);
    if (from.adaptive) {
      multiply(tiles, weights + begin + at, d, size);
      d = tiles;
    }
    add_squares(lanes, d, size);
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

void perturb_block(float* out, const float* weights, const SamDirection& from, float rho, float norm, int64_t begin,
                   int64_t count, bool streaming) {
  alignas(64) float tiles[3 * kTile];
  const float scale = sam::scale_of(rho, norm);
  for (int64_t at = begin; at < begin + count; at += kTile) {
    const int64_t size = std::min(kTile, begin + count - at);
    float* target = streaming ? tiles + 2 * kTile : out + at;
    if (norm == 0.0f) {
      std::copy_n(weights + at, size, out + at);
      continue;
    }
    const float* d = direction(tiles, from, at, size);
    (from.adaptive ? perturb_adaptive : perturb)(target, weights + at, d, scale, size);
    if (streaming) store(out + at, target, size, true);
  }
  if (streaming) store_fence();
}

void step_block(const SamStep& s, int64_t begin, int64_t count) {
  alignas(64) float tile[kTile];
  for (int64_t at = begin; at < begin + count; at += kTile) {
    const int64_t size = std::min(kTile, begin + count - at);
    const float* u = as_float(tile, s.gradient, s.dtype, at, size);
    if (s.weight_decay != 0.0f) {
      decay(tile, u, s.weights + at, s.weight_decay, size);
      u = tile;
    }
    if (s.correction != nullptr) {
      add(tile, u, s.correction + at, size);
      u = tile;
    }
    if (s.momentum_buffer != nullptr) {
      step_momentum(s.weights + at, s.momentum_buffer + at, u, s.lr, s.momentum, size);
    } else {
      step(s.weights + at, u, s.lr, size);
    }
  }
}

// ---- rows and threads ----

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

int threads_for(int64_t elements, int threads) { return elements < kSerial ? 1 : std::max(1, threads); }

// Whether all threads share each row, rather than each taking rows of its own.
bool rows_in_turn(int64_t rows, int64_t n, int threads) { return threads == 1 || rows < threads || n > kFusedRow; }

// The sum over a row's blocks, always added in the blocks' order.
float row_norm(const float* weights, const SamDirection& from, int64_t begin, int64_t n, int threads) {
  const int64_t blocks = blocks_of(n);
  double sum = 0.0;
  if (threads == 1) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * kBlock;
      sum += block_squares(weights, from, begin + first, std::min(kBlock, n - first));
    }
    return sam::norm_of(sum);
  }
  std::vector<double> partial(static_cast<size_t>(blocks));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * kBlock;
    partial[static_cast<size_t>(b)] = block_squares(weights, from, begin + first, std::min(kBlock, n - first));
  }
  for (double part : partial) sum += part;
  return sam::norm_of(sum);
}

void perturb_row(float* out, const float* weights, const SamDirection& from, float rho, float norm, int64_t begin,
                 int64_t n, bool streaming, int threads) {
  const int64_t blocks = blocks_of(n);
  // Last block first: the norm pass left the end of the row in the cache.
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = (blocks - 1 - b) * kBlock;
    perturb_block(out, weights, from, rho, norm, begin + first, std::min(kBlock, n - first), streaming);
  }
}

}  // namespace

void sam_norm_cpu(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float* norm, int threads) {
  threads = threads_for(rows * n, threads);
  if (rows_in_turn(rows, n, threads)) {
    for (int64_t row = 0; row < rows; ++row) norm[row] = row_norm(weights, from, row * n, n, threads);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) norm[row] = row_norm(weights, from, row * n, n, 1);
}

void sam_perturb_cpu(const float* weights, const SamDirection& from, int64_t rows, int64_t n, float rho,
                     const float* norm, float* out, int threads) {
  threads = threads_for(rows * n, threads);
  const bool streaming = is_large_output(out, rows * n);
  const auto one_row = [&](int64_t row, int row_threads) {
    const float length = norm != nullptr ? norm[row] : row_norm(weights, from, row * n, n, row_threads);
    perturb_row(out, weights, from, rho, length, row * n, n, streaming, row_threads);
  };
  if (rows_in_turn(rows, n, threads)) {
    for (int64_t row = 0; row < rows; ++row) one_row(row, threads);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) one_row(row, 1);
}

void sam_step_cpu(const SamStep& arguments, int64_t rows, int64_t n, int threads) {
  const int64_t total = rows * n;  // elementwise: the rows are one long row
  const int64_t blocks = blocks_of(total);
  threads = threads_for(total, threads);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * kBlock;
    step_block(arguments, first, std::min(kBlock, total - first));
  }
}

}  // namespace fedsynsam
