// The XLA FFI handler of mixtures of experts: it checks shapes, lays out the scratch and shares the stages with the pool.

#include "experts.h"

#include <memory>
#include <string>
#include <utility>

#include "export.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kProductsWorthSharing = 1 << 19;  // as in handler.cc
constexpr int64_t kChunksPerThread = 8;             // of the first and last stages, and at least so many of products
constexpr int64_t kArguments = 3;                   // of a matrix: packed weights, scales, biases

// Hands out pieces of the scratch; native_experts.py reserves them in the same order.
struct Scratch {
  uint8_t* at;
  int64_t left;

  uint8_t* take(int64_t bytes) {
    bytes = (bytes + 63) / 64 * 64, left -= bytes;
    return left < 0 ? nullptr : std::exchange(at, at + bytes);
  }
};

// The layer's vectors among those of all layers, `size` numbers of each; null when there are none.
const float* of_layer(const ffi::AnyBuffer& all, int64_t layer, int64_t size, std::string* wrong) {
  const int64_t count = static_cast<int64_t>(all.element_count());
  if (!count) return nullptr;
  if (all.element_type() != ffi::F32 || layer < 0 || (layer + 1) * size > count) *wrong = "the layer is outside the vectors";
  return static_cast<const float*>(all.untyped_data()) + layer * size;
}

// Rows of x in the place that a product reads, or, `values` given, these.
bool place(Scratch& scratch, Activations& x, int64_t rows, int64_t width, Rounding rounding, const float* values) {
  const bool copied = rounding == Rounding::none && !values;
  uint8_t* memory = scratch.take(copied ? rows * width * 4 : Activations::bytes(rows, width, rounding));
  if (!memory) return false;
  x.place(copied ? reinterpret_cast<float*>(memory) : values, memory, rows, width, rounding);
  return true;
}

// All pieces of the scratch, whether it is large enough. rows: the most pairs that there may be.
bool lay_out(Mixture& m, const Kernels& kernels, Scratch scratch, int64_t pairs) {
  for (size_t p = 0; p < m.opening.size(); ++p) {
    Product& product = m.opening[p];
    const Rounding rounding = kernels.rounding(*product.experts.first.format);
    if (p && m.opening[0].x.rounding == rounding) {
      product.x = m.opening[0].x;
    } else if (!place(scratch, product.x, pairs, m.width, rounding, nullptr)) {
      return false;
    }
    product.y = reinterpret_cast<float*>(scratch.take(pairs * product.experts.first.out * 4));
    if (!product.y) return false;
  }
  const Rounding rounding = kernels.rounding(*m.closing.experts.first.format);
  m.hidden = m.opening[0].y, m.hidden_stride = m.opening[0].experts.first.out;
  if (rounding == Rounding::none && m.hidden_stride != m.features) {
    m.hidden = reinterpret_cast<float*>(scratch.take(pairs * m.features * 4)), m.hidden_stride = m.features;
    if (!m.hidden) return false;
  }
  if (!place(scratch, m.closing.x, pairs, m.features, rounding, m.hidden)) return false;
  m.closing.y = reinterpret_cast<float*>(scratch.take(pairs * m.closing.experts.first.out * 4));
  return m.closing.y != nullptr;
}

void share_out(ffi::ThreadPool& pool, Mixture& m, int64_t lanes, int64_t threads) {
  int64_t products = m.closing.experts.first.out * m.features;
  for (const Product& p : m.opening) products += p.experts.first.out * m.width;
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (products * m.pairs() < kProductsWorthSharing) threads = 1;
  const int64_t wanted = threads == 1 ? 1 : threads * kChunksPerThread;
  m.open_chunks = m.cut(m.opening.data(), m.opening.size(), lanes, wanted);
  m.close_chunks = m.cut(&m.closing, 1, lanes, wanted);
  m.rows_per_chunk = (m.rows + wanted - 1) / wanted;
  m.pairs_per_chunk = std::max<int64_t>(1, (m.pairs() + wanted - 1) / wanted);
  const auto chunks = [](int64_t all, int64_t size) { return (all + size - 1) / size; };
  auto stages = std::make_shared<Stages>();
  stages->gather.set(chunks(m.rows, m.rows_per_chunk), gather_chunk, &m);
  stages->open.set(m.open_chunks.size(), open_chunk, &m);
  stages->activate.set(chunks(m.pairs(), m.pairs_per_chunk), activate_chunk, &m);
  stages->close.set(m.close_chunks.size(), close_chunk, &m);
  stages->sum.set(chunks(m.rows, m.rows_per_chunk), sum_chunk, &m);
  share(pool, stages, threads, threads);
  stages->sum.wait();
}

