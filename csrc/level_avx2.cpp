#include "kernels.inc"

extern const Kernels kernels_avx2[] = OPTIACTS_KERNELS;
