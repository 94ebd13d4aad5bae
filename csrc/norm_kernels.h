// The kernels of one row of a norm, for one instruction set: one set of functions for each dtype, in the order of
// optiacts.h. x_hat is (x - mean) * rstd.
#pragma once

#include "optiacts.h"

struct NormKernels {
    int64_t element_size;
    // mean and rstd of x; no mean is subtracted, nor told, where `mean` is null.
    void (*statistics)(const void* x, int64_t cols, float eps, float* mean, float* rstd);
    // The two planes of remainder bits of a 16-bit y, which is x_hat * scale + shift rounded; null for float32.
    void (*remainder)(const void* x, const void* y, const float* scale, const float* shift, float mean, float rstd,
                      uint8_t* low, uint8_t* high, int64_t cols);
    // x_hat from y, 1 / scale and, if not null, the planes of remainder bits.
    void (*from_output)(const void* y, const uint8_t* low, const uint8_t* high, const float* shift,
                        const float* inverse, float* x_hat, int64_t cols);
    void (*from_input)(const void* x, float mean, float rstd, float* x_hat, int64_t cols);
    // scaled = grad * scale; the sums of scaled and of scaled * x_hat; grad * x_hat and grad are added to by_scale
    // and by_shift.
    void (*reduce)(const void* grad, const float* x_hat, const float* scale, float* scaled, float* by_scale,
                   float* by_shift, double* sums, int64_t cols);
    // Adds sums to totals and makes them 0.
    void (*settle)(float* sums, double* totals, int64_t count);
    // grad_x = rstd * (scaled - mean_of_scaled - x_hat * mean_of_product)
    void (*gradient)(const float* scaled, const float* x_hat, float mean_of_scaled, float mean_of_product, float rstd,
                     void* grad_x, int64_t cols);
};

extern const NormKernels norm_kernels_portable[];
#if defined(OPTIACTS_X86)
extern const NormKernels norm_kernels_avx2[];
extern const NormKernels norm_kernels_avx512[];
#endif
