// The random words of one bucket, as many Philox counters at a time as the machine has lanes.
#pragma once

#include <cstdint>

namespace fedsynsam {

// Memory to fetch meanwhile: the arithmetic of a draw hides the latency of the next input, if the requests are spread
// over it (asked for at once they fill the core's miss buffers and hold up everything behind them).
struct Ahead {
  const char* address[2];  // of two arrays
  int64_t step[2];         // bytes a counter; 0: none
};

// words[w * count + j] = word w of philox4x32_10(counter + j, 0, 0; seed), for j below `count`, a power of two up to
// 2^32; `counter` is a multiple of count, so that all counters share their high word.
void draw_words(uint32_t* words, int64_t count, uint64_t counter, uint64_t seed, const Ahead& ahead);

}  // namespace fedsynsam
