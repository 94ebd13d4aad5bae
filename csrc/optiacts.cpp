// The C interface: chooses the instruction set, and shares rows x cols elements out to threads.

#include "optiacts.h"

#include <atomic>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

const Kernels& kernels(int dtype) {
#if defined(OPTIACTS_X86)
    switch (level().load(std::memory_order_relaxed)) {
        case OPTIACTS_AVX512: return kernels_avx512[dtype];
        case OPTIACTS_AVX2: return kernels_avx2[dtype];
    }
#endif
    return kernels_portable[dtype];
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

template <class Pointer>
Pointer at(Pointer tensor, int64_t byte) {
    return static_cast<Pointer>(const_cast<char*>(static_cast<const char*>(tensor)) + byte);
}

}  // namespace

int optiacts_interface(void) { return OPTIACTS_INTERFACE; }

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

void optiacts_pack(int dtype, const void* x, uint8_t* bits, int64_t rows, int64_t cols, uint32_t first, uint32_t span,
                   int threads) {
    const Kernels& of = kernels(dtype);
    for_contiguous(rows, cols, threads, PACKED_PER_THREAD, [&](int64_t element, int64_t byte, int64_t count) {
        of.pack(at(x, element * of.element_size), bits + byte, count, first, span);
    });
}

void optiacts_silu(int dtype, const void* x, void* out, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                   int threads) {
    const Kernels& of = kernels(dtype);
    for_contiguous(rows, cols, threads, DECODED_PER_THREAD, [=, &of](int64_t element, int64_t byte, int64_t count) {
        const int64_t from = element * of.element_size;
        of.silu(at(x, from), at(out, from), bits + byte, count, threshold);
    });
}

void optiacts_backward(int dtype, const void* grad, const void* y, const uint8_t* bits, void* out, int64_t rows,
                       int64_t cols, const void* decoder, int threads) {
    const Kernels& of = kernels(dtype);
    for_contiguous(rows, cols, threads, DECODED_PER_THREAD, [&](int64_t element, int64_t byte, int64_t count) {
        const int64_t offset = element * of.element_size;
        of.backward(at(grad, offset), at(y, offset), bits + byte, at(out, offset), count, decoder);
    });
}

namespace {

using GatedForward = decltype(Kernels::gated_forward);

void gated_forward(const Kernels& of, GatedForward kernel, const void* gate, int64_t gate_stride, const void* up,
                   int64_t up_stride, void* h, void* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                   float low, float high, int threads) {
    const int64_t size = of.element_size, octets = (cols + 7) / 8;
    for_segments(rows, cols, threads, DECODED_PER_THREAD, [=](int64_t row, int64_t octet, int64_t count) {
        const int64_t col = 8 * octet, dense = (row * cols + col) * size;
        uint8_t* const left = bits + 2 * row * octets + octet;
        kernel(at(gate, (row * gate_stride + col) * size), at(up, (row * up_stride + col) * size), at(h, dense),
               at(slot, dense), left, left + octets, count, threshold, low, high);
    });
}

}  // namespace

void optiacts_gated_forward(int dtype, const void* gate, int64_t gate_stride, const void* up, int64_t up_stride,
                            void* h, void* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold,
                            float low, float high, int threads) {
    const Kernels& of = kernels(dtype);
    gated_forward(of, of.gated_forward, gate, gate_stride, up, up_stride, h, slot, bits, rows, cols, threshold, low,
                  high, threads);
}

void optiacts_gated_silu(int dtype, const void* gate, int64_t gate_stride, const void* up, int64_t up_stride, void* h,
                         void* slot, uint8_t* bits, int64_t rows, int64_t cols, float threshold, float low,
                         float high, int threads) {
    const Kernels& of = kernels(dtype);
    gated_forward(of, of.gated_silu, gate, gate_stride, up, up_stride, h, slot, bits, rows, cols, threshold, low, high,
                  threads);
}

void optiacts_gated_backward(int dtype, const void* grad, const void* h, const void* slot, const uint8_t* bits,
                             void* grad_gate, int64_t gate_stride, void* grad_up, int64_t up_stride, int64_t rows,
                             int64_t cols, const void* decoder, int threads) {
    const Kernels& of = kernels(dtype);
    const int64_t size = of.element_size, octets = (cols + 7) / 8;
    for_segments(rows, cols, threads, DECODED_PER_THREAD, [=, &of](int64_t row, int64_t octet, int64_t count) {
        const int64_t col = 8 * octet, dense = (row * cols + col) * size;
        const uint8_t* const left = bits + 2 * row * octets + octet;
        of.gated_backward(at(grad, dense), at(h, dense), at(slot, dense), left, left + octets,
                          at(grad_gate, (row * gate_stride + col) * size),
                          at(grad_up, (row * up_stride + col) * size), count, decoder);
    });
}

void optiacts_pack_dropped(const uint8_t* kept, uint8_t* bits, int64_t rows, int64_t cols, int threads) {
    for_contiguous(rows, cols, threads, PACKED_PER_THREAD, [&](int64_t element, int64_t byte, int64_t count) {
        int64_t i = 0;
#if defined(__SSE2__)  // of every x86-64
        for (; i + 16 <= count; i += 16) {
            const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kept + element + i));
            const uint16_t dropped = uint16_t(_mm_movemask_epi8(_mm_cmpeq_epi8(sixteen, _mm_setzero_si128())));
            memcpy(bits + byte + i / 8, &dropped, sizeof dropped);
        }
#endif
        for (; i < count; i += 8) {
            uint64_t eight = 0x0101010101010101;  // what is not there counts as kept
            memcpy(&eight, kept + element + i, count - i < 8 ? count - i : 8);
            // byte k, times the (7 - k)th bit of the factor, comes to stand at bit 56 + k
            bits[byte + i / 8] = uint8_t(((eight ^ 0x0101010101010101) * 0x0102040810204080) >> 56);
        }
    });
}

void optiacts_scale_kept(int dtype, const void* x, const uint8_t* bits, void* out, int64_t rows, int64_t cols,
                         float scale, int threads) {
    const Kernels& of = kernels(dtype);
    for_contiguous(rows, cols, threads, DECODED_PER_THREAD, [&](int64_t element, int64_t byte, int64_t count) {
        const int64_t offset = element * of.element_size;
        of.scale_kept(at(x, offset), bits + byte, at(out, offset), count, scale);
    });
}

void optiacts_clear(void* out, int64_t bytes) { memset(out, 0, size_t(bytes)); }

void optiacts_dropped_backward(int dtype, const void* grad, const void* y, const uint8_t* bits, void* out,
                               int64_t rows, int64_t cols, const void* decoder, float scale, float inverse,
                               int threads) {
    const Kernels& of = kernels(dtype);
    for_contiguous(rows, cols, threads, DECODED_PER_THREAD, [&](int64_t element, int64_t byte, int64_t count) {
        const int64_t offset = element * of.element_size;
        of.dropped_backward(at(grad, offset), at(y, offset), bits + byte, at(out, offset), count, decoder, scale,
                            inverse);
    });
}

void optiacts_dropped_gated_backward(int dtype, const void* grad, const void* y, const void* slot,
                                     const uint8_t* bits, void* grad_gate, int64_t gate_stride, void* grad_up,
                                     int64_t up_stride, int64_t rows, int64_t cols, const void* decoder, float scale,
                                     float inverse, int threads) {
    const Kernels& of = kernels(dtype);
    const int64_t size = of.element_size, octets = (cols + 7) / 8;
    for_segments(rows, cols, threads, DECODED_PER_THREAD, [=, &of](int64_t row, int64_t octet, int64_t count) {
        const int64_t col = 8 * octet, dense = (row * cols + col) * size;
        const uint8_t* const left = bits + 2 * row * octets + octet;
        of.dropped_gated_backward(at(grad, dense), at(y, dense), at(slot, dense), left, left + octets,
                                  at(grad_gate, (row * gate_stride + col) * size),
                                  at(grad_up, (row * up_stride + col) * size), count, decoder, scale, inverse);
    });
}
