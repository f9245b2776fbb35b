// One row's sampler: from logits and parameters to a token. model.sampling.chain says what each step does, and is its
// twin in jnp.
//
// What is done to a number is done in float32, as there. Exponentials, logarithms and powers are doubles rounded to
// float32; so are sums, which are doubles until they are compared. Ranks are made as far as a step looks: what is kept
// beyond them is known by its least logit, and summed in the order of ids.
#ifndef PACKLIGHT_SAMPLER_H_
#define PACKLIGHT_SAMPLER_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "mass.h"
#include "ranks.h"
#include "threefry.h"

namespace packlight {

// One slot's, in the order of chain.SlotSampling.
struct Parameters {
  float temperature;
  int32_t top_k;
  float top_p, min_p;
  uint32_t seed;
  float top_n_sigma, typical_p, xtc_probability, xtc_threshold, dynatemp_range, dynatemp_exponent;
  int32_t mirostat;
  float mirostat_tau, mirostat_eta, mirostat_mu;
};

struct Drawn {
  int32_t id;
  float mu;  // Mirostat's next state
};

inline float log_of(float x) { return static_cast<float>(std::log(static_cast<double>(x))); }

class Sampler {
 public:
  Drawn draw(const MassKernels& kernels, const float* x, int64_t width, const Parameters& parameters, int32_t position) {
    kernels_ = &kernels, p_ = parameters;
    x_ = x, width_ = width;
    ranks_.begin(x, width);
    const bool takes_first = p_.typical_p < 1 || p_.xtc_probability > 0 || p_.dynatemp_range > 0 || p_.mirostat > 0;
    if (!(p_.temperature >= kTiny) && !takes_first) return {ranks_.first(), p_.mirostat_mu};
    const Uniforms uniform = uniforms(p_.seed, position);
    ranks_.reach(1);
    best_ = ranks_.values()[0];
    begin_ = 0, end_ = width, least_ = -kInfinity, by_value_ = true, listed_ = false;
    float temperature = p_.temperature;
    if (p_.mirostat > 0) {
      p_.mirostat_mu = flushed(p_.mirostat_mu);
      mirostat();
    } else {
      chain(uniform.chance);
      if (p_.dynatemp_range > 0) temperature = dynamic_temperature();
    }
    return drawn(temperature, uniform.draw);
  }

 private:
  static constexpr int64_t kMirostatTokens = 100;
  static constexpr int64_t kChunk = 64;  // of weights that are made together

  // Of what is kept, by number; the numbers below `count` are known after reach(count).
  const float* values() const { return listed_ ? list_values_.data() : ranks_.values(); }
  int32_t id(int64_t i) const { return listed_ ? list_ids_[i] : ranks_.places()[i]; }
  int64_t known() const { return listed_ ? end_ : std::min(end_, ranks_.known()); }
  void reach(int64_t count) {
    if (!listed_) ranks_.reach(count);
  }

  // Keeps the first `end` of what is kept. by_value: these are all logits that are no less than `least`.
  void keep(int64_t end, bool by_value, float least = 0) {
    if (end >= end_) return;
    end_ = end, by_value_ = by_value, least_ = least;
  }

  // Of all that is kept.
  Masses sums(Scale scale, bool with_moment = false) {
    if (known() < end_ && by_value_ && !begin_) return kernels_->sums(x_, width_, scale, least_, with_moment);
    reach(end_);
    return kernels_->sums(values() + begin_, end_ - begin_, scale, -kInfinity, with_moment);
  }

  // Calls f(i, weight), of floats, for what is kept, in the order of ranks, until it says true.
  template <class F>
  void walk(Scale scale, const F& f) {
    float weights[kChunk];
    for (int64_t i = begin_; i < end_;) {
      reach(i + 1);
      const int64_t some = std::min(kChunk, known() - i);
      kernels_->weights(values() + i, some, scale, weights);
      for (int64_t l = 0; l < some; ++l, ++i) {
        if (f(i, weights[l])) return;
      }
    }
  }

  void chain(float chance) {
    top_k_and_top_n_sigma();
    if (p_.typical_p < 1) typical();
    if (begin_ == end_) return;
    top_p();
    min_p();
    const bool xtc_acts = p_.xtc_probability > 0 && p_.xtc_threshold <= 0.5f && chance <= p_.xtc_probability;
    if (xtc_acts) xtc();
  }

