// The XLA FFI handler of routers: which experts each row goes to, and what these weigh. A row's sums have one order,
// whatever other rows there are. model.network.ffn.moe.route is the same in jnp.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "export.h"
#include "kernels.h"
#include "work.h"

namespace packlight {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kNumbersWorthSharing = 1 << 14;
constexpr int64_t kChunksPerThread = 4;

// What the logits become. The numbers are those of native_experts.SCORES.
enum class Scores : int64_t { softmax = 0, chosen = 1, sigmoid = 2 };

struct Router {
  const float* logits;  // (rows, experts)
  const float* bias;    // (experts,), added for the choice alone; null: zeros
  int32_t* chosen;      // (rows, used)
  float* weights;       // (rows, used)
  int64_t rows, experts, used, groups, groups_used, rows_per_chunk;
  Scores scores;
  bool normed;
  float scale, least_sum;
  const ActivationKernels* kernels;
};

// Whether a is taken before b, which came first. NaN is, so that it shows.
inline bool above(float a, float b) { return a > b || (a != a && b == b); }

// The `wanted` largest of `count` numbers, the first of equal ones, in descending order.
void largest(const float* values, int64_t count, int64_t wanted, int32_t* found) {
  int64_t have = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (have == wanted && !above(values[i], values[found[have - 1]])) continue;
    int64_t at = have < wanted ? have++ : have - 1;
    for (; at && above(values[i], values[found[at - 1]]); --at) found[at] = found[at - 1];
    found[at] = static_cast<int32_t>(i);
  }
}

// A row's memory.
struct Space {
  std::vector<float> scores, by, best;
  std::vector<int32_t> groups;
};

// -inf outside the groups whose two best numbers add up to most.
void keep_best_groups(const Router& r, Space& space) {
  const int64_t size = r.experts / r.groups, two = std::min<int64_t>(2, size);
  for (int64_t g = 0; g < r.groups; ++g) {
    int32_t top[2];
    const float* values = space.by.data() + g * size;
    largest(values, size, two, top);
    space.best[g] = two == 2 ? values[top[0]] + values[top[1]] : values[top[0]];
  }
  largest(space.best.data(), r.groups, r.groups_used, space.groups.data());
  std::sort(space.groups.begin(), space.groups.end());
  for (int64_t g = 0; g < r.groups; ++g) {
    if (std::binary_search(space.groups.begin(), space.groups.end(), static_cast<int32_t>(g))) continue;
    std::fill_n(space.by.data() + g * size, size, -std::numeric_limits<float>::infinity());
  }
}

void route_row(const Router& r, int64_t row, Space& space) {
  const float* logits = r.logits + row * r.experts;
  int32_t* chosen = r.chosen + row * r.used;
  float* weights = r.weights + row * r.used;
  if (r.scores == Scores::chosen) {
    largest(logits, r.experts, r.used, chosen);
    for (int64_t i = 0; i < r.used; ++i) weights[i] = logits[chosen[i]];
    r.kernels->softmax(weights, r.used, weights);
    return;
  }
  (r.scores == Scores::softmax ? r.kernels->softmax : r.kernels->sigmoid)(logits, r.experts, space.scores.data());
  for (int64_t e = 0; e < r.experts; ++e) space.by[e] = r.bias ? space.scores[e] + r.bias[e] : space.scores[e];
  if (r.groups > 1) keep_best_groups(r, space);
  largest(space.by.data(), r.experts, r.used, chosen);
  float sum = 0.0f;
  for (int64_t i = 0; i < r.used; ++i) sum += weights[i] = space.scores[chosen[i]];
  for (int64_t i = 0; i < r.used; ++i) {
    if (r.normed) weights[i] /= sum < r.least_sum ? r.least_sum : sum;
    weights[i] *= r.scale;
  }
}

void route_chunk(void* context, int64_t chunk) {
  const Router& r = *static_cast<const Router*>(context);
  Space space{std::vector<float>(r.experts), std::vector<float>(r.experts), std::vector<float>(r.groups),
              std::vector<int32_t>(r.groups_used)};
  const int64_t end = std::min(r.rows, (chunk + 1) * r.rows_per_chunk);
  for (int64_t row = chunk * r.rows_per_chunk; row < end; ++row) route_row(r, row, space);
}

ffi::Error run_route(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> logits, ffi::Buffer<ffi::F32> bias,
                     ffi::Result<ffi::Buffer<ffi::S32>> picked,
                     ffi::Result<ffi::Buffer<ffi::F32>> weights, int64_t scores, bool normed, float scale, int64_t groups,
                     int64_t groups_used, float least_sum, int64_t threads, int64_t isa) {
  if (!is_here(isa)) return ffi::Error::InvalidArgument("this CPU has not the instruction set that is asked for");
  const auto shape = logits.dimensions(), picks = picked->dimensions();
  if (shape.size() != 2 || picks.size() != 2 || picks[0] != shape[0] || picks[1] > shape[1] || picks[1] < 1 ||
      weights->element_count() != picked->element_count() || scores < 0 || scores > 2 ||
      (bias.element_count() && static_cast<int64_t>(bias.element_count()) != shape[1]) ||
      groups < 1 || groups_used < 1 || groups_used > groups || shape[1] % groups) {
    return ffi::Error::InvalidArgument("want logits (rows, experts) in equal groups, and results (rows, used)");
  }
  Router r{logits.typed_data(), nullptr, picked->typed_data(), weights->typed_data(), shape[0], shape[1], picks[1], groups,
           groups_used, 0, static_cast<Scores>(scores), normed, scale, least_sum,
           &activation_kernels(chosen(static_cast<Isa>(isa)))};
  if (bias.element_count()) r.bias = bias.typed_data();
  if (threads < 1) threads = std::max<int64_t>(1, pool.num_threads());
  if (r.rows * r.experts < kNumbersWorthSharing) threads = 1;
  r.rows_per_chunk = std::max<int64_t>(1, (r.rows + kChunksPerThread * threads - 1) / (kChunksPerThread * threads));
  const int64_t chunks = (r.rows + r.rows_per_chunk - 1) / r.rows_per_chunk;
  auto stage = std::make_shared<Stage>();
  stage->set(chunks, route_chunk, &r);
  share(pool, stage, threads, chunks);
  stage->wait();
  return ffi::Error::Success();
}

}  // namespace
}  // namespace packlight

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_route(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_route, packlight::run_route,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("scores")
                                  .Attr<bool>("normed")
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("groups")
                                  .Attr<int64_t>("groups_used")
                                  .Attr<float>("least_sum")
                                  .Attr<int64_t>("threads")
                                  .Attr<int64_t>("isa"));
