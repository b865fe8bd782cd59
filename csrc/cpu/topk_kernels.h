// The innermost loops of top-k, compiled once per instruction set (topk_loops.h) and chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "numerics/topk.h"

namespace fedsynsam::topk {

// Vectors are padded to this many elements where a loop may run over their end.
constexpr int64_t kPad = 16;

// Where taken elements go, in the order of their indices: index and float32 bits of each.
struct Sink {
  uint32_t* index;
  uint32_t* bits;
  int64_t count;
};

enum class Store {
  plain,      // every element, through the caches
  streaming,  // every element, past the caches: the target's lines are not read first
  changed,    // target and source are the same: only vectors in which an element was taken
};

enum class Taken {
  zeroed,  // the target gets 0 in the place of a taken element
  kept,    // the target gets the element all the same
};

struct Kernels {
  const char* name;
  void (*convert_bf16)(const uint16_t* in, int64_t count, float* out);
  void (*convert_f16)(const uint16_t* in, int64_t count, float* out);
  // a = update + residual (or update, if residual is null). Elements with key(a) >= lo go to the sink, index `base`
  // being that of the first one, and target gets a. Returns the largest key.
  uint32_t (*absorb)(const float* update, const float* residual, int64_t count, float* target, Store store, Taken taken,
                     uint32_t lo, uint32_t base, Sink* sink);
  // The elements of a with key >= lo go to the sink.
  void (*collect)(const float* a, int64_t count, uint32_t lo, Sink* sink);
  // The largest keys of count / `group` disjoint sets of `group` elements. count: a multiple of 16 * group.
  void (*maxima)(const float* a, int64_t count, int64_t group, uint32_t* out);
  // How many of the keys of `bits` are at least lo, and the smallest of those. count: a multiple of kPad.
  int64_t (*count_at_least)(const uint32_t* bits, int64_t count, uint32_t lo);
  uint32_t (*smallest_at_least)(const uint32_t* bits, int64_t count, uint32_t lo);
  // After the last streaming store of a thread and before another thread reads.
  void (*finish_streaming)();
};

// The kernels for this machine: the best usable instruction set, or the one selected.
const Kernels& kernels();

// Usable instruction sets, best first; and the choice of one by name (for tests and benchmarks: process-wide).
// Returns false if the name is not among them.
std::vector<std::string> instruction_sets();
bool select_instruction_set(const std::string& name);

}  // namespace fedsynsam::topk
