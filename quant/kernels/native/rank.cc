// The XLA FFI handler of ranks: the largest numbers of each row, the first of equal ones first.
//
// Numbers are compared as integers in the order of IEEE 754's totalOrder: no sum and no rounding is here, so the result
// is one whatever does it. model.sampling.rank has the twin.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "export.h"
#include "work.h"
#include "workspace.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

constexpr int kBuckets = 1 << 12, kShift = 32 - 12;  // of numbers that share their first bits
constexpr int kDigit = 11;                           // bits that a pass sorts by
constexpr int64_t kNumbersWorthSharing = 1 << 14;

struct Ranks {
  const float* x;   // (rows, width)
  float* values;    // (rows, count)
  int32_t* places;  // (rows, count)
  int64_t rows, width, count;
};

// Smaller for larger numbers.
inline uint32_t key_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits >> 31 ? bits : bits ^ 0x7FFFFFFF;
}

// Equal keys stay in their order. to: as large as `from`. Returns where the sorted entries are.
uint64_t* sort_by_key(uint64_t* from, uint64_t* to, int64_t count) {
  for (int shift = 32; shift < 64; shift += kDigit) {
    int64_t next[1 << kDigit] = {};
    const auto digit = [&](uint64_t entry) { return entry >> shift & ((1 << kDigit) - 1); };
    for (int64_t i = 0; i < count; ++i) ++next[digit(from[i])];
    int64_t before = 0;
    for (int64_t& each : next) before += std::exchange(each, before);
    for (int64_t i = 0; i < count; ++i) to[next[digit(from[i])]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

int32_t first_of_largest(const float* x, int64_t width) {
  uint32_t least = key_of(x[0]);
  for (int64_t i = 1; i < width; ++i) least = std::min(least, key_of(x[i]));
  int64_t at = 0;
  while (key_of(x[at]) != least) ++at;
  return static_cast<int32_t>(at);
}

// Only numbers whose first bits are among those of the largest are sorted.
void rank_row(const float* x, int64_t width, int64_t count, int32_t* places) {
  if (count == 1) {
    *places = first_of_largest(x, width);
    return;
  }
  int64_t sizes[kBuckets] = {};
  for (int64_t i = 0; i < width; ++i) ++sizes[key_of(x[i]) >> kShift];
  int64_t entries = 0;
  uint32_t last = 0;
  while ((entries += sizes[last]) < count) ++last;
  uint64_t* memory = reinterpret_cast<uint64_t*>(workspace(4 * entries));  // two arrays of two floats' size each
  int64_t found = 0;
  for (int64_t i = 0; i < width; ++i) {
    const uint32_t key = key_of(x[i]);
    if (key >> kShift <= last) memory[found++] = static_cast<uint64_t>(key) << 32 | static_cast<uint64_t>(i);
  }
  const uint64_t* sorted = sort_by_key(memory, memory + entries, entries);
  for (int64_t i = 0; i < count; ++i) places[i] = static_cast<int32_t>(sorted[i]);
}

void rank_chunk(void* context, int64_t row) {
  const Ranks& r = *static_cast<const Ranks*>(context);
  const float* x = r.x + row * r.width;
  int32_t* places = r.places + row * r.count;
  rank_row(x, r.width, r.count, places);
  for (int64_t i = 0; i < r.count; ++i) r.values[row * r.count + i] = x[places[i]];
}

ffi::Error run_rank(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Result<ffi::Buffer<ffi::F32>> values,
                    ffi::Result<ffi::Buffer<ffi::S32>> places, int64_t threads) {
  const auto shape = x.dimensions(), found = values->dimensions();
  if (shape.size() != 2 || found.size() != 2 || found[0] != shape[0] || found[1] < 1 || found[1] > shape[1] ||
      places->element_count() != values->element_count()) {
    return ffi::Error::InvalidArgument("want x (rows, width), values and places (rows, count) of at most the width");
  }
  Ranks ranks{x.typed_data(), values->typed_data(), places->typed_data(), shape[0], shape[1], found[1]};
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (ranks.rows * ranks.width < kNumbersWorthSharing) threads = 1;
  auto stage = std::make_shared<Stage>();
  stage->set(ranks.rows, rank_chunk, &ranks);
  share(pool, stage, threads, ranks.rows);
  stage->wait();
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_rank(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_rank, packlight::run_rank,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Attr<int64_t>("threads"));
