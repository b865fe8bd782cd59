// encode_indices and decode_indices on the CPU: see kernels/reference/index_coding.py for the layout.
//
// Threads share the rows, or the ranks of a row when there are few. Shares begin at multiples of 32 ranks, so that
// they do not meet in a word of the low vector; in the high vector they meet in their first and last words only.
#include "numerics/index_coding.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"
#include "fedsynsam.h"

namespace fedsynsam {
namespace {

using index_coding::Layout;

constexpr int64_t kShare = 131072;  // ranks, a fraction of a millisecond: less is not worth waking a thread

// The part of a row's ranks, or of its words, that share `s` of `shares` handles.
struct Range {
  int64_t begin, end;

  Range(int64_t count, int64_t s, int64_t shares) {
    const int64_t length = ((count + shares - 1) / shares + 31) / 32 * 32;
    begin = std::min(count, s * length);
    end = std::min(count, begin + length);
  }
};

struct Shares {
  int64_t per_row;
  int threads;

  Shares(int64_t rows, int64_t k, int most) {
    threads = rows * k < 2 * kShare ? 1 : std::max(1, most);
    per_row = rows >= threads ? 1 : std::clamp<int64_t>(k / kShare, 1, threads);
  }
};

void encode_low(const int32_t* indices, Range ranks, int low, uint32_t* words) {
  const uint32_t mask = index_coding::low_mask(low);
  uint32_t* word = words + ranks.begin / 32 * low;
  uint64_t waiting = 0;
  int filled = 0;
  for (int64_t i = ranks.begin; i < ranks.end; ++i) {
    waiting |= static_cast<uint64_t>(static_cast<uint32_t>(indices[i]) & mask) << filled;
    filled += low;
    if (filled < 32) continue;
    *word++ = static_cast<uint32_t>(waiting);
    waiting >>= 32;
    filled -= 32;
  }
  if (filled > 0) *word = static_cast<uint32_t>(waiting);
}

// Sets bits of a cleared vector. A word is gathered in a register; those that another share may touch are added
// atomically. A position behind the end (of an index that is not below n) is left out.
void encode_high(const int32_t* indices, Range ranks, const Layout& layout, uint32_t* words) {
  if (ranks.begin == ranks.end) return;
  const auto position = [&](int64_t i) {
    return index_coding::high_bit(static_cast<uint32_t>(indices[i]), i, layout.low_bits);
  };
  const int64_t first = position(ranks.begin) >> 5, last = position(ranks.end - 1) >> 5;
  const auto add = [&](int64_t word, uint32_t bits) {
    if (word == first || word == last) {
      __atomic_fetch_or(words + word, bits, __ATOMIC_RELAXED);
    } else {
      words[word] |= bits;
    }
  };
  int64_t current = 0;
  uint32_t waiting = 0;
  for (int64_t i = ranks.begin; i < ranks.end; ++i) {
    const int64_t bit = position(i);
    if (bit >= layout.high_bits) continue;
    if (bit >> 5 != current) {
      if (waiting) add(current, waiting);
      current = bit >> 5;
      waiting = 0;
    }
    waiting |= 1u << (bit & 31);
  }
  if (waiting) add(current, waiting);
}

int64_t count_ones(const uint32_t* words, Range range) {
  int64_t count = 0;
  for (int64_t w = range.begin; w < range.end; ++w) count += __builtin_popcount(words[w]);
  return count;
}

// Decodes the ones of a range of the high vector, the first of which has rank i. False unless they ascend.
bool decode_range(const uint32_t* words, const Layout& layout, Range range, int64_t i, int32_t* indices) {
  const uint32_t* high = words + layout.low_words;
  bool ascending = true;
  int64_t previous = -1;
  for (int64_t w = range.begin; w < range.end; ++w) {
    for (uint32_t ones = high[w]; ones; ones &= ones - 1u, ++i) {
      const uint32_t low = index_coding::low_part(words, i, layout.low_bits);
      const int64_t index = index_coding::index_at(w * 32 + __builtin_ctz(ones), i, low, layout.low_bits);
      ascending &= index > previous;
      previous = index;
      indices[i] = static_cast<int32_t>(index);
    }
  }
  return ascending;
}

// What a share of a row found in its part of the high vector.
struct Found {
  int64_t ones = 0, rank = 0;
  bool ascending = true;
};

// Ranks of the shares' first ones. False if the row does not hold exactly k ones.
bool rank_shares(Found* found, int64_t shares, int64_t k) {
  int64_t rank = 0;
  for (int64_t s = 0; s < shares; ++s) {
    found[s].rank = rank;
    rank += found[s].ones;
  }
  return rank == k;
}

// The checks that need the whole decoded row.
bool is_valid(const uint32_t* words, const Layout& layout, const Found* found, int64_t shares, int64_t n, int64_t k,
              const int32_t* indices) {
  bool valid = index_coding::padding_is_zero(words, k * layout.low_bits, layout.low_words) &&
               index_coding::padding_is_zero(words + layout.low_words, layout.high_bits, layout.high_words) &&
               indices[k - 1] < n;
  for (int64_t s = 0; s < shares; ++s) {
    const int64_t rank = found[s].rank;
    valid &= found[s].ascending && (rank == 0 || rank == k || indices[rank - 1] < indices[rank]);
  }
  return valid;
}

}  // namespace

void encode_indices_cpu(const int32_t* indices, int64_t rows, int64_t k, int64_t n, uint32_t* words, int threads) {
  if (k == 0) return;
  const Layout layout = index_coding::layout_of(n, k);
  const int64_t length = layout.low_words + layout.high_words;
  const Shares shares(rows, k, threads);
  parallel_for(rows, shares.threads, 1,
               [&](int64_t row, int) { std::fill_n(words + row * length + layout.low_words, layout.high_words, 0u); });
  parallel_for(rows * shares.per_row, shares.threads, 1, [&](int64_t i, int) {
    const int64_t row = i / shares.per_row;
    const Range ranks(k, i % shares.per_row, shares.per_row);
    encode_low(indices + row * k, ranks, layout.low_bits, words + row * length);
    encode_high(indices + row * k, ranks, layout, words + row * length + layout.low_words);
  });
}

void decode_indices_cpu(const uint32_t* words, int64_t rows, int64_t n, int64_t k, int32_t* indices, bool* valid,
                        int threads) {
  std::fill_n(valid, rows, true);
  if (k == 0) return;
  const Layout layout = index_coding::layout_of(n, k);
  const int64_t length = layout.low_words + layout.high_words;
  const Shares shares(rows, k, threads);
  const int64_t per_row = shares.per_row;
  std::vector<Found> found(static_cast<size_t>(rows * per_row));
  const auto range_of = [&](int64_t i) { return Range(layout.high_words, i % per_row, per_row); };

  parallel_for(rows * per_row, shares.threads, 1, [&](int64_t i, int) {
    found[static_cast<size_t>(i)].ones = count_ones(words + i / per_row * length + layout.low_words, range_of(i));
  });
  for (int64_t row = 0; row < rows; ++row) {
    valid[row] = rank_shares(&found[static_cast<size_t>(row * per_row)], per_row, k);
  }
  parallel_for(rows * per_row, shares.threads, 1, [&](int64_t i, int) {
    const int64_t row = i / per_row;
    if (!valid[row]) return;
    Found& part = found[static_cast<size_t>(i)];
    part.ascending = decode_range(words + row * length, layout, range_of(i), part.rank, indices + row * k);
  });
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* out = indices + row * k;
    const Found* parts = &found[static_cast<size_t>(row * per_row)];
    valid[row] = valid[row] && is_valid(words + row * length, layout, parts, per_row, n, k, out);
    if (valid[row]) continue;
    for (int64_t i = 0; i < k; ++i) out[i] = static_cast<int32_t>(i);
  }
}

}  // namespace fedsynsam