ffi::Error run_experts(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> picked,
                       ffi::Buffer<ffi::F32> shares, ffi::Buffer<ffi::S32> places, ffi::RemainingArgs matrices,
                       ffi::Result<ffi::Buffer<ffi::F32>> y, ffi::Result<ffi::Buffer<ffi::U8>> scratch,
                       ffi::Span<const int64_t> types, ffi::Span<const int64_t> lanes, ffi::Span<const int64_t> outs,
                       int64_t experts, int64_t kind, bool scales_input, int64_t threads, int64_t isa) {
  const auto wrong = [](const std::string& what) { return ffi::Error::InvalidArgument(what); };
  if (!is_here(isa)) return wrong("this CPU has not the instruction set that is asked for");
  if (kind < 0 || kind > static_cast<int64_t>(Activation::swiglu_oai)) return wrong("there is no such activation");
  const auto shape = x.dimensions(), picks = picked.dimensions();
  const int64_t count = types.size(), opening = count - 1;  // the last one closes
  if (shape.size() != 2 || picks.size() != 2 || picks[0] != shape[0] || shares.element_count() != picked.element_count()) {
    return wrong("want x (rows, width), experts and shares (rows, used)");
  }
  if (opening < 1 || opening > kMostOpening || static_cast<int64_t>(lanes.size()) != count ||
      static_cast<int64_t>(outs.size()) != count || static_cast<int64_t>(matrices.size()) != kArguments * count ||
      static_cast<int64_t>(places.element_count()) != count + 1) {
    return wrong("want a type, layout, size, place, scales and biases for each of two or three matrices");
  }
  const Kernels& set = kernels(chosen_for_products(static_cast<Isa>(isa)));
  Mixture m{};
  m.x = x.typed_data(), m.chosen = picked.typed_data(), m.shares = shares.typed_data(), m.y = y->typed_data();
  m.rows = shape[0], m.width = shape[1], m.used = picks[1], m.count = experts;
  m.scales_input = scales_input, m.kind = static_cast<Activation>(kind), m.quantize = set.quantize;
  m.activations = &activation_kernels(chosen(static_cast<Isa>(isa)));
  const bool fused = is_gated(m.kind) && opening == 1;
  m.features = outs[0] / (fused ? 2 : 1);
  if (m.features * (fused ? 2 : 1) != outs[0] || (opening == 2 && (outs[1] != outs[0] || !is_gated(m.kind)))) {
    return wrong("gate and up do not fit each other or their activation");
  }
  for (int64_t i = 0; i < count; ++i) {
    auto blocks = matrices.get<ffi::AnyBuffer>(kArguments * i);
    auto scales = matrices.get<ffi::AnyBuffer>(kArguments * i + 1), biases = matrices.get<ffi::AnyBuffer>(kArguments * i + 2);
    if (!blocks.has_value() || !scales.has_value() || !biases.has_value()) return wrong("a buffer cannot be read");
    Product product{};
    std::string problem =
        read_stack(set, types[i], lanes[i], *blocks, i < opening ? m.width : m.features, outs[i], &product.experts);
    const int64_t layer = places.typed_data()[0], first = places.typed_data()[i + 1] * experts;
    if (problem.empty() && (first < 0 || first + experts > product.experts.count)) problem = "the layer is outside the stack";
    if (problem.empty()) product.scales = of_layer(*scales, layer, experts, &problem);
    if (problem.empty()) product.biases = of_layer(*biases, layer, experts * outs[i], &problem);
    if (!problem.empty()) return wrong("matrix " + std::to_string(i) + ": " + problem);
    product.experts.first = product.experts[first];
    product.multiply = set.multiply(product.experts.first.format->type);
    if (i < opening) m.opening.push_back(product);
    else m.closing = product;
  }
  if (static_cast<int64_t>(y->element_count()) != m.rows * outs[opening]) return wrong("the result has another shape");
  const Scratch memory{scratch->typed_data(), static_cast<int64_t>(scratch->size_bytes())};
  if (!lay_out(m, set, memory, m.rows * m.used)) return wrong("the scratch is too small");
  m.sort();
  if (m.rows) share_out(pool, m, set.lanes, threads);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_experts(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_experts, packlight::run_experts,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::U8>>()
                                  .Attr<xla::ffi::Span<const int64_t>>("types")
                                  .Attr<xla::ffi::Span<const int64_t>>("lanes")
                                  .Attr<xla::ffi::Span<const int64_t>>("outs")
                                  .Attr<int64_t>("experts")
                                  .Attr<int64_t>("kind")
                                  .Attr<bool>("scales_input")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
