// The C interface of the norms: chooses the instruction set, and shares the rows out to threads.

#include <cstring>

#include "norm_kernels.h"
#include "optiacts.h"
#include "parallel.h"
#include "workspace.h"

namespace {

constexpr int64_t ELEMENTS_PER_THREAD = 1 << 14;  // take it about 10 us
constexpr int64_t ROWS_PER_SUM = 16;              // so many are added up in float32
constexpr int64_t FAR = 4 << 20;                  // bytes: more lie in no cache
static_assert(ROWS_PER_SUM % NORM_ROWS == 0, "whole groups of rows");

// What is read of one channel lies in different sets of the first cache, so that all of it stays there: rows of a power
// of 2 would take the same set each.
constexpr int64_t APART = 5 * 64 / sizeof(float);

// What a thread adds up, and the rows that it works on: the totals of grad * x_hat and of grad, the sums that go into
// them, x_hat and grad of some rows, and x_hat of their rescued channels.
struct Part {
    double* const totals;
    float *const by_scale, *const by_shift, *const x_hat, *const grad, *const exact;

    Part(double* memory, int64_t cols)
        : totals(memory),
          by_scale(reinterpret_cast<float*>(totals + 2 * cols) + APART),
          by_shift(by_scale + cols + APART),
          x_hat(by_shift + cols + APART),
          grad(x_hat + NORM_ROWS * cols + APART),
          exact(grad + NORM_ROWS * cols) {}
    static int64_t doubles(int64_t cols) {
        return (2 * cols + (2 + 3 * NORM_ROWS) * (cols + 1) / 2 + 2 * APART + 7) / 8 * 8;  // whole lines
    }
};

const char* row_of(const void* tensor, int64_t row, int64_t row_bytes) {
    return static_cast<const char*>(tensor) + row * row_bytes;
}

char* row_of(void* tensor, int64_t row, int64_t row_bytes) { return static_cast<char*>(tensor) + row * row_bytes; }

struct Dtypes {
    const NormKernels &grad, &kept, &rescued, &result;
};

// x_hat of some rows, in the place of what is kept.
void unfold(const Dtypes& of, NormRows& rows, const uint8_t* bits, int count, float* x_hat) {
    const int64_t cols = rows.cols, octets = (cols + 7) / 8;
    for (int i = 0; i < count; ++i) {
        const char* const row = row_of(rows.kept, i, cols * of.kept.element_size);
        const uint8_t* const low = bits ? bits + 2 * i * octets : nullptr;
        if (rows.what == Kept::input)
            of.kept.from_input(row, rows.mean ? rows.mean[i] : 0, rows.rstd[i], x_hat + i * cols, cols);
        else
            of.kept.from_output(row, low, low ? low + octets : nullptr, rows.shift, rows.inverse, x_hat + i * cols,
                                cols);
    }
    rows.kept = x_hat, rows.what = Kept::x_hat;
}

// The gradients of rows whose own gradients are to be of another dtype, or whose input is: in float32. They take the
// place of x_hat.
void backward_in_float32(const Dtypes& of, NormRows rows, int count, float* x_hat, float* grad) {
    const int64_t cols = rows.cols;
    for (int i = 0; i < count; ++i)
        of.grad.widen(row_of(rows.grad, i, cols * of.grad.element_size), grad + i * cols, cols);
    void* const grad_x = rows.grad_x;
    rows.grad = grad, rows.grad_x = x_hat;
    norm_kernels(OPTIACTS_FLOAT32).backward(rows, count);
    for (int i = 0; i < count; ++i)
        of.result.narrow(x_hat + i * cols, row_of(grad_x, i, cols * of.result.element_size), cols);
}

}  // namespace

int optiacts_norm_any_bad(const float* scale, const float* shift, float smallest, float largest, float most,
                          int64_t cols) {
    return norm_kernels(OPTIACTS_FLOAT32).any_bad(scale, shift, smallest, largest, most, cols);
}

void optiacts_copy(int x_dtype, const void* x, int out_dtype, void* out, int64_t count) {
    if (x_dtype == out_dtype)
        memcpy(out, x, size_t(count * norm_kernels(x_dtype).element_size));
    else if (out_dtype == OPTIACTS_FLOAT32)
        norm_kernels(x_dtype).widen(x, static_cast<float*>(out), count);
    else
        norm_kernels(out_dtype).narrow(static_cast<const float*>(x), out, count);
}

void optiacts_norm_statistics(int x_dtype, const void* x, const void* y, const float* scale, const float* shift,
                              float eps, int known, float* mean, float* rstd, uint8_t* bits, int64_t rows,
                              int64_t cols, int threads) {
    const NormKernels& of = norm_kernels(x_dtype);
    const int64_t row_bytes = cols * of.element_size, octets = (cols + 7) / 8;
    const int64_t useful = rows * cols / ELEMENTS_PER_THREAD + 1;
    parallel_ranges(rows, 1, threads < useful ? threads : int(useful), [=, &of](int64_t row, int64_t end) {
        for (; row < end; ++row) {
            const char* const x_row = row_of(x, row, row_bytes);
            if (!known) of.statistics(x_row, cols, eps, mean ? mean + row : nullptr, rstd + row);
            if (!bits) continue;
            uint8_t* const low = bits + 2 * row * octets;
            of.remainder(x_row, row_of(y, row, row_bytes), scale, shift, mean ? mean[row] : 0, rstd[row], low,
                         low + octets, cols);
        }
    });
}

