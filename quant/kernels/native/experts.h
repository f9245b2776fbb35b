// A mixture's feed-forward: rows are sorted by the experts that they chose, so that each expert is read once for all its
// rows. Five stages, of which each reads what the one before it made. Knows no instruction set and no XLA.
#ifndef PACKLIGHT_EXPERTS_H_
#define PACKLIGHT_EXPERTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "activation.h"
#include "kernels.h"
#include "work.h"
#include "workspace.h"

namespace packlight {

constexpr int64_t kMostOpening = 2;  // matrices of an expert that read x: gate and up, both in one, or up alone

// With one matrix of every expert.
struct Product {
  Stacked experts;  // the layer's
  Multiply multiply;
  const float* scales;  // (E,): what comes out is multiplied by it; null: ones
  const float* biases;  // (E, out): what is added then; null: zeros
  Activations x;        // of the sorted pairs
  float* y;             // (pairs, out)
};

// Rows lanes * first .. lanes * last - 1 of an expert's matrix, for all its pairs.
struct Chunk {
  const Product* product;
  int64_t expert, first, last;
};

struct Mixture {
  const float* x;          // (rows, width)
  const int32_t* chosen;   // (rows, used): an expert below 0 or from `count` on is another device's
  const float* shares;     // (rows, used)
  float* y;                // (rows, closing.out)
  int64_t rows, used, width, count;
  bool scales_input;  // experts read share * x; else what they give is multiplied by it
  Activation kind;
  Quantize quantize;
  const ActivationKernels* activations;
  std::vector<Product> opening;
  Product closing;
  float* hidden;        // (pairs, hidden_stride): what goes into `closing`, maybe where gate was
  int64_t features, hidden_stride;
  std::vector<int64_t> begins;  // (count + 1,): each expert's first pair, sorted
  std::vector<int64_t> places;  // (rows, used): where a pair went; -1: nowhere
  std::vector<int64_t> whose;   // (pairs,): a sorted pair's expert
  std::vector<Chunk> open_chunks, close_chunks;
  int64_t rows_per_chunk, pairs_per_chunk;

  int64_t pairs() const { return begins.back(); }

  // Pairs in the order of experts, and within one of rows.
  void sort() {
    begins.assign(count + 1, 0), places.assign(rows * used, -1);
    const auto here = [&](int64_t i) { return chosen[i] >= 0 && chosen[i] < count; };
    for (int64_t i = 0; i < rows * used; ++i) begins[here(i) ? chosen[i] + 1 : 0] += here(i);
    for (int64_t e = 0; e < count; ++e) begins[e + 1] += begins[e];
    std::vector<int64_t> next(begins.begin(), begins.end() - 1);
    whose.resize(pairs());
    for (int64_t i = 0; i < rows * used; ++i) {
      if (here(i)) whose[places[i] = next[chosen[i]]++] = chosen[i];
    }
  }

  // Every chosen expert's products cut so that about `wanted` equal parts come out, or more where experts have few rows.
  std::vector<Chunk> cut(const Product* first, size_t products, int64_t lanes, int64_t wanted) const {
    constexpr int64_t kReading = 8;  // pairs whose products take as long as reading and unpacking the weights
    const auto groups = [&](const Product& p) { return (p.experts.first.out + lanes - 1) / lanes; };
    int64_t cost = 0;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t some = begins[e + 1] - begins[e];
      for (size_t p = 0; some && p < products; ++p) cost += (kReading + some) * groups(first[p]);
    }
    std::vector<Chunk> chunks;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t some = begins[e + 1] - begins[e];
      const int64_t size = some ? std::max<int64_t>(2, cost / wanted / (kReading + some) / 2 * 2) : 0;
      for (size_t p = 0; some && p < products; ++p) {
        const int64_t all = groups(first[p]);
        for (int64_t g = 0; g < all; g += size) chunks.push_back({first + p, e, g, std::min(all, g + size)});
      }
    }
    return chunks;
  }
};

inline void finish_row(const Product& product, int64_t expert, float* y) {
  const int64_t out = product.experts.first.out;
  if (product.scales) {
    for (int64_t i = 0; i < out; ++i) y[i] *= product.scales[expert];
  }
  if (product.biases) {
    const float* biases = product.biases + expert * out;
    for (int64_t i = 0; i < out; ++i) y[i] += biases[i];
  }
}

// Rounds or copies rows of x to where their pairs went: once for all of a row's.
inline void gather_chunk(void* context, int64_t chunk) {
  const Mixture& m = *static_cast<const Mixture*>(context);
  const int64_t end = std::min(m.rows, (chunk + 1) * m.rows_per_chunk);
  for (int64_t row = chunk * m.rows_per_chunk; row < end; ++row) {
    const float* values = m.x + row * m.width;
    int64_t first = -1;
    for (int64_t i = row * m.used; i < (row + 1) * m.used; ++i) {
      const int64_t at = m.places[i];
      if (at < 0) continue;
      float* scaled = m.scales_input ? workspace(m.width) : nullptr;
      for (int64_t c = 0; scaled && c < m.width; ++c) scaled[c] = values[c] * m.shares[i];
      for (size_t p = 0; p < m.opening.size(); ++p) {
        const Activations& x = m.opening[p].x;
        if (p && x.rounding == m.opening[0].x.rounding) continue;  // they share the place
        if (x.rounding == Rounding::none) {
          std::memcpy(const_cast<float*>(x.values) + at * m.width, scaled ? scaled : values, m.width * 4);
        } else if (scaled || first < 0) {
          m.quantize(scaled ? scaled : values, x, at);
        } else {
          x.copy(first, at);
        }
      }
      first = first < 0 ? at : first;
    }
  }
}

inline void multiply_chunk_of(const Mixture& m, const Chunk& chunk) {
  const Product& p = *chunk.product;
  const int64_t begin = m.begins[chunk.expert], rows = m.begins[chunk.expert + 1] - begin;
  const Weights weights = p.experts[chunk.expert];
  p.multiply(weights, p.x.part(begin, rows), chunk.first, chunk.last, p.y + begin * weights.out);
}

inline void open_chunk(void* context, int64_t chunk) {
  const Mixture& m = *static_cast<const Mixture*>(context);
  multiply_chunk_of(m, m.open_chunks[chunk]);
}

inline void activate_chunk(void* context, int64_t chunk) {
  const Mixture& m = *static_cast<const Mixture*>(context);
  const int64_t end = std::min(m.pairs(), (chunk + 1) * m.pairs_per_chunk);
  for (int64_t at = chunk * m.pairs_per_chunk; at < end; ++at) {
    for (const Product& p : m.opening) finish_row(p, m.whose[at], p.y + at * p.experts.first.out);
    const Product &a = m.opening.front(), &b = m.opening.back();
    const float* gate = a.y + at * a.experts.first.out;
    const bool fused = is_gated(m.kind) && m.opening.size() == 1;
    const float* up = fused ? gate + m.features : b.y + at * b.experts.first.out;
    float* hidden = m.hidden + at * m.hidden_stride;
    m.activations->activate(m.kind, gate, up, m.features, hidden);
    if (m.closing.x.rounding != Rounding::none) m.quantize(hidden, m.closing.x, at);
  }
}

inline void close_chunk(void* context, int64_t chunk) {
  const Mixture& m = *static_cast<const Mixture*>(context);
  multiply_chunk_of(m, m.close_chunks[chunk]);
}

// A row's experts in the order of their numbers: its bits do not depend on who else chose them.
inline void sum_chunk(void* context, int64_t chunk) {
  const Mixture& m = *static_cast<const Mixture*>(context);
  const int64_t out = m.closing.experts.first.out;
  const int64_t end = std::min(m.rows, (chunk + 1) * m.rows_per_chunk);
  std::vector<std::pair<int64_t, float>> mine;
  for (int64_t row = chunk * m.rows_per_chunk; row < end; ++row) {
    mine.clear();
    for (int64_t i = row * m.used; i < (row + 1) * m.used; ++i) {
      if (m.places[i] >= 0) mine.emplace_back(m.places[i], m.scales_input ? 1.0f : m.shares[i]);
    }
    std::sort(mine.begin(), mine.end());
    float* y = m.y + row * out;
    std::fill_n(y, out, 0.0f);
    for (const auto& [at, share] : mine) {
      float* from = m.closing.y + at * out;
      finish_row(m.closing, m.whose[at], from);
      for (int64_t i = 0; i < out; ++i) y[i] += from[i] * share;
    }
  }
}

struct Stages {
  Stage gather, open, activate, close, sum;

  void help() {
    for (Stage* stage : {&gather, &open, &activate, &close}) stage->help(), stage->wait();
    sum.help();
  }
};

}  // namespace packlight

#endif  // PACKLIGHT_EXPERTS_H_
