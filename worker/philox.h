/*
 * philox: Philox4x32-10, a counter-based random function.
 * Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants from there.
 * Thread: any (no state).
 */
#ifndef WORKER_PHILOX_H
#define WORKER_PHILOX_H

#include <stdint.h>

static inline void philox4x32(uint64_t key, uint64_t counter_high, uint64_t counter_low,
                              uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_low, c1 = (uint32_t)(counter_low >> 32);
    uint32_t c2 = (uint32_t)counter_high, c3 = (uint32_t)(counter_high >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53 * c0, p1 = (uint64_t)0xcd9e8d57 * c2;
        uint32_t next0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, next2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;

        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = next0;
        c2 = next2;
        k0 += 0x9e3779b9;
        k1 += 0xbb67ae85;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

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
