// The loops of topk_kernels.h for FSS_LANES lanes (16: AVX-512, 8: AVX2, 4: SSE2, 1: any machine). Included once per
// instruction set, inside a namespace of its own and under a target pragma; so no templates and no std functions here.

#if FSS_LANES == 16
using Floats = __m512;
static inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
static inline Floats sum(Floats x, Floats y) { return _mm512_add_ps(x, y); }
static inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
static inline void stream(float* p, Floats x) { _mm512_stream_ps(p, x); }
using Keys = __m512i;
static inline Keys keys(Floats x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }
static inline Keys no_keys() { return _mm512_setzero_si512(); }
static inline Keys larger(Keys x, Keys y) { return _mm512_max_epi32(x, y); }
static inline uint32_t largest(Keys x) { return static_cast<uint32_t>(_mm512_reduce_max_epi32(x)); }
static inline uint32_t at_least(Keys x, uint32_t lo) {
  return _mm512_cmp_epu32_mask(x, _mm512_set1_epi32(static_cast<int>(lo)), _MM_CMPINT_NLT);
}
static inline Floats zeroed(Floats x, uint32_t mask) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(~mask), x); }
static inline void take(Floats x, uint32_t mask, uint32_t first, Sink* sink) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 m = static_cast<__mmask16>(mask);
  const int taken = __builtin_popcount(mask);
  // Compressed in a register and stored under a mask: a compressing store is slow on some machines, and a full one
  // would write over the sink's end.
  const __mmask16 front = static_cast<__mmask16>((1u << taken) - 1u);
  const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lane);
  _mm512_mask_storeu_epi32(sink->index + sink->count, front, _mm512_maskz_compress_epi32(m, index));
  _mm512_mask_storeu_epi32(sink->bits + sink->count, front, _mm512_maskz_compress_epi32(m, _mm512_castps_si512(x)));
  sink->count += taken;
}
#elif FSS_LANES == 8
using Floats = __m256;
static inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
static inline Floats sum(Floats x, Floats y) { return _mm256_add_ps(x, y); }
static inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
static inline void stream(float* p, Floats x) { _mm256_stream_ps(p, x); }
using Keys = __m256i;
static inline Keys keys(Floats x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
static inline Keys no_keys() { return _mm256_setzero_si256(); }
static inline Keys larger(Keys x, Keys y) { return _mm256_max_epi32(x, y); }
static inline uint32_t at_least(Keys x, uint32_t lo) {  // keys are below 2^31, so signed comparison serves
  const __m256i below = _mm256_set1_epi32(static_cast<int>(lo - 1u));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(x, below))));
}
static inline Floats zeroed(Floats x, uint32_t mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit), bit);
  return _mm256_andnot_ps(_mm256_castsi256_ps(set), x);
}
#elif FSS_LANES == 4
using Floats = __m128;
static inline Floats load(const float* p) { return _mm_loadu_ps(p); }
static inline Floats sum(Floats x, Floats y) { return _mm_add_ps(x, y); }
static inline void store(float* p, Floats x) { _mm_storeu_ps(p, x); }
static inline void stream(float* p, Floats x) { _mm_stream_ps(p, x); }
using Keys = __m128i;
static inline Keys keys(Floats x) { return _mm_and_si128(_mm_castps_si128(x), _mm_set1_epi32(0x7fffffff)); }
static inline Keys no_keys() { return _mm_setzero_si128(); }
static inline Keys larger(Keys x, Keys y) {
  const __m128i greater = _mm_cmpgt_epi32(x, y);
  return _mm_or_si128(_mm_and_si128(greater, x), _mm_andnot_si128(greater, y));
}
static inline uint32_t at_least(Keys x, uint32_t lo) {
  const __m128i below = _mm_set1_epi32(static_cast<int>(lo - 1u));
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpgt_epi32(x, below))));
}
static inline Floats zeroed(Floats x, uint32_t mask) {
  const __m128i bit = _mm_setr_epi32(1, 2, 4, 8);
  const __m128i set = _mm_cmpeq_epi32(_mm_and_si128(_mm_set1_epi32(static_cast<int>(mask)), bit), bit);
  return _mm_andnot_ps(_mm_castsi128_ps(set), x);
}
#else
using Floats = float;
static inline Floats load(const float* p) { return *p; }
static inline Floats sum(Floats x, Floats y) { return x + y; }
static inline void store(float* p, Floats x) { *p = x; }
static inline void stream(float* p, Floats x) { *p = x; }
using Keys = uint32_t;
static inline Keys keys(Floats x) { return key_of(x); }
static inline Keys no_keys() { return 0; }
static inline Keys larger(Keys x, Keys y) { return x > y ? x : y; }
static inline uint32_t largest(Keys x) { return x; }
static inline uint32_t at_least(Keys x, uint32_t lo) { return x >= lo; }
static inline Floats zeroed(Floats x, uint32_t mask) { return mask ? 0.0f : x; }
#endif

