// What the handlers of recurrences share: the real tokens of each row, the memory of their first slot, and heads among
// threads.
#ifndef PACKLIGHT_RECURRENCE_H_
#define PACKLIGHT_RECURRENCE_H_

#include <algorithm>
#include <cstdint>
#include <memory>

#include "work.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {

// Below so many numbers of the memory, times tokens, a second thread costs more to wake than it saves.
constexpr int64_t kMemoryWorthSharing = 1 << 17;

struct Rows {
  const int32_t *start, *end;  // (B,)
  const bool* active;          // (B,)
  int64_t T;

  int64_t tokens(int64_t b) const {
    return active[b] ? std::clamp<int64_t>(int64_t{end[b]} - start[b], 0, T) : 0;
  }

  // Row b's real tokens, for one of its heads: what it answers to the others, `stride` apart, becomes 0, and so does its
  // memory where it begins a text.
  int64_t begin(int64_t b, float* out, int64_t stride, int64_t width, float* memory, int64_t numbers) const {
    const int64_t real = tokens(b);
    for (int64_t t = real; t < T; ++t) std::fill_n(out + t * stride, width, 0.0f);
    if (real && !start[b]) std::fill_n(memory, numbers, 0.0f);
    return real;
  }
};

// The memory of the first of `rows` slots in a layer of `after`, which is `before` updated in place.
template <typename Memory, typename Result, typename Number>
xla::ffi::Error locate(Memory& before, Result& after, Number& index, Number& slot, int64_t rows, float** first) {
  const auto held = before.dimensions();
  const int64_t layer = *index.typed_data(), begin = *slot.typed_data();
  if (layer < 0 || layer >= held[0] || begin < 0 || begin + rows > held[1]) {
    return xla::ffi::Error::InvalidArgument("the layer or a slot is outside the memory");
  }
  if (after->typed_data() != before.typed_data()) {
    return xla::ffi::Error::Internal("the memory is not updated in place");
  }
  *first = after->typed_data() + (layer * held[1] + begin) * held[2] * held[3] * held[4];
  return xla::ffi::Error::Success();
}

// Runs every head of every row, of `numbers` of the memory times tokens together; threads below 1: as the pool has.
inline void run_heads(xla::ffi::ThreadPool& pool, int64_t threads, int64_t heads, int64_t numbers, Stage::Run run,
                      void* context) {
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (numbers < kMemoryWorthSharing) threads = 1;
  auto stage = std::make_shared<Stage>();
  stage->set(heads, run, context);
  share(pool, stage, threads, heads);
  stage->wait();
}

}  // namespace packlight

#endif  // PACKLIGHT_RECURRENCE_H_
