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

FSS_HD float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// bfloat16 bits to float32, exact.
FSS_HD float bf16_to_float(uint16_t half) { return float_of_bits(static_cast<uint32_t>(half) << 16); }

// IEEE binary16 bits to float32, exact and free of branches. The exponent's bias moves from 15 to 127; infinity and
// NaN get the full exponent. A denormal is m * 2^-24 = (2^-14 + m * 2^-24) - 2^-14, which never touches a
// denormal float32 (those cost a hundred cycles on many CPUs).
FSS_HD float f16_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t rebiased = magnitude + (112u << 23) + (magnitude >= (31u << 23) ? 112u << 23 : 0u);
  const float denormal = float_of_bits(magnitude + (113u << 23)) - float_of_bits(113u << 23);
  uint32_t bits;
  memcpy(&bits, &denormal, sizeof bits);
  const uint32_t small = 0u - static_cast<uint32_t>(magnitude < (1u << 23));  // a mask, or compilers make a branch
  bits = (bits & small) | (rebiased & ~small);
  return float_of_bits(bits | (static_cast<uint32_t>(half & 0x8000u) << 16));
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
