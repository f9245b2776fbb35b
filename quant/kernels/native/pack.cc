// ggml's layout to "rowsN", when a file is loaded. Plain C++; quant/layouts.py is the twin.

#include <cstring>

#include "export.h"
#include "weights.h"

namespace packlight {
namespace {

// Runs of `kUnit` bytes of each of `lanes` rows, one after the other.
template <int kUnit>
void interleave(const uint8_t* const* rows, int64_t lanes, int64_t length, uint8_t* to) {
  for (int64_t at = 0; at < length; at += kUnit) {
    for (int64_t r = 0; r < lanes; ++r, to += kUnit) std::memcpy(to, rows[r] + at, kUnit);
  }
}

}  // namespace
}  // namespace packlight

// blocks (out, n, bytes) to packed (ceil(out / lanes), n, lanes * bytes); rows that are not there are zeros.
PACKLIGHT_EXPORT void packlight_pack(int64_t type, int64_t lanes, int64_t out, int64_t n, const uint8_t* blocks,
                                     uint8_t* packed) {
  using namespace packlight;
  constexpr int64_t kMostLanes = 16, kMostBytes = 256;
  static const uint8_t zeros[kMostBytes] = {};
  const Format& format = *find_format(type);
  const bool plain = format.elements == 1;  // a row of plain numbers is one field
  for (int64_t group = 0; group * lanes < out; ++group) {
    if (plain && (group + 1) * lanes <= out) {
      const uint8_t* rows[kMostLanes];
      for (int64_t r = 0; r < lanes; ++r) rows[r] = blocks + (group * lanes + r) * n * format.bytes;
      if (format.bytes == 4) interleave<4>(rows, lanes, n * 4, packed);
      if (format.bytes == 2) interleave<2>(rows, lanes, n * 2, packed);
      packed += lanes * n * format.bytes;
      continue;
    }
    for (int64_t b = 0; b < n; ++b, packed += lanes * format.bytes) {
      for (const Field& field : format.fields) {
        const uint8_t* rows[kMostLanes];
        for (int64_t r = 0; r < lanes; ++r) {
          const int64_t row = group * lanes + r;
          rows[r] = row < out ? blocks + (row * n + b) * format.bytes + field.offset : zeros;
        }
        uint8_t* to = packed + lanes * field.offset;
        if (field.unit == 4) interleave<4>(rows, lanes, field.length, to);
        if (field.unit == 2) interleave<2>(rows, lanes, field.length, to);
        if (field.unit == 1) interleave<1>(rows, lanes, field.length, to);
      }
    }
  }
}
