// Philox dominates stochastic quantization, and compilers miss its fast form: keep each 32-bit word in a 64-bit lane,
// where one instruction gives the whole product. It ignores the upper halves of its operands, so they may hold
// leftovers and need no masking: a round is two products, two shifts and two three-way exclusive ors.
#include "cpu/draw.h"

#include "cpu/isa.h"
#include "numerics/philox.h"

#if FSS_MULTIVERSION
#include <immintrin.h>
#endif

namespace fedsynsam {
namespace {

void draw_scalar(uint32_t* words, int64_t count, int64_t from, uint64_t counter, uint64_t seed) {
  for (int64_t j = from; j < count; ++j) {
    const uint64_t block = counter + static_cast<uint64_t>(j);
    const PhiloxWords random = philox4x32_10(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0,
                                             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    for (int w = 0; w < 4; ++w) words[w * count + j] = random.word[w];
  }
}

#if FSS_MULTIVERSION

// A prefetch never faults, so the addresses may lie behind the end of an array.
FSS_INLINE void fetch(const Ahead& ahead, int64_t counter, int64_t counters) {
  for (int array = 0; array < 2; ++array) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(ahead.address[array]);
    for (int64_t i = counter * ahead.step[array]; i < (counter + counters) * ahead.step[array]; i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(i)));
    }
  }
}

using Lanes4 = uint64_t __attribute__((vector_size(32)));
using Lanes8 = uint64_t __attribute__((vector_size(64)));
using Words4 = uint32_t __attribute__((vector_size(16)));
using Words8 = uint32_t __attribute__((vector_size(32)));

FSS_AVX512 int64_t draw_vectors(uint32_t* words, int64_t count, uint64_t counter, uint64_t seed, const Ahead& ahead) {
  constexpr __mmask8 kAll = 255;  // the unmasked intrinsic warns in GCC 12: its "undefined" operand is one
  const __m512i multiply0 = _mm512_set1_epi64(kPhiloxMultiply0), multiply1 = _mm512_set1_epi64(kPhiloxMultiply1);
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) {
    fetch(ahead, j, 8);
    Lanes8 c0 = Lanes8{0, 1, 2, 3, 4, 5, 6, 7} + (counter + static_cast<uint64_t>(j)), c1 = c0 >> 32, c2{}, c3{};
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, key0 += kPhiloxKey0, key1 += kPhiloxKey1) {
      const Lanes8 product0 = (Lanes8)_mm512_maskz_mul_epu32(kAll, (__m512i)c0, multiply0);
      const Lanes8 product1 = (Lanes8)_mm512_maskz_mul_epu32(kAll, (__m512i)c2, multiply1);
      c0 = (product1 >> 32) ^ c1 ^ key0;
      c1 = product1;
      c2 = (product0 >> 32) ^ c3 ^ key1;
      c3 = product0;
    }
    const Words8 random[4] = {__builtin_convertvector(c0, Words8), __builtin_convertvector(c1, Words8),
                              __builtin_convertvector(c2, Words8), __builtin_convertvector(c3, Words8)};
    for (int w = 0; w < 4; ++w) std::memcpy(words + w * count + j, &random[w], sizeof(Words8));
  }
  return j;
}

FSS_AVX2 int64_t draw_vectors(uint32_t* words, int64_t count, uint64_t counter, uint64_t seed, const Ahead& ahead) {
  const __m256i multiply0 = _mm256_set1_epi64x(kPhiloxMultiply0), multiply1 = _mm256_set1_epi64x(kPhiloxMultiply1);
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    fetch(ahead, j, 4);
    Lanes4 c0 = Lanes4{0, 1, 2, 3} + (counter + static_cast<uint64_t>(j)), c1 = c0 >> 32, c2{}, c3{};
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, key0 += kPhiloxKey0, key1 += kPhiloxKey1) {
      const Lanes4 product0 = (Lanes4)_mm256_mul_epu32((__m256i)c0, multiply0);
      const Lanes4 product1 = (Lanes4)_mm256_mul_epu32((__m256i)c2, multiply1);
      c0 = (product1 >> 32) ^ c1 ^ key0;
      c1 = product1;
      c2 = (product0 >> 32) ^ c3 ^ key1;
      c3 = product0;
    }
    const Words4 random[4] = {__builtin_convertvector(c0, Words4), __builtin_convertvector(c1, Words4),
                              __builtin_convertvector(c2, Words4), __builtin_convertvector(c3, Words4)};
    for (int w = 0; w < 4; ++w) std::memcpy(words + w * count + j, &random[w], sizeof(Words4));
  }
  return j;
}

#endif  // FSS_MULTIVERSION

FSS_DEFAULT int64_t draw_vectors(uint32_t*, int64_t, uint64_t, uint64_t, const Ahead&) { return 0; }

}  // namespace

void draw_words(uint32_t* words, int64_t count, uint64_t counter, uint64_t seed, const Ahead& ahead) {
  draw_scalar(words, count, draw_vectors(words, count, counter, seed, ahead), counter, seed);
}

}  // namespace fedsynsam
