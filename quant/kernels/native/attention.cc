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
constexpr int64_t kMemoryProducts = 8;  // reading a key or value takes as long as this many products with it

// Rows of queries and their results; everything a chunk needs.
struct Call {
  Attend attend;
  const float* q;        // (B, T, H, C)
  const uint8_t *k, *v;  // (slots, K, S, C) of the layer, from the first row's slot on
  KvType type;
  const int32_t *start, *end;  // (B,)
  float* out;  // (B, T, H * value_width)
  int64_t B, T, H, K, S, C, value_width, group, block_tokens, blocks;
  int64_t part;     // positions per part, or 0 when a block's positions are not split
  float* partials;  // (B, K, parts) of Partial, when they are
  int64_t parts;    // room for so many of each head
  bool causal;      // a token sees those before it; otherwise all up to its row's end
  std::vector<int64_t> first_unit;  // per row of q, and the end: its units are (head, block) or (head, part)

  int64_t rows_end(int64_t b) const { return std::clamp<int64_t>(end[b], 0, S); }

  // Positions that some token of the block sees; 0 when all of its tokens are padding.
  int64_t positions(int64_t b, int64_t token) const {
    const int64_t from = std::max<int64_t>(start[b], 0) + token, tokens = std::min(block_tokens, T - token);
    if (from >= rows_end(b)) return 0;
    return causal ? std::min(from + tokens, rows_end(b)) : rows_end(b);
  }
  int64_t parts_of(int64_t b) const { return (positions(b, 0) + part - 1) / part; }
  float* partial(int64_t b, int64_t head, int64_t i) const {
    return partials + ((b * K + head) * parts + i) * Partial::floats(block_tokens * group, value_width);
  }
};

// Writes a block's rows from its parts: their sums, brought to one top, divided. No part, all padding: zeros.
void finish(const Call& call, int64_t b, int64_t head, int64_t token, const float* parts, int64_t count) {
  const int64_t tokens = std::min(call.block_tokens, call.T - token), rows = tokens * call.group;
  const int64_t floats = Partial::floats(rows, call.value_width), width = call.value_width;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (b * call.T + token + row / call.group) * call.H + head * call.group + row % call.group;
    float* out = call.out + at * width;
    float top = 0, total = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Partial p(const_cast<float*>(parts) + i * floats, rows);
      top = i ? std::max(top, p.top[row]) : p.top[row];
    }
    std::fill(out, out + width, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
      const Partial p(const_cast<float*>(parts) + i * floats, rows);
      const float weight = std::exp2(p.top[row] - top);
      const float* mixed = p.mixed + row * padded(width);
      total += weight * p.total[row];
      for (int64_t c = 0; c < width; ++c) out[c] += weight * mixed[c];
    }
    for (int64_t c = 0; count && c < width; ++c) out[c] /= total;
  }
}

void attend_unit(void* context, int64_t unit) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t b = std::upper_bound(call.first_unit.begin(), call.first_unit.end(), unit) - call.first_unit.begin() - 1;
  const int64_t each = call.part ? call.parts_of(b) : call.blocks;
  const int64_t head = (unit - call.first_unit[b]) / each, i = (unit - call.first_unit[b]) % each;
  // long blocks first: what is left for the end is short
  const int64_t token = call.part ? 0 : (call.blocks - 1 - i) * call.block_tokens;
  const int64_t last = call.positions(b, token), most_rows = call.block_tokens * call.group;
  if (!last) return finish(call, b, head, token, nullptr, 0);
  Block block;
  block.q = call.q + ((b * call.T + token) * call.H + head * call.group) * call.C;
  block.token_stride = call.H * call.C;
  block.tokens = std::min(call.block_tokens, call.T - token), block.group = call.group;
  block.width = call.C, block.value_width = call.value_width;
  const int64_t offset = (b * call.K + head) * call.S * call.C * (call.type == KvType::f32 ? 4 : 2);
  block.k = call.k + offset, block.v = call.v + offset, block.type = call.type;
  block.first = call.part ? i * call.part : 0;
  block.last = call.part ? std::min(last, block.first + call.part) : last;
  block.visible = call.causal ? std::max<int64_t>(call.start[b], 0) + token + 1 : last;
  block.scale = 1.44269504088896341f / std::sqrt(static_cast<float>(call.C));  // with log2(e): weights are powers of 2
  float* space = workspace(attend_space(most_rows, call.C) + Partial::floats(most_rows, call.value_width));
  float* result = call.part ? call.partial(b, head, i) : space + attend_space(most_rows, call.C);
  call.attend(block, space, Partial(result, block.rows()));
  if (!call.part) finish(call, b, head, token, result, 1);
}