  void top_k_and_top_n_sigma() {
    if (p_.top_k >= 1) keep(p_.top_k, false);
    if (!(p_.top_n_sigma > 0)) return;
    const float least = best_ - p_.top_n_sigma * kernels_->deviation(x_, width_);
    keep(kernels_->count_from(x_, width_, least), true, least);
  }

  // Distances from the expected surprise fall and then rise with the rank: what is nearest is where they turn.
  void typical() {
    const Scale scale{best_};
    const Masses all = sums(scale, true);
    const float total = static_cast<float>(all.mass), log_total = log_of(total);
    const float expected = static_cast<float>(std::log(all.mass) - all.moment / all.mass);
    const auto surprise = [&](int64_t i) { return log_total - scale(ranks_.values()[i]); };
    const auto distance = [&](int64_t i) { return std::fabs(surprise(i) - expected); };
    const auto weighs = [&](int64_t i) {
      if (i >= end_) return false;
      reach(i + 1);
      return weight(scale, ranks_.values()[i]) > 0;
    };
    int64_t right = 0;
    while (weighs(right) && surprise(right) < expected) ++right;
    int64_t left = right - 1;
    double sum = 0;
    bool enough = false;
    chosen_.assign(end_ < ranks_.known() ? end_ : ranks_.known(), 0);
    const auto take = [&](int64_t i) {
      if (static_cast<int64_t>(chosen_.size()) <= i) chosen_.resize(ranks_.known(), 0);
      chosen_[i] = 1;
      sum += weight(scale, ranks_.values()[i]) / total;
      enough = static_cast<float>(sum) > p_.typical_p;
    };
    while (!enough) {
      const bool more = weighs(right);
      if (left >= 0 && (!more || distance(left) <= distance(right))) {
        int64_t first = left;  // of equal distances, which are taken in the order of ranks
        while (first && distance(first - 1) == distance(left)) --first;
        for (int64_t i = first; i <= left && !enough; ++i) take(i);
        left = first - 1;
      } else if (more) {
        take(right++);
      } else {
        break;
      }
    }
    list_values_.clear(), list_ids_.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(chosen_.size()); ++i) {
      if (chosen_[i]) list_values_.push_back(ranks_.values()[i]), list_ids_.push_back(ranks_.places()[i]);
    }
    listed_ = true, end_ = list_ids_.size();
  }

  float weight(Scale scale, float x) const {
    float weight;
    kernels_->weights(&x, 1, scale, &weight);
    return weight;
  }

  void top_p() {
    if (p_.top_p >= 1) return;
    if (p_.top_p != p_.top_p) return keep(1, false);
    const Scale scale{best_};
    const float target = p_.top_p * static_cast<float>(sums(scale).mass);
    double sum = 0;
    int64_t end = end_;
    walk(scale, [&](int64_t i, float weight) {
      sum += weight;
      if (!(static_cast<float>(sum) >= target)) return false;
      end = i + 1;
      return true;
    });
    keep(end, false);
  }

  void min_p() {
    if (p_.min_p <= 0) return;
    const float least = values()[0] + log_of(p_.min_p);
    keep_from(least);
  }

  // Keeps what is no less than a logit, at least one.
  void keep_from(float least) {
    reach(1);
    const int64_t there = known();
    int64_t count = std::partition_point(values(), values() + there, [&](float x) { return x >= least; }) - values();
    const bool seen = count < there || there == end_;
    if (!seen) count = kernels_->count_from(x_, width_, least);
    keep(std::max<int64_t>(count, 1), !seen, least);
  }

  void xtc() {
    const Scale scale{best_};
    const float least = p_.xtc_threshold * static_cast<float>(sums(scale).mass);
    int64_t above = 0;
    walk(scale, [&](int64_t, float weight) {
      if (!(weight >= least)) return true;
      ++above;
      return false;
    });
    if (above > 1) begin_ = above - 1;
  }

