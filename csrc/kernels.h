// The serial kernels of one instruction set, as a table of functions.
#pragma once

#include "optiacts.h"

struct Kernels {
    void (*pack32)(const uint32_t* x, uint8_t* bits, int64_t count, uint32_t first, uint32_t span);
    void (*pack16)(const uint16_t* x, uint8_t* bits, int64_t count, uint16_t first, uint16_t span);
    void (*backward_float32)(const float* grad, const float* y, const uint8_t* bits, float* out, int64_t count,
                             const optiacts_curve* curve);
    void (*backward_bfloat16)(const uint16_t* grad, const uint16_t* y, const uint8_t* bits, uint16_t* out,
                              int64_t count, const float* table);
    void (*backward_float16)(const uint16_t* grad, const uint16_t* y, const uint8_t* bits, uint16_t* out,
                             int64_t count, const float* table);
};

extern const Kernels kernels_portable;
#if defined(OPTIACTS_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif
