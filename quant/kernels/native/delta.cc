// The XLA FFI handler of the gated delta net: checks shapes, shares rows and heads with the pool.

#include <algorithm>
#include <cstdint>

#include "delta.h"
#include "export.h"
#include "isa.h"
#include "recurrence.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

struct DeltaCall {
  Remember remember;
  const float *q, *k;          // (B, T, G, S)
  const float* v;              // (B, T, H, S)
  const float *beta, *fade;    // (B, T, H)
  float* memory;               // (slots, H, S, S) of the layer, from the first row's slot on
  Rows rows;
  float* out;                  // (B, T, H, S)
  int64_t B, T, G, H, S;
  bool consecutive;  // the value heads of a key head follow each other; else head h reads key head h % G
};

void remember_unit(void* context, int64_t unit) {
  const DeltaCall& call = *static_cast<const DeltaCall*>(context);
  const int64_t b = unit / call.H, h = unit % call.H, S = call.S;
  const int64_t group = call.consecutive ? h / (call.H / call.G) : h % call.G;
  Head head;
  head.key_stride = call.G * S, head.value_stride = call.H * S, head.stride = call.H;
  head.width = S;
  const int64_t keys = (b * call.T * call.G + group) * S, at = b * call.T * call.H + h;
  head.q = call.q + keys, head.k = call.k + keys, head.v = call.v + at * S, head.out = call.out + at * S;
  head.beta = call.beta + at, head.fade = call.fade + at;
  head.memory = call.memory + unit * S * S;
  head.tokens = call.rows.begin(b, head.out, head.value_stride, S, head.memory, S * S);
  if (head.tokens) call.remember(head);
}

// Null when this CPU lacks the instruction set.
Remember delta_kernel(Isa asked) {
  if (!has(asked)) return nullptr;
  switch (chosen(asked)) {
#if defined(__x86_64__)
    case Isa::avx512: return remember_avx512;
    case Isa::avx2: return remember_avx2;
#endif
    default: return remember_portable;
  }
}

ffi::Error run_delta(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> q, ffi::Buffer<ffi::F32> k, ffi::Buffer<ffi::F32> v,
                     ffi::Buffer<ffi::F32> beta, ffi::Buffer<ffi::F32> fade, ffi::Buffer<ffi::F32> memory,
                     ffi::Buffer<ffi::S32> index, ffi::Buffer<ffi::S32> slot, ffi::Buffer<ffi::S32> start,
                     ffi::Buffer<ffi::S32> end, ffi::Buffer<ffi::PRED> active, ffi::Result<ffi::Buffer<ffi::F32>> out,
                     ffi::Result<ffi::Buffer<ffi::F32>> after, bool consecutive, int64_t threads, int64_t isa) {
  const auto keys = q.dimensions(), values = v.dimensions(), held = memory.dimensions();
  if (keys.size() != 4 || values.size() != 4 || held.size() != 5 || keys[0] != values[0] || keys[1] != values[1] ||
      !keys[2] || values[2] % keys[2] || keys[3] != values[3] || keys[3] % kWidth || held[2] != values[2] ||
      held[3] != keys[3] || held[4] != keys[3]) {
    return ffi::Error::InvalidArgument(
        "want q and k (B, T, G, S), v (B, T, H, S) and a memory (L, slots, H, S, S), H a multiple of G and S of 16");
  }
  DeltaCall call;
  call.B = keys[0], call.T = keys[1], call.G = keys[2], call.H = values[2], call.S = keys[3];
  const auto count = [](const auto& buffer) { return static_cast<int64_t>(buffer.element_count()); };
  const int64_t heads = call.B * call.T * call.H;
  if (count(k) != count(q) || count(beta) != heads || count(fade) != heads || count(*out) != heads * call.S ||
      count(index) != 1 || count(slot) != 1 || count(start) != call.B || count(end) != call.B ||
      count(active) != call.B) {
    return ffi::Error::InvalidArgument(
        "want k as q, beta and fade (B, T, H), index and slot (), start, end and active (B,), a result as v");
  }
  if (auto error = locate(memory, after, index, slot, call.B, &call.memory); error.failure()) return error;
  call.remember = delta_kernel(static_cast<Isa>(isa));
  if (!call.remember) return ffi::Error::InvalidArgument("this CPU lacks the instruction set asked for");
  call.q = q.typed_data(), call.k = k.typed_data(), call.v = v.typed_data();
  call.beta = beta.typed_data(), call.fade = fade.typed_data(), call.out = out->typed_data();
  call.rows = {start.typed_data(), end.typed_data(), active.typed_data(), call.T};
  call.consecutive = consecutive;

  run_heads(pool, threads, call.B * call.H, heads * call.S * call.S, remember_unit, &call);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_delta(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_delta, packlight::run_delta,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::PRED>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<bool>("consecutive")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