void finish_unit(void* context, int64_t unit) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t b = unit / call.K, head = unit % call.K;
  finish(call, b, head, 0, call.partial(b, head, 0), call.parts_of(b));
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

ffi::Error run(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::AnyBuffer k, ffi::AnyBuffer v,
               ffi::Buffer<ffi::S32> index, ffi::Buffer<ffi::S32> slot, ffi::Buffer<ffi::S32> start,
               ffi::Buffer<ffi::S32> end, ffi::Result<ffi::Buffer<ffi::F32>> out,
               ffi::Result<ffi::Buffer<ffi::F32>> partials, int64_t value_width, int64_t block_rows, int64_t part,
               bool causal, int64_t threads, int64_t isa) {
  const auto x = q.dimensions(), cache = k.dimensions();
  const auto same = v.dimensions();
  if (x.size() != 4 || cache.size() != 5 || !std::equal(cache.begin(), cache.end(), same.begin(), same.end()) ||
      k.element_type() != v.element_type() || cache[4] != x[3] || !cache[2] || x[2] % cache[2] || value_width < 1 ||
      value_width > x[3]) {
    return ffi::Error::InvalidArgument(
        "want q (B, T, H, C) and k, v (L, slots, K, S, C), H a multiple of K, and values no wider than C");
  }
  Call call;
  switch (k.element_type()) {
    case ffi::F32: call.type = KvType::f32; break;
    case ffi::F16: call.type = KvType::f16; break;
    case ffi::BF16: call.type = KvType::bf16; break;
    default: return ffi::Error::InvalidArgument("keys and values are float32, float16 or bfloat16");
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
  const int64_t bytes = call.type == KvType::f32 ? 4 : 2;
  const int64_t offset = (layer * cache[1] + first) * call.K * call.S * call.C * bytes;
  call.q = q.typed_data(), call.out = out->typed_data();
  call.k = static_cast<const uint8_t*>(k.untyped_data()) + offset;
  call.v = static_cast<const uint8_t*>(v.untyped_data()) + offset;
  call.start = start.typed_data(), call.end = end.typed_data();
  call.block_tokens = std::clamp<int64_t>(block_rows / call.group, 1, call.T);
  call.blocks = (call.T + call.block_tokens - 1) / call.block_tokens;
  if (part < 0 || part % kTile || (part && call.blocks > 1)) {
    return ffi::Error::InvalidArgument("parts are whole tiles, of a single block");
  }
  call.part = part, call.causal = causal, call.partials = partials->typed_data();
  call.parts = partials->element_count() / (call.B * call.K * Partial::floats(call.block_tokens * call.group, value_width));

  int64_t units = 0, products = 0;
  for (int64_t b = 0; b < call.B; ++b) {
    call.first_unit.push_back(units);
    const int64_t each = part ? call.parts_of(b) : call.blocks;
    if (part && each > call.parts) return ffi::Error::InvalidArgument("more positions in use than the step's span");
    units += call.K * each;
    products += call.K * call.C * std::max(kMemoryProducts, call.T * call.group) * call.positions(b, 0);
  }
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (products < kProductsWorthSharing) threads = 1;
  auto job = std::make_shared<AttentionJob>();
  job->attend.set(units, attend_unit, &call);
  job->finish.set(part ? call.B * call.K : 0, finish_unit, &call);
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
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("value_width")
                                  .Attr<int64_t>("block_rows")
                                  .Attr<int64_t>("part")
                                  .Attr<bool>("causal")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
