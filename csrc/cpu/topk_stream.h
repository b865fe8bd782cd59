// The parts of streamed top-k (topk_streamed.cpp): the estimate, and the exact scan where the estimate does not serve.
#pragma once

#include <vector>

#include "cpu/topk_piece.h"

namespace fedsynsam::topk {

// Keys between which the k-th largest very probably lies: lo <= it < hi. `expected` elements lie between them.
struct Bracket {
  uint32_t lo, hi;
  int64_t expected;
};

// From a fixed, spread sample. Sparse pieces need no hi (kNever): everything from lo on is a candidate.
Bracket estimate(const TopKArguments& args, const Piece& piece, bool sparse);

// A thread's share of a piece: elements [begin, begin + count) of it, its candidates, and what it emits.
struct Share {
  int64_t begin, count;
  Candidates candidates;
  int64_t capacity;     // of the candidates
  bool overflow;        // not all candidates are there
  uint32_t top;         // largest key
  int64_t sure;         // keys from hi on, which are not among the candidates
  int64_t above, ties;  // keys above the threshold, and ties with it, that the share emits
  bool all_ties;        // no tie of the share is left out
};

// Gives each share its part of the ties, the first ones first. Before: share.ties is the number of its ties.
void grant_ties(std::vector<Share>& shares, int64_t ties);

// The place of a share's first emitted element among those of the piece.
int64_t emitted_before(const std::vector<Share>& shares, const Share& share);

// Writes a into the residual and gathers the candidates of [lo, hi) of a share, whose size the bracket bounds.
void survey(const TopKArguments& args, const Piece& piece, const Bracket& bracket, Store store, Share& share);

// The exact k-th largest key of the piece from the residual that holds a, by two histograms; sets above and ties.
uint32_t exact_threshold(const TopKArguments& args, const Piece& piece, std::vector<Share>& shares);

// Emits from the residual that holds a, for shares with above and ties set.
void emit_by_scan(const TopKArguments& args, const Piece& piece, uint32_t threshold, std::vector<Share>& shares);

}  // namespace fedsynsam::topk