#if FSS_LANES == 8 || FSS_LANES == 4
static inline uint32_t largest(Keys x) {
  uint32_t lanes[FSS_LANES], result = 0;
  memcpy(lanes, &x, sizeof lanes);
  for (uint32_t lane : lanes) result = lane > result ? lane : result;
  return result;
}
#endif

#if FSS_LANES != 16
static inline void take(Floats x, uint32_t mask, uint32_t first, Sink* sink) {
  uint32_t lanes[FSS_LANES];
  memcpy(lanes, &x, sizeof lanes);
  for (; mask; mask &= mask - 1u) {
    const int lane = __builtin_ctz(mask);
    sink->index[sink->count] = first + static_cast<uint32_t>(lane);
    sink->bits[sink->count++] = lanes[lane];
  }
}
#endif

static void convert_bf16(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of_bf16(in[i]);
}

static void convert_f16(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_of_f16(in[i]);
}

// The elements in [begin, end), one by one: what is left before and behind the vectors.
static uint32_t absorb_some(const float* update, const float* residual, int64_t begin, int64_t end, float* target,
                            Taken taken, uint32_t lo, uint32_t base, Sink* sink) {
  uint32_t top = 0;
  for (int64_t i = begin; i < end; ++i) {
    float a = update[i];
    if (residual) a += residual[i];
    const uint32_t key = key_of(a);
    top = key > top ? key : top;
    if (key >= lo) {
      sink->index[sink->count] = base + static_cast<uint32_t>(i);
      sink->bits[sink->count++] = bits_of_float(a);
      if (taken == Taken::zeroed) a = 0.0f;
    }
    target[i] = a;
  }
  return top;
}

// Whole vectors from `begin` on. Inlined with constant options, so that each combination has a loop of its own.
__attribute__((always_inline)) static inline uint32_t absorb_vectors(const float* update, const float* residual,
                                                                     int64_t begin, int64_t end, float* target,
                                                                     Store how, Taken taken, uint32_t lo, uint32_t base,
                                                                     Sink* sink, bool with_residual) {
  Sink local = *sink;  // a copy, so that the count stays in a register
  Keys tops = no_keys();
  for (int64_t i = begin; i < end; i += FSS_LANES) {
    Floats a = load(update + i);
    if (with_residual) a = sum(a, load(residual + i));
    const Keys key = keys(a);
    tops = larger(tops, key);
    const uint32_t mask = at_least(key, lo);
    if (mask) {
      take(a, mask, base + static_cast<uint32_t>(i), &local);
      if (taken == Taken::zeroed) a = zeroed(a, mask);
      if (how == Store::changed) store(target + i, a);
    }
    if (how == Store::plain) store(target + i, a);
    if (how == Store::streaming) stream(target + i, a);
  }
  *sink = local;
  return largest(tops);
}

