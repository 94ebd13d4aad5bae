// The kernels of one row of a norm, for one instruction set: one set of functions for each dtype, in the order of
// optiacts.h. x_hat is (x - mean) * rstd.
#pragma once

#include "optiacts.h"

// Rows that are worked on together, so that what there is of each channel is loaded once for all of them.
constexpr int NORM_ROWS = 2;

// What is kept: x, y, or x_hat itself in float32. Of x, `mean` and `rstd` give x_hat; of y it is
// (y - shift) * inverse, or 0 where inverse is 0.
enum class Kept { input, output, x_hat };

// Consecutive rows of one dtype.
struct NormRows {
    int64_t cols;
    const void *kept, *grad;
    void* grad_x;
    Kept what;
    bool centered;
    const float *mean, *rstd;              // of each row; no mean is 0
    const float *scale, *shift, *inverse;  // of each channel
    float *by_scale, *by_shift;            // to which grad * x_hat and grad are added
    // The channels whose x_hat y does not tell (inverse is 0), and x_hat there, row by row.
    const int64_t* columns;
    const float* exact;
    int64_t rescues;
    bool far;  // whether to ask for the next rows ahead
};

struct NormKernels {
    int64_t element_size;
    // mean and rstd of x; no mean is subtracted, nor told, where `mean` is null.
    void (*statistics)(const void* x, int64_t cols, float eps, float* mean, float* rstd);
    // The two planes of remainder bits of a 16-bit y, which is x_hat * scale + shift rounded; null for float32.
    void (*remainder)(const void* x, const void* y, const float* scale, const float* shift, float mean, float rstd,
                      uint8_t* low, uint8_t* high, int64_t cols);
    // x_hat of x, and of y; with bits, each y is moved to the middle of the quarter that they tell.
    void (*from_input)(const void* x, float mean, float rstd, float* x_hat, int64_t count);
    void (*from_output)(const void* y, const uint8_t* low, const uint8_t* high, const float* shift,
                        const float* inverse, float* x_hat, int64_t cols);
    // A row in float32, and back.
    void (*widen)(const void* row, float* wide, int64_t cols);
    void (*narrow)(const float* wide, void* row, int64_t cols);
    // The gradients of `count` rows, at most NORM_ROWS.
    void (*backward)(const NormRows& rows, int count);
    // Of each channel of `rows` rows the sums of x - centre, and of its square.
    void (*powers)(const void* x, const float* centre, float* sums, float* squares, int64_t rows, int64_t channels);
    // Adds sums to totals and makes them 0; adds totals to others, and rounds them.
    void (*settle)(float* sums, double* totals, int64_t count);
    void (*add)(double* totals, const double* more, int64_t count);
    void (*round)(const double* totals, float* rounded, int64_t count);
    // optiacts_norm_any_bad.
    int (*any_bad)(const float* scale, const float* shift, float smallest, float largest, float most, int64_t count);
    void (*invert)(const float* scale, float* inverse, int64_t count);
    // LayerNorm of rows of a multiple of 16 elements, with its statistics: norm_forward.inc.
    void (*layer_norm)(const void* x, int64_t rows, int64_t cols, const float* scale, const float* shift, float eps,
                       float* mean, float* rstd, void* y);
};

extern const NormKernels norm_kernels_portable[];
#if defined(OPTIACTS_X86)
extern const NormKernels norm_kernels_avx2[];
extern const NormKernels norm_kernels_avx512[];
#endif

inline const NormKernels& norm_kernels(int dtype) {
#if defined(OPTIACTS_X86)
    switch (optiacts_level()) {
        case OPTIACTS_AVX512: return norm_kernels_avx512[dtype];
        case OPTIACTS_AVX2: return norm_kernels_avx2[dtype];
    }
#endif
    return norm_kernels_portable[dtype];
}
