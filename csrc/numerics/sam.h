// The arithmetic of sam_norm, sam_perturb and sam_step, once, for CPU, CUDA and emulation.
// One rounding an operation: build with -ffp-contract=off (host) or -fmad=false (device).
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace fedsynsam::sam {

// The float64 partial sums of a norm cover fixed blocks of this many elements, so that the result depends
// neither on the number of threads nor on the grid.
constexpr int64_t kBlock = 16384;

// bfloat16 bits to float32, exact.
FSS_HD float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// IEEE binary16 bits to float32, exact and free of branches: the product with 2^112 moves the exponent's
// bias from 15 to 127 and normalizes denormals on the way; infinities and NaN get the full exponent after it.
FSS_HD float f16_to_float(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  float value;
  memcpy(&value, &magnitude, sizeof value);
  value *= 5.192296858534828e33f;  // 2^112
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits |= (magnitude >= 0x0f800000u ? 0x7f800000u : 0u) | (static_cast<uint32_t>(half & 0x8000u) << 16);
  memcpy(&value, &bits, sizeof value);
  return value;
}

// d = beta * synthetic + keep * gradient, keep = 1 - beta.
FSS_HD float mix(float gradient, float synthetic, float beta, float keep) {
  return synthetic * beta + gradient * keep;
}

// A square of a float32 is exact in float64.
FSS_HD double square(float value) { return static_cast<double>(value) * static_cast<double>(value); }

FSS_HD float norm_of(double sum_of_squares) { return static_cast<float>(sqrt(sum_of_squares)); }

// rho / norm, clamped so that a denormal norm gives no infinity (inf * 0 is NaN); NaN for a norm that is not finite.
// Callers copy the row when the norm is zero.
FSS_HD float scale_of(float rho, float norm) {
  if (!(norm <= FLT_MAX)) return NAN;
  const float scale = rho / norm;
  return scale > FLT_MAX ? FLT_MAX : (scale < -FLT_MAX ? -FLT_MAX : scale);
}

FSS_HD float perturbed(float weight, float d, float scale) { return weight + d * scale; }

FSS_HD float perturbed_adaptive(float weight, float d, float scale) {
  return weight + (weight * (weight * d)) * scale;
}

FSS_HD float decayed(float direction, float weight, float weight_decay) { return direction + weight * weight_decay; }

FSS_HD float with_momentum(float buffer, float direction, float momentum) { return buffer * momentum + direction; }

FSS_HD float stepped(float weight, float direction, float lr) { return weight - direction * lr; }

}  // namespace fedsynsam::sam
