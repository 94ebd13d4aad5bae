// The C interface of chains: chooses the instruction set, and shares the work out to threads.
//
// A row is decoded into g = grad * f'(z) and x_hat, added up, and once the sums of all that is normalised together are
// known, written as grad_x. Where all of it fits into a thread's scratch memory it is decoded once, else twice. A
// grad_x of float32 has room for g until then.

#include "chain_kernels.h"
#include "optiacts.h"
#include "parallel.h"
#include "workspace.h"

namespace {

const ChainKernels& kernels(int dtype) {
#if defined(OPTIACTS_X86)
    switch (optiacts_level()) {
        case OPTIACTS_AVX512: return chain_kernels_avx512[dtype];
        case OPTIACTS_AVX2: return chain_kernels_avx2[dtype];
    }
#endif
    return chain_kernels_portable[dtype];
}

constexpr int64_t ROWS_PER_SUM = 16;  // so many are decoded at once, and added up in float32
enum { ROWS, BATCH, GIVEN };          // what is normalised together: optiacts.h

struct Chain {
    const optiacts_chain& given;
    const ChainKernels &of, &of_rescued, &of_result;
    const int64_t* rescue;   // of each channel its number among the rescued ones, or -1
    const bool keeps_g;      // whether grad_x is of float32
    double* const sums;      // of g and of g * x_hat, of each channel: pairs, or, if `last`, those of g first
    float* const inverse;    // 1 / scale of each channel
    float* const workspace;  // what is left of it

    Chain(const optiacts_chain& chain, double* memory)
        : given(chain), of(kernels(chain.dtype + (chain.closed ? CLOSED : 0))), of_rescued(kernels(chain.rescued_dtype)),
          of_result(kernels(chain.result_dtype)), rescue(chain.rescue),
          keeps_g(chain.result_dtype == OPTIACTS_FLOAT32), sums(memory),
          inverse(reinterpret_cast<float*>(sums + 2 * chain.channels)), workspace(inverse + 2 * chain.channels) {
        for (int64_t i = 0; i < chain.channels; ++i) inverse[i] = 1 / chain.scale[i];
    }
    // What each channel's sums come to.
    void tell() const {
        const int64_t step = given.last ? 1 : 2, other = given.last ? given.channels : 1;
        for (int64_t i = 0; i < given.channels; ++i)
            given.by_shift[i] = float(sums[i * step]), given.by_scale[i] = float(sums[i * step + other]);
    }
    // Where a row is decoded to, the `number`-th of `rows` that are kept, or, if `rows` is 0, of some that are not.
    struct Decoded {
        float *g, *x_hat;
    };
    Decoded place(int64_t row, int64_t cols, float* scratch, int64_t number, int64_t rows) const {
        if (!rows) return {scratch + cols, scratch};
        float* const x_hat = scratch + number * cols;
        return {keeps_g ? static_cast<float*>(given.grad_x) + row * cols : x_hat + rows * cols, x_hat};
    }

