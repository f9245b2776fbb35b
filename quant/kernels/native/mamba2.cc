// The XLA FFI handler of Mamba-2: checks shapes, shares rows and heads with the pool.

#include <algorithm>
#include <cstdint>

#include "export.h"
#include "isa.h"
#include "mamba2.h"
#include "recurrence.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

struct ScanCall {
  Scan scan;
  const float* x;              // (B, T, J, C)
  const float *b, *c;          // (B, T, U, N)
  const float* fade;           // (B, T, J)
  float* memory;               // (slots, J, N, C) of the layer, from the first row's slot on
  Rows rows;
  float* out;                  // (B, T, J, C)
  int64_t B, T, J, C, U, N;
};

void scan_unit(void* context, int64_t unit) {
  const ScanCall& call = *static_cast<const ScanCall*>(context);
  const int64_t row = unit / call.J, j = unit % call.J, C = call.C, N = call.N;
  const int64_t shared = (row * call.T * call.U + j / (call.J / call.U)) * N, at = row * call.T * call.J + j;
  ScanHead head;
  head.stride = call.J * C, head.shared_stride = call.U * N, head.heads = call.J;
  head.states = N, head.channels = C;
  head.x = call.x + at * C, head.b = call.b + shared, head.c = call.c + shared, head.fade = call.fade + at;
  head.memory = call.memory + unit * N * C, head.out = call.out + at * C;
  head.tokens = call.rows.begin(row, head.out, head.stride, C, head.memory, N * C);
  if (head.tokens) call.scan(head);
}

// Null when this CPU lacks the instruction set.
Scan scan_kernel(Isa asked) {
  if (!has(asked)) return nullptr;
  switch (chosen(asked)) {
#if defined(__x86_64__)
    case Isa::avx512: return scan_avx512;
    case Isa::avx2: return scan_avx2;
#endif
    default: return scan_portable;
  }
}

ffi::Error run_scan(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> b, ffi::Buffer<ffi::F32> c,
                    ffi::Buffer<ffi::F32> fade, ffi::Buffer<ffi::F32> memory, ffi::Buffer<ffi::S32> index,
                    ffi::Buffer<ffi::S32> slot, ffi::Buffer<ffi::S32> start, ffi::Buffer<ffi::S32> end,
                    ffi::Buffer<ffi::PRED> active, ffi::Result<ffi::Buffer<ffi::F32>> out,
                    ffi::Result<ffi::Buffer<ffi::F32>> after, int64_t threads, int64_t isa) {
  const auto heads = x.dimensions(), groups = b.dimensions(), held = memory.dimensions();
  if (heads.size() != 4 || groups.size() != 4 || held.size() != 5 || heads[0] != groups[0] || heads[1] != groups[1] ||
      !groups[2] || heads[2] % groups[2] || heads[3] % kChannels || held[2] != heads[2] || held[3] != groups[3] ||
      held[4] != heads[3]) {
    return ffi::Error::InvalidArgument(
        "want x (B, T, J, C), b and c (B, T, U, N) and a memory (L, slots, J, N, C), J a multiple of U and C of 16");
  }
  ScanCall call;
  call.B = heads[0], call.T = heads[1], call.J = heads[2], call.C = heads[3], call.U = groups[2], call.N = groups[3];
  const auto count = [](const auto& buffer) { return static_cast<int64_t>(buffer.element_count()); };
  const int64_t each = call.B * call.T * call.J;
  if (count(c) != count(b) || count(fade) != each || count(*out) != each * call.C || count(index) != 1 ||
      count(slot) != 1 || count(start) != call.B || count(end) != call.B || count(active) != call.B) {
    return ffi::Error::InvalidArgument(
        "want c as b, fade (B, T, J), index and slot (), start, end and active (B,), a result as x");
  }
  if (auto error = locate(memory, after, index, slot, call.B, &call.memory); error.failure()) return error;
  call.scan = scan_kernel(static_cast<Isa>(isa));
  if (!call.scan) return ffi::Error::InvalidArgument("this CPU lacks the instruction set asked for");
  call.x = x.typed_data(), call.b = b.typed_data(), call.c = c.typed_data(), call.fade = fade.typed_data();
  call.rows = {start.typed_data(), end.typed_data(), active.typed_data(), call.T};
  call.out = out->typed_data();

  run_heads(pool, threads, call.B * call.J, each * call.N * call.C, scan_unit, &call);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_mamba2(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_mamba2, packlight::run_scan,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
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
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
