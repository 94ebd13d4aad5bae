// The C interface: chooses the instruction set, and shares rows x cols elements out to threads.

#include "optiacts.h"

#include <atomic>

#include "kernels.h"
#include "parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

int best_level() {
#if defined(OPTIACTS_X86)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return OPTIACTS_PORTABLE;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? OPTIACTS_AVX512 : OPTIACTS_AVX2;
#else
    return OPTIACTS_PORTABLE;
#endif
}

std::atomic<int>& level() {
    static std::atomic<int> chosen{best_level()};
    return chosen;
}

const Kernels& kernels() {
#if defined(OPTIACTS_X86)
    switch (level().load(std::memory_order_relaxed)) {
        case OPTIACTS_AVX512: return kernels_avx512;
        case OPTIACTS_AVX2: return kernels_avx2;
    }
#endif
    return kernels_portable;
}

// Elements that take a thread about 10 us, twice what it costs to wake one up and to wait for it.
constexpr int64_t PACKED_PER_THREAD = 1 << 17, DECODED_PER_THREAD = 1 << 14;
constexpr int64_t OCTETS_PER_STEP = 512;          // 4096 elements: whole pages of the results, but for the bits

// Runs segment(row, octet, count) on every stretch of `count` elements from the octet-th eight of a row on.
template <class Segment>
void for_segments(int64_t rows, int64_t cols, int threads, int64_t per_thread, Segment segment) {
    const int64_t row_octets = (cols + 7) / 8, useful = rows * cols / per_thread + 1;
    if (threads > useful) threads = int(useful);
    parallel_ranges(rows * row_octets, OCTETS_PER_STEP, threads, [=](int64_t at, int64_t end) {
        while (at < end) {
            const int64_t row = at / row_octets, octet = at % row_octets;
            const int64_t octets = end - at < row_octets - octet ? end - at : row_octets - octet;
            const int64_t rest = cols - 8 * octet;
            segment(row, octet, rest < 8 * octets ? rest : 8 * octets);
            at += octets;
        }
    });
}

// The same as segment(element, byte, count) for one contiguous tensor and its bits.
template <class Segment>
void for_contiguous(int64_t rows, int64_t cols, int threads, int64_t per_thread, Segment segment) {
    if (cols % 8 == 0) cols *= rows, rows = 1;
    const int64_t row_octets = (cols + 7) / 8;
    for_segments(rows, cols, threads, per_thread, [=](int64_t row, int64_t octet, int64_t count) {
        segment(row * cols + 8 * octet, row * row_octets + octet, count);
    });
}

template <class Word, class Pack>
void pack(Pack pack, const Word* x, uint8_t* bits, int64_t rows, int64_t cols, Word first, Word span, int threads) {
    for_contiguous(rows, cols, threads, PACKED_PER_THREAD, [=](int64_t element, int64_t byte, int64_t count) {
        pack(x + element, bits + byte, count, first, span);
    });
}

template <class Element, class Backward, class Decoder>
void backward(Backward backward, const Element* grad, const Element* y, const uint8_t* bits, Element* out,
              int64_t rows, int64_t cols, const Decoder* decoder, int threads) {
    for_contiguous(rows, cols, threads, DECODED_PER_THREAD, [=](int64_t element, int64_t byte, int64_t count) {
        backward(grad + element, y + element, bits + byte, out + element, count, decoder);
    });
}

template <class Element, class Forward>
void gated_forward(Forward forward, const Element* gate, int64_t gate_stride, const Element* up, int64_t up_stride,
                   Element* h, Element* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                   int threads) {
    const int64_t octets = (cols + 7) / 8;
    for_segments(rows, cols, threads, DECODED_PER_THREAD, [=](int64_t row, int64_t octet, int64_t count) {
        const int64_t col = 8 * octet, element = row * cols + col;
        uint8_t* const left = bits + 2 * row * octets + octet;
        forward(gate + row * gate_stride + col, up + row * up_stride + col, h + element, slot + element, left,
                left + octets, count, threshold);
    });
}

template <class Element, class Backward, class Decoder>
void gated_backward(Backward backward, const Element* grad, const Element* h, const Element* slot,
                    const uint8_t* bits, Element* grad_gate, int64_t gate_stride, Element* grad_up,
                    int64_t up_stride, int64_t rows, int64_t cols, const Decoder* decoder, int threads) {
    const int64_t octets = (cols + 7) / 8;
    for_segments(rows, cols, threads, DECODED_PER_THREAD, [=](int64_t row, int64_t octet, int64_t count) {
        const int64_t col = 8 * octet, element = row * cols + col;
        const uint8_t* const left = bits + 2 * row * octets + octet;
        backward(grad + element, h + element, slot + element, left, left + octets, grad_gate + row * gate_stride + col,
                 grad_up + row * up_stride + col, count, decoder);
    });
}

}  // namespace

