// The XLA FFI handler of attention: checks shapes, cuts the call into blocks and parts, shares them with the pool.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "attention.h"
#include "export.h"
#include "isa.h"
#include "work.h"
#include "workspace.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

// Below this many products a second thread costs more to wake (5 to 10 us) than it saves.
constexpr int64_t kProductsWorthSharing = 1 << 20;
constexpr float kLog2E = 1.44269504088896341f;
constexpr int64_t kUnitsEach = 16;  // units for every thread, so that all end at about the same time
constexpr int64_t kLongestRun = 8;  // parts: at the begin of each a thread waits for memory once
constexpr int64_t kMemoryProducts = 8;  // reading a key or value takes as long as this many products with it

// Rows of queries and their results; everything a chunk needs.
struct Call {
  Attend attend;
  const float* q;        // (B, T, H, C)
  const uint8_t *k, *v;  // (slots, K, S, C) of the layer, from the first row's slot on
  const uint16_t *k_scales, *v_scales;  // (slots, K, S, blocks) of int8 and q4, from there on; null: none
  KvType type;
  const int32_t *start, *end;  // (B,)
  float* out;  // (B, T, H * value_width)
  int64_t B, T, H, K, S, C, value_width, group, block_tokens, blocks;
  bool split;       // the parts of a single block's positions are shared out
  float* partials;  // (B, K, parts) of Partial, when they are
  int64_t parts;    // room for so many of each head
  int64_t run;      // so many parts that follow each other are one unit
  Sight sight;
  const float *sinks, *slopes;  // (H,); null: none
  std::vector<int64_t> first_unit;  // per row of q, and the end: its units are (head, block) or (head, run of parts)

  int64_t length(int64_t b) const { return std::max<int64_t>(end[b], 0); }
  int64_t position(int64_t b, int64_t token) const { return std::max<int64_t>(start[b], 0) + token; }
  int64_t tokens(int64_t token) const { return std::min(block_tokens, T - token); }

  // Positions first .. last - 1 are those that some token of the block sees; none when all of its tokens are padding.
  int64_t last(int64_t b, int64_t token) const {
    const int64_t from = position(b, token);
    return from < length(b) ? sight.visible(from + tokens(token) - 1, length(b)) : 0;
  }
  int64_t first(int64_t b, int64_t token) const { return sight.oldest(position(b, token)); }
  // Parts first_part .. end_part - 1 hold them.
  int64_t first_part(int64_t b, int64_t token) const { return first(b, token) / kPart; }
  int64_t end_part(int64_t b, int64_t token) const {
    return std::max(first_part(b, token), (last(b, token) + kPart - 1) / kPart);
  }
  int64_t parts_of(int64_t b) const { return end_part(b, 0) - first_part(b, 0); }
  int64_t units_of(int64_t b) const { return split ? (parts_of(b) + run - 1) / run : blocks; }  // of each head
  float* partial(int64_t b, int64_t head, int64_t i) const {
    return partials + ((b * K + head) * parts + i) * Partial::floats(block_tokens * group, value_width);
  }

  // The block of a head's tokens from `token` on.
  Block block(int64_t b, int64_t head, int64_t token) const {
    Block block;
    block.q = q + ((b * T + token) * H + head * group) * C;
    block.token_stride = H * C;
    block.tokens = tokens(token), block.group = group, block.width = C, block.value_width = value_width;
    const int64_t place = (b * K + head) * S, offset = place * bytes_of(type, C);
    block.k = k + offset, block.v = v + offset, block.type = type, block.places = S;
    block.k_scales = block.v_scales = nullptr;
    if (k_scales) block.k_scales = k_scales + place * blocks_of(C), block.v_scales = v_scales + place * blocks_of(C);
    block.position = position(b, token), block.length = length(b);
    block.sight = sight, block.slopes = slopes ? slopes + head * group : nullptr;
    block.scale = kLog2E / std::sqrt(static_cast<float>(C));  // weights are powers of 2
    block.turned = false;
    return block;
  }

  // Makes `block` look at a part, of those before part `end`.
  void look_at(Block& block, int64_t b, int64_t token, int64_t part, int64_t end) const {
    block.first = std::max(first(b, token), part * kPart), block.last = std::min(last(b, token), (part + 1) * kPart);
    block.following = std::min(last(b, token), end * kPart);
  }
};

// Sums so far: nothing, or the sinks, which are scores seen before all others and have no values.
void begin(const Call& call, int64_t head, int64_t rows, const Partial& sums) {
  for (int64_t row = 0; row < rows; ++row) {
    sums.top[row] = call.sinks ? call.sinks[head * call.group + row % call.group] * kLog2E : Partial::kLowest;
    sums.total[row] = call.sinks ? 1.0f : 0.0f;
  }
  std::fill_n(sums.mixed, rows * padded(call.value_width), 0.0f);
}

// Adds the sums of the next part, brought to one top. What has seen nothing adds nothing, to the last bit.
void add(const Partial& sums, const Partial& part, int64_t rows, int64_t pitch) {
  for (int64_t row = 0; row < rows; ++row) {
    const float top = std::max(sums.top[row], part.top[row]);
    const float before = std::exp2(sums.top[row] - top), weight = std::exp2(part.top[row] - top);
    sums.top[row] = top;
    sums.total[row] = sums.total[row] * before + part.total[row] * weight;
    float* mixed = sums.mixed + row * pitch;
    const float* more = part.mixed + row * pitch;
    for (int64_t c = 0; c < pitch; ++c) mixed[c] = mixed[c] * before + more[c] * weight;
  }
}

// Writes a block's rows from their sums; a row that saw nothing, as padding may, becomes zeros.
void finish(const Call& call, int64_t b, int64_t head, int64_t token, int64_t rows, const Partial& sums) {
  const int64_t width = call.value_width;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (b * call.T + token + row / call.group) * call.H + head * call.group + row % call.group;
    const float* mixed = sums.mixed + row * padded(width);
    const float total = sums.total[row] ? sums.total[row] : 1.0f;
    for (int64_t c = 0; c < width; ++c) call.out[at * width + c] = mixed[c] / total;
  }
}

void attend_unit(void* context, int64_t unit) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t b = std::upper_bound(call.first_unit.begin(), call.first_unit.end(), unit) - call.first_unit.begin() - 1;
  const int64_t each = call.units_of(b);
  const int64_t head = (unit - call.first_unit[b]) / each, i = (unit - call.first_unit[b]) % each;
  const int64_t most = call.block_tokens * call.group, floats = Partial::floats(most, call.value_width);
  const int64_t room = attend_space(most, call.C);
  float* space = workspace(room + 2 * floats);
  if (call.split) {
    Block block = call.block(b, head, 0);
    const int64_t from = call.first_part(b, 0), end = std::min(call.parts_of(b), (i + 1) * call.run);
    for (int64_t part = i * call.run; part < end; ++part) {
      call.look_at(block, b, 0, from + part, from + end);
      call.attend(block, space, Partial(call.partial(b, head, part), block.rows()));
      block.turned = true;
    }
    return;
  }
  // long blocks first: what is left for the end is short
  const int64_t token = (call.blocks - 1 - i) * call.block_tokens;
  Block block = call.block(b, head, token);
  const int64_t rows = block.rows();
  const Partial sums(space + room, rows), part(space + room + floats, rows);
  begin(call, head, rows, sums);
  for (int64_t at = call.first_part(b, token); at < call.end_part(b, token); ++at) {
    call.look_at(block, b, token, at, call.end_part(b, token));
    call.attend(block, space, part);
    add(sums, part, rows, padded(call.value_width));
    block.turned = true;
  }
  finish(call, b, head, token, rows, sums);
}

void finish_unit(void* context, int64_t unit) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t b = unit / call.K, head = unit % call.K, rows = call.T * call.group;
  const Partial sums(workspace(Partial::floats(rows, call.value_width)), rows);
  begin(call, head, rows, sums);
  for (int64_t i = 0; i < call.parts_of(b); ++i) {
    add(sums, Partial(call.partial(b, head, i), rows), rows, padded(call.value_width));
  }
  finish(call, b, head, 0, rows, sums);
}

// Two stages, the second adding up what the first made. Lives on the heap, owned by the caller and every helper.
struct AttentionJob {
  Stage attend, finish;

  void help() {
    attend.help();
    attend.wait();
    finish.help();
  }
};

// Null when this CPU lacks the instruction set.
Attend kernel(Isa asked) {
  if (!has(asked)) return nullptr;
  switch (chosen(asked)) {
#if defined(__x86_64__)
    case Isa::avx512: return attend_avx512;
    case Isa::avx2: return attend_avx2;
#endif
    default: return attend_portable;
  }
}

// Whether the scales are those of such a cache: (L, slots, K, S, blocks) of int8 and q4, and otherwise none.
bool fits(const ffi::AnyBuffer& scales, ffi::Span<const int64_t> cache, KvType type, int64_t width) {
  const auto given = scales.dimensions();
  if (scales.element_type() != ffi::F16) return false;
  if (type != KvType::q8 && type != KvType::q4) return !scales.element_count();
  return given.size() == 5 && std::equal(given.begin(), given.begin() + 4, cache.begin()) &&
         given[4] == blocks_of(width);
}

ffi::Error run(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::AnyBuffer k, ffi::AnyBuffer v,
               ffi::AnyBuffer k_scales, ffi::AnyBuffer v_scales,
               ffi::Buffer<ffi::S32> index, ffi::Buffer<ffi::S32> slot, ffi::Buffer<ffi::S32> start,
               ffi::Buffer<ffi::S32> end, ffi::Buffer<ffi::F32> sinks, ffi::Buffer<ffi::F32> slopes,
               ffi::Result<ffi::Buffer<ffi::F32>> out, ffi::Result<ffi::Buffer<ffi::F32>> partials,
               int64_t value_width, int64_t block_rows, bool split, bool causal, int64_t window, bool chunked,
               float softcap, int64_t threads, int64_t isa) {
  const auto x = q.dimensions(), cache = k.dimensions();
  const auto same = v.dimensions();
  if (x.size() != 4 || cache.size() != 5 || !std::equal(cache.begin(), cache.end(), same.begin(), same.end()) ||
      k.element_type() != v.element_type() || !cache[2] || x[2] % cache[2] || value_width < 1 || value_width > x[3] ||
      (k.element_type() == ffi::U8 ? x[3] % kBlock || 2 * cache[4] != x[3] : cache[4] != x[3])) {
    return ffi::Error::InvalidArgument(
        "want q (B, T, H, C) and k, v (L, slots, K, S, C), or C / 2 of 4 bits and C a multiple of 32, H a multiple of K, "
        "and values no wider than C");
  }
  Call call;
  switch (k.element_type()) {
    case ffi::F32: call.type = KvType::f32; break;
    case ffi::F16: call.type = KvType::f16; break;
    case ffi::BF16: call.type = KvType::bf16; break;
    case ffi::S8: call.type = KvType::q8; break;
    case ffi::U8: call.type = KvType::q4; break;
    default: return ffi::Error::InvalidArgument("keys and values are float32, float16, bfloat16, int8 or 4 bits in uint8");
  }
  if (!fits(k_scales, cache, call.type, x[3]) || !fits(v_scales, cache, call.type, x[3])) {
    return ffi::Error::InvalidArgument(
        "want float16 scales (L, slots, K, S, C / 32) of keys and values in int8 or 4 bits alone");
  }
  call.attend = kernel(static_cast<Isa>(isa));
  if (!call.attend) return ffi::Error::InvalidArgument("this CPU lacks the instruction set asked for");
  call.B = x[0], call.T = x[1], call.H = x[2], call.C = x[3], call.K = cache[2], call.S = cache[3];
  call.value_width = value_width, call.group = call.H / call.K;
  if (index.element_count() != 1 || slot.element_count() != 1 ||
      static_cast<int64_t>(start.element_count()) != call.B || static_cast<int64_t>(end.element_count()) != call.B ||
      static_cast<int64_t>(out->element_count()) != call.B * call.T * call.H * value_width) {
    return ffi::Error::InvalidArgument("want index and slot (), start and end (B,), a result (B, T, H * values)");
  }
  const int64_t layer = *index.typed_data(), first = *slot.typed_data();
  if (layer < 0 || layer >= cache[0] || first < 0 || first + call.B > cache[1]) {
    return ffi::Error::InvalidArgument("the layer or a slot is outside the cache");
  }
  if (!out->element_count()) return ffi::Error::Success();
  const int64_t place = (layer * cache[1] + first) * call.K * call.S, offset = place * bytes_of(call.type, call.C);
  call.q = q.typed_data(), call.out = out->typed_data();
  call.k = static_cast<const uint8_t*>(k.untyped_data()) + offset;
  call.v = static_cast<const uint8_t*>(v.untyped_data()) + offset;
  call.k_scales = call.v_scales = nullptr;
  if (k_scales.element_count()) {
    call.k_scales = static_cast<const uint16_t*>(k_scales.untyped_data()) + place * blocks_of(call.C);
    call.v_scales = static_cast<const uint16_t*>(v_scales.untyped_data()) + place * blocks_of(call.C);
  }
  call.start = start.typed_data(), call.end = end.typed_data();
  call.block_tokens = std::clamp<int64_t>(block_rows / call.group, 1, call.T);
  call.blocks = (call.T + call.block_tokens - 1) / call.block_tokens;
  if (split && call.blocks > 1) return ffi::Error::InvalidArgument("parts are of a single block");
  if (window < 0) return ffi::Error::InvalidArgument("a window has no fewer positions than none");
  for (const auto& per_head : {sinks, slopes}) {
    const int64_t count = static_cast<int64_t>(per_head.element_count());
    if (count && count != call.H) return ffi::Error::InvalidArgument("want a sink and a slope for each head, or none");
  }
  call.split = split, call.partials = partials->typed_data();
  call.sight = {causal, window, chunked, softcap};
  call.sinks = sinks.element_count() ? sinks.typed_data() : nullptr;
  call.slopes = slopes.element_count() ? slopes.typed_data() : nullptr;
  call.parts = partials->element_count() / (call.B * call.K * Partial::floats(call.block_tokens * call.group, value_width));

  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  int64_t parts = 0;
  for (int64_t b = 0; b < call.B; ++b) parts += call.K * call.parts_of(b);
  call.run = std::clamp<int64_t>(parts / (threads * kUnitsEach), 1, kLongestRun);
  int64_t units = 0, products = 0;
  for (int64_t b = 0; b < call.B; ++b) {
    call.first_unit.push_back(units);
    // a window's positions go around, in whole tiles
    if (call.length(b) > call.S && (!window || call.S % kTile)) {
      return ffi::Error::InvalidArgument("a row ends behind the cache");
    }
    if (split && call.parts_of(b) > call.parts) {
      return ffi::Error::InvalidArgument("more positions in use than the step's span");
    }
    units += call.K * call.units_of(b);
    const int64_t seen = std::max<int64_t>(0, call.last(b, 0) - call.first(b, 0));
    products += call.K * call.C * std::max(kMemoryProducts, call.T * call.group) * seen;
  }
  if (products < kProductsWorthSharing) threads = 1;
  auto job = std::make_shared<AttentionJob>();
  job->attend.set(units, attend_unit, &call);
  job->finish.set(split ? call.B * call.K : 0, finish_unit, &call);
  share(pool, job, threads, units);
  job->finish.wait();
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_attention(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_attention, packlight::run,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("value_width")
                                  .Attr<int64_t>("block_rows")
                                  .Attr<bool>("split")
                                  .Attr<bool>("causal")
                                  .Attr<int64_t>("window")
                                  .Attr<bool>("chunked")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
