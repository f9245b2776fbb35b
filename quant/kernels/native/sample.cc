// The XLA FFI handlers of what follows a head: the token that each row of logits gives, and log-probabilities.
//
// A row's result depends on its own logits and parameters alone, whoever computes it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include "export.h"
#include "isa.h"
#include "mass.h"
#include "ranks.h"
#include "sampler.h"
#include "work.h"
#include "xla/ffi/api/ffi.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kNumbersWorthSharing = 1 << 14;

template <class Rows>
void each_row(ffi::ThreadPool pool, int64_t threads, int64_t rows, int64_t width, Rows& context, Stage::Run run) {
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (rows * width < kNumbersWorthSharing) threads = 1;
  auto stage = std::make_shared<Stage>();
  stage->set(rows, run, &context);
  share(pool, stage, threads, rows);
  stage->wait();
}

// Slots' parameters: arrays of a number for each row, in the order of chain.SlotSampling and behind them the position.
struct Slots {
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  const uint32_t* seed;
  const float *top_n_sigma, *typical_p, *xtc_probability, *xtc_threshold, *dynatemp_range, *dynatemp_exponent;
  const int32_t* mirostat;
  const float *mirostat_tau, *mirostat_eta, *mirostat_mu;
  const int32_t* position;

  Parameters of(int64_t row) const {
    const auto real = [row](const float* values) { return flushed(values[row]); };
    return {real(temperature), top_k[row], real(top_p), real(min_p), seed[row], real(top_n_sigma), real(typical_p),
            real(xtc_probability), real(xtc_threshold), real(dynatemp_range), real(dynatemp_exponent), mirostat[row],
            real(mirostat_tau), real(mirostat_eta), mirostat_mu[row]};
  }
};

struct Rows {
  const float* logits;  // (rows, width)
  Slots slots;
  int32_t* ids;  // (rows,)
  float* mu;     // (rows,)
  int64_t width;
  const MassKernels* kernels;
};

void sample_row(void* context, int64_t row) {
  thread_local Sampler sampler;  // its memory is kept, because fresh pages cost more than a row takes
  const Rows& r = *static_cast<const Rows*>(context);
  const Drawn drawn = sampler.draw(*r.kernels, r.logits + row * r.width, r.width, r.slots.of(row), r.slots.position[row]);
  r.ids[row] = drawn.id, r.mu[row] = drawn.mu;
}

// Reads arguments of `rows` numbers one after the other.
struct Reader {
  ffi::RemainingArgs args;
  int64_t rows;
  size_t next = 0;
  bool fits = true;

  template <class T>
  void operator()(const T*& data) {
    constexpr ffi::DataType kType = std::is_same_v<T, float>     ? ffi::DataType::F32
                                    : std::is_same_v<T, int32_t> ? ffi::DataType::S32
                                                                 : ffi::DataType::U32;
    auto buffer = args.get<ffi::Buffer<kType>>(next++);
    fits &= buffer.has_value() && static_cast<int64_t>(buffer->element_count()) == rows;
    if (fits) data = buffer->typed_data();
  }
};

ffi::Error run_sample(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> logits, ffi::RemainingArgs args,
                      ffi::Result<ffi::Buffer<ffi::S32>> ids, ffi::Result<ffi::Buffer<ffi::F32>> mu, int64_t threads, int64_t isa) {
  if (!is_here(isa)) return ffi::Error::InvalidArgument("this CPU has not the instruction set that is asked for");
  const auto shape = logits.dimensions();
  if (shape.size() != 2 || shape[1] < 1 || shape[1] > std::numeric_limits<int32_t>::max() ||
      static_cast<int64_t>(ids->element_count()) != shape[0] || static_cast<int64_t>(mu->element_count()) != shape[0]) {
    return ffi::Error::InvalidArgument("want logits (rows, width), and ids and mu (rows,)");
  }
  Rows rows{logits.typed_data(), {}, ids->typed_data(), mu->typed_data(), shape[1],
            &mass_kernels(chosen(static_cast<Isa>(isa)))};
  Reader read{args, shape[0]};
  Slots& s = rows.slots;
  read(s.temperature), read(s.top_k), read(s.top_p), read(s.min_p), read(s.seed), read(s.top_n_sigma);
  read(s.typical_p), read(s.xtc_probability), read(s.xtc_threshold), read(s.dynatemp_range), read(s.dynatemp_exponent);
  read(s.mirostat), read(s.mirostat_tau), read(s.mirostat_eta), read(s.mirostat_mu), read(s.position);
  if (!read.fits || read.next != args.size()) {
    return ffi::Error::InvalidArgument("want 15 parameters and a position (rows,), of their types");
  }
  each_row(pool, threads, shape[0], shape[1], rows, sample_row);
  return ffi::Error::Success();
}

