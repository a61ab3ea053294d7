/* The AVX-512 table once more, for machines that multiply pairs of bf16 (vdpbf16ps). */
#include "dev/cpu/k_avx512.c" /* NOLINT(bugprone-suspicious-include): meant */
