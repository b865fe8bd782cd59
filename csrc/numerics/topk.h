// The arithmetic of topk, once, for CPU, CUDA and emulation: half-precision loads, the sum, and the order.
// One rounding an operation: build with -ffp-contract=off (host) or -fmad=false (device).
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace fedsynsam::topk {

// Keys from here on are infinity or NaN.
constexpr uint32_t kInfinity = 0x7f800000u;

FSS_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FSS_HD float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The order of magnitudes: |x| < |y| iff key(x) < key(y), with -0 equal to +0 and denormals in their place.
FSS_HD uint32_t key_of(float value) { return bits_of(value) & 0x7fffffffu; }

// bfloat16 bits to float32, exact.
FSS_HD float bf16_to_float(uint16_t half) { return float_of_bits(static_cast<uint32_t>(half) << 16); }

// IEEE binary16 bits to float32, exact, without branches and without arithmetic on denormal float32 numbers: the
// exponent's bias moves from 15 to 127, infinity and NaN get the full exponent, and a denormal m * 2^-24 is
// (2^-14 + m * 2^-24) - 2^-14.
FSS_HD float f16_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t full = 0u - static_cast<uint32_t>(magnitude >= (31u << 23));
  const uint32_t normal = magnitude + (112u << 23) + (full & (112u << 23));
  const uint32_t denormal = bits_of(float_of_bits(magnitude + (113u << 23)) - float_of_bits(113u << 23));
  const uint32_t small = 0u - static_cast<uint32_t>(magnitude < (1u << 23));
  const uint32_t bits = (denormal & small) | (normal & ~small);
  return float_of_bits(bits | (static_cast<uint32_t>(half & 0x8000u) << 16));
}

}  // namespace fedsynsam::topk
