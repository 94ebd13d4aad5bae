// The C interface of the statistics that a norm of whole channels takes: mean and rstd of what lies apart in memory.
//
// Each unit, a sample or a piece of one, is looked at by one thread: its mean and variance of each channel. What is
// normalised together is then put together from those, so that no sum of squares is one of large numbers.

#include <algorithm>

#include "norm_kernels.h"
#include "optiacts.h"
#include "parallel.h"

namespace {

constexpr int64_t ELEMENTS_PER_THREAD = 1 << 14;  // take it about 5 us
constexpr int64_t ELEMENTS_AT_ONCE = 1 << 12;     // are in the first cache when they are read again
constexpr float FAR = 0.75f;                      // of a sum of squares: more of it may not be the mean's distance

struct Moments {
    double mean, variance;
};

// Adds elements that are then a `share` of all of which `into` tells.
void add(Moments& into, Moments more, double share) {
    const double away = more.mean - into.mean, rest = 1 - share;
    into.mean += away * share;
    into.variance = into.variance * rest + (more.variance + away * away * rest) * share;
}

// Of each channel of neighbouring rows. `room` has space for three floats of each channel.
//
// Squares are those of the distance from the mean so far, or, where a stretch lies far from it, from its own.
void moments_of_channels(const NormKernels& of, const char* x, int64_t rows, int64_t channels, bool centered,
                         Moments* result, float* room) {
    float *const sums = room, *const squares = room + channels, *const centre = squares + channels;
    const int64_t most = std::max<int64_t>(8, ELEMENTS_AT_ONCE / channels);
    for (int64_t row = 0, count; row < rows; row += count) {
        count = std::min(most, rows - row);
        const char* const from = x + row * channels * of.element_size;
        const double each = 1 / double(count), share = double(count) / double(row + count);
        for (int64_t i = 0; i < channels; ++i) centre[i] = centered ? float(result[i].mean) : 0.0f;
        of.powers(from, centre, sums, squares, count, channels);
        bool far = false;
        for (int64_t i = 0; i < channels; ++i)
            far |= !(sums[i] * sums[i] * float(each) <= FAR * squares[i] && squares[i] < __builtin_inff());
        if (centered && far) {
            for (int64_t i = 0; i < channels; ++i) centre[i] += sums[i] * float(each);
            of.powers(from, centre, sums, squares, count, channels);
        }
        for (int64_t i = 0; i < channels; ++i) {
            const double away = centered ? double(sums[i]) * each : 0;  // by the rounding of the centre
            add(result[i], {centre[i] + away, double(squares[i]) * each - away * away}, share);
        }
    }
}

}  // namespace

int64_t optiacts_chain_statistics_workspace(int64_t samples, int64_t channels, int threads) {
    return 4 * channels * std::max<int64_t>(samples, threads);
}

void optiacts_chain_statistics(int dtype, const void* x, int64_t samples, int64_t channels, int64_t positions,
                               int64_t groups, int centered, int last, float eps, float* mean, float* rstd,
                               double* workspace, int threads) {
    const NormKernels& of = norm_kernels(dtype);
    threads = int(std::min<int64_t>(threads, samples * channels * positions / ELEMENTS_PER_THREAD + 1));
    const int64_t pieces = last ? std::min(positions, std::max<int64_t>(1, threads / samples)) : 1;
    const int64_t units = samples * pieces, each = positions / pieces;
    const auto count_of = [=](int64_t unit) {
        return unit % pieces < pieces - 1 ? each : positions - each * (pieces - 1);
    };
    Moments* const moments = reinterpret_cast<Moments*>(workspace);
    float* const room = reinterpret_cast<float*>(moments + units * channels);
    const char* const from = static_cast<const char*>(x);
    std::fill_n(moments, units * channels, Moments{0, 0});
    if (last) {
        parallel_ranges(units, 1, threads, [=, &of](int64_t unit, int64_t end) {
            for (; unit < end; ++unit) {
                const int64_t row = unit / pieces * positions + unit % pieces * each;
                moments_of_channels(of, from + row * channels * of.element_size, count_of(unit), channels, centered,
                                    moments + unit * channels, room + unit * 4 * channels);
            }
        });
    } else {
        parallel_ranges(samples * channels, 1, threads, [=, &of](int64_t row, int64_t end) {
            for (; row < end; ++row) {
                float own_mean = 0, own_rstd;
                of.statistics(from + row * positions * of.element_size, positions, 0.0f,
                              centered ? &own_mean : nullptr, &own_rstd);
                moments[row] = {own_mean, 1 / (double(own_rstd) * double(own_rstd))};
            }
        });
    }
    const int64_t results = groups ? samples * groups : channels, along = groups ? channels / groups : 1;
    for (int64_t result = 0; result < results; ++result) {
        const int64_t first_unit = groups ? result / groups * pieces : 0;
        const int64_t last_unit = groups ? first_unit + pieces : units;
        const int64_t first = groups ? result % groups * along : result;
        const auto sum = [=](auto part) {
            double total = 0, count = 0;
            for (int64_t unit = first_unit; unit < last_unit; ++unit) {
                const double own = double(count_of(unit));
                for (int64_t channel = first; channel < first + along; ++channel)
                    total += part(moments[unit * channels + channel]) * own, count += own;
            }
            return total / count;
        };
        const double centre = sum([](const Moments& of) { return of.mean; });
        const double variance = sum([=](const Moments& of) {
            return of.variance + (of.mean - centre) * (of.mean - centre);
        });
        mean[result] = float(centre);
        rstd[result] = float(1 / __builtin_sqrt(variance + eps));
    }
}
