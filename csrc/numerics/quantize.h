// The arithmetic of quantize and dequantize, once, for CPU, CUDA and emulation; kernels/reference/quantize.py is
// the definition. One rounding an operation: build with -ffp-contract=off (host) or -fmad=false (device).
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common.h"
#include "element.h"

namespace fedsynsam::quantization {

constexpr uint32_t kInfinityBits = 0x7f800000u;    // magnitudes from here on are not finite
constexpr float kZeroBelow = 0x1p-120f;            // a bucket with a smaller scale is a zero bucket
constexpr float kLargestStep8 = 0x1.020406p+121f;  // the largest step whose 127-fold is finite

// L, the levels on each side of zero; 1 for one bit.
FSS_HD int32_t levels(int bits) { return bits == 1 ? 1 : (1 << (bits - 1)) - 1; }

// The float's magnitude as an integer: ordered like |a|, and NaN above infinity, so a maximum finds both.
FSS_HD int32_t magnitude_bits(float a) { return static_cast<int32_t>(bits_of_float(a) & 0x7fffffffu); }

// A norm that passes FLT_MAX only by its root or rounding is still a legal scale; a tiny one makes a zero bucket.
FSS_HD float legal_scale(float scale) {
  if (scale < kZeroBelow) return 0.0f;
  return scale > FLT_MAX ? FLT_MAX : scale;
}

FSS_HD float scale_of_squares(double sum) { return legal_scale(static_cast<float>(sqrt(sum))); }

FSS_HD float inverse_step(float scale, int bits) { return static_cast<float>(levels(bits)) / scale; }

FSS_HD float step_of(float scale, int bits) {
  const float step = scale / static_cast<float>(levels(bits));
  return bits == 8 && step > kLargestStep8 ? kLargestStep8 : step;
}

FSS_HD int32_t clamp(int32_t q, int32_t top) {
  q = q > top ? top : q;
  return q < -top ? -top : q;
}

// floor(y) by truncation, which every instruction set has; |y| is far below 2^31.
FSS_HD int32_t floor_of(float y) {
  const int32_t truncated = static_cast<int32_t>(y);
  return truncated - (static_cast<float>(truncated) > y ? 1 : 0);
}

// q with E[q] = y to 2^-16: up iff the 16-bit draw is below the fraction.
FSS_HD int32_t round_stochastic(float y, int32_t draw, int32_t top) {
  const int32_t floor = floor_of(y);
  const int32_t threshold = static_cast<int32_t>((y - static_cast<float>(floor)) * 65536.0f);
  return clamp(floor + (draw < threshold ? 1 : 0), top);
}

// Half to even: adding 1.5 * 2^23 leaves no room for a fraction.
FSS_HD int32_t round_nearest(float y, int32_t top) {
  constexpr float kShift = 12582912.0f;
  return clamp(static_cast<int32_t>((y + kShift) - kShift), top);
}

// One bit: 0 stands for +scale, 1 for -scale.
FSS_HD int32_t sign_stochastic(float y, int32_t draw) {
  return draw < static_cast<int32_t>(((y + 1.0f) * 0.5f) * 65536.0f) ? 0 : 1;
}

FSS_HD int32_t sign_nearest(float a) { return a < 0.0f ? 1 : 0; }

// x of a level q; for one bit, of the bit q, and step is the scale.
template <int kBits>
FSS_HD float value_of(int32_t q, float step) {
  if (kBits == 1) return q ? -step : step;
  return static_cast<float>(q) * step;
}

// The level (for one bit: the bit) at bit slot * kBits of a byte.
template <int kBits>
FSS_HD int32_t level_at(uint32_t byte, int slot) {
  if (kBits == 1) return static_cast<int32_t>((byte >> slot) & 1u);
  return static_cast<int32_t>(byte << (32 - kBits - slot * kBits)) >> (32 - kBits);
}

// a - x. With one bit they may be nearly two scales apart: saturate instead of leaving an infinite residual.
template <int kBits>
FSS_HD float residual_of(float a, float x) {
  const float lost = a - x;
  if (kBits > 1) return lost;
  return lost > FLT_MAX ? FLT_MAX : (lost < -FLT_MAX ? -FLT_MAX : lost);
}

}  // namespace fedsynsam::quantization
