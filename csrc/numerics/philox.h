// Philox4x32-10, the counter-based random numbers of every stochastic operation.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "common.h"

namespace fedsynsam {

constexpr uint32_t kPhiloxMultiply0 = 0xD2511F53u, kPhiloxMultiply1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxKey0 = 0x9E3779B9u, kPhiloxKey1 = 0xBB67AE85u;

struct PhiloxWords {
  uint32_t word[4];
};

FSS_HD uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

FSS_HD PhiloxWords philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(c0, kPhiloxMultiply0), low0 = c0 * kPhiloxMultiply0;
    const uint32_t high1 = multiply_high(c2, kPhiloxMultiply1), low1 = c2 * kPhiloxMultiply1;
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += kPhiloxKey0;
    key1 += kPhiloxKey1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace fedsynsam