int optiacts_best_level(void) { return best_level(); }

int optiacts_level(void) { return level(); }

int optiacts_use_level(int wanted) {
    if (wanted < OPTIACTS_PORTABLE || wanted > best_level()) return -1;
    level() = wanted;
    return 0;
}

int optiacts_has_threads(void) { return has_threads(); }

void optiacts_huge_pages(void* buffer, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (uintptr_t(buffer) + page - 1) / page * page;
    const uintptr_t end = (uintptr_t(buffer) + uintptr_t(bytes)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)buffer, (void)bytes;
#endif
}

void optiacts_pack32(const uint32_t* x, uint8_t* bits, int64_t rows, int64_t cols, uint32_t first, uint32_t span,
                     int threads) {
    pack(kernels().pack32, x, bits, rows, cols, first, span, threads);
}

void optiacts_pack16(const uint16_t* x, uint8_t* bits, int64_t rows, int64_t cols, uint16_t first, uint16_t span,
                     int threads) {
    pack(kernels().pack16, x, bits, rows, cols, first, span, threads);
}

void optiacts_backward_float32(const float* grad, const float* y, const uint8_t* bits, float* out, int64_t rows,
                               int64_t cols, const optiacts_curve* curve, int threads) {
    backward(kernels().backward_float32, grad, y, bits, out, rows, cols, curve, threads);
}

void optiacts_backward_bfloat16(const uint16_t* grad, const uint16_t* y, const uint8_t* bits, uint16_t* out,
                                int64_t rows, int64_t cols, const float* table, int threads) {
    backward(kernels().backward_bfloat16, grad, y, bits, out, rows, cols, table, threads);
}

void optiacts_backward_float16(const uint16_t* grad, const uint16_t* y, const uint8_t* bits, uint16_t* out,
                               int64_t rows, int64_t cols, const float* table, int threads) {
    backward(kernels().backward_float16, grad, y, bits, out, rows, cols, table, threads);
}

void optiacts_gated_forward_float32(const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, float* h,
                                  float* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                                  int threads) {
    gated_forward(kernels().gated_forward_float32, gate, gate_stride, up, up_stride, h, slot, bits, rows, cols, threshold,
                  threads);
}

void optiacts_gated_backward_float32(const float* grad, const float* h, const float* slot, const uint8_t* bits,
                                   float* grad_gate, int64_t gate_stride, float* grad_up, int64_t up_stride, int64_t rows,
                                   int64_t cols, const optiacts_curve* curve, int threads) {
    gated_backward(kernels().gated_backward_float32, grad, h, slot, bits, grad_gate, gate_stride, grad_up, up_stride, rows,
                   cols, curve, threads);
}

void optiacts_gated_forward_bfloat16(const uint16_t* gate, int64_t gate_stride, const uint16_t* up, int64_t up_stride, uint16_t* h,
                                  uint16_t* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                                  int threads) {
    gated_forward(kernels().gated_forward_bfloat16, gate, gate_stride, up, up_stride, h, slot, bits, rows, cols, threshold,
                  threads);
}

void optiacts_gated_backward_bfloat16(const uint16_t* grad, const uint16_t* h, const uint16_t* slot, const uint8_t* bits,
                                   uint16_t* grad_gate, int64_t gate_stride, uint16_t* grad_up, int64_t up_stride, int64_t rows,
                                   int64_t cols, const float* table, int threads) {
    gated_backward(kernels().gated_backward_bfloat16, grad, h, slot, bits, grad_gate, gate_stride, grad_up, up_stride, rows,
                   cols, table, threads);
}

void optiacts_gated_forward_float16(const uint16_t* gate, int64_t gate_stride, const uint16_t* up, int64_t up_stride, uint16_t* h,
                                  uint16_t* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                                  int threads) {
    gated_forward(kernels().gated_forward_float16, gate, gate_stride, up, up_stride, h, slot, bits, rows, cols, threshold,
                  threads);
}

void optiacts_gated_backward_float16(const uint16_t* grad, const uint16_t* h, const uint16_t* slot, const uint8_t* bits,
                                   uint16_t* grad_gate, int64_t gate_stride, uint16_t* grad_up, int64_t up_stride, int64_t rows,
                                   int64_t cols, const float* table, int threads) {
    gated_backward(kernels().gated_backward_float16, grad, h, slot, bits, grad_gate, gate_stride, grad_up, up_stride, rows,
                   cols, table, threads);
}
