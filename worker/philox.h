/*
 * philox: philox4x32 of the sampling law, many counters at once.
 * Thread: any (no state).
 */
#ifndef WORKER_PHILOX_H
#define WORKER_PHILOX_H

#include "proto/base/sampling_law.h"

/* Of 16 counters in a row, side by side for the compiler to put into vectors: out[4 i + w] is word
 * w of counter_low + i. */
__attribute__((always_inline)) static inline void
philox4x32_row(uint64_t key, uint64_t counter_high, uint64_t counter_low, uint32_t out[64])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0[16], c1[16], c2[16], c3[16];

    for (int i = 0; i < 16; i++) {
        c0[i] = (uint32_t)(counter_low + (uint64_t)i);
        c1[i] = (uint32_t)((counter_low + (uint64_t)i) >> 32);
        c2[i] = (uint32_t)counter_high;
        c3[i] = (uint32_t)(counter_high >> 32);
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 16; i++) {
            uint64_t p0 = (uint64_t)0xd2511f53 * c0[i], p1 = (uint64_t)0xcd9e8d57 * c2[i];

            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
        }
        k0 += 0x9e3779b9;
        k1 += 0xbb67ae85;
    }
    for (int i = 0; i < 16; i++) {
        out[4 * i] = c0[i];
        out[4 * i + 1] = c1[i];
        out[4 * i + 2] = c2[i];
        out[4 * i + 3] = c3[i];
    }
}

#endif
