// Images gathered and normalised at once: fedsynsam.h says what comes out.
#include <cstddef>
#include <vector>

#include "fedsynsam.h"

namespace fedsynsam {

bool gather_images(const StoredImages& stored, const int64_t* indices, int64_t count, float* out) {
  // The 256 values of each channel, as PyTorch computes them: one subtraction, one division.
  std::vector<float> table(stored.channels * 256);
  for (int64_t channel = 0; channel < stored.channels; ++channel) {
    for (int value = 0; value < 256; ++value) {
      table[channel * 256 + value] = (static_cast<float>(value) - stored.shift[channel]) / stored.scale[channel];
    }
  }
  const int64_t size = stored.pixels * stored.channels;
  for (int64_t i = 0; i < count; ++i, out += size) {
    if (indices[i] < 0 || indices[i] >= stored.count) return false;
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
