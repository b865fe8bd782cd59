// What the CPU kernels share: function multi-versioning and stores past the caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// FSS_CLONES compiles a function for AVX-512, AVX2 and the baseline; FSS_AVX512, FSS_AVX2 and FSS_DEFAULT mark
// hand-written versions of one function. The machine's version is picked at load time. It takes ifunc support in
// the compiler and the libc; elsewhere only the baseline is compiled. FSS_NO_CLONES turns it off.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && !defined(FSS_NO_CLONES)
#define FSS_MULTIVERSION 1
#define FSS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define FSS_AVX512 __attribute__((target("arch=x86-64-v4")))
#define FSS_AVX2 __attribute__((target("arch=x86-64-v3")))
#define FSS_DEFAULT __attribute__((target("default")))
#else
#define FSS_MULTIVERSION 0
#define FSS_CLONES
#define FSS_DEFAULT
#endif

// For helpers that must be compiled with the instruction set of the clone that calls them.
#if defined(__GNUC__)
#define FSS_INLINE inline __attribute__((always_inline))
#else
#define FSS_INLINE inline
#endif

namespace fedsynsam {

// Copies `count` floats; `streaming` stores go past the caches, which saves reading the target first.
inline void store(float* target, const float* source, int64_t count, bool streaming) {
#if defined(__SSE2__)
  if (streaming && reinterpret_cast<uintptr_t>(target) % 16 == 0) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) _mm_stream_ps(target + i, _mm_loadu_ps(source + i));
    for (; i < count; ++i) target[i] = source[i];
    return;
  }
#else
  (void)streaming;
#endif
  std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
}

// Makes streaming stores visible to other threads.
inline void store_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace fedsynsam
