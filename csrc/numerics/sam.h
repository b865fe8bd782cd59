// The arithmetic of sam_norm, sam_perturb and sam_step, once, for CPU, CUDA and emulation.
// One rounding an operation: build with -ffp-contract=off (host) or -fmad=false (device).
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "common.h"

namespace fedsynsam::sam {

// d = beta * synthetic + keep * gradient, keep = 1 - beta.
FSS_HD float mix(float gradient, float synthetic, float beta, float keep) { return synthetic * beta + gradient * keep; }

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

FSS_HD float perturbed_adaptive(float weight, float d, float scale) { return weight + (weight * (weight * d)) * scale; }

FSS_HD float decayed(float direction, float weight, float weight_decay) { return direction + weight * weight_decay; }

FSS_HD float with_momentum(float buffer, float direction, float momentum) { return buffer * momentum + direction; }

FSS_HD float stepped(float weight, float direction, float lr) { return weight - direction * lr; }

}  // namespace fedsynsam::sam
