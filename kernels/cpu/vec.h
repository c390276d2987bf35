/*
 * vec: vectors of LANES floats or 32-bit integers, for kernels compiled once per instruction set.
 *
 * Arithmetic, comparison and shifts are GCC's vector extensions; what they lack is a function here,
 * in portable form and, where an instruction set has an instruction for it, with that. Each file
 * of cpu/ is compiled with one of VEC_AVX512, VEC_EMU512, VEC_AVX2, VEC_SSE2 or VEC_GENERIC defined,
 * and names what it defines KERNEL(name): name_avx2. matmul.c is also compiled with VEC_AVXVNNI, which has the
 * other kernels of AVX2, and with VEC_AMX, and attention.c with VEC_AVX512BF16, which have those of AVX-512. emu512 is the
 * code of AVX-512 with portable functions, and emuamx that of AMX, for tests on machines that have none.
 *
 * Every function gives the same bits on every instruction set.
 */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include "kernels/numerics.h"
#include "kernels/quant_block.h"

#include <string.h>

#if defined(VEC_AVX512BF16) /* AVX-512, and its dot products of bfloat16 */
#define VEC_AVX512
#define VEC_NAME "avx512bf16"
#define KERNEL(name) name##_avx512bf16
#define MATMUL(name) name##_avx512
#define SHARED(name) name##_avx512
#define LANES 16
#elif defined(VEC_AMX) || defined(VEC_EMUAMX) /* AVX-512, and a unit that multiplies matrices of bytes, or its emulation */
#if defined(__AVX512VNNI__)
#define VEC_AVX512
#define ATTENTION(name) name##_avx512
#define SHARED(name) name##_avx512
#else
#define VEC_EMU512
#define ATTENTION(name) name##_emu512
#define SHARED(name) name##_emu512
#endif
#if defined(VEC_AMX)
#define VEC_NAME "amx"
#define KERNEL(name) name##_amx
#else
#define VEC_NAME "emuamx"
#define KERNEL(name) name##_emuamx
#endif
#define LANES 16
#elif defined(VEC_AVX512)
#define VEC_NAME "avx512"
#define KERNEL(name) name##_avx512
#define LANES 16
#elif defined(VEC_EMU512)
#define VEC_NAME "emu512"
#define KERNEL(name) name##_emu512
#define LANES 16
#elif defined(VEC_AVXVNNI) /* AVX2, and its dot products of bytes */
#define VEC_AVX2
#define VEC_NAME "avxvnni"
#define KERNEL(name) name##_avxvnni
#define ATTENTION(name) name##_avx2
#define SHARED(name) name##_avx2
#define LANES 8
#elif defined(VEC_AVX2)
#define VEC_NAME "avx2"
#define KERNEL(name) name##_avx2
#define LANES 8
#elif defined(VEC_SSE2)
#define VEC_NAME "sse2"
#define KERNEL(name) name##_sse2
#define LANES 4
#else
#define VEC_NAME "generic"
#define KERNEL(name) name##_generic
#define LANES 4
#endif

#if defined(VEC_AMX) || defined(VEC_EMUAMX)
#define HAS_UNIT 1
#else
#define HAS_UNIT 0
#endif

/* Kernels with dot products of bytes, of bfloat16, and without either. */
#ifndef MATMUL
#define MATMUL(name) KERNEL(name)
#endif
#ifndef ATTENTION
#define ATTENTION(name) KERNEL(name)
#endif
#ifndef SHARED
#define SHARED(name) KERNEL(name)
#endif

#if !defined(VEC_GENERIC)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* gcc's way to say so */
#define SANITIZED 1
#elif defined(__has_feature) /* clang's */
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
/* Where speed is not the point, loops stay loops: unrolled tiles take a sanitizer minutes each. */
#if (defined(VEC_AVX512) || defined(VEC_AVX2)) && !defined(SANITIZED)
#define UNROLLED 1
#define UNROLL _Pragma("GCC unroll 16")
#define SLOW INLINE
#else
#define UNROLLED 0
#define UNROLL
#define SLOW static __attribute__((noinline, unused))
#endif

