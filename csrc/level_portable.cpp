#include "kernels.inc"
#include "norm_kernels.inc"
#include "chain_kernels.inc"

extern const Kernels kernels_portable[] = OPTIACTS_KERNELS;
extern const NormKernels norm_kernels_portable[] = OPTIACTS_NORM_KERNELS;
extern const ChainKernels chain_kernels_portable[] = OPTIACTS_CHAIN_KERNELS;
