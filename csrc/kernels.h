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
    void (*gated_forward_float32)(const float* gate, const float* up, float* h, float* slot, uint8_t* left_bits,
                                  uint8_t* holds_up_bits, int64_t count, float threshold);
    void (*gated_forward_bfloat16)(const uint16_t* gate, const uint16_t* up, uint16_t* h, uint16_t* slot,
                                   uint8_t* left_bits, uint8_t* holds_up_bits, int64_t count, float threshold);
    void (*gated_forward_float16)(const uint16_t* gate, const uint16_t* up, uint16_t* h, uint16_t* slot,
                                  uint8_t* left_bits, uint8_t* holds_up_bits, int64_t count, float threshold);
    void (*gated_backward_float32)(const float* grad, const float* h, const float* slot, const uint8_t* left_bits,
                                   const uint8_t* holds_up_bits, float* grad_gate, float* grad_up, int64_t count,
                                   const optiacts_curve* curve);
    void (*gated_backward_bfloat16)(const uint16_t* grad, const uint16_t* h, const uint16_t* slot,
                                    const uint8_t* left_bits, const uint8_t* holds_up_bits, uint16_t* grad_gate,
                                    uint16_t* grad_up, int64_t count, const float* table);
    void (*gated_backward_float16)(const uint16_t* grad, const uint16_t* h, const uint16_t* slot,
                                   const uint8_t* left_bits, const uint8_t* holds_up_bits, uint16_t* grad_gate,
                                   uint16_t* grad_up, int64_t count, const float* table);
};

extern const Kernels kernels_portable;
#if defined(OPTIACTS_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif
