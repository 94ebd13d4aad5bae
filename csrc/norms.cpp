// The C interface of the norms: chooses the instruction set, and shares the rows out to threads.

#include "norm_kernels.h"
#include "optiacts.h"
#include "parallel.h"

namespace {

const NormKernels& kernels(int dtype) {
#if defined(OPTIACTS_X86)
    switch (optiacts_level()) {
        case OPTIACTS_AVX512: return norm_kernels_avx512[dtype];
        case OPTIACTS_AVX2: return norm_kernels_avx2[dtype];
    }
#endif
    return norm_kernels_portable[dtype];
}

constexpr int64_t ELEMENTS_PER_THREAD = 1 << 14;  // take it about 10 us
constexpr int64_t ROWS_PER_SUM = 16;              // so many are added up in float32

const char* row_of(const void* tensor, int64_t row, int64_t row_bytes) {
    return static_cast<const char*>(tensor) + row * row_bytes;
}

char* row_of(void* tensor, int64_t row, int64_t row_bytes) { return static_cast<char*>(tensor) + row * row_bytes; }

}  // namespace

int optiacts_norm_any_bad(const float* scale, const float* shift, float smallest, float largest, float most,
                          int64_t cols) {
    int bad = 0;
    for (int64_t i = 0; scale && i < cols; ++i) {
        const float size = __builtin_fabsf(scale[i]);
        bad |= (size < smallest) | (size > largest);
    }
    for (int64_t i = 0; shift && i < cols; ++i)
        bad |= __builtin_fabsf(shift[i]) > most * (scale ? __builtin_fabsf(scale[i]) : 1.0f);
    return bad;
}

void optiacts_norm_statistics(int x_dtype, const void* x, const void* y, const float* scale, const float* shift,
                              float eps, float* mean, float* rstd, uint8_t* bits, int64_t rows, int64_t cols,
                              int threads) {
    const NormKernels& of = kernels(x_dtype);
    const int64_t row_bytes = cols * of.element_size, octets = (cols + 7) / 8;
    const int64_t useful = rows * cols / ELEMENTS_PER_THREAD + 1;
    parallel_ranges(rows, 1, threads < useful ? threads : int(useful), [=, &of](int64_t row, int64_t end) {
        for (; row < end; ++row) {
            const char* const x_row = row_of(x, row, row_bytes);
            of.statistics(x_row, cols, eps, mean ? mean + row : nullptr, rstd + row);
            if (!bits) continue;
            uint8_t* const low = bits + 2 * row * octets;
            of.remainder(x_row, row_of(y, row, row_bytes), scale, shift, mean ? mean[row] : 0, rstd[row], low,
                         low + octets, cols);
        }
    });
}

int optiacts_norm_backward(int grad_dtype, const void* grad, int kept_dtype, const void* kept, int output,
                           const float* mean, const float* rstd, const float* scale, const float* shift,
                           int rescued_dtype, const void* rescued, const int64_t* columns, int64_t rescues,
                           const uint8_t* bits, int centered, int result_dtype, void* grad_x, float* grad_scale,
                           float* grad_shift, int64_t rows, int64_t cols, double* workspace, int threads) {
    for (int64_t k = 0; k < rescues; ++k)
        if (columns[k] < 0 || columns[k] >= cols) return -1;
    const NormKernels &of_grad = kernels(grad_dtype), &of_kept = kernels(kept_dtype);
    const NormKernels &of_rescued = kernels(rescued_dtype), &of_result = kernels(result_dtype);
    const int64_t octets = (cols + 7) / 8, parts = threads;
    // Of each part: the totals of grad * x_hat and of grad, then the sums that go into them, x_hat, and grad * scale.
    const int64_t part_size = 6 * cols;
    float* const inverse = reinterpret_cast<float*>(workspace + parts * part_size);
    for (int64_t i = 0; i < cols; ++i) inverse[i] = 1 / scale[i];  // of rescued channels not used

    parallel_ranges(parts, 1, threads, [=, &of_grad, &of_kept, &of_rescued, &of_result](int64_t part, int64_t last) {
        for (; part < last; ++part) {
            double* const totals = workspace + part * part_size;
            float* const by_scale = reinterpret_cast<float*>(totals + 2 * cols);
            float *const by_shift = by_scale + cols, *const x_hat = by_shift + cols, *const scaled = x_hat + cols;
            for (int64_t i = 0; i < 2 * cols; ++i) totals[i] = 0, by_scale[i] = 0;
            const int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
            for (int64_t row = first; row < end; ++row) {
                const char* const kept_row = row_of(kept, row, cols * of_kept.element_size);
                const float centre = mean ? mean[row] : 0;
                const uint8_t* const low = bits ? bits + 2 * row * octets : nullptr;
                if (output)
                    of_kept.from_output(kept_row, low, low ? low + octets : nullptr, shift, inverse, x_hat, cols);
                else
                    of_kept.from_input(kept_row, centre, rstd[row], x_hat, cols);
                if (rescues) {
                    float* const exact = scaled;  // free as yet
                    of_rescued.from_input(row_of(rescued, row, rescues * of_rescued.element_size), centre, rstd[row],
                                          exact, rescues);
                    for (int64_t k = 0; k < rescues; ++k) x_hat[columns[k]] = exact[k];
                }
                double sums[2];
                of_grad.reduce(row_of(grad, row, cols * of_grad.element_size), x_hat, scale, scaled, by_scale,
                               by_shift, sums, cols);
                of_result.gradient(scaled, x_hat, centered ? float(sums[0] / cols) : 0, float(sums[1] / cols),
                                   rstd[row], row_of(grad_x, row, cols * of_result.element_size), cols);
                if ((row - first) % ROWS_PER_SUM == ROWS_PER_SUM - 1 || row + 1 == end)
                    of_grad.settle(by_scale, totals, 2 * cols);
            }
        }
    });

    for (int64_t i = 0; i < cols; ++i) {
        double by_scale = 0, by_shift = 0;
        for (int64_t part = 0; part < parts; ++part) {
            const double* const totals = workspace + part * part_size;
            by_scale += totals[i], by_shift += totals[cols + i];
        }
        grad_scale[i] = float(by_scale), grad_shift[i] = float(by_shift);
    }
    return 0;
}
