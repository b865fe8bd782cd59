// quantize and dequantize on the CPU: see kernels/reference/quantize.py for the contract.
//
// A bucket stays in the L1 cache between its scale and its codes. Each step is one loop over the bucket that the
// compiler vectorizes for every instruction set: the vertical layout lets no lane need a neighbour.
#include "numerics/quantize.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "cpu/draw.h"
#include "cpu/isa.h"
#include "cpu/large_output.h"
#include "cpu/parallel.h"
#include "fedsynsam.h"
#include "numerics/element.h"

namespace fedsynsam {
namespace {

namespace qz = quantization;

constexpr int64_t kSerial = 65536;  // below this many elements threads cost more than they give

// One bucket on its way through the steps; every array is as long as the bucket (words: half of it).
struct Bucket {
  explicit Bucket(int64_t size) : size(size), a(size), lost(size), levels(size), words(size / 2), squares(size / 2) {}

  int64_t size;
  std::vector<float> a;         // update + residual, zeros behind the row's end
  std::vector<float> lost;      // a - x, on its way to memory
  std::vector<int8_t> levels;   // q
  std::vector<uint32_t> words;  // the draws: word w of counter j at w * size / 8 + j
  std::vector<double> squares;  // of the L2 norm's tree
};

// ---- a = float32(update) + residual; returns the largest magnitude, as bits ----

template <typename Load>
FSS_INLINE int32_t load_with(float* __restrict a, const float* __restrict residual, int64_t count, Load load) {
  int32_t largest = 0;
  if (residual == nullptr) {
    for (int64_t i = 0; i < count; ++i) {
      a[i] = load(i);
      largest = std::max(largest, qz::magnitude_bits(a[i]));
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      a[i] = load(i) + residual[i];
      largest = std::max(largest, qz::magnitude_bits(a[i]));
    }
  }
  return largest;
}

FSS_CLONES int32_t load_f32(float* a, const float* update, const float* residual, int64_t count) {
  return load_with(a, residual, count, [=](int64_t i) { return update[i]; });
}

FSS_CLONES int32_t load_bf16(float* a, const uint16_t* update, const float* residual, int64_t count) {
  return load_with(a, residual, count, [=](int64_t i) { return float_of_bf16(update[i]); });
}

FSS_CLONES int32_t load_f16(float* a, const uint16_t* update, const float* residual, int64_t count) {
  return load_with(a, residual, count, [=](int64_t i) { return float_of_f16(update[i]); });
}

int32_t load(float* a, const QuantizeArgs& args, int64_t offset, int64_t count) {
  const float* residual = args.residual == nullptr ? nullptr : args.residual + offset;
  switch (args.dtype) {
    case Dtype::bf16:
      return load_bf16(a, static_cast<const uint16_t*>(args.update) + offset, residual, count);
    case Dtype::f16:
      return load_f16(a, static_cast<const uint16_t*>(args.update) + offset, residual, count);
    default:
      return load_f32(a, static_cast<const float*>(args.update) + offset, residual, count);
  }
}

// ---- scale ----

FSS_CLONES float l2_scale(const float* __restrict a, double* __restrict squares, int64_t size) {
  int64_t half = size / 2;
  for (int64_t i = 0; i < half; ++i) {
    squares[i] = static_cast<double>(a[i]) * a[i] + static_cast<double>(a[i + half]) * a[i + half];
  }
  for (half /= 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) squares[i] += squares[i + half];
  }
  return qz::scale_of_squares(squares[0]);
}

// ---- levels ----

template <typename Round>
FSS_INLINE void round_with(int8_t* __restrict levels, const float* __restrict a, const uint32_t* __restrict words,
                           int64_t eighth, float inverse, Round round) {
  for (int w = 0; w < 4; ++w) {
    const float *first = a + 2 * w * eighth, *second = first + eighth;
    int8_t *first_level = levels + 2 * w * eighth, *second_level = first_level + eighth;
    const uint32_t* word = words + w * eighth;
    for (int64_t j = 0; j < eighth; ++j) {
      first_level[j] = static_cast<int8_t>(round(first[j] * inverse, static_cast<int32_t>(word[j] & 0xffffu)));
      second_level[j] = static_cast<int8_t>(round(second[j] * inverse, static_cast<int32_t>(word[j] >> 16)));
    }
  }
}

FSS_CLONES void round_stochastic(int8_t* levels, const float* a, const uint32_t* words, int64_t size, float inverse,
                                 int32_t top) {
  round_with(levels, a, words, size / 8, inverse,
             [top](float y, int32_t draw) { return qz::round_stochastic(y, draw, top); });
}

FSS_CLONES void sign_stochastic(int8_t* levels, const float* a, const uint32_t* words, int64_t size, float inverse) {
  round_with(levels, a, words, size / 8, inverse, [](float y, int32_t draw) { return qz::sign_stochastic(y, draw); });
}

FSS_CLONES void round_nearest(int8_t* __restrict levels, const float* __restrict a, int64_t size, float inverse,
                              int32_t top) {
  for (int64_t i = 0; i < size; ++i) levels[i] = static_cast<int8_t>(qz::round_nearest(a[i] * inverse, top));
}

FSS_CLONES void sign_nearest(int8_t* __restrict levels, const float* __restrict a, int64_t size) {
  for (int64_t i = 0; i < size; ++i) levels[i] = static_cast<int8_t>(qz::sign_nearest(a[i]));
}

constexpr int64_t kAhead = 4;  // buckets between the one that is computed and the one that is fetched meanwhile

Ahead ahead_of(const QuantizeArgs& args, int64_t offset, int64_t size) {
  const int64_t width = args.dtype == Dtype::f32 ? 4 : 2, at = offset + kAhead * size;
  Ahead ahead{{static_cast<const char*>(args.update) + at * width, nullptr}, {8 * width, 0}};
  if (args.residual != nullptr) {
    ahead.address[1] = reinterpret_cast<const char*>(args.residual + at);
    ahead.step[1] = 8 * int64_t{sizeof(float)};
  }
  return ahead;
}

void find_levels(Bucket& bucket, const QuantizeArgs& args, float scale, int64_t row, int64_t index) {
  const int bits = args.coding.bits;
  const float inverse = qz::inverse_step(scale, bits);
  int8_t* levels = bucket.levels.data();
  const float* a = bucket.a.data();
  if (args.rounding == Rounding::nearest) {
    if (bits == 1) return sign_nearest(levels, a, bucket.size);
    return round_nearest(levels, a, bucket.size, inverse, qz::levels(bits));
  }
  uint32_t* words = bucket.words.data();
  const int64_t eighth = bucket.size / 8;
  draw_words(words, eighth, static_cast<uint64_t>(index * eighth), static_cast<uint64_t>(args.seeds[row]),
             ahead_of(args, row * args.n + index * bucket.size, bucket.size));
  if (bits == 1) return sign_stochastic(levels, a, words, bucket.size, inverse);
  round_stochastic(levels, a, words, bucket.size, inverse, qz::levels(bits));
}

// ---- codes ----

template <int kBits>
FSS_INLINE void pack_bits(uint8_t* __restrict codes, const int8_t* __restrict levels, int64_t size) {
  constexpr int kSlots = 8 / kBits;
  constexpr unsigned kMask = (1u << kBits) - 1;
  const int64_t stride = size / kSlots;
  for (int64_t j = 0; j < stride; ++j) {
    unsigned byte = 0;
    for (int slot = 0; slot < kSlots; ++slot) {
      byte |= (static_cast<uint8_t>(levels[j + slot * stride]) & kMask) << (slot * kBits);
    }
    codes[j] = static_cast<uint8_t>(byte);
  }
}

FSS_CLONES void pack(uint8_t* codes, const int8_t* levels, int64_t size, int bits) {
  switch (bits) {
    case 1:
      return pack_bits<1>(codes, levels, size);
    case 2:
      return pack_bits<2>(codes, levels, size);
    case 4:
      return pack_bits<4>(codes, levels, size);
    default:
      std::memcpy(codes, levels, static_cast<size_t>(size));
  }
}

// ---- residual = a - x ----

template <int kBits>
FSS_INLINE void lose_bits(float* __restrict lost, const float* __restrict a, const int8_t* __restrict levels,
                          float step, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    lost[i] = qz::residual_of<kBits>(a[i], qz::value_of<kBits>(levels[i], step));
  }
}

