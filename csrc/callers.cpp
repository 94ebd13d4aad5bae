/* The kernels by name, each called with an array of words: for who calls them by what was recorded, as host/plan.cpp does. */
#include <cstring>
#include <type_traits>
#include <utility>

#include "optiacts.h"

namespace {

using Caller = int64_t (*)(const uint64_t*);

/* A word holds a whole number, an address or, for a float, a double. */
template <typename T>
T read(uint64_t word) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(static_cast<uintptr_t>(word));
    } else if constexpr (std::is_floating_point_v<T>) {
        double number;
        memcpy(&number, &word, sizeof number);
        return static_cast<T>(number);
    } else {
        return static_cast<T>(static_cast<int64_t>(word));
    }
}

template <auto kernel>
struct Of;

template <typename R, typename... A, R (*kernel)(A...)>
struct Of<kernel> {
    static int64_t call(const uint64_t* words) { return call(words, std::index_sequence_for<A...>()); }

    template <size_t... place>
    static int64_t call(const uint64_t* words, std::index_sequence<place...>) {
        if constexpr (std::is_void_v<R>) {
            kernel(read<A>(words[place])...);
            return 0;
        } else {
            return static_cast<int64_t>(kernel(read<A>(words[place])...));
        }
    }
};

/* The fields of its struct, in their order. */
int64_t call_chain_backward(const uint64_t* words) {
    optiacts_chain chain;
    const auto fill = [&words](auto&... fields) {
        ((fields = read<std::remove_reference_t<decltype(fields)>>(*words++)), ...);
    };
    fill(chain.grad, chain.y, chain.bits, chain.decoder, chain.rstd, chain.mean, chain.scale, chain.shift, chain.rescue,
         chain.rescued, chain.grad_x, chain.by_scale, chain.by_shift, chain.workspace, chain.workspace_size,
         chain.samples, chain.channels, chain.positions, chain.groups, chain.rescues, chain.scratch, chain.room,
         chain.dtype, chain.rescued_dtype, chain.result_dtype, chain.closed, chain.statistics, chain.centered,
         chain.last, chain.threads);
    return optiacts_chain_backward(&chain);
}

const struct {
    const char* name;
    Caller caller;
} CALLERS[] = {
    {"huge_pages", Of<optiacts_huge_pages>::call},
    {"pack", Of<optiacts_pack>::call},
    {"silu", Of<optiacts_silu>::call},
    {"backward", Of<optiacts_backward>::call},
    {"gated_forward", Of<optiacts_gated_forward>::call},
    {"gated_silu", Of<optiacts_gated_silu>::call},
    {"gated_backward", Of<optiacts_gated_backward>::call},
    {"copy", Of<optiacts_copy>::call},
    {"clear", Of<optiacts_clear>::call},
    {"pack_dropped", Of<optiacts_pack_dropped>::call},
    {"scale_kept", Of<optiacts_scale_kept>::call},
    {"dropped_backward", Of<optiacts_dropped_backward>::call},
    {"dropped_gated_backward", Of<optiacts_dropped_gated_backward>::call},
    {"norm_any_bad", Of<optiacts_norm_any_bad>::call},
    {"norm_statistics", Of<optiacts_norm_statistics>::call},
    {"layer_norm", Of<optiacts_layer_norm>::call},
    {"norm_backward", Of<optiacts_norm_backward>::call},
    {"chain_statistics", Of<optiacts_chain_statistics>::call},
    {"chain_statistics_workspace", Of<optiacts_chain_statistics_workspace>::call},
    {"chain_backward", call_chain_backward},
};

}  // namespace

const void* optiacts_caller(const char* name) {
    for (const auto& each : CALLERS)
        if (strcmp(each.name, name) == 0) return reinterpret_cast<const void*>(each.caller);
    return nullptr;
}
