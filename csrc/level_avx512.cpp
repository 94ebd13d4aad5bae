#include "kernels.inc"

extern const Kernels kernels_avx512[] = OPTIACTS_KERNELS;