typedef float vf __attribute__((vector_size(LANES * 4), may_alias));
typedef int32_t vi __attribute__((vector_size(LANES * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(LANES * 4), may_alias));
typedef int16_t vs __attribute__((vector_size(LANES * 4), may_alias)); /* 2 * LANES of them */
typedef double vd __attribute__((vector_size(LANES * 4), may_alias));  /* LANES / 2 of them */

/* ---- memory, of any alignment ---------------------------------------------------------------- */

INLINE vf vf_load(const void *p)
{
    typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
    return *(const unaligned *)p;
}

/* From memory to the second-level cache: a first one has room for few lines that are on their way, too few for all
 * that memory can bring. */
INLINE void fetch_second_level(const void *p)
{
    __builtin_prefetch(p, 0, 2);
}

INLINE void vf_store(void *p, vf v)
{
    typedef float unaligned __attribute__((vector_size(LANES * 4), aligned(1), may_alias));
    *(unaligned *)p = v;
}

/* Past the caches, to a multiple of a vector's bytes, for what is not read soon: where a line is written whole nobody
 * fetches it first. Other threads see it after vf_end_stream. */
INLINE void vf_stream(float *p, vf v)
{
#if defined(VEC_AVX512)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(VEC_AVX2)
    _mm256_stream_ps(p, (__m256)v);
#elif defined(VEC_SSE2)
    _mm_stream_ps(p, (__m128)v);
#else
    vf_store(p, v);
#endif
}

INLINE void vf_end_stream(void)
{
#if defined(VEC_AVX512) || defined(VEC_AVX2) || defined(VEC_SSE2)
    _mm_sfence();
#endif
}

INLINE vi vi_load(const void *p)
{
    return (vi)vf_load(p);
}

INLINE void vi_store(void *p, vi v)
{
    vf_store(p, (vf)v);
}

INLINE vd vd_load(const double *p)
{
    return (vd)vf_load(p);
}

INLINE void vd_store(double *p, vd v)
{
    vf_store(p, (vf)v);
}

INLINE vf vf_set(float x)
{
    return x - (vf){0};
}

INLINE vi vi_set(int32_t x)
{
    return x + (vi){0};
}

/* The four bytes at p in every lane. */
INLINE vi vi_broadcast(const void *p)
{
    int32_t x;

    memcpy(&x, p, 4);
    return vi_set(x);
}

/* LANES bytes, and LANES 16-bit integers, as 32-bit integers. gcc 12 would do this in eight steps. */
INLINE vi vi_load_u8(const uint8_t *p)
{
#if defined(VEC_AVX512)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif defined(VEC_AVX2)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    return __builtin_convertvector(*(const bytes *)p, vi);
#endif
}

INLINE vi vi_load_u16(const uint16_t *p)
{
#if defined(VEC_AVX512)
    return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(VEC_AVX2)
    return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    typedef uint16_t words __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    return __builtin_convertvector(*(const words *)p, vi);
#endif
}

/* 2 * LANES signed bytes as 16-bit integers. */
INLINE vi vs_load_s8(const int8_t *p)
{
#if defined(VEC_AVX512)
    return (vi)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
#elif defined(VEC_AVX2)
    return (vi)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
#else
    typedef int8_t bytes __attribute__((vector_size(LANES * 2), aligned(1), may_alias));
    return (vi)__builtin_convertvector(*(const bytes *)p, vs);
#endif
}

/* ---- floats ------------------------------------------------------------------------------------ */

INLINE vf vf_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* a where a > b, else b. */
INLINE vf vf_max(vf a, vf b)
{
#if defined(VEC_AVX512)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(VEC_AVX2)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(VEC_SSE2)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return vf_select(a > b, a, b);
#endif
}

/* a where a < b, else b. */
INLINE vf vf_min(vf a, vf b)
{
#if defined(VEC_AVX512)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(VEC_AVX2)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(VEC_SSE2)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return vf_select(a < b, a, b);
#endif
}

/* The largest; no lane is NaN. */
INLINE float vf_max_lanes(vf a)
{
#if defined(VEC_AVX512)
    return _mm512_reduce_max_ps((__m512)a);
#else
    float lanes[LANES];

#if defined(VEC_AVX2)
    a = vf_max(a, (vf)_mm256_permute2f128_ps((__m256)a, (__m256)a, 1));
    a = vf_max(a, (vf)_mm256_permute_ps((__m256)a, 0x4e));
    return vf_max(a, (vf)_mm256_permute_ps((__m256)a, 0xb1))[0];
#endif
    vf_store(lanes, a);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    return lanes[0];
#endif
}

INLINE vf vf_abs(vf a)
{
    return (vf)((vi)a & 0x7fffffff);
}

/* gcc 12 converts vectors of doubles by halves, and puts these together. */
INLINE vd vd_low(vf v)
{
#if defined(VEC_AVX512)
    return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
#elif defined(VEC_AVX2)
    return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
#else
    typedef float half __attribute__((vector_size(LANES * 2)));
    half low;

    memcpy(&low, &v, sizeof(low));
    return __builtin_convertvector(low, vd);
#endif
}

INLINE vd vd_high(vf v)
{
#if defined(VEC_AVX512)
    return (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(VEC_AVX2)
    return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
    typedef float half __attribute__((vector_size(LANES * 2)));
    half high;

    memcpy(&high, (const char *)&v + sizeof(high), sizeof(high));
    return __builtin_convertvector(high, vd);
#endif
}

/* The halves of v as doubles. */
INLINE void vd_of_ints(vi v, vd halves[2])
{
#if defined(VEC_AVX512)
    halves[0] = (vd)_mm512_cvtepi32_pd(_mm512_castsi512_si256((__m512i)v));
    halves[1] = (vd)_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64((__m512i)v, 1));
#elif defined(VEC_AVX2)
    halves[0] = (vd)_mm256_cvtepi32_pd(_mm256_castsi256_si128((__m256i)v));
    halves[1] = (vd)_mm256_cvtepi32_pd(_mm256_extracti128_si256((__m256i)v, 1));
#else
    typedef int32_t half __attribute__((vector_size(LANES * 2)));
    half parts[2];

    memcpy(parts, &v, sizeof(parts));
    halves[0] = __builtin_convertvector(parts[0], vd);
    halves[1] = __builtin_convertvector(parts[1], vd);
#endif
}

INLINE vd vd_set(double x)
{
    return x - (vd){0};
}

/* a * b + c, rounded once. */
INLINE vd vd_fma(vd a, vd b, vd c)
{
#if defined(VEC_AVX512)
    return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(VEC_AVX2)
    return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    for (int i = 0; i < LANES / 2; i++)
        a[i] = __builtin_fma(a[i], b[i], c[i]);
    return a;
#endif
}

/* Two vectors of doubles as one of floats. */
INLINE vf vf_round(vd low, vd high)
{
#if defined(VEC_AVX512)
    return (vf)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)low)),
                                  _mm512_cvtpd_ps((__m512d)high), 1);
