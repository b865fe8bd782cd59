// What is done about outputs that are much larger than the caches.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fedsynsam {

// Memory that an allocator has just taken from the system is mapped at its first write, 4 KiB at a time, which takes
// longer than the kernels do; huge pages come 2 MiB at a time. Only a hint: no result depends on it.
inline void prefer_huge_pages(const void* output, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(output) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(output) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(output);
  static_cast<void>(bytes);
#endif
}

// Whether stores of `count` floats to `output` should bypass the caches; if so, readies its pages. Call it before the
// first write. A null output counts as one that is written elsewhere.
inline bool is_large_output(const float* output, int64_t count) {
  if (count < int64_t{1} << 22) return false;
  if (output != nullptr) prefer_huge_pages(output, count * static_cast<int64_t>(sizeof(float)));
  return true;
}

}  // namespace fedsynsam