static uint32_t absorb(const float* update, const float* residual, int64_t count, float* target, Store how, Taken taken,
                       uint32_t lo, uint32_t base, Sink* sink) {
  constexpr int64_t kWidth = FSS_LANES * sizeof(float);
  int64_t begin = 0;
  if (how == Store::streaming) {  // streaming stores need an aligned target
    const int64_t ahead = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(target) % kWidth / sizeof(float));
    begin = ahead < count ? ahead : count;
  }
  const int64_t end = begin + (count - begin) / FSS_LANES * FSS_LANES;
  uint32_t top = absorb_some(update, residual, 0, begin, target, taken, lo, base, sink);
  uint32_t middle;
#define FSS_ABSORB(how, taken)                                                                       \
  (residual ? absorb_vectors(update, residual, begin, end, target, how, taken, lo, base, sink, true) \
            : absorb_vectors(update, residual, begin, end, target, how, taken, lo, base, sink, false))
  if (how == Store::changed) {
    middle = FSS_ABSORB(Store::changed, Taken::zeroed);
  } else if (how == Store::plain) {
    middle = taken == Taken::kept ? FSS_ABSORB(Store::plain, Taken::kept) : FSS_ABSORB(Store::plain, Taken::zeroed);
  } else {
    middle =
        taken == Taken::kept ? FSS_ABSORB(Store::streaming, Taken::kept) : FSS_ABSORB(Store::streaming, Taken::zeroed);
  }
#undef FSS_ABSORB
  top = middle > top ? middle : top;
  const uint32_t rest = absorb_some(update, residual, end, count, target, taken, lo, base, sink);
  return rest > top ? rest : top;
}

static void collect(const float* a, int64_t count, uint32_t lo, Sink* sink) {
  Sink local = *sink;
  int64_t i = 0;
  for (; i + FSS_LANES <= count; i += FSS_LANES) {
    const Floats x = load(a + i);
    const uint32_t mask = at_least(keys(x), lo);
    if (mask) take(x, mask, static_cast<uint32_t>(i), &local);
  }
  for (; i < count; ++i) {
    if (key_of(a[i]) < lo) continue;
    local.index[local.count] = static_cast<uint32_t>(i);
    local.bits[local.count++] = bits_of_float(a[i]);
  }
  *sink = local;
}

// Set s of a tile of 16 * group elements holds its elements s, s + 16, s + 32, ...
static void maxima(const float* a, int64_t count, int64_t group, uint32_t* out) {
  for (const float* tile = a; tile < a + count; tile += 16 * group, out += 16) {
    Keys top[16 / FSS_LANES];
    for (Keys& x : top) x = no_keys();
    for (int64_t row = 0; row < group; ++row) {
      for (int64_t v = 0; v < 16 / FSS_LANES; ++v) {
        top[v] = larger(top[v], keys(load(tile + row * 16 + v * FSS_LANES)));
      }
    }
    memcpy(out, top, sizeof top);
  }
}

static int64_t count_at_least(const uint32_t* bits, int64_t count, uint32_t lo) {
  uint32_t result = 0;  // at most 2^31 elements
  for (int64_t i = 0; i < count; ++i) result += (bits[i] & 0x7fffffffu) >= lo ? 1u : 0u;
  return result;
}

static uint32_t smallest_at_least(const uint32_t* bits, int64_t count, uint32_t lo) {
  uint32_t result = 0x7fffffffu;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t key = bits[i] & 0x7fffffffu;
    const uint32_t candidate = key >= lo ? key : 0x7fffffffu;
    result = candidate < result ? candidate : result;
  }
  return result;
}

static void finish_streaming() {
#if FSS_LANES > 1
  _mm_sfence();
#endif
}

static const Kernels kTable = {FSS_NAME, convert_bf16,   convert_f16,       absorb,          collect,
                               maxima,   count_at_least, smallest_at_least, finish_streaming};