#elif defined(VEC_AVX2)
    return (vf)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)high), _mm256_cvtpd_ps((__m256d)low));
#else
    typedef float half __attribute__((vector_size(LANES * 2)));
    half parts[2] = {__builtin_convertvector(low, half), __builtin_convertvector(high, half)};
    vf v;

    memcpy(&v, parts, sizeof(v));
    return v;
#endif
}

/* The sum of SUM_LANES partial sums, in the order of numerics.h. */
INLINE float vf_sum_lanes(const vf *partial)
{
    float sums[SUM_LANES];

    for (int v = 0; v < SUM_LANES / LANES; v++)
        vf_store(sums + v * LANES, partial[v]);
    UNROLL for (int width = SUM_LANES / 2; width; width /= 2)
        UNROLL for (int i = 0; i < width; i++)
            sums[i] += sums[i + width];
    return sums[0];
}

/* a * b + c, rounded once. */
#if defined(VEC_AVX512)
INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#elif defined(VEC_AVX2)
INLINE vf vf_fma(vf a, vf b, vf c)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#elif defined(VEC_EMU512)
SLOW vf vf_fma(vf a, vf b, vf c)
{
    __m256 x[2], y[2], z[2];

    memcpy(x, &a, sizeof(a));
    memcpy(y, &b, sizeof(b));
    memcpy(z, &c, sizeof(c));
    x[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
    x[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
    memcpy(&a, x, sizeof(a));
    return a;
}
#elif defined(__FP_FAST_FMAF)
SLOW vf vf_fma(vf a, vf b, vf c)
{
    for (int i = 0; i < LANES; i++)
        a[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return a;
}
#else
typedef int64_t vl __attribute__((vector_size(LANES * 4), may_alias)); /* of the size of a vd */
_Static_assert(LANES == 4, "constants of two doubles");

/*
 * In doubles the product is exact. The sum is rounded to odd (to the neighbour with an odd last
 * bit when it is not exact), so that rounding it again to a float does what one rounding does
 * (Boldo & Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
 */
INLINE vd vd_fma_to_odd(vd a, vd b, vd c)
{
    vd p = a * b, sum = p + c, back = sum - p;
    vd error = (p - (sum - back)) + (c - back);
    vl inexact = error != 0, finite = ((vl)sum & 0x7ff0000000000000) != 0x7ff0000000000000;
    vl even = ((vl)sum & 1) == 0;
    vl away = ((vl)error ^ (vl)sum) >= 0; /* the exact sum is larger in magnitude */
    vl step = (away & 1) | (~away & -1);

    return (vd)((vl)sum + (step & inexact & even & finite));
}

/* Where a sum, rounded to a double, might become another float than the exact one: halfway between two normal floats,
 * and below all of them, where what is halfway has other bits. Words of 32 bits, since SSE2 compares no longer ones. */
INLINE vl may_round_twice(vd sum)
{
    const vi tail = {0x1fffffff, 0, 0x1fffffff, 0}, half = {0x10000000, 1, 0x10000000, 1};
    const vi magnitude = {0, 0x7fffffff, 0, 0x7fffffff}, least = {0, 0x38100000, 0, 0x38100000}; /* 2^-126 */
    vi words = (vi)sum;

    return (vl)(((words & tail) == half) | (((words & magnitude) < least) & (vi)(sum != 0)));
}

SLOW vf vf_fma(vf a, vf b, vf c)
{
    vd low = vd_low(a) * vd_low(b) + vd_low(c), high = vd_high(a) * vd_high(b) + vd_high(c);
    vl twice = may_round_twice(low) | may_round_twice(high);

    if (__builtin_expect((twice[0] | twice[1]) != 0, 0)) {
        low = vd_fma_to_odd(vd_low(a), vd_low(b), vd_low(c));
        high = vd_fma_to_odd(vd_high(a), vd_high(b), vd_high(c));
    }
    return vf_round(low, high);
}
#endif

/* exp, as numerics.h states it, of n vectors side by side, since each waits for itself at every step. What is below
 * `lowest` becomes 0: EXP_LOWEST, or more. */
INLINE void vf_exp_each(const int n, vf *x, const float lowest)
{
    enum { MAX_EACH = 4 };
    vi lives[MAX_EACH];
    vf shifted[MAX_EACH], r[MAX_EACH], p[MAX_EACH];

    UNROLL for (int i = 0; i < n; i++) {
        lives[i] = ~(x[i] < lowest);
        x[i] = vf_min(vf_set(EXP_HIGHEST), x[i]);
        shifted[i] = vf_fma(x[i], vf_set(EXP_LOG2_E), vf_set(EXP_ROUND));
    }
    UNROLL for (int i = 0; i < n; i++) {
        vf round = shifted[i] - EXP_ROUND;

        r[i] = vf_fma(round, vf_set(-EXP_LN2_LOW), vf_fma(round, vf_set(-EXP_LN2_HIGH), x[i]));
    }
    UNROLL for (int i = 0; i < n; i++)
        p[i] = vf_fma(vf_set(EXP_P0), r[i], vf_set(EXP_P1));
    UNROLL for (int i = 0; i < n; i++)
        p[i] = vf_fma(p[i], r[i], vf_set(EXP_P2));
    UNROLL for (int i = 0; i < n; i++)
        p[i] = vf_fma(p[i], r[i], vf_set(EXP_P3));
    UNROLL for (int i = 0; i < n; i++)
        p[i] = vf_fma(p[i], r[i], vf_set(EXP_P4));
    UNROLL for (int i = 0; i < n; i++)
        p[i] = vf_fma(p[i], r[i], vf_set(EXP_P5));
    UNROLL for (int i = 0; i < n; i++) {
        vf power = (vf)(((vu)shifted[i] + 127) << 23);

        p[i] = vf_fma(p[i], r[i] * r[i], r[i]) + 1.0f;
        x[i] = (vf)(lives[i] & (vi)(p[i] * power));
    }
}

SLOW vf vf_exp(vf x)
{
    vf_exp_each(1, &x, EXP_LOWEST);
    return x;
}

/* ---- halves -------------------------------------------------------------------------------------- */

INLINE vf vf_load_half(const uint16_t *p)
{
#if defined(VEC_AVX512)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(VEC_AVX2)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vi h = vi_load_u16(p), magnitude = (h & 0x7fff) << 13;
    vi special = magnitude >= 0x0f800000; /* infinity or NaN */
    vi bits = (vi)((vf)magnitude * 0x1p112f) | (special & 0x7f800000);

    return (vf)(bits | (h & 0x8000) << 16);
#endif
}

/* Rounded to nearest even. */
INLINE void vf_store_half(uint16_t *p, vf v)
{
#if defined(VEC_AVX512)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(VEC_AVX2)
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES; i++)
        p[i] = float_to_half(v[i]);
#endif
}

/* ---- bfloat16: the high half of a float's bits, the low one 0 ------------------------------------------ */

/* Of numbers that are 0 or at least BFLOAT16_LEAST. */
INLINE vf vf_round_bfloat16(vf x)
{
    return (vf)(((vi)x + 0x7fff + (vi)((vu)x >> 16 & 1)) & (int)0xffff0000);
}

/* bfloat16_of_float. */
INLINE vf vf_bfloat16(vf x)
{
    vf rounded = (vf)((vi)vf_round_bfloat16(x) & ~(vf_abs(x) < BFLOAT16_LEAST));

    return vf_select(x == x, rounded, (vf)vi_set(0x7fc00000));
}

/* Of pairs in 32 bits, the first, or the second. */
INLINE vf vf_of_pairs(vi pairs, int second)
{
    return second ? (vf)(pairs & (int)0xffff0000) : (vf)(pairs << 16);
}

/* Each pair of lanes the other way round. */
INLINE vf vf_turn_pairs(vf x)
{
#if defined(VEC_AVX512)
    return (vf)_mm512_permute_ps((__m512)x, 0xb1);
#elif defined(VEC_AVX2)
    return (vf)_mm256_permute_ps((__m256)x, 0xb1);
#elif defined(VEC_SSE2)
    return (vf)_mm_shuffle_ps((__m128)x, (__m128)x, 0xb1);
#else
    for (int i = 0; i < LANES; i += 2) {
        float first = x[i];

        x[i] = x[i + 1];
        x[i + 1] = first;
    }
    return x;
#endif
}

#if defined(VEC_AVX512BF16)
/* acc + second * second, and to that + first * first, each rounded once. */
INLINE vf vf_dot_pairs(vf acc, vi a, vi b)
{
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
}
#endif

/* ---- 8 bits --------------------------------------------------------------------------------------- */

/* LANES signed bytes. */
INLINE vf vf_load_s8(const void *p)
{
#if defined(VEC_AVX512) /* gcc 12 would do it in four steps */
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(VEC_AVX2)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
    return __builtin_convertvector(__builtin_convertvector(*(const bytes *)p, vi), vf);
#endif
}

/* LANES codes of e4m3fn, as 1 / FP8_SCALE of their values: those of halves that have the same bits of exponent. */
INLINE vf vf_load_fp8(const void *p)
{
#if defined(VEC_AVX512)
    __m128i codes = _mm_loadu_si128((const __m128i *)p);
    __m256i halves = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);

    return (vf)_mm512_cvtph_ps(_mm256_and_si256(halves, _mm256_set1_epi16((short)0xbfff)));
#elif defined(VEC_AVX2)
    __m128i codes = _mm_loadl_epi64((const __m128i *)p);
    __m128i halves = _mm_slli_epi16(_mm_cvtepi8_epi16(codes), 7);

    return (vf)_mm256_cvtph_ps(_mm_and_si128(halves, _mm_set1_epi16((short)0xbfff)));
#else
    vi codes = vi_load_u8(p);

    return (vf)((vi)((vf)((codes & 0x7f) << 20) * 0x1p112f) | (codes & 0x80) << 24);
#endif
}

/* The codes of e4m3fn, as float_to_fp8 makes them. */
INLINE vi vf_to_fp8(vf x)
{
    vi bits = (vi)vf_min(vf_abs(x), vf_set(448)), sign = (vi)((vu)x >> 24) & 0x80;
    vi few = (vi)((vf)bits + 0x1p14f) - (vi)vf_set(0x1p14f); /* 2^-9s: below the least of full precision */
    vi code = (bits - (120 << 23) + 0x7ffff + (bits >> 20 & 1)) >> 20;

    code = (vi)vf_select((vf)bits < 0x1p-6f, (vf)few, (vf)code);
    return (vi)vf_select(x == x, (vf)code, (vf)vi_set(0x7f)) | sign;
}

/* The low 16 bits of each lane. */
INLINE void vi_store_u16(uint16_t *p, vi v)
{
    typedef uint16_t words __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
    *(words *)p = __builtin_convertvector(v, words);
}

/* ---- dot products of bytes --------------------------------------------------------------------- */

/* Lane: low 16 bits times low 16 bits plus high times high, all signed. */
SLOW vi vs_dot(vi a, vi b)
{
#if defined(VEC_AVX512)
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(VEC_AVX2)
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(VEC_SSE2)
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

#if LANES == 16 || defined(VEC_AVXVNNI)
#define OFFSET_CODES 1 /* signed codes become unsigned: see signed_start */
#else
#define OFFSET_CODES 0
#endif

#if defined(VEC_AVX2) && !defined(VEC_AVXVNNI)
#define DOT_IN_PAIRS 1 /* of 16 bits */
#else
#define DOT_IN_PAIRS 0
/* acc + the dot product of a lane's four unsigned bytes of w and its four signed bytes of a. */
SLOW vi vi_dot_bytes(vi acc, vi w, vi a)
{
#if defined(VEC_AVX512)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)a);
#elif defined(VEC_AVXVNNI)
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)a);
#else
    vi even = vs_dot(w & 0x00ff00ff, (vi)(((vs)a << 8) >> 8));

    return acc + even + vs_dot((vi)((vu)w >> 8) & 0x00ff00ff, (vi)((vs)a >> 8));
#endif
}
#endif

