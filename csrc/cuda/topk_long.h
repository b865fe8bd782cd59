// Top-k of pieces longer than a tile (see topk.cu for the shorter ones): its plan, and what its kernels leave to each
// other. The first three are in topk_collect.cu, the others in topk_long.cu.
//
//   estimate   a sample of each piece gives a bracket [lo, hi) of keys that the k-th largest one probably lies in
//   collect    reads update and residual, writes a; lists the elements within the bracket and counts those above it
//   put_back   only if the estimate failed: undoes what collect zeroed
//   find       three rounds, a digit of the key each: a histogram of the listed elements
//   count      winners of each tile, now that the threshold is known
//   emit       writes indices and values, in order
//
// A sparse piece has no hi: all that can win is listed, collect writes 0 in its place, emit puts the losers back, and
// memory is passed over once. In a dense piece emit reads a again, and zeroes the winners. If the k-th largest key is
// not in the bracket, or there was no room for all that is listed (equal elements, say), the rounds, count and emit go
// over a instead, which costs time and nothing else. The host learns nothing of all this: later kernels look at what
// the earlier ones left (`Choice`), and kernels that have nothing to do return. Which elements win never depends on the
// sample, nor on the order in which blocks find room in the list.
#pragma once

#include "topk_tile.h"

namespace fedsynsam::topk {

constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxGroups = 1024;  // blocks a piece in find, count and emit
constexpr int64_t kSparse = 64;       // pieces of which at most one in so many is emitted
constexpr int64_t kRoom = 40;         // one in so many elements can be listed, and kLeastRoom more
constexpr int64_t kLeastRoom = 1024;

// ---- scratch: what kernels leave to later ones ----

struct Choice {
  uint32_t lo, hi;    // listed: lo <= key < hi
  uint32_t used;      // elements listed
  uint32_t sure;      // elements with hi <= key
  uint32_t overflow;  // a tile found no room
  uint32_t unused[3];
  Found found[kRounds + 1];  // before round 0, ..., after the last one

  __device__ bool zeroed() const { return hi == kNever; }
  // Whether the k-th largest is not among the listed, so that all of a has to be gone through.
  __device__ bool failed(int64_t k) const { return overflow != 0 || sure >= k || int64_t{sure} + used < k; }
};

struct Listed {
  uint32_t first, count;  // where the tile's elements are
  uint32_t above, ties;   // keys above the threshold and equal to it; until `count`: those with hi <= key, and 0
};

struct Group {
  uint32_t above, ties;
};

// A piece's part of the scratch.
struct Part {
  Choice* choice;
  uint32_t* bins;  // kRounds histograms, kMostBins apart
  Group* groups;
  Listed* tiles;
  uint32_t* bits;    // of the listed elements
  uint16_t* places;  // where they are in their tile
};

FSS_HD constexpr int64_t words_of(int64_t bytes) { return (bytes + 15) / 16 * 4; }

struct Scratch {
  uint32_t* memory;
  int64_t tiles, groups, tiles_per_group, room, words;

  Scratch(uint32_t* memory, int64_t length) : memory(memory) {
    tiles = (length + kTile - 1) / kTile;
    tiles_per_group = (tiles + kMaxGroups - 1) / kMaxGroups;
    groups = (tiles + tiles_per_group - 1) / tiles_per_group;
    room = length / kRoom + kLeastRoom;
    room = (room < length ? room : length + 7) / 8 * 8;
    words = words_of(sizeof(Choice)) + kRounds * kMostBins + words_of(groups * int64_t{sizeof(Group)}) +
            words_of(tiles * int64_t{sizeof(Listed)}) + room + room / 2;
  }

  __device__ Part of(int64_t piece) const {
    uint32_t* at = memory + piece * words;
    Part part;
    part.choice = reinterpret_cast<Choice*>(at);
    part.bins = at += words_of(sizeof(Choice));
    part.groups = reinterpret_cast<Group*>(at += kRounds * kMostBins);
    part.tiles = reinterpret_cast<Listed*>(at += words_of(groups * int64_t{sizeof(Group)}));
    part.bits = at += words_of(tiles * int64_t{sizeof(Listed)});
    part.places = reinterpret_cast<uint16_t*>(at + room);
    return part;
  }
};

// What a block of find, count and emit works on.
struct Job {
  Piece piece;
  Part part;
  int64_t group;
  int64_t begin, end;  // tiles
  int64_t offset;      // of the piece in update and residual
  bool scans;          // a, and not the list

  __device__ Job(const TopKArguments& args, const Pieces& pieces, const Scratch& scratch) {
    const int64_t p = blockIdx.x / scratch.groups;
    group = blockIdx.x % scratch.groups;
    piece = pieces.at(p);
    part = scratch.of(p);
    const int64_t tiles = (piece.count + kTile - 1) / kTile;
    begin = group * scratch.tiles_per_group;
    end = begin + scratch.tiles_per_group < tiles ? begin + scratch.tiles_per_group : tiles;
    offset = piece.row * args.n + piece.begin;
    scans = part.choice->failed(piece.k);
  }
};

__device__ inline int length_of(const Piece& piece, int64_t tile) {
  const int64_t left = piece.count - tile * kTile;
  return static_cast<int>(left < kTile ? left : kTile);
}

// Launches of topk_collect.cu: what comes before the rounds.
void collect_all(const TopKArguments& args, const Pieces& pieces, const Scratch& scratch, cudaStream_t stream);

}  // namespace fedsynsam::topk
