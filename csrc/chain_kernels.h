// The kernels of a row of a chain, a norm and the activation after it, for one instruction set: one set of functions
// for each dtype, in the order of optiacts.h. g is grad * f'(z), x_hat the normalised input.
#pragma once

#include "optiacts.h"

struct ChainKernels {
    int64_t element_size;
    // g and x_hat of rows of one channel each, x_hat = (z - shift) * inverse, and, if `sums` is not null, added to each
    // row's pair those of g and of g * x_hat; and of rows of all channels. If `by_shift` is not null, g and g * x_hat of
    // each channel are added to it and to `by_scale`.
    void (*decode)(const void* grad, const void* y, const uint8_t* bits, const float* shift, const float* inverse,
                   float* g, float* x_hat, double* sums, int64_t rows, int64_t count, const void* decoder);
    void (*decode_channels)(const void* grad, const void* y, const uint8_t* bits, const float* shift,
                            const float* inverse, float* g, float* x_hat, float* by_shift, float* by_scale,
                            int64_t channels, int64_t rows, const void* decoder);
    // x_hat from the input.
    void (*from_input)(const void* x, float mean, float rstd, float* x_hat, int64_t count);
    // The sums of g and of g * x_hat over a row; and added to those of each channel.
    void (*add)(const float* g, const float* x_hat, double* sums, int64_t count);
    void (*add_channels)(const float* g, const float* x_hat, float* by_shift, float* by_scale, int64_t count);
    // Adds sums to totals and makes them 0.
    void (*settle)(float* sums, double* totals, int64_t count);
    // grad_x = g * factor - constant - x_hat * slope, with a number of each row, or of each channel; without an x_hat
    // only the first, so that an infinite one does not matter.
    void (*gradient)(const float* g, const float* x_hat, const float* factor, const float* constant,
                     const float* slope, void* grad_x, int64_t rows, int64_t count);
    void (*gradient_channels)(const float* g, const float* x_hat, const float* factor, const float* constant,
                              const float* slope, void* grad_x, int64_t channels, int64_t rows);
    // The sum of the squares of how far they lie below a threshold. A NaN lies nowhere.
    double (*excess)(const void* x, int64_t count, float threshold);
};

enum { CLOSED = 3 };  // so many entries further on are those of a closed form


extern const ChainKernels chain_kernels_portable[];
#if defined(OPTIACTS_X86)
extern const ChainKernels chain_kernels_avx2[];
extern const ChainKernels chain_kernels_avx512[];
#endif