/* 32 codes of [-127, 127], in 32 / LANES vectors, as bytes at q, and the sum of each half of them. */
SLOW void store_codes(int8_t *q, const vi *codes, int32_t sums[2])
{
#if defined(VEC_AVX512) || defined(VEC_AVX2)
#if defined(VEC_AVX512)
    __m256i bytes = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm512_cvtepi32_epi8((__m512i)codes[0])),
        _mm512_cvtepi32_epi8((__m512i)codes[1]), 1);
#else
    /* Packing works in each half by itself: what comes of it is put back in order. */
    __m256i low = _mm256_packs_epi32((__m256i)codes[0], (__m256i)codes[1]);
    __m256i high = _mm256_packs_epi32((__m256i)codes[2], (__m256i)codes[3]);
    __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                                _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i halves = _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));

    halves = _mm_hadd_epi32(halves, halves);
    _mm256_storeu_si256((__m256i *)q, bytes);
    sums[0] = _mm_extract_epi32(halves, 0);
    sums[1] = _mm_extract_epi32(halves, 1);
#else
    sums[0] = sums[1] = 0;
    for (int i = 0; i < 32; i++) {
        int32_t code = codes[i / LANES][i % LANES];

        q[i] = (int8_t)code;
        sums[i / 16] += code;
    }
