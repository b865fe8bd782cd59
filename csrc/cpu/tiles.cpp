// Which instruction set the passes of small networks use.
#include "cpu/tiles.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

namespace fedsynsam {
namespace {

// Best first; tile_level counts from the end.
const std::vector<std::string> kInstructionSets =
#if FSS_TILE_VARIANTS
    {"avx512", "avx2", "baseline"};
#else
    {"baseline"};
#endif

int best_level() {
#if FSS_TILE_VARIANTS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx2 && avx512 ? 2 : (avx2 ? 1 : 0);
#else
  return 0;
#endif
}

std::atomic<int> chosen_level{best_level()};

}  // namespace

int tile_level() { return chosen_level.load(std::memory_order_relaxed); }

std::vector<std::string> network_instruction_sets() {
  return {kInstructionSets.end() - 1 - best_level(), kInstructionSets.end()};
}

bool network_select_instruction_set(const std::string& name) {
  const std::vector<std::string> usable = network_instruction_sets();
  const auto found = std::find(usable.begin(), usable.end(), name);
  if (found == usable.end()) return false;
  chosen_level = static_cast<int>(usable.end() - found) - 1;
  return true;
}

}  // namespace fedsynsam