    template <class Byte>
    Byte* at(Byte* tensor, int64_t row, int64_t cols, int64_t size) const {
        return tensor + row * cols * size;
    }
    const char* in(const void* tensor, int64_t row, int64_t cols, int64_t size) const {
        return at(static_cast<const char*>(tensor), row, cols, size);
    }
    const uint8_t* bits(int64_t row, int64_t cols) const {
        return given.closed ? nullptr : given.bits + row * ((cols + 7) / 8);
    }
    // The number of a statistic.
    int64_t statistic(int64_t sample, int64_t channel) const {
        const int64_t group = channel / (given.channels / given.groups);
        return given.statistics == ROWS ? sample * given.groups + group : channel;
    }
};

// --- positions are the last dimension: a row is a channel of a sample ---

// What the gradients of rows go by: grad_x = g * factor - constant - x_hat * slope.
struct Factors {
    float *factor, *constant, *slope;
    Factors from(int64_t row) const { return {factor + row, constant + row, slope + row}; }
};

// Decodes the rows of some channels of a sample, and adds each to its channel's `sums` if they are not null.
void decode(const Chain& c, int64_t sample, int64_t first, int64_t end, float* g, float* x_hat, double* sums) {
    const optiacts_chain& t = c.given;
    const int64_t row = sample * t.channels + first, size = t.positions;
    double* const own = c.rescue ? nullptr : sums;
    c.of.decode(c.in(t.grad, row, size, c.of.element_size), c.in(t.y, row, size, c.of.element_size), c.bits(row, size),
                t.shift + first, c.inverse + first, g, x_hat, own, end - first, size, t.decoder);
    if (!c.rescue) return;
    for (int64_t channel = first; channel < end; ++channel, g += size, x_hat += size) {
        if (c.rescue[channel] >= 0) {
            const int64_t from = sample * t.rescues + c.rescue[channel], statistic = c.statistic(sample, channel);
            c.of_rescued.from_input(c.in(t.rescued, from, size, c.of_rescued.element_size),
                                    t.mean ? t.mean[statistic] : 0, t.rstd[statistic], x_hat, size);
        }
        if (sums) c.of.add(g, x_hat, sums + 2 * (channel - first), size);
    }
}

// Writes the gradients of rows of some channels of a sample.
void write(const Chain& c, int64_t sample, int64_t first, int64_t end, const float* g, const float* x_hat,
           const Factors& of) {
    const optiacts_chain& t = c.given;
    char* const out = c.at(static_cast<char*>(t.grad_x), sample * t.channels + first, t.positions,
                           c.of_result.element_size);
    c.of_result.gradient(g, x_hat, of.factor, of.constant, of.slope, out, end - first, t.positions);
}

// Some groups of `each` channels of some samples; those of a group are normalised together. `own` has room for two
// sums of each of the channels, `of` for what their gradients go by. More than one group only if each may be kept
// decoded.
void together(const Chain& c, int64_t first_sample, int64_t last_sample, int64_t first, int64_t end, int64_t each,
              float* scratch, double* own, const Factors& of) {
    const optiacts_chain& t = c.given;
    const int64_t channels = end - first, all = (last_sample - first_sample) * each * t.positions;
    const bool fits = all <= t.scratch;
    const int64_t rows = fits ? (last_sample - first_sample) * channels : 0, at_once = fits ? channels : 1;
    const auto place = [&](int64_t sample, int64_t channel) {
        return c.place(sample * t.channels + channel, t.positions, scratch,
                       (sample - first_sample) * channels + channel - first, rows);
    };
    for (int64_t i = 0; i < 2 * channels; ++i) own[i] = 0;
    for (int64_t sample = first_sample; sample < last_sample; ++sample)
        for (int64_t channel = first; channel < end; channel += at_once) {
            const auto [g, x_hat] = place(sample, channel);
            decode(c, sample, channel, channel + at_once, g, x_hat, own + 2 * (channel - first));
        }
    for (int64_t i = 0; i < 2 * channels; ++i) c.sums[2 * first + i] += own[i];
    const double share = 1 / double(all);
    for (int64_t group = first; group < end; group += each) {
        double mean = 0, product = 0;
        for (int64_t channel = group; channel < group + each; ++channel, own += 2)
            mean += t.scale[channel] * own[0], product += t.scale[channel] * own[1];
        const float rstd = t.rstd[c.statistic(first_sample, group)];
        const float constant = t.centered ? float(mean * share) * rstd : 0, slope = float(product * share) * rstd;
        for (int64_t channel = group; channel < group + each; ++channel) {
            of.factor[channel - first] = t.scale[channel] * rstd;
            of.constant[channel - first] = constant, of.slope[channel - first] = slope;
        }
    }
    for (int64_t sample = first_sample; sample < last_sample; ++sample)
        for (int64_t channel = first; channel < end; channel += at_once) {
            const auto [g, x_hat] = place(sample, channel);
            if (!fits) decode(c, sample, channel, channel + 1, g, x_hat, nullptr);
            write(c, sample, channel, channel + at_once, g, x_hat, of.from(channel - first));
        }
}

void positions_last(const Chain& c) {
    const optiacts_chain& t = c.given;
    const int64_t size = t.positions, groups = t.statistics == ROWS ? t.groups : t.channels;
    const int64_t each = t.channels / groups, all = each * size * (t.statistics == BATCH ? t.samples : 1);
    // of each thread: the sums of its channels, as doubles; what their gradients go by; then room to decode into
    const int64_t part_size = t.room + 8 * t.channels;
    // what a decoded group takes of it, and so how many groups there is room for: short rows are best not taken alone
    const int64_t taken = all * (t.statistics != GIVEN && c.keeps_g ? 1 : 2);
    const int64_t at_once = t.room > taken && (t.statistics == GIVEN || all <= t.scratch) ? t.room / taken : 1;
    // the threads share out the groups, so that each channel's sums are one thread's
    parallel_ranges(groups, 1, t.threads, [&](int64_t group, int64_t last_group) {
        float* const part = c.workspace + part_size * (group * t.threads / groups);
        double* const own = reinterpret_cast<double*>(part);
        const Factors of = {part + 4 * t.channels, part + 5 * t.channels, part + 6 * t.channels};
        float* const scratch = part + 8 * t.channels;
        for (int64_t next; group < last_group; group = next) {
            next = last_group - group < at_once ? last_group : group + at_once;
            const int64_t first = group * each, end = next * each;
            for (int64_t i = 2 * first; i < 2 * end; ++i) c.sums[i] = 0;
            if (t.statistics == BATCH) {
                together(c, 0, t.samples, first, end, each, scratch, own, of);
                continue;
            }
            for (int64_t sample = 0; sample < t.samples; ++sample) {
                if (t.statistics == ROWS) {
                    together(c, sample, sample + 1, first, end, each, scratch, own, of);
                    continue;
                }
                const auto [g, x_hat] = c.place(0, size * (end - first), scratch, 0, 0);
                decode(c, sample, first, end, g, x_hat, c.sums + 2 * first);
                for (int64_t channel = first; channel < end; ++channel)
                    of.factor[channel - first] = t.scale[channel] * t.rstd[c.statistic(sample, channel)];
                write(c, sample, first, end, g, nullptr, of);
            }
        }
    });
}

// --- channels are the last dimension: a row is a position ---

// Decodes neighbouring rows. If `by_channel` is not null, they are added to its sums of each channel.
void decode_channels(const Chain& c, int64_t row, int64_t rows, float* g, float* x_hat, float* by_channel) {
    const optiacts_chain& t = c.given;
    float* const summed = c.rescue ? nullptr : by_channel;
    c.of.decode_channels(c.in(t.grad, row, t.channels, c.of.element_size),
                         c.in(t.y, row, t.channels, c.of.element_size), c.bits(row, t.channels), t.shift, c.inverse, g,
                         x_hat, summed, summed ? summed + t.channels : nullptr, t.channels, rows, t.decoder);
    if (!c.rescue) return;
    for (const int64_t end = row + rows; row < end; ++row, g += t.channels, x_hat += t.channels) {
        const char* const exact = c.in(t.rescued, row, t.rescues, c.of_rescued.element_size);
        for (int64_t channel = 0; channel < t.channels; ++channel)
            if (c.rescue[channel] >= 0) {
                const int64_t statistic = c.statistic(row / t.positions, channel);
                c.of_rescued.from_input(exact + c.rescue[channel] * c.of_rescued.element_size,
                                        t.mean ? t.mean[statistic] : 0, t.rstd[statistic], x_hat + channel, 1);
            }
        if (by_channel) c.of.add_channels(g, x_hat, by_channel, by_channel + t.channels, t.channels);
    }
}

// The numbers of `gradient_channels`, from the sums of each channel over `count` elements each.
void constants(const Chain& c, int64_t sample, const double* sums, int64_t count, float* factor) {
    const optiacts_chain& t = c.given;
    float *const constant = factor + t.channels, *const slope = constant + t.channels;
    const int64_t groups = t.statistics == ROWS ? t.groups : t.channels, each = t.channels / groups;
    for (int64_t group = 0; group < groups; ++group) {
        double mean = 0, product = 0;
        for (int64_t channel = group * each; channel < (group + 1) * each && t.statistics != GIVEN; ++channel)
            mean += t.scale[channel] * sums[channel], product += t.scale[channel] * sums[t.channels + channel];
        mean = t.centered ? mean / double(count * each) : 0, product /= double(count * each);
        for (int64_t channel = group * each; channel < (group + 1) * each; ++channel) {
            const float rstd = t.rstd[c.statistic(sample, channel)];
            factor[channel] = t.scale[channel] * rstd;
            constant[channel] = float(mean) * rstd, slope[channel] = float(product) * rstd;
        }
    }
}

// Runs body(row, rows, g, x_hat) on stretches of at most ROWS_PER_SUM rows, and where these are decoded to.
template <class Body>
void by_stretches(const Chain& c, int64_t first, int64_t end, float* scratch, bool kept, Body body) {
    for (int64_t row = first; row < end; row += ROWS_PER_SUM) {
        const int64_t rows = end - row < ROWS_PER_SUM ? end - row : ROWS_PER_SUM;
        const auto [g, x_hat] = kept ? c.place(row, c.given.channels, scratch, row - first, end - first)
                                     : c.place(row, c.given.channels * rows, scratch, 0, 0);
        body(row, rows, g, x_hat);
    }
}

// Decodes some rows and adds them to `sums`.
void add_rows(const Chain& c, int64_t first, int64_t end, double* sums, float* by_channel, float* scratch,
              bool keep) {
    by_stretches(c, first, end, scratch, keep, [&](int64_t row, int64_t rows, float* g, float* x_hat) {
        decode_channels(c, row, rows, g, x_hat, by_channel);
        c.of.settle(by_channel, sums, 2 * c.given.channels);
    });
}

void write_rows(const Chain& c, int64_t first, int64_t end, const float* factor, float* scratch, bool kept) {
    const optiacts_chain& t = c.given;
    const int64_t channels = t.channels;
    by_stretches(c, first, end, scratch, kept, [&](int64_t row, int64_t rows, float* g, float* x_hat) {
        if (!kept) decode_channels(c, row, rows, g, x_hat, nullptr);
        c.of_result.gradient_channels(
            g, t.statistics == GIVEN ? nullptr : x_hat, factor, factor + channels, factor + 2 * channels,
            c.at(static_cast<char*>(t.grad_x), row, channels, c.of_result.element_size), channels, rows);
    });
}

// Whether some rows are kept decoded between the sums and the gradient.
bool fit(const optiacts_chain& t, int64_t rows) { return rows * t.channels <= t.scratch; }

void channels_last(const Chain& c) {
    const optiacts_chain& t = c.given;
    const int64_t channels = t.channels, parts = t.threads, rows = t.samples * t.positions;
    // of each part: its totals, as doubles; the floats that go into them; the constants; then room to decode into
    const int64_t part_size = t.room + 16 * channels;
    const auto part_of = [&](int64_t part) { return c.workspace + part * part_size; };
    const auto totals_of = [&](int64_t part) { return reinterpret_cast<double*>(part_of(part)); };
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < 8 * channels; ++i) totals_of(part)[i] = 0;