#endif
}

/*
 * A sum of several dot products of unsigned codes, in steps: AVX2 adds pairs in 16 bits, which
 * must be widened before they overflow, and the others are 32 bits wide from the start.
 */
INLINE vi dot_step(vi acc, vi codes, vi a)
{
#if DOT_IN_PAIRS
    acc = (vi)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)codes, (__m256i)a));
    __asm__("" : "+x"(acc)); /* gcc 12 would put the additions off, and spill what they add */
    return acc;
#else
    return vi_dot_bytes(acc, codes, a);
#endif
}

/* How many steps of codes below 2^bits fit: 127 * 2 * (2^bits - 1) each in 16 bits signed. */
#if DOT_IN_PAIRS
#define DOT_STEPS(bits) ((bits) <= 4 ? 8 : (bits) == 5 ? 4 : 2)
#else
#define DOT_STEPS(bits) 8
#endif

INLINE vi dot_widen(vi acc)
{
#if DOT_IN_PAIRS
    return vs_dot(acc, vi_set(0x00010001));
#else
    return acc;
#endif
}

/* dot_widen(acc) times a scale: the lane's low (half 0) or high (half 1) 16 bits of `scales`. */
INLINE vi dot_scale(vi acc, vi scales, int half)
{
#if DOT_IN_PAIRS
    vi low = (scales & 0xffff) | scales << 16, high = (scales & ~0xffff) | (vi)((vu)scales >> 16);

    return vs_dot(acc, half ? high : low);
#else
    return acc * (half ? scales >> 16 : (scales << 16) >> 16);
#endif
}