FSS_CLONES void lose(float* lost, const float* a, const int8_t* levels, float step, int64_t count, int bits) {
  if (bits == 1) return lose_bits<1>(lost, a, levels, step, count);
  lose_bits<8>(lost, a, levels, step, count);
}

// ---- one bucket, all of them ----

// Returns false if the bucket holds a value that is not finite; then its codes and scale are 0.
bool quantize_bucket(const QuantizeArgs& args, int64_t row, int64_t index, int64_t buckets, Bucket& bucket,
                     bool streaming) {
  const int64_t begin = index * bucket.size, count = std::min(bucket.size, args.n - begin);
  const int64_t offset = row * args.n + begin, bytes = bucket.size * args.coding.bits / 8;
  uint8_t* codes = args.codes + (row * buckets + index) * bytes;
  float& scale = args.scales[row * buckets + index];
  float* a = bucket.a.data();

  const int32_t largest = load(a, args, offset, count);
  const bool finite = static_cast<uint32_t>(largest) < qz::kInfinityBits;
  std::fill(a + count, a + bucket.size, 0.0f);
  scale = 0.0f;
  if (finite) {
    scale = args.norm == Norm::max ? qz::legal_scale(float_of_bits(static_cast<uint32_t>(largest)))
                                   : l2_scale(a, bucket.squares.data(), bucket.size);
  }
  if (scale == 0.0f) {
    std::memset(codes, 0, static_cast<size_t>(bytes));
    if (args.new_residual != nullptr) store(args.new_residual + offset, a, count, streaming);
    return finite;
  }
  int8_t* levels = bucket.levels.data();
  find_levels(bucket, args, scale, row, index);
  std::fill(levels + count, levels + bucket.size, int8_t{0});
  pack(codes, levels, bucket.size, args.coding.bits);
  if (args.new_residual != nullptr) {
    lose(bucket.lost.data(), a, levels, qz::step_of(scale, args.coding.bits), count, args.coding.bits);
    store(args.new_residual + offset, bucket.lost.data(), count, streaming);
  }
  return true;
}

