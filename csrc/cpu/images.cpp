// Images gathered and normalised at once: fedsynsam.h says what comes out.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "fedsynsam.h"

namespace fedsynsam {

std::vector<float> StoredImages::table() const {
  std::vector<float> values(channels * 256);
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int value = 0; value < 256; ++value) {
      values[channel * 256 + value] = (static_cast<float>(value) - shift[channel]) / scale[channel];
    }
  }
  return values;
}

bool StoredImages::have(const int64_t* indices, int64_t number) const {
  return std::all_of(indices, indices + number, [&](int64_t index) { return index >= 0 && index < count; });
}

bool gather_images(const StoredImages& stored, const int64_t* indices, int64_t count, float* out) {
  if (!stored.have(indices, count)) return false;
  const std::vector<float> table = stored.table();
  const int64_t size = stored.pixels * stored.channels;
  for (int64_t i = 0; i < count; ++i, out += size) {
    const uint8_t* image = stored.bytes + indices[i] * size;
    if (stored.channels == 1) {
      for (int64_t p = 0; p < size; ++p) out[p] = table[image[p]];
      continue;
    }
    for (int64_t p = 0; p < size; p += stored.channels) {
      for (int64_t channel = 0; channel < stored.channels; ++channel) {
        out[p + channel] = table[channel * 256 + image[p + channel]];
      }
    }
  }
  return true;
}

}  // namespace fedsynsam
