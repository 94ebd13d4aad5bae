// Memory that a thread keeps for its calls: given back each time, it would come anew, page by page.
#pragma once

#include <stdint.h>
#include <stdlib.h>

class Workspace {
public:
    // Room for so many doubles, holding anything, until this thread asks again; null if there is too little memory.
    static double* of(int64_t count) {
        Kept& kept = of_thread();
        if (kept.count < count) {
            free(kept.memory);
            kept.memory = aligned_alloc(LINE, size_t(count) * sizeof(double) / LINE * LINE + LINE);
            kept.count = kept.memory ? count : 0;
        }
        return static_cast<double*>(kept.memory);
    }

private:
    static constexpr size_t LINE = 64;  // bytes of a cache
    struct Kept {
        void* memory = nullptr;
        int64_t count = 0;
        ~Kept() { free(memory); }
    };
    static Kept& of_thread() {
        static thread_local Kept kept;
        return kept;
    }
};
