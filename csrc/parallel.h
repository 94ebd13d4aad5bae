// Threads from the OpenMP runtime that is already in the process: torch's own.
#pragma once

#include <stdint.h>

// Linking a runtime could bring in a second one, whose threads compete with the first one's. The entry points that
// every OpenMP runtime on Linux has (GCC's, LLVM's and Intel's) are found at load time instead, since torch loads its
// runtime for the whole process; if there is none they are null.
#if defined(__linux__)
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* argument, unsigned threads, unsigned flags);
__attribute__((weak)) int omp_get_thread_num(void);
__attribute__((weak)) int omp_get_num_threads(void);
}

inline bool has_threads() { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }
#else
inline bool has_threads() { return false; }
#endif

// Splits [0, total) into one range per thread, each but the last a multiple of `step`, and runs body(begin, end).
template <class Body>
void parallel_ranges(int64_t total, int64_t step, int threads, Body body) {
#if defined(__linux__)
    if (threads > 1 && has_threads()) {
        struct Call {
            int64_t total, step;
            Body* body;
        } call = {total, step, &body};
        auto share = [](void* argument) {
            const Call& c = *static_cast<Call*>(argument);
            const int64_t workers = omp_get_num_threads(), steps = (c.total + c.step - 1) / c.step;
            const int64_t most = (steps + workers - 1) / workers * c.step;
            const int64_t begin = omp_get_thread_num() * most;
            const int64_t end = begin + most < c.total ? begin + most : c.total;
            if (begin < end) (*c.body)(begin, end);
        };
        GOMP_parallel(share, &call, unsigned(threads), 0);
        return;
    }
#endif
    body(int64_t{0}, total);
}
