/*
 * sampling_law: how a token is drawn, and the arithmetic of it, which whoever draws has to share:
 * the host's sampler (worker/sampler.h), and devices that draw for themselves (draw_rows of
 * kernels/kernels.h).
 *
 *  1  Tokens that a mask forbids, and those whose logits are -inf or not a number, can't come.
 *     Where none can, there is no token.
 *  2  A temperature below GREEDY_TEMPERATURE takes the largest logit. Else x = logit / temperature,
 *     a float; the temperature is LEAST_TEMPERATURE at least. An x that is -inf can't come either.
 *  3  min_p keeps the tokens whose x is least_of_min_p or larger.
 *  4  top_k keeps the k first of these, and all that equal the k-th.
 *  5  top_p keeps the first of these, one at least, until their weights are enough (is_enough).
 *  6  What is kept draws lots: the largest x + gumbel(bits) comes. The bits of token t are word
 *     t % 4 of philox4x32(seed, position, t / 4).
 *
 * Order of tokens: the larger x first, the lower id of two equals. So too where two draw the same.
 *
 * Weights are whole numbers on a grid, so sums are exact in any order, and their exponential is our
 * own, of additions and multiplications alone, none of them fused: it has the same bits everywhere.
 * Only log() is the platform's, and may differ from another's in its last bit. So a token could be
 * another one where two draw the same up to that bit, once in 10^14 times; or where min_p's limit is
 * a float up to that bit, once in 10^8, and that is the x of some token.
 *
 * Kept readable by C++ and nvcc.
 *
 * Thread: any (no state).
 */
#ifndef PROTO_BASE_SAMPLING_LAW_H
#define PROTO_BASE_SAMPLING_LAW_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define LAW_INLINE static __host__ __device__ __forceinline__
#else
#define LAW_INLINE __attribute__((always_inline)) static inline
#endif

/* Below this temperature the likeliest token is taken. */
#define GREEDY_TEMPERATURE 1e-5f
/* Temperatures between greedy and this one are raised to it: their logits would overflow. */
#define LEAST_TEMPERATURE 1e-2f

/* ---- order ---------------------------------------------------------------------------------- */

/* A float as a number of the same order; -0 is 0. */
LAW_INLINE uint32_t key_of_logit(float logit)
{
    uint32_t bits;

    logit += 0.0f; /* -0 */
    memcpy(&bits, &logit, sizeof bits);
    return bits ^ (bits >> 31 ? UINT32_MAX : 0x80000000u);
}

LAW_INLINE float logit_of_key(uint32_t key)
{
    uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
    float logit;

    memcpy(&logit, &bits, sizeof logit);
    return logit;
}

/* ---- weights -------------------------------------------------------------------------------- */

/* The finest grid on which the weights of so many tokens add up in 62 bits. */
LAW_INLINE int32_t grid_bits_for(int32_t vocab_size)
{
    int32_t bits = 62;

    while (bits > 31 && (int64_t)vocab_size > (int64_t)1 << (62 - bits))
        bits--;
    return bits < 51 ? bits : 51; /* what a double's fraction has for whole numbers, see on_grid */
}

/* 1.5 * 2^52 units of the grid, where a double counts in them. */
LAW_INLINE double magic_of(int32_t grid_bits)
{
    uint64_t bits = (uint64_t)(1023 + 52 - grid_bits) << 52 | (uint64_t)1 << 51;
    double magic;

    memcpy(&magic, &bits, sizeof magic);
    return magic;
}

/* exp(x), x <= 0; below -40, where nothing is left on any grid, exp(-40). */
LAW_INLINE double exp_down(double x)
{
    /* Adding it rounds to a whole number, which the low bits then are. */
    const double round = 0x1.8p52;

    x = x > -40 ? x : -40; /* NaN too */
    double shifted = x * 0x1.71547652b82fep0 + round, n = shifted - round;
    /* ln 2 in two parts: n times the first is exact. */
    double r = (x - n * 0x1.62e42fefa0000p-1) - n * 0x1.cf79abc9e3b3ap-40;
    double p = 1.0 / 39916800; /* Taylor's series to r^11: below 1e-14 for |r| <= ln 2 / 2 */
    int64_t power;

    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    memcpy(&power, &shifted, sizeof power);
    power = (int64_t)((uint64_t)(power + 1023) << 52); /* 2^n: the low bits of `shifted` are n */

    double scale;

    memcpy(&scale, &power, sizeof scale);
    return p * scale;
}

/* x in [0, 1] in units of the grid, rounded to the nearest, half to even: the difference of the
 * bits. */
LAW_INLINE uint64_t on_grid(double x, double magic)
{
    double sum = x + magic;
    uint64_t bits, magic_bits;

    memcpy(&bits, &sum, sizeof bits);
    memcpy(&magic_bits, &magic, sizeof magic_bits);
    return bits - magic_bits;
}

/* exp(x - max) in units of 2^-grid_bits; 0 where max - x is 40 or more. */
LAW_INLINE uint64_t weight_of(float x, float max, int32_t grid_bits)
{
    return on_grid(exp_down((double)x - (double)max), magic_of(grid_bits));
}

/* ---- what is kept --------------------------------------------------------------------------- */

/* min_p keeps what is at least so many times as likely as the likeliest: the least x that is. */
LAW_INLINE float least_of_min_p(float min_p, float max)
{
    double least = (double)max + log((double)min_p);
    float rounded = (float)least;

    return (double)rounded < least ? nextafterf(rounded, (float)INFINITY) : rounded;
}

/* Has top_p enough when so much of `weight` is kept? */
LAW_INLINE bool is_enough(float top_p, uint64_t kept, uint64_t weight)
{
    return (double)kept >= (double)top_p * (double)weight;
}

/* ---- lots ----------------------------------------------------------------------------------- */

/* Philox4x32-10, a counter-based random function.
 * Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants from there. */
LAW_INLINE void philox4x32(uint64_t key, uint64_t counter_high, uint64_t counter_low,
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

/* The largest noise there is, -log(-log(1 - 2^-33)), rounded up, and the least, rounded down. */
#define MAX_GUMBEL 22.9
#define MIN_GUMBEL (-3.14)

/* -log(-log(u)), u in (0, 1) from 32 random bits. */
LAW_INLINE double gumbel(uint32_t bits)
{
    return -log(-log(((double)bits + 0.5) * 0x1p-32));
}

/*
 * Bits of which the noise is at least `lift` are no fewer than this. -log(u) >= 1 - u, so noise of
 * lift needs 1 - u <= exp(-lift), which is at most exp(-floor(lift)). The noise of fewer bits falls
 * short by 3e-5 at least: `lift` need not be known better than that.
 */
LAW_INLINE uint32_t least_bits(double lift)
{
    enum { LIFTS = 23 };
    /* exp(-n) * 2^32, rounded up, and one more */
    static const uint32_t exps[LIFTS] = {
        4294967295u, 1580030170u, 581260617u, 213833832u, 78665072u, 28939264u, 10646161u, 3916505u,
        1440803u,    530043u,     194993u,    71735u,     26391u,    9710u,     3573u,     1315u,
        485u,        179u,        67u,        26u,        10u,       5u,        3u,
    };

    if (!(lift > 0))
        return 0;
    return UINT32_MAX - exps[lift < LIFTS - 1 ? (int32_t)lift : LIFTS - 1];
}

#endif
