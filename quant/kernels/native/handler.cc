// The XLA FFI handler: checks shapes, cuts the call into chunks, shares them with the pool. Knows no format's bytes.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "export.h"
#include "kernels.h"
#include "work.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

// Below this many products a second thread costs more to wake (5 to 10 us) than it saves.
constexpr int64_t kProductsWorthSharing = 1 << 19;
constexpr int64_t kChunksPerThread = 4;  // nobody waits long for the last one; 8 cost 5 us a call more

struct Matrix {
  Weights weights;
  Multiply multiply;
  int64_t first_row, rows;  // of x
  float* y;
  Activations x;
  int64_t groups, chunk_groups, first_chunk;
};

struct Call {
  const float* x;
  int64_t rows, width, rows_per_chunk;
  int64_t each;  // matrices of every argument, which share x's rows out evenly
  Quantize quantize;
  Activations rounded[kRoundings];
  bool uses[kRoundings] = {};
  bool rounds = false;  // some of them are not x as it is
  std::vector<Matrix> matrices;
};

void quantize_chunk(void* context, int64_t chunk) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t last = std::min(call.rows, (chunk + 1) * call.rows_per_chunk);
  for (int64_t row = chunk * call.rows_per_chunk; row < last; ++row) {
    const float* values = call.x + row * call.width;
    for (int r = 0; r < kRoundings; ++r) {
      if (call.uses[r] && r != static_cast<int>(Rounding::none)) call.quantize(values, call.rounded[r], row);
    }
  }
}

void multiply_chunk(void* context, int64_t chunk) {
  const Call& call = *static_cast<const Call*>(context);
  auto at = call.matrices.end() - 1;
  while (at->first_chunk > chunk) --at;
  const int64_t first = (chunk - at->first_chunk) * at->chunk_groups;
  const int64_t last = std::min(first + at->chunk_groups, at->groups);
  at->multiply(at->weights, at->x, first, last, at->y);
}

// Matrix `index` of one argument, or as many from there on as a call has of each. Or what is wrong with it.
std::string add_matrix(Call& call, const Kernels& kernels, int64_t type, int64_t lanes, ffi::AnyBuffer blocks,
                       int64_t index, ffi::AnyBuffer y) {
  const auto result = y.dimensions();
  if (y.element_type() != ffi::F32 || result.size() != 2 || result[0] != call.rows) return "the result has another shape";
  Stacked stack;
  const std::string wrong = read_stack(kernels, type, lanes, blocks, call.width, result[1], &stack);
  if (!wrong.empty()) return wrong;
  if (index < 0 || index + call.each > stack.count) return "the index is outside the stack";
  const Format& format = *stack.first.format;
  const int64_t groups = (result[1] + kernels.lanes - 1) / kernels.lanes, rows = call.rows / call.each;
  float* to = static_cast<float*>(y.untyped_data());
  for (int64_t i = 0; i < call.each; ++i) {
    call.matrices.push_back({stack[index + i], kernels.multiply(format.type), i * rows, rows, to + i * rows * result[1],
                             Activations{call.rows, call.width, kernels.rounding(format)}, groups, 1, 0});
  }
  return "";
}

// Gives every matrix its rows of x, rounded into the scratch once for each rounding. Whether that is large enough.
bool place(Call& call, uint8_t* scratch, int64_t size) {
  for (Matrix& m : call.matrices) {
    const int r = static_cast<int>(m.x.rounding);
    if (!call.uses[r]) {
      const int64_t bytes = Activations::bytes(call.rows, call.width, m.x.rounding);
      if (bytes > size) return false;
      call.rounded[r].place(call.x, scratch, call.rows, call.width, m.x.rounding);
      scratch += bytes, size -= bytes, call.uses[r] = true, call.rounds |= m.x.rounding != Rounding::none;
    }
    m.x = call.rounded[r].part(m.first_row, m.rows);
  }
  return true;
}

// Chunks of all matrices together, `wanted` of them if the rows allow it.
int64_t cut(Call& call, int64_t wanted) {
  int64_t groups = 0, chunks = 0;
  for (const Matrix& m : call.matrices) groups += m.groups;
  const int64_t size = std::max<int64_t>(1, (groups + wanted - 1) / wanted);
  for (Matrix& m : call.matrices) {
    m.chunk_groups = size;
    m.first_chunk = chunks;
    chunks += (m.groups + size - 1) / size;
  }
  return chunks;
}

ffi::Error run(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> indices,
               ffi::RemainingArgs weights, ffi::RemainingRets results, ffi::Span<const int64_t> types,
               ffi::Span<const int64_t> lanes, int64_t each, int64_t threads, int64_t isa) {
  if (x.dimensions().size() != 2) return ffi::Error::InvalidArgument("x is not (rows, width)");
  Call call;
  call.x = x.typed_data(), call.rows = x.dimensions()[0], call.width = x.dimensions()[1], call.each = each;
  if (each < 1 || call.rows % each) return ffi::Error::InvalidArgument("the rows of x cannot be shared out evenly");
  if (!is_here(isa)) return ffi::Error::InvalidArgument("this CPU has not the instruction set that is asked for");
  const Kernels& set = kernels(chosen_for_products(static_cast<Isa>(isa)));
  call.quantize = set.quantize;
  const size_t count = types.size();
  if (!count || weights.size() != count || results.size() != count + 1 || lanes.size() != count ||
      indices.element_count() != count) {
    return ffi::Error::InvalidArgument("want one type, layout, index and result per matrix, and the scratch");
  }
  int64_t products = 0;
  for (size_t i = 0; i < count; ++i) {
    auto blocks = weights.get<ffi::AnyBuffer>(i);
    auto y = results.get<ffi::AnyBuffer>(i);
    if (!blocks.has_value() || !y.has_value()) return ffi::Error::InvalidArgument("a buffer cannot be read");
    const std::string wrong = add_matrix(call, set, types[i], lanes[i], *blocks, indices.typed_data()[i], **y);
    if (!wrong.empty()) return ffi::Error::InvalidArgument("matrix " + std::to_string(i) + ": " + wrong);
    products += call.rows * call.width * call.matrices.back().weights.out;
  }
  auto scratch = results.get<ffi::AnyBuffer>(count);
  if (!scratch.has_value() ||
      !place(call, static_cast<uint8_t*>((*scratch)->untyped_data()), static_cast<int64_t>((*scratch)->size_bytes()))) {
    return ffi::Error::InvalidArgument("the scratch is too small");
  }
  if (!products) {  // rows, columns or width 0: what results there are have nothing to add up
    for (const Matrix& m : call.matrices) std::fill_n(m.y, m.rows * m.weights.out, 0.0f);
    return ffi::Error::Success();
  }
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (products < kProductsWorthSharing) threads = 1;
  call.rows_per_chunk = std::max<int64_t>(8, (call.rows + 4 * threads - 1) / (4 * threads));
  const int64_t chunks = cut(call, threads == 1 ? 1 : threads * kChunksPerThread);
  auto job = std::make_shared<Job>();
  const int64_t parts = (call.rows + call.rows_per_chunk - 1) / call.rows_per_chunk;
  job->quantize.set(call.rounds ? parts : 0, quantize_chunk, &call);
  job->multiply.set(chunks, multiply_chunk, &call);
  // Helpers first: they wake up while this thread quantizes.
  share(pool, job, threads, chunks);
  job->multiply.wait();
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT int packlight_has(int isa) { return packlight::has(static_cast<packlight::Isa>(isa)); }

// Rows that the layout which this CPU's kernels read fastest has side by side.
PACKLIGHT_EXPORT int packlight_lanes() {
  const packlight::Kernels& best = packlight::kernels(packlight::chosen_for_products(packlight::Isa::best));
  return &best == &packlight::kPortable ? 1 : best.lanes;
}

// The number of the instruction set whose kernels run here when none is asked for.
PACKLIGHT_EXPORT int packlight_best() { return static_cast<int>(packlight::chosen_for_products(packlight::Isa::best)); }

// The version of XLA's FFI that this was built for.
PACKLIGHT_EXPORT int packlight_ffi_major() { return XLA_FFI_API_MAJOR; }
PACKLIGHT_EXPORT int packlight_ffi_minor() { return XLA_FFI_API_MINOR; }

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_matmul(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_matmul, packlight::run,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<xla::ffi::Span<const int64_t>>("types")
                                  .Attr<xla::ffi::Span<const int64_t>>("lanes")
                                  .Attr<int64_t>("each")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
