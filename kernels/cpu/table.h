/*
 * table: the table of kernels of each instruction set. Which of them this CPU runs: select.c.
 */
#ifndef KERNELS_CPU_TABLE_H
#define KERNELS_CPU_TABLE_H

#include "kernels/kernels.h"

extern const struct kernels kernels_amx;
extern const struct kernels kernels_avx512bf16;
extern const struct kernels kernels_avx512;
extern const struct kernels kernels_avxvnni;
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_sse2;
extern const struct kernels kernels_generic; /* where there is no x86 */
extern const struct kernels kernels_emuamx;  /* tests only, as is the next */
extern const struct kernels kernels_emu512;

#endif
