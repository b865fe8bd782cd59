// How the kernels read and write rows: element types, and packs of consecutive elements moved 16 bytes at a time.
#pragma once

#include <cstdint>

#include "launch.h"
#include "numerics/element.h"

namespace fedsynsam {

// An element type: its storage, and its exact conversion to float32.
struct F32 {
  using Storage = float;
  static FSS_HD float load(float value) { return value; }
};
struct BF16 {
  using Storage = uint16_t;
  static FSS_HD float load(uint16_t value) { return float_of_bf16(value); }
};
struct F16 {
  using Storage = uint16_t;
  static FSS_HD float load(uint16_t value) { return float_of_f16(value); }
};

// kCount consecutive elements, moved by loads and stores of at most 16 bytes; the first must be aligned to that.
template <typename Storage, int kCount>
struct alignas(sizeof(Storage) * kCount < 16 ? sizeof(Storage) * kCount : 16) Pack {
  Storage at[kCount];
};

template <int kCount, typename Storage>
__device__ Pack<Storage, kCount> load_pack(const void* base, int64_t index) {
  return *reinterpret_cast<const Pack<Storage, kCount>*>(static_cast<const Storage*>(base) + index);
}

template <int kCount, typename Storage>
__device__ void store_pack(Storage* base, int64_t index, const Pack<Storage, kCount>& pack) {
  *reinterpret_cast<Pack<Storage, kCount>*>(base + index) = pack;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace fedsynsam
