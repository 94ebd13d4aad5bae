/* The C interface of the CPU kernels. No torch, no Python: backends/native_library.py loads it with ctypes.
 *
 * A tensor is `rows` x `cols` elements, contiguous. Side bits are packed 8 to a byte along each row, lowest bit
 * first: row r starts at byte r * ceil(cols / 8), and the padding bits of its last byte are 0.
 * `threads` is the most threads a call may use; small tensors use one. Every function may be called from
 * several threads at once. None of them allocates, but for memory that a thread keeps to work in: workspace.h.
 */
#ifndef OPTIACTS_H
#define OPTIACTS_H

#include <stdint.h>

#if defined(__GNUC__)
#define OPTIACTS_API __attribute__((visibility("default")))
#else
#define OPTIACTS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* To be raised, here and in backends/native_library.py, with every change of a struct or of a function's arguments:
 * a library of another number than its caller's is not used. */
enum { OPTIACTS_INTERFACE = 10 };

OPTIACTS_API int optiacts_interface(void);

/* What calls the kernel optiacts_<name> with an array of words: an `int64_t (*)(const uint64_t*)`, see callers.cpp.
 * NULL if it cannot be called so. */
OPTIACTS_API const void* optiacts_caller(const char* name);

enum { OPTIACTS_PIECES = 4, OPTIACTS_DEGREE = 8 };

/* The generated decoder of one curve: src/optiacts/decoders/polynomials.py says what the fields mean. */
typedef struct {
    float y_min_high, y_min_low, least;
    float per_depth; /* -1 / y_min */
    float limits[2];
    float breaks[2];
    float scale[OPTIACTS_PIECES];
    float shift[OPTIACTS_PIECES];
    float polynomials[OPTIACTS_DEGREE + 1][OPTIACTS_PIECES];
} optiacts_curve;

/* Where a slot holds gate: up to `border`. src/optiacts/decoders/valley.py says what the polynomials are in. */
typedef struct {
    float border, centre;
    float output[OPTIACTS_DEGREE + 1], slope[OPTIACTS_DEGREE + 1];
} optiacts_valley;

/* The decoder of one curve by straight lines: src/optiacts/decoders/lines.py says what the fields mean. */
typedef struct {
    float high, low, most;
    int32_t first, count, shift;
    const float* rows;
    optiacts_valley valley;
} optiacts_lines;

enum { OPTIACTS_NEAR_DEGREE = 4, OPTIACTS_INPUT_DEGREE = 6, OPTIACTS_REGISTER_PIECES = 32 };

/* For AVX-512, coefficients that stand in registers: src/optiacts/decoders/registers.py says what the fields mean.
 * Here the slope around the minimum; a per_right of 0 says that there are none. */
typedef struct {
    float high, low, least, most;
    float per_right, per_left;
    float slope[OPTIACTS_NEAR_DEGREE + 1][OPTIACTS_REGISTER_PIECES];
} optiacts_near;

/* The decoder of one curve in registers. The other levels read the lines. */
typedef struct {
    optiacts_lines lines;
    optiacts_near near;
    float border;
    int32_t lowest;
    float far[OPTIACTS_NEAR_DEGREE + 1][OPTIACTS_REGISTER_PIECES];
} optiacts_registers;

/* The decoder of one curve in pieces: src/optiacts/decoders/pieces.py says what the fields mean. */
typedef struct {
    float high[2], low[2], sign[2], end[2]; /* of the right and of the left branch */
    float split;
    int32_t first, count, shift;
    const float* rows;
    optiacts_valley valley;
} optiacts_pieces;

enum { OPTIACTS_PREIMAGE_PIECES = 8 };

/* A curve's slope and input: src/optiacts/decoders/preimage.py, with the same y_min. In 16-bit dtypes a table of
 * 2 * 65536 pairs of floats stands in its place, of the slope and the input of a pattern. */
typedef struct {
    optiacts_curve curve;
    float per_output; /* 1 / y_min */
    float limits[2];
    float breaks[6];
    float scale[OPTIACTS_PREIMAGE_PIECES];
    float shift[OPTIACTS_PREIMAGE_PIECES];
    float polynomials[OPTIACTS_DEGREE + 1][OPTIACTS_PREIMAGE_PIECES];
    /* Or both by straight lines, for AVX2: four numbers a piece, those of the slope and those of the input. */
    optiacts_lines lines;
    /* Or both in registers, for AVX-512, but for left outputs above the border. */
    optiacts_near near;
    float border;
    float input[OPTIACTS_INPUT_DEGREE + 1][OPTIACTS_REGISTER_PIECES];
} optiacts_chain_curve;

/* The same of a curve that is x right of 0 and `depth` (exp(slope x / depth) - 1) left of it: y * tilt + slope is its
 * slope there. A straight line has a `per_output` of 0, and its input is y * reach. */
typedef struct {
    float tilt, slope;  /* tilt = slope / depth */
    float per_output;   /* -1 / depth */
    float most;         /* the share of the depth beyond which an output tells nothing */
    float reach;        /* depth / slope, of a straight line 1 / slope */
} optiacts_chain_closed;

/* A norm and the activation after it: src/optiacts/backends/eager_chain.py. Tensors are samples x channels x
 * positions, or samples x positions x channels if `last`. */
typedef struct {
    const void *grad, *y;      /* of `dtype` */
    const uint8_t* bits;
    const void* decoder;       /* optiacts_chain_curve, or the table; or optiacts_chain_closed, for which there are no bits */
    const float *rstd, *mean;  /* of each group of each sample, or of each channel; mean may be null */
    const float *scale, *shift; /* of each channel */
    const int64_t* rescue;     /* of each channel its number among the rescued ones, or -1; null if none is */
    const void* rescued;       /* their input, of `rescued_dtype` */
    void* grad_x;              /* of `result_dtype` */
    float *by_scale, *by_shift; /* of each channel */
    double* workspace;         /* its size: see backends/native_chain.py; if null, it is the thread's own */
    int64_t workspace_size;    /* in doubles */
    int64_t samples, channels, positions, groups, rescues;
    int64_t scratch;           /* so many elements a thread may keep decoded */
    int64_t room;              /* numbers of each thread in the workspace, for what is decoded */
    int32_t dtype, rescued_dtype, result_dtype;
    int32_t closed;            /* which kind of decoder */
    int32_t statistics;        /* 0: the groups of a sample; 1: a channel of all samples; 2: given */
    int32_t centered, last, threads;
} optiacts_chain;

/* Instruction sets, each with its own build of the kernels. In 16-bit dtypes all of them give the same bits. */
enum { OPTIACTS_PORTABLE = 0, OPTIACTS_AVX2 = 1, OPTIACTS_AVX512 = 2 };

/* The highest level that this CPU and this build have. */
OPTIACTS_API int optiacts_best_level(void);

/* The level in use: the best one, unless optiacts_use_level chose a lower one. */
OPTIACTS_API int optiacts_level(void);

/* Chooses a level; 0, or -1 (and no change) if this machine does not have it. */
OPTIACTS_API int optiacts_use_level(int level);

/* 1 if the process has an OpenMP runtime to share; without one every call runs on one thread. */
OPTIACTS_API int optiacts_has_threads(void);

/* Asks for huge pages for the whole pages of a fresh buffer. A wish: no effect where the system has none. */
OPTIACTS_API void optiacts_huge_pages(void* buffer, int64_t bytes);

/* In the functions below a tensor's elements are of the type that `dtype` tells. */
enum { OPTIACTS_FLOAT32 = 0, OPTIACTS_BFLOAT16 = 1, OPTIACTS_FLOAT16 = 2, OPTIACTS_FLOAT32_IN_PIECES = 3,
       OPTIACTS_FLOAT32_IN_REGISTERS = 4 };

/* bit = first <= x <= first + span, of the values' unsigned bit patterns. That is x < threshold for any negative
 * threshold: below it lie the patterns from the next one after the threshold's up to that of -infinity. */
OPTIACTS_API void optiacts_pack(int dtype, const void* x, uint8_t* bits, int64_t rows, int64_t cols, uint32_t first,
                                uint32_t span, int threads);

/* out = silu(x), and bit = x < threshold. `out` may be `x`. */
OPTIACTS_API void optiacts_silu(int dtype, const void* x, void* out, uint8_t* bits, int64_t rows, int64_t cols,
                                float threshold, int threads);

/* The decoder, for float32: an optiacts_lines, an optiacts_pieces or an optiacts_registers, as the dtype says. For 16 bits: three tables of 65536
 * floats, read at the pattern of a value: f' from an output whose side bit is 0, from one whose bit is 1, and act(gate)
 * from a slot that does not hold up. In the valley, where no output lies, the first two have f' of the value itself. */

/* out = grad * f'(x), with f' decoded from y and the bits. `out` may be `grad`. */
OPTIACTS_API void optiacts_backward(int dtype, const void* grad, const void* y, const uint8_t* bits, void* out,
                                    int64_t rows, int64_t cols, const void* decoder, int threads);

/* h = slot * up, where the slot comes holding act(gate), and leaves holding gate where low <= gate <= high, and up
 * where that is the better one to keep (docs/gated.md). Rows of gate and up may lie further apart than `cols`
 * elements. A row of bits holds two planes, ceil(cols / 8) bytes each: gate < threshold, and the slot holds up. */
OPTIACTS_API void optiacts_gated_forward(int dtype, const void* gate, int64_t gate_stride, const void* up,
                                         int64_t up_stride, void* h, void* slot, uint8_t* bits, int64_t rows,
                                         int64_t cols, float threshold, float low, float high, int threads);

/* The same with act = SiLU, whatever the slot holds before. */
OPTIACTS_API void optiacts_gated_silu(int dtype, const void* gate, int64_t gate_stride, const void* up,
                                      int64_t up_stride, void* h, void* slot, uint8_t* bits, int64_t rows,
                                      int64_t cols, float threshold, float low, float high, int threads);

/* grad_gate = grad * up * f'(gate) and grad_up = grad * act(gate), into rows `stride` elements apart. */
OPTIACTS_API void optiacts_gated_backward(int dtype, const void* grad, const void* h, const void* slot,
                                          const uint8_t* bits, void* grad_gate, int64_t gate_stride, void* grad_up,
                                          int64_t up_stride, int64_t rows, int64_t cols, const void* decoder,
                                          int threads);

/* Norms: y = x_hat * scale + shift with x_hat = (x - mean) * rstd, each row by itself; scale and shift have `cols`
 * numbers, mean and rstd one for each row. Arithmetic is in float32; what sums up many
 * terms goes on in double. */

/* Whether a channel is such that y does not tell x_hat: |scale| below `smallest` or above `largest`, or |shift| above
 * `most` * |scale|. A null scale is 1, a null shift is 0. */
OPTIACTS_API int optiacts_norm_any_bad(const float* scale, const float* shift, float smallest, float largest,
                                       float most, int64_t cols);

/* mean and rstd = 1 / sqrt(mean((x - mean)^2) + eps), unless they are `known`; where `mean` is null it is 0 and not
 * told. If `bits` is not null, of a 16-bit y in the dtype of x: two planes of bits as above, the lower and the upper
 * bit of the quarter of y's rounding interval in which the unrounded value lies. y, scale and shift are read only
 * then. */
OPTIACTS_API void optiacts_norm_statistics(int x_dtype, const void* x, const void* y, const float* scale,
                                           const float* shift, float eps, int known, float* mean, float* rstd,
                                           uint8_t* bits, int64_t rows, int64_t cols, int threads);

/* y = LayerNorm of x with eps, to the bit as PyTorch's kernels for AVX2 compute it, and mean and rstd, also of 16 bits.
 * `cols` is a multiple of 16. */
