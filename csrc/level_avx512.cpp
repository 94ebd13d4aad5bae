#include "kernels.inc"
#include "norm_kernels.inc"
#include "chain_kernels.inc"

extern const Kernels kernels_avx512[] = OPTIACTS_KERNELS;
extern const NormKernels norm_kernels_avx512[] = OPTIACTS_NORM_KERNELS;
extern const ChainKernels chain_kernels_avx512[] = OPTIACTS_CHAIN_KERNELS;
