// The arithmetic of aggregation, once, for CPU, CUDA and emulation: two roundings a payload, never a fused one
// (build with -ffp-contract=off on the host, -fmad=false on the device).
#pragma once

#include "common.h"

namespace fedsynsam {

FSS_HD float add_weighted(float total, float weight, float value) {
  const float term = weight * value;
  return total + term;
}

}  // namespace fedsynsam
