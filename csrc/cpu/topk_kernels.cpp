// Compiles the loops of topk_loops.h for each instruction set, and chooses one at run time.
#include "cpu/topk_kernels.h"

#include <atomic>
#include <cstdint>
#include <cstring>

#include "numerics/topk.h"

// Function targets by pragma: GCC sets the intrinsics free with it; clang does not, and builds for its flags only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FSS_X86_VARIANTS 1
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fedsynsam::topk {
namespace {

namespace portable {
#define FSS_LANES 1
#define FSS_NAME "portable"
#include "cpu/topk_loops.h"
#undef FSS_LANES
#undef FSS_NAME
}  // namespace portable

#if defined(__SSE2__)
namespace sse2 {
#define FSS_LANES 4
#define FSS_NAME "sse2"
#include "cpu/topk_loops.h"
#undef FSS_LANES
#undef FSS_NAME
}  // namespace sse2
#endif

#if defined(FSS_X86_VARIANTS)
#pragma GCC push_options
#pragma GCC target("avx2,bmi,popcnt")
namespace avx2 {
#define FSS_LANES 8
#define FSS_NAME "avx2"
#include "cpu/topk_loops.h"
#undef FSS_LANES
#undef FSS_NAME
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC diagnostic push
// Some GCCs take the undefined operands inside their own AVX-512 intrinsics for mistakes (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,bmi,popcnt,prefer-vector-width=512")
namespace avx512 {
#define FSS_LANES 16
#define FSS_NAME "avx512"
#include "cpu/topk_loops.h"
#undef FSS_LANES
#undef FSS_NAME
}  // namespace avx512
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> tables;
#if defined(FSS_X86_VARIANTS)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
    tables.push_back(&avx512::kTable);
  }
  if (__builtin_cpu_supports("avx2")) tables.push_back(&avx2::kTable);
#endif
#if defined(__SSE2__)
  tables.push_back(&sse2::kTable);
#endif
  tables.push_back(&portable::kTable);
  return tables;
}

std::atomic<const Kernels*>& selected() {
  static std::atomic<const Kernels*> table{usable().front()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *selected().load(std::memory_order_relaxed); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* table : usable()) names.emplace_back(table->name);
  return names;
}

bool select_instruction_set(const std::string& name) {
  for (const Kernels* table : usable()) {
    if (name != table->name) continue;
    selected().store(table, std::memory_order_relaxed);
    return true;
  }
  return false;
}

}  // namespace fedsynsam::topk