  float dynamic_temperature() {
    float entropy = 0;
    if (begin_ < end_) {
      reach(begin_ + 1);
      const Masses all = sums({values()[begin_]}, true);
      if (all.mass > 0) entropy = static_cast<float>(std::max(0.0, std::log(all.mass) - all.moment / all.mass));
    }
    const float most = log_of(static_cast<float>(std::max<int64_t>(end_ - begin_, 2)));
    const float share = static_cast<float>(
        std::pow(static_cast<double>(entropy / most), static_cast<double>(p_.dynatemp_exponent)));
    const float low = std::max(p_.temperature - p_.dynatemp_range, 0.0f), high = p_.temperature + p_.dynatemp_range;
    return low + (high - low) * share;
  }

  float clipped(float temperature) const { return std::min(std::max(temperature, kTiny), kHuge); }

  void mirostat() {
    if (!(p_.temperature >= kTiny)) return keep(1, false);
    const Scale scale{best_, clipped(p_.temperature)};
    if (p_.mirostat == 1) return keep(estimated(scale), false);
    const float log_total = log_of(static_cast<float>(sums(scale).mass));
    const float one_bit = log_of(2.0f);
    const auto holds = [&](float x) { return (log_total - scale(x)) / one_bit <= p_.mirostat_mu; };
    if (!holds(best_)) return keep(1, false);
    int64_t out = ordered(-kInfinity) - 1, in = ordered(best_);  // surprise falls as logits rise, also when rounded
    while (out + 1 < in) {
      const int64_t middle = out + (in - out) / 2;
      (holds(of_ordered(middle)) ? in : out) = middle;
    }
    keep_from(of_ordered(in));
  }

  // Floats as integers that are ordered as they are.
  static int64_t ordered(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits < 0 ? bits ^ 0x7FFFFFFF : bits;
  }

  static float of_ordered(int64_t order) {
    const int32_t bits = static_cast<int32_t>(order < 0 ? order ^ 0x7FFFFFFF : order);
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  // How many tokens version 1 keeps.
  int64_t estimated(Scale scale) {
    const int64_t count = std::min(kMirostatTokens, width_);
    reach(count);
    double falling = 0, squares = 0;
    for (int64_t i = 0; i + 1 < count; ++i) {
      const double t = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
      const float fall = scale(values()[i]) - scale(values()[i + 1]);
      falling += t * (std::isfinite(fall) ? fall : std::sqrt(static_cast<double>(kHuge)));
      squares += t * t;
    }
    const double slope = falling / squares, epsilon = slope - 1, width = static_cast<double>(width_);
    const double k =
        std::pow(epsilon * std::exp2(static_cast<double>(p_.mirostat_mu)) / (1 - std::pow(width, -epsilon)), 1 / slope);
    return k != k ? 1 : static_cast<int64_t>(std::min(std::max(k, 1.0), width));  // NaN: a slope of 0 or 1
  }

  Drawn drawn(float temperature, float uniform) {
    int64_t chosen = -1;
    float weight = 0, total = 0;
    if (begin_ < end_ && !(temperature >= kTiny)) {
      reach(begin_ + 1);
      chosen = begin_, weight = total = 1;
    } else if (begin_ < end_) {
      reach(begin_ + 1);
      const Scale scale{values()[begin_], clipped(temperature)};
      total = static_cast<float>(sums(scale).mass);
      const float target = uniform * total;
      double sum = 0;
      walk(scale, [&](int64_t i, float w) {
        if (!(w > 0)) return true;
        sum += w, chosen = i, weight = w;
        return static_cast<float>(sum) > target;
      });
    }
    const float surprise =
        total > 0 ? static_cast<float>(-std::log2(static_cast<double>(weight / total))) : p_.mirostat_tau;
    const float mu = p_.mirostat_mu - p_.mirostat_eta * (surprise - p_.mirostat_tau);
    return {chosen < 0 ? ranks_.places()[0] : id(chosen), p_.mirostat > 0 ? mu : p_.mirostat_mu};
  }

  const MassKernels* kernels_ = nullptr;
  Parameters p_{};
  const float* x_ = nullptr;
  int64_t width_ = 0;
  Ranks ranks_;
  float best_ = 0;
  int64_t begin_ = 0, end_ = 0;  // of what is kept: numbers of ranks or, where it is listed, of the list
  float least_ = 0;
  bool by_value_ = true, listed_ = false;
  std::vector<char> chosen_;
  std::vector<float> list_values_;
  std::vector<int32_t> list_ids_;
};

}  // namespace packlight

#endif  // PACKLIGHT_SAMPLER_H_
