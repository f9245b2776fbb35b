// What the kernels of norms are given: rows of numbers whose sums do not depend on how many rows there are.
#ifndef PACKLIGHT_NORM_H_
#define PACKLIGHT_NORM_H_

#include <cstdint>

namespace packlight {

// y = (x - mean, if it is centered) / sqrt(squares / divisor + epsilon) * weights + biases, row by row.
struct Norm {
  const float* x;        // (rows, width)
  const float* weights;  // (period, width): row r takes number r % period; null: ones
  const float* biases;   // likewise; null: zeros
  float* y;              // (rows, width)
  int64_t rows, width, period;
  bool centered;
  float divisor;  // the width, for the mean of the squares, or 1 for their sum
  float epsilon;
};

// sums[r] = a's row r . b's, which has as many rows or one for all.
struct Dots {
  const float *a, *b;
  float* sums;  // (rows,)
  int64_t rows, width, b_stride;
};

// One instruction set's functions, of rows first .. last - 1.
struct RowKernels {
  void (*norm)(const Norm& norm, int64_t first, int64_t last);
  void (*dots)(const Dots& dots, int64_t first, int64_t last);
};

extern const RowKernels kPortableRows;
#if defined(__x86_64__)
extern const RowKernels kAvx2Rows, kAvx512Rows;
#endif

}  // namespace packlight

#endif  // PACKLIGHT_NORM_H_
