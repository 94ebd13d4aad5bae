// The serial kernels of one instruction set, one set of functions for each dtype, in the order of optiacts.h.
#pragma once

#include "optiacts.h"

struct Kernels {
    int64_t element_size;
    void (*pack)(const void* x, uint8_t* bits, int64_t count, uint32_t first, uint32_t span);
    void (*silu)(const void* x, void* out, uint8_t* bits, int64_t count, float threshold);
    void (*backward)(const void* grad, const void* y, const uint8_t* bits, void* out, int64_t count,
                     const void* decoder);
    void (*dropped_backward)(const void* grad, const void* y, const uint8_t* bits, void* out, int64_t count,
                             const void* decoder, float scale, float inverse);
    void (*gated_forward)(const void* gate, const void* up, void* h, void* slot, uint8_t* left_bits,
                          uint8_t* holds_up_bits, int64_t count, float threshold, float low, float high);
    void (*gated_silu)(const void* gate, const void* up, void* h, void* slot, uint8_t* left_bits,
                       uint8_t* holds_up_bits, int64_t count, float threshold, float low, float high);
    void (*gated_backward)(const void* grad, const void* h, const void* slot, const uint8_t* left_bits,
                           const uint8_t* holds_up_bits, void* grad_gate, void* grad_up, int64_t count,
                           const void* decoder);
    void (*dropped_gated_backward)(const void* grad, const void* y, const void* slot, const uint8_t* left_bits,
                                   const uint8_t* holds_up_bits, void* grad_gate, void* grad_up, int64_t count,
                                   const void* decoder, float scale, float inverse);
    void (*scale_kept)(const void* x, const uint8_t* dropped, void* out, int64_t count, float scale);
};

extern const Kernels kernels_portable[];
#if defined(OPTIACTS_X86)
extern const Kernels kernels_avx2[];
extern const Kernels kernels_avx512[];
#endif
