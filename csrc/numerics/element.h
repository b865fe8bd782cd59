// Exact conversions of half-precision bits to float32, free of branches and of denormal arithmetic.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace fedsynsam {

FSS_HD float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FSS_HD uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FSS_HD float float_of_bf16(uint16_t half) { return float_of_bits(static_cast<uint32_t>(half) << 16); }

FSS_HD float float_of_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);  // the exponent's bias goes from 15 to 127
  const uint32_t denormal = bits_of_float(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t bits = magnitude < 0x0400u ? denormal : normal;
  return float_of_bits(sign | bits | (magnitude >= 0x7c00u ? 0x7f800000u : 0u));
}

}  // namespace fedsynsam