/* total + low * low + high * high. */
INLINE vi vs_dot_add(vi total, vi a, vi b)
{
#if defined(VEC_AVX512)
    return (vi)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(VEC_AVXVNNI)
    return (vi)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#else
    return total + vs_dot(a, b);
#endif
}

/* The low 16 bits in the high ones too. */
INLINE vi vs_twice(vi low)
{
    return (low & 0xffff) | low << 16;
}

/*
 * A block of SCALE_WHOLE: sum = whole_start, a dot_step for each k-group, between those of the two halves of codes of
 * five bits whole_middle, and then whole_end makes of total
 * total + s * sum((u - offset) * a) + t * sum(a).
 * starts, block: as put_starts has them; st: of each column, s in the low 16 bits, t in the high ones, 0 where there is
 * no minimum.
 */
#if DOT_IN_PAIRS /* each half of a lane has a part of the sum, and no room for more: the offset is taken off the end */
INLINE vi whole_start(struct quant_form form, const int32_t *const *starts, int64_t block)
{
    (void)form;
    (void)starts;
    (void)block;
    return vi_set(0);
}

INLINE vi whole_middle(vi *total, vi sum, const int32_t *const *starts, int64_t block, vi st)
{
    (void)starts;
    (void)block;
    *total = vs_dot_add(*total, sum, vs_twice(st));
    return vi_set(0);
}

