// The XLA FFI handlers of norms and of rows' dot products: they check shapes and share rows with the pool.

#include <algorithm>
#include <cstdint>
#include <memory>

#include "export.h"
#include "isa.h"
#include "norm.h"
#include "work.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

// Below so many numbers a second thread costs more to wake than it saves.
constexpr int64_t kNumbersWorthSharing = 1 << 16;
constexpr int64_t kChunksPerThread = 4;

// Null when this CPU lacks the instruction set.
const RowKernels* row_kernels(Isa asked) {
  if (!has(asked)) return nullptr;
  switch (chosen(asked)) {
#if defined(__x86_64__)
    case Isa::avx512: return &kAvx512Rows;
    case Isa::avx2: return &kAvx2Rows;
#endif
    default: return &kPortableRows;
  }
}

// Runs `kernel` on all rows of `work`, which outlives the call.
template <class Work>
ffi::Error run_rows(ffi::ThreadPool& pool, int64_t threads, const Work& work, void (*kernel)(const Work&, int64_t, int64_t)) {
  struct Chunks {
    const Work& work;
    void (*kernel)(const Work&, int64_t, int64_t);
    int64_t rows;  // of a chunk
  };
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (threads == 1 || work.rows * work.width < kNumbersWorthSharing) {
    kernel(work, 0, work.rows);
    return ffi::Error::Success();
  }
  Chunks chunks{work, kernel, std::max<int64_t>(1, work.rows / (threads * kChunksPerThread))};
  const int64_t count = (work.rows + chunks.rows - 1) / chunks.rows;
  auto stage = std::make_shared<Stage>();
  const Stage::Run run = [](void* context, int64_t chunk) {
    const Chunks& all = *static_cast<const Chunks*>(context);
    all.kernel(all.work, chunk * all.rows, std::min(all.work.rows, (chunk + 1) * all.rows));
  };
  stage->set(count, run, &chunks);
  share(pool, stage, threads, count);
  stage->wait();
  return ffi::Error::Success();
}

// Number `index` of the vectors that `all` holds for each layer, `size` numbers a layer; null when there are none.
const float* of_layer(const ffi::Buffer<ffi::F32>& all, int64_t index, int64_t size, bool* fits) {
  const int64_t count = static_cast<int64_t>(all.element_count());
  if (!count) return nullptr;
  *fits = *fits && index >= 0 && (index + 1) * size <= count;
  return all.typed_data() + index * size;
}

ffi::Error run_norm(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::F32> weights,
                    ffi::Buffer<ffi::F32> biases, ffi::Buffer<ffi::S32> index, ffi::Result<ffi::Buffer<ffi::F32>> y,
                    int64_t period, bool centered, float divisor, float epsilon, int64_t threads, int64_t isa) {
  const RowKernels* kernels = row_kernels(static_cast<Isa>(isa));
  if (!kernels) return ffi::Error::InvalidArgument("this CPU lacks the instruction set asked for");
  if (x.dimensions().size() != 2 || y->element_count() != x.element_count() || index.element_count() != 1 ||
      period < 1) {
    return ffi::Error::InvalidArgument("want x (rows, width), one index and a result as x");
  }
  Norm norm{x.typed_data(), nullptr, nullptr, y->typed_data(), x.dimensions()[0], x.dimensions()[1], period,
            centered, divisor, epsilon};
  bool fits = true;
  norm.weights = of_layer(weights, *index.typed_data(), period * norm.width, &fits);
  norm.biases = of_layer(biases, *index.typed_data(), period * norm.width, &fits);
  if (!fits) return ffi::Error::InvalidArgument("the layer is outside the weights");
  return run_rows(pool, threads, norm, kernels->norm);
}

ffi::Error run_dots(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> a, ffi::Buffer<ffi::F32> b,
                    ffi::Result<ffi::Buffer<ffi::F32>> sums, int64_t threads, int64_t isa) {
  const RowKernels* kernels = row_kernels(static_cast<Isa>(isa));
  if (!kernels) return ffi::Error::InvalidArgument("this CPU lacks the instruction set asked for");
  const auto rows = a.dimensions(), others = b.dimensions();
  if (rows.size() != 2 || others.size() != 2 || others[1] != rows[1] || (others[0] != rows[0] && others[0] != 1) ||
      static_cast<int64_t>(sums->element_count()) != rows[0]) {
    return ffi::Error::InvalidArgument("want a (rows, width), b as a or (1, width), sums (rows,)");
  }
  const int64_t stride = others[0] == rows[0] ? rows[1] : 0;
  const Dots dots{a.typed_data(), b.typed_data(), sums->typed_data(), rows[0], rows[1], stride};
  return run_rows(pool, threads, dots, kernels->dots);
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_norm(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_norm, packlight::run_norm,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("period")
                                  .Attr<bool>("centered")
                                  .Attr<float>("divisor")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_dots(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_dots, packlight::run_dots,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
