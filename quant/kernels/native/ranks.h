// Ranks of a row of logits, made as far as they are asked for: the largest first, equal ones by lower place.
//
// Numbers are compared as model.sampling.rank.clean leaves them: NaN is -inf, and -0 and subnormals are 0.
#ifndef PACKLIGHT_RANKS_H_
#define PACKLIGHT_RANKS_H_

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace packlight {

constexpr float kTiny = FLT_MIN, kHuge = FLT_MAX;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// By its size and not by what the thread makes of subnormals, which differs between threads of XLA's.
inline float flushed(float x) { return std::fabs(x) < kTiny ? 0.0f : x; }
inline float clean(float x) { return x != x ? -kInfinity : flushed(x); }

// Smaller for larger numbers.
inline uint32_t key_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits >> 31 ? bits : bits ^ 0x7FFFFFFF;
}

inline float of_key(uint32_t key) {
  const uint32_t bits = key >> 31 ? key : key ^ 0x7FFFFFFF;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Sorts by the upper halves; equal ones stay in their order. to: as large as `from`. Returns where the result is.
inline uint64_t* sort_by_key(uint64_t* from, uint64_t* to, int64_t count) {
  constexpr int kDigit = 11;  // bits that a pass sorts by
  for (int shift = 32; shift < 64; shift += kDigit) {
    int64_t next[1 << kDigit] = {};
    const auto digit = [&](uint64_t entry) { return entry >> shift & ((1 << kDigit) - 1); };
    for (int64_t i = 0; i < count; ++i) ++next[digit(from[i])];
    int64_t before = 0;
    for (int64_t& each : next) before += std::exchange(each, before);
    for (int64_t i = 0; i < count; ++i) to[next[digit(from[i])]++] = from[i];
    std::swap(from, to);
  }
  return from;
}

class Ranks {
 public:
  // x: (width,), which must outlive the ranks.
  void begin(const float* x, int64_t width) {
    x_ = x, width_ = width, known_ = 0;
    if (static_cast<int64_t>(values_.size()) < width) values_.resize(width), places_.resize(width);
  }

  int64_t width() const { return width_; }
  int64_t known() const { return known_; }
  const float* values() const { return values_.data(); }    // of the ranks that are known
  const int32_t* places() const { return places_.data(); }  // as well

  // The largest number's place, without ranking any.
  int32_t first() {
    most_of_each(std::min(width_, kFirst));
    const float best = *std::max_element(most_.begin(), most_.end());
    int64_t found = width_;
    const int64_t step = most_.size();
    for (int64_t j = 0; j < step; ++j) {
      if (most_[j] != best) continue;
      int64_t at = j;
      while (clean(x_[at]) != best) at += step;
      found = std::min(found, at);
    }
    return static_cast<int32_t>(found);
  }

  // Makes at least `count` of the ranks known, which the row must have; some more each time, so that a walk is cheap.
  void reach(int64_t count) {
    while (known_ < count) extend(std::max({count, kFirst / 2, known_ * 16}));
  }

 private:
  static constexpr int64_t kFirst = 512;

  // The largest number of each residue of places: at least n numbers are no smaller than the n-th largest of these.
  void most_of_each(int64_t classes) {
    most_.assign(classes, -kInfinity);
    float* most = most_.data();
    int64_t i = 0;
    for (; i + classes <= width_; i += classes) {
      for (int64_t j = 0; j < classes; ++j) {
        const float value = clean(x_[i + j]);
        most[j] = value > most[j] ? value : most[j];
      }
    }
    for (int64_t j = 0; i + j < width_; ++j) most[j] = std::max(most[j], clean(x_[i + j]));
  }

  // A number that at least `count` are not below.
  float bound(int64_t count) {
    if (8 * count > width_) return -kInfinity;
    most_of_each(2 * count);
    std::nth_element(most_.begin(), most_.begin() + (count - 1), most_.end(), std::greater<float>());
    return most_[count - 1];
  }

  // Ranks all numbers from a bound on that are not ranked yet.
  void extend(int64_t count) {
    const float least = bound(count);
    if (static_cast<int64_t>(entries_.size()) < width_ - known_) entries_.resize(width_), spare_.resize(width_);
    int64_t found = 0;
    for (int64_t i = 0; i < width_; i += kRun) {
      const int64_t end = std::min(width_, i + kRun);
      int any = 0;
      for (int64_t j = i; j < end; ++j) any |= clean(x_[j]) >= least;
      for (int64_t j = i; any && j < end; ++j) {
        const float value = clean(x_[j]);
        entries_[found] = static_cast<uint64_t>(key_of(value)) << 32 | static_cast<uint64_t>(j);
        found += value >= least && !(known_ && value >= least_);
      }
    }
    const uint64_t* sorted = sort_by_key(entries_.data(), spare_.data(), found);
    for (int64_t i = 0; i < found; ++i) {
      places_[known_ + i] = static_cast<int32_t>(sorted[i]);
      values_[known_ + i] = of_key(static_cast<uint32_t>(sorted[i] >> 32));
    }
    known_ += found, least_ = least;
  }

  static constexpr int64_t kRun = 64;

  const float* x_ = nullptr;
  int64_t width_ = 0, known_ = 0;
  float least_ = 0;  // all numbers from here on are known
  std::vector<float> most_, values_;
  std::vector<int32_t> places_;
  std::vector<uint64_t> entries_, spare_;
};

}  // namespace packlight

#endif  // PACKLIGHT_RANKS_H_
