// What a thread of quantize.cu does with the eight values of each of its counters.
#pragma once

#include <cstdint>

#include "fedsynsam.h"
#include "numerics/philox.h"
#include "numerics/quantize.h"
#include "packs.h"

namespace fedsynsam {
namespace {

namespace qz = quantization;

// Where a bucket lies.
struct Place {
  int64_t row, index;   // of the bucket in its row
  int64_t offset;       // of its first value
  int64_t count;        // values, fewer than B at the end of a row
  int64_t code_offset;  // of its first byte
};

__device__ Place place_of(const QuantizeArgs& args, int64_t bucket, int64_t buckets) {
  const int64_t row = bucket / buckets, index = bucket % buckets, begin = index * args.coding.bucket;
  const int64_t left = args.n - begin;
  return {row, index, row * args.n + begin, left < args.coding.bucket ? left : args.coding.bucket,
          bucket * (args.coding.bucket * args.coding.bits / 8)};
}

// update + residual at `index`, kVector values of which all are there.
template <typename Type, int kVector>
__device__ void load_sum(const QuantizeArgs& args, int64_t index, float* a) {
  const auto update = load_pack<kVector, typename Type::Storage>(args.update, index);
#pragma unroll
  for (int j = 0; j < kVector; ++j) a[j] = Type::load(update.at[j]);
  if (args.residual == nullptr) return;
  const auto residual = load_pack<kVector, float>(args.residual, index);
#pragma unroll
  for (int j = 0; j < kVector; ++j) a[j] = a[j] + residual.at[j];
}

// The level of one value (for one bit: the bit).
__device__ int32_t level_of(const QuantizeArgs& args, float a, float inverse, int32_t draw) {
  const int bits = args.coding.bits;
  if (args.rounding == Rounding::nearest) {
    return bits == 1 ? qz::sign_nearest(a) : qz::round_nearest(a * inverse, qz::levels(bits));
  }
  const float y = a * inverse;
  return bits == 1 ? qz::sign_stochastic(y, draw) : qz::round_stochastic(y, draw, qz::levels(bits));
}

__device__ float lost_of(float a, int32_t q, float step, int bits) {
  return bits == 1 ? qz::residual_of<1>(a, qz::value_of<1>(q, step)) : qz::residual_of<8>(a, qz::value_of<8>(q, step));
}

// The codes of kVector neighbouring counters: byte c + l * eighth holds the levels of the values l + t * kBits of c.
template <int kBits, int kVector>
__device__ void store_codes(uint8_t* codes, int64_t eighth, const int32_t (&q)[8][kVector]) {
  constexpr uint32_t kMask = (1u << kBits) - 1u;
#pragma unroll
  for (int l = 0; l < kBits; ++l) {
    Pack<uint8_t, kVector> bytes;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      uint32_t byte = 0;
#pragma unroll
      for (int t = 0; t < 8 / kBits; ++t) byte |= (static_cast<uint32_t>(q[l + t * kBits][j]) & kMask) << (t * kBits);
      bytes.at[j] = static_cast<uint8_t>(byte);
    }
    store_pack<kVector>(codes, l * eighth, bytes);
  }
}

template <int kVector>
__device__ void store_codes(uint8_t* codes, int64_t eighth, const int32_t (&q)[8][kVector], int bits) {
  if (bits == 1) return store_codes<1, kVector>(codes, eighth, q);
  if (bits == 2) return store_codes<2, kVector>(codes, eighth, q);
  if (bits == 4) return store_codes<4, kVector>(codes, eighth, q);
  store_codes<8, kVector>(codes, eighth, q);
}

// Levels of the eight values of counter `c` of a bucket; a becomes what is lost of them. Values from `count` on are
// padding: level 0.
template <int kVector>
__device__ void find_levels(const QuantizeArgs& args, const Place& place, int64_t c, int j, float scale, float inverse,
                            float step, float (&a)[8][kVector], int32_t (&q)[8][kVector]) {
  const int64_t eighth = args.coding.bucket / 8;
  PhiloxWords drawn{};
  if (args.rounding == Rounding::stochastic && scale != 0.0f) {
    const uint64_t counter = static_cast<uint64_t>(place.index * eighth + c);
    const uint64_t seed = static_cast<uint64_t>(args.seeds[place.row]);
    drawn = philox4x32_10(static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0,
                          static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  }
#pragma unroll
  for (int l = 0; l < 8; ++l) {
    const uint32_t word = drawn.word[l / 2];
    const auto draw = static_cast<int32_t>(l % 2 == 0 ? word & 0xffffu : word >> 16);
    const bool there = scale != 0.0f && c + l * eighth < place.count;
    q[l][j] = there ? level_of(args, a[l][j], inverse, draw) : 0;
    if (there) a[l][j] = lost_of(a[l][j], q[l][j], step, args.coding.bits);
  }
}

// Squares of a counter's eight values, added as the first three halvings of the bucket's tree do.
template <int kVector>
__device__ double counter_squares(const float (&a)[8][kVector], int j) {
  double s[8];
#pragma unroll
  for (int l = 0; l < 8; ++l) s[l] = static_cast<double>(a[l][j]) * static_cast<double>(a[l][j]);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

}  // namespace
}  // namespace fedsynsam