// Nothing of a flagged row is emitted, and its residual is what it was.
void retract_row(const QuantizeArgs& args, int64_t row, int64_t buckets) {
  const int64_t bytes = buckets * args.coding.bucket * args.coding.bits / 8;
  std::memset(args.codes + row * bytes, 0, static_cast<size_t>(bytes));
  std::fill_n(args.scales + row * buckets, buckets, 0.0f);
  if (args.new_residual != nullptr) {
    std::copy_n(args.residual + row * args.n, args.n, args.new_residual + row * args.n);
  }
}

// ---- dequantize ----

template <int kBits>
FSS_INLINE void unpack_bits(float* __restrict out, const uint8_t* __restrict codes, float step, int64_t size) {
  constexpr int kSlots = 8 / kBits;
  const int64_t stride = size / kSlots;
  for (int slot = 0; slot < kSlots; ++slot) {
    for (int64_t j = 0; j < stride; ++j) {
      out[j + slot * stride] = qz::value_of<kBits>(qz::level_at<kBits>(codes[j], slot), step);
    }
  }
}

FSS_CLONES void unpack(float* out, const uint8_t* codes, float step, int64_t size, int bits) {
  switch (bits) {
    case 1:
      return unpack_bits<1>(out, codes, step, size);
    case 2:
      return unpack_bits<2>(out, codes, step, size);
    case 4:
      return unpack_bits<4>(out, codes, step, size);
    default:
      return unpack_bits<8>(out, codes, step, size);
  }
}

int64_t bucket_count(int64_t n, int64_t bucket) { return (n + bucket - 1) / bucket; }

}  // namespace

void quantize_cpu(const QuantizeArgs& args, int threads) {
  const int64_t buckets = bucket_count(args.n, args.coding.bucket), total = args.rows * buckets;
  const bool streaming = is_large_output(args.new_residual, args.rows * args.n);
  const int used = args.rows * args.n < kSerial ? 1 : threads;
  std::fill_n(args.nonfinite, args.rows, false);
  std::vector<Bucket> scratch(static_cast<size_t>(used), Bucket(args.coding.bucket));
#pragma omp parallel num_threads(used)
  {
    Bucket& bucket = scratch[static_cast<size_t>(thread_number())];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < total; ++i) {
      if (!quantize_bucket(args, i / buckets, i % buckets, buckets, bucket, streaming)) {
#pragma omp atomic write
        args.nonfinite[i / buckets] = true;
      }
    }
    store_fence();
  }
  for (int64_t row = 0; row < args.rows; ++row) {
    if (args.nonfinite[row]) retract_row(args, row, buckets);
  }
}

void dequantize_cpu(const uint8_t* codes, const float* scales, int64_t rows, int64_t n, Coding coding, float* out,
                    int threads) {
  const int64_t buckets = bucket_count(n, coding.bucket), bytes = coding.bucket * coding.bits / 8;
  const bool streaming = is_large_output(out, rows * n);
  const int used = rows * n < kSerial ? 1 : threads;
  std::vector<std::vector<float>> scratch(static_cast<size_t>(used),
                                          std::vector<float>(static_cast<size_t>(coding.bucket)));
#pragma omp parallel num_threads(used)
  {
    std::vector<float>& values = scratch[static_cast<size_t>(thread_number())];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * buckets; ++i) {
      const int64_t row = i / buckets, begin = i % buckets * coding.bucket;
      unpack(values.data(), codes + i * bytes, qz::step_of(scales[i], coding.bits), coding.bucket, coding.bits);
      store(out + row * n + begin, values.data(), std::min(coding.bucket, n - begin), streaming);
    }
    store_fence();
  }
}

}  // namespace fedsynsam
