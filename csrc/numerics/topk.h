// The arithmetic of topk, once, for CPU, CUDA and emulation: the order of magnitudes.
#pragma once

#include <cstdint>

#include "element.h"

namespace fedsynsam::topk {

// Keys from here on are infinity or NaN.
constexpr uint32_t kInfinity = 0x7f800000u;

// The order of magnitudes: |x| < |y| iff key(x) < key(y), with -0 equal to +0 and denormals in their place.
FSS_HD uint32_t key_of(float value) { return bits_of_float(value) & 0x7fffffffu; }

}  // namespace fedsynsam::topk