INLINE vi whole_end(struct quant_form form, vi total, vi sum, const int32_t *const *starts, int64_t block, vi st)
{
    total = vs_dot_add(total, sum, vs_twice(st));
    if (form.code_bits == 4 && !form.has_min)
        return vs_dot_add(total, vi_broadcast(starts[START_PLAIN] + block), st);
    if (form.code_bits == 4)
        return vs_dot_add(total, vi_broadcast(starts[START_MIN] + block) ^ 0x8000, st);
    total = vs_dot_add(total, vi_broadcast(starts[START_HALVES] + block), vs_twice(st));
    return form.has_min ? vs_dot_add(total, vi_broadcast(starts[START_MIN] + block) & (int)0xffff0000, st) : total;
}
#else
INLINE vi whole_start(struct quant_form form, const int32_t *const *starts, int64_t block)
{
    return vi_broadcast(starts[form.code_bits == 5 ? START_HALVES : form.has_min ? START_MIN : START_PLAIN] + block);
}

/* The first half's sum goes to the high 16 bits, and the second's, which is positive, comes below it. */
INLINE vi whole_middle(vi *total, vi sum, const int32_t *const *starts, int64_t block, vi st)
{
    (void)total;
    (void)st;
    return (sum << 16) + vi_broadcast(starts[START_SECOND] + block);
}

INLINE vi whole_end(struct quant_form form, vi total, vi sum, const int32_t *const *starts, int64_t block, vi st)
{
    if (form.code_bits == 4)
        return vs_dot_add(total, sum ^ (form.has_min ? 0x8000 : 0), st);
    total = vs_dot_add(total, sum ^ 0x8000, vs_twice(st));
    return form.has_min ? vs_dot_add(total, vi_broadcast(starts[START_MIN] + block) & (int)0xffff0000, st) : total;
}
#endif

/*
 * Signed codes: sum = signed_start(sum of a over the whole block), then signed_step for each part
 * of it. signed_codes makes of stored codes what signed_step reads.
 */
INLINE vi signed_start(int sum_a)
{
#if OFFSET_CODES /* dot products have one unsigned side: 128 is added to codes, and taken off here */
    return vi_set(-128 * sum_a);
#else
    (void)sum_a;
    return vi_set(0);
#endif
}

INLINE vi signed_codes(vi codes)
{
#if OFFSET_CODES
    return codes ^ (int)0x80808080;
#else
    return codes;
#endif
}

INLINE vi signed_step(vi sum, vi codes, vi a)
{
#if OFFSET_CODES
    return vi_dot_bytes(sum, codes, a);
#elif DOT_IN_PAIRS
    /* |codes| * (a with their sign): 128 * 127 * 2 fits 16 bits. */
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)codes),
                                         _mm256_sign_epi8((__m256i)a, (__m256i)codes));
    sum += vs_dot((vi)pairs, vi_set(0x00010001));
    __asm__("" : "+x"(sum));
    return sum;
#else
    vi even = vs_dot((vi)(((vs)codes << 8) >> 8), (vi)(((vs)a << 8) >> 8));

    return sum + even + vs_dot((vi)((vs)codes >> 8), (vi)((vs)a >> 8));
#endif
}

#endif