    parallel_ranges(parts, 1, t.threads, [&](int64_t part, int64_t last) {
        for (; part < last; ++part) {
            double *const totals = totals_of(part), *const own = totals + 2 * channels;
            float* const by_channel = reinterpret_cast<float*>(own + 2 * channels);
            float *const factor = by_channel + 2 * channels, *const scratch = part_of(part) + 16 * channels;
            if (t.statistics == ROWS) {
                const bool keep = fit(t, t.positions);
                for (int64_t sample = t.samples * part / parts; sample < t.samples * (part + 1) / parts; ++sample) {
                    const int64_t first = sample * t.positions, end = first + t.positions;
                    for (int64_t i = 0; i < 2 * channels; ++i) own[i] = 0;
                    add_rows(c, first, end, own, by_channel, scratch, keep);
                    for (int64_t i = 0; i < 2 * channels; ++i) totals[i] += own[i];
                    constants(c, sample, own, t.positions, factor);
                    write_rows(c, first, end, factor, scratch, keep);
                }
                continue;
            }
            const int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
            if (t.statistics == GIVEN) {
                constants(c, 0, totals, 1, factor);
                by_stretches(c, first, end, scratch, false, [&](int64_t row, int64_t rows, float* g, float* x_hat) {
                    decode_channels(c, row, rows, g, x_hat, by_channel);
                    c.of.settle(by_channel, totals, 2 * channels);
                    c.of_result.gradient_channels(
                        g, nullptr, factor, nullptr, nullptr,
                        c.at(static_cast<char*>(t.grad_x), row, channels, c.of_result.element_size), channels, rows);
                });
            } else {
                add_rows(c, first, end, totals, by_channel, scratch, fit(t, end - first));
            }
        }
    });
    for (int64_t i = 0; i < 2 * channels; ++i) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += totals_of(part)[i];
        c.sums[i] = sum;
    }
    if (t.statistics != BATCH) return;
    parallel_ranges(parts, 1, t.threads, [&](int64_t part, int64_t last) {
        for (; part < last; ++part) {
            float* const factor = part_of(part) + 10 * channels;
            const int64_t first = rows * part / parts, end = rows * (part + 1) / parts;
            constants(c, 0, c.sums, rows, factor);
            write_rows(c, first, end, factor, part_of(part) + 16 * channels, fit(t, end - first));
        }
    });
}

}  // namespace

double optiacts_excess(int dtype, const void* x, int64_t count, float threshold, int threads) {
    const ChainKernels& of = kernels(dtype);
    constexpr int64_t PART = 1 << 16;  // added up in the order of the tensor, whatever the number of threads
    double total = 0, sums[64];
    for (int64_t first = 0; first < count; first += 64 * PART) {
        const int64_t left = count - first, parts = left < 64 * PART ? (left + PART - 1) / PART : 64;
        parallel_ranges(parts, 1, threads, [&](int64_t part, int64_t end) {
            for (; part < end; ++part) {
                const int64_t begin = first + part * PART, rest = count - begin;
                sums[part] = of.excess(static_cast<const char*>(x) + begin * of.element_size,
                                       rest < PART ? rest : PART, threshold);
            }
        });
        for (int64_t part = 0; part < parts; ++part) total += sums[part];
    }
    return total;
}

int optiacts_chain_backward(const optiacts_chain* chain) {
    double* const memory = chain->workspace ? chain->workspace : Workspace::of(chain->workspace_size);
    if (!memory) return -2;
    const Chain c(*chain, memory);
    if (chain->last)
        channels_last(c);
    else
        positions_last(c);
    c.tell();
    return 0;
}