struct Reported {
  const float* logits;    // (rows, width)
  const int32_t *ids, *asked;  // (rows,)
  float *values, *top;    // (rows,), (rows, count)
  int32_t* top_ids;       // (rows, count)
  int64_t width, count;
  const MassKernels* kernels;
};

// Of a row that nobody asked for: zeros. Of one with a NaN or whose best is infinite: NaN.
void report_row(void* context, int64_t row) {
  thread_local Ranks ranks;
  const Reported& r = *static_cast<const Reported*>(context);
  const float* x = r.logits + row * r.width;
  float* top = r.top + row * r.count;
  int32_t* top_ids = r.top_ids + row * r.count;
  if (r.asked[row] < 0) {
    r.values[row] = 0;
    std::fill_n(top, r.count, 0.0f), std::fill_n(top_ids, r.count, 0);
    return;
  }
  ranks.begin(x, r.width);
  ranks.reach(r.count);
  std::copy_n(ranks.places(), r.count, top_ids);
  const float best = ranks.values()[0];
  int nan = !std::isfinite(best);
  for (int64_t i = 0; i < r.width; ++i) nan |= x[i] != x[i];
  const double log_mass = std::log(r.kernels->sums(x, r.width, {best}, -kInfinity, false).mass);
  const auto value = [&](int32_t id) {
    if (nan) return std::numeric_limits<float>::quiet_NaN();
    return static_cast<float>(static_cast<double>(x[id]) - best - log_mass);
  };
  const int32_t id = r.ids[row];
  r.values[row] = id >= 0 && id < r.width ? value(id) : std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = 0; i < r.count; ++i) top[i] = value(top_ids[i]);
}

ffi::Error run_logprobs(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> logits, ffi::Buffer<ffi::S32> ids,
                        ffi::Buffer<ffi::S32> asked, ffi::Result<ffi::Buffer<ffi::F32>> values,
                        ffi::Result<ffi::Buffer<ffi::F32>> top, ffi::Result<ffi::Buffer<ffi::S32>> top_ids,
                        int64_t threads, int64_t isa) {
  if (!is_here(isa)) return ffi::Error::InvalidArgument("this CPU has not the instruction set that is asked for");
  const auto shape = logits.dimensions(), found = top->dimensions();
  const auto of_rows = [&](const auto& buffer) { return static_cast<int64_t>(buffer.element_count()) == shape[0]; };
  if (shape.size() != 2 || found.size() != 2 || found[0] != shape[0] || found[1] < 1 || found[1] > shape[1] ||
      !of_rows(ids) || !of_rows(asked) || !of_rows(*values) || top_ids->element_count() != top->element_count()) {
    return ffi::Error::InvalidArgument("want logits (rows, width), ids, asked and values (rows,), and (rows, count)");
  }
  Reported rows{logits.typed_data(), ids.typed_data(), asked.typed_data(), values->typed_data(), top->typed_data(),
                top_ids->typed_data(), shape[1], found[1], &mass_kernels(chosen(static_cast<Isa>(isa)))};
  each_row(pool, threads, shape[0], shape[1], rows, report_row);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_sample(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_sample, packlight::run_sample,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .RemainingArgs()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_logprobs(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_logprobs, packlight::run_logprobs,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