OPTIACTS_API void optiacts_layer_norm(int dtype, const void* x, const float* scale, const float* shift, float eps,
                                      float* mean, float* rstd, void* y, int64_t rows, int64_t cols, int threads);

/* The gradients of x, scale and shift. `kept` is y, if `output`, and else x; `mean` is null where it is 0. Of a y,
 * `bits` are its remainder bits or null; each row of `rescued` has x of the channels `columns`, `rescues` of them.
 * It takes `threads` threads, no fewer, each of which sums up its rows for scale and shift. 0; -1 if a column is none,
 * -2 if there is too little memory. */
OPTIACTS_API int optiacts_norm_backward(int grad_dtype, const void* grad, int kept_dtype, const void* kept,
                                        int output, const float* mean, const float* rstd, const float* scale,
                                        const float* shift, int rescued_dtype, const void* rescued,
                                        const int64_t* columns, int64_t rescues, const uint8_t* bits, int centered,
                                        int result_dtype, void* grad_x, float* grad_scale, float* grad_shift,
                                        int64_t rows, int64_t cols, int threads);

/* out = x, of `count` elements that are rounded to the nearest. One of the dtypes is float32, or both are one. */
OPTIACTS_API void optiacts_copy(int x_dtype, const void* x, int out_dtype, void* out, int64_t count);

/* Writes zeros. */
OPTIACTS_API void optiacts_clear(void* out, int64_t bytes);

/* Dropout. Bits tell what was dropped; `scale` is the factor of what was kept, `inverse` is 1 / scale. */

/* Packs the bits of `kept`, bytes that are 0 or 1: a bit is set where the byte is 0. */
OPTIACTS_API void optiacts_pack_dropped(const uint8_t* kept, uint8_t* bits, int64_t rows, int64_t cols, int threads);

/* out = x * scale, and x * 0 where the bit is set. `out` may be `x`. */
OPTIACTS_API void optiacts_scale_kept(int dtype, const void* x, const uint8_t* bits, void* out, int64_t rows,
                                      int64_t cols, float scale, int threads);

/* optiacts_backward behind a dropout: y = scale * f(x), or 0 with the bit set where it was dropped. */
OPTIACTS_API void optiacts_dropped_backward(int dtype, const void* grad, const void* y, const uint8_t* bits,
                                            void* out, int64_t rows, int64_t cols, const void* decoder, float scale,
                                            float inverse, int threads);

/* optiacts_gated_backward behind a dropout: y = scale * h, or y and the slot 0 where it was dropped. */
OPTIACTS_API void optiacts_dropped_gated_backward(int dtype, const void* grad, const void* y, const void* slot,
                                                  const uint8_t* bits, void* grad_gate, int64_t gate_stride,
                                                  void* grad_up, int64_t up_stride, int64_t rows, int64_t cols,
                                                  const void* decoder, float scale, float inverse, int threads);

/* The sum of the squares of how far elements lie below `threshold`. */
OPTIACTS_API double optiacts_excess(int dtype, const void* x, int64_t count, float threshold, int threads);

/* mean and rstd of each of `groups` groups of channels in each sample, or, if `groups` is 0, of each channel of all
 * samples. Not `centered`, rstd is that of the squares, and mean is 0. */
OPTIACTS_API void optiacts_chain_statistics(int dtype, const void* x, int64_t samples, int64_t channels,
                                            int64_t positions, int64_t groups, int centered, int last, float eps,
                                            float* mean, float* rstd, double* workspace, int threads);
/* How many doubles its workspace has. */
OPTIACTS_API int64_t optiacts_chain_statistics_workspace(int64_t samples, int64_t channels, int threads);

/* The gradients of a chain. 0, or -2 if there is too little memory. */
OPTIACTS_API int optiacts_chain_backward(const optiacts_chain* chain);

#ifdef __cplusplus
}
#endif

#endif
