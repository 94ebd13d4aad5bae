#include "kernels.inc"

extern const Kernels kernels_portable[] = OPTIACTS_KERNELS;