void optiacts_layer_norm(int dtype, const void* x, const float* scale, const float* shift, float eps, float* mean,
                         float* rstd, void* y, int64_t rows, int64_t cols, int threads) {
    const NormKernels& of = norm_kernels(dtype);
    const int64_t row_bytes = cols * of.element_size, useful = rows * cols / ELEMENTS_PER_THREAD + 1;
    parallel_ranges(rows, 1, threads < useful ? threads : int(useful), [=, &of](int64_t row, int64_t end) {
        of.layer_norm(row_of(x, row, row_bytes), end - row, cols, scale, shift, eps, mean + row, rstd + row,
                      row_of(y, row, row_bytes));
    });
}

int optiacts_norm_backward(int grad_dtype, const void* grad, int kept_dtype, const void* kept, int output,
                           const float* mean, const float* rstd, const float* scale, const float* shift,
                           int rescued_dtype, const void* rescued, const int64_t* columns, int64_t rescues,
                           const uint8_t* bits, int centered, int result_dtype, void* grad_x, float* grad_scale,
                           float* grad_shift, int64_t rows, int64_t cols, int threads) {
    if (rescues > cols) return -1;
    for (int64_t k = 0; k < rescues; ++k)
        if (columns[k] < 0 || columns[k] >= cols) return -1;
    const Dtypes of = {norm_kernels(grad_dtype), norm_kernels(kept_dtype), norm_kernels(rescued_dtype),
                       norm_kernels(result_dtype)};
    const bool alike = grad_dtype == result_dtype && (output || grad_dtype == kept_dtype);
    const bool unfolded = !alike || grad_dtype != kept_dtype || bits;
    const int64_t parts = threads, octets = (cols + 7) / 8, part_size = Part::doubles(cols);
    const bool at_once = parts == 1 && rows <= ROWS_PER_SUM;  // the sums of few rows are those of all
    const bool far = rows * cols * of.kept.element_size > FAR;
    double* const workspace = Workspace::of(parts * part_size + (cols + 1) / 2);
    if (!workspace) return -2;
    float* const inverse = reinterpret_cast<float*>(workspace + parts * part_size);
    of.grad.invert(scale, inverse, cols);
    for (int64_t k = 0; k < rescues; ++k) inverse[columns[k]] = 0;

    parallel_ranges(parts, 1, threads, [=, &of](int64_t part, int64_t last) {
        for (; part < last; ++part) {
            const Part own(workspace + part * part_size, cols);
            float *const by_scale = at_once ? grad_scale : own.by_scale;
            float *const by_shift = at_once ? grad_shift : own.by_shift;
            memset(by_scale, 0, size_t(cols) * sizeof(float)), memset(by_shift, 0, size_t(cols) * sizeof(float));
            if (!at_once) memset(own.totals, 0, size_t(2 * cols) * sizeof(double));
            const int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
            for (int64_t row = first; row < end; row += NORM_ROWS) {
                const int count = end - row < NORM_ROWS ? int(end - row) : NORM_ROWS;
                NormRows together = {};
                together.cols = cols;
                together.kept = row_of(kept, row, cols * of.kept.element_size);
                together.grad = row_of(grad, row, cols * of.grad.element_size);
                together.grad_x = row_of(grad_x, row, cols * of.result.element_size);
                together.what = output ? Kept::output : Kept::input, together.centered = centered;
                together.mean = mean ? mean + row : nullptr, together.rstd = rstd + row;
                together.scale = scale, together.shift = shift, together.inverse = inverse;
                together.by_scale = by_scale, together.by_shift = by_shift;
                together.columns = columns, together.exact = own.exact, together.rescues = rescues;
                together.far = far;
                for (int i = 0; rescues && i < count; ++i)
                    of.rescued.from_input(row_of(rescued, row + i, rescues * of.rescued.element_size),
                                          mean ? mean[row + i] : 0, rstd[row + i], own.exact + i * rescues, rescues);
                if (unfolded) unfold(of, together, bits ? bits + 2 * row * octets : nullptr, count, own.x_hat);
                if (alike)
                    of.grad.backward(together, count);
                else
                    backward_in_float32(of, together, count, own.x_hat, own.grad);
                if (at_once) continue;
                if ((row - first) % ROWS_PER_SUM == ROWS_PER_SUM - NORM_ROWS || row + count == end) {
                    of.grad.settle(by_scale, own.totals, cols);
                    of.grad.settle(by_shift, own.totals + cols, cols);
                }
            }
        }
    });

    if (at_once) return 0;
    for (int64_t part = 1; part < parts; ++part) of.grad.add(workspace, workspace + part * part_size, 2 * cols);
    of.grad.round(workspace, grad_scale, cols);
    of.grad.round(workspace + cols, grad_shift, cols);
    return 0;
}
