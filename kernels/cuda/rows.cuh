/*
 * rows: what kernels that write rows of activations share: how a row lies over threads, how its squares are summed
 * up, how it is quantised.
 *
 * A thread has four neighbours of a row, a quad: 16 bytes of a load, and 8 threads to a block of 32.
 */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda/simt.h"
#include "kernels/kernels.h"
#include "kernels/numerics.h"
#include "kernels/quant_block.h"

enum {
    QUAD = 4,
    BLOCK_QUADS = QUANT_BLOCK / QUAD,
    SQUARES_ROUND = 16 * SUM_LANES, /* of add_squares: that are on their way while as many are added up */
};

static __device__ __forceinline__ float4 load_quad(const float *p)
{
    return *(const float4 *)p;
}

static __device__ __forceinline__ void store_quad(float *p, float4 x)
{
    *(float4 *)p = x;
}

/* ---- the RMS norm of a row ----------------------------------------------------------------------------------- */

/*
 * Adds the squares of x: [n] to the partial sum of this lane, lane % SUM_LANES, as numerics.h says: one warp, x in
 * shared memory, n a multiple of SQUARES_ROUND, where zeros may fill it up, whose squares change no bits. As many
 * elements behind it are read, and not used.
 *
 * This is what takes time in a row that is alone: n / 16 fmas that wait for each other, 4 cycles each. So all else
 * is out of their way: a load from shared memory (16 words side by side, no bank twice) for each, a round before.
 */
static __device__ __forceinline__ float add_squares(float squares, const float *x, int32_t n)
{
    enum { STEPS = SQUARES_ROUND / SUM_LANES };
    const volatile float *own = x + threadIdx.x % SUM_LANES; /* or the compiler loads them when they are added */
    float ahead[STEPS];

#pragma unroll
    for (int s = 0; s < STEPS; s++)
        ahead[s] = own[s * SUM_LANES];
#pragma unroll 1
    for (; n > 0; n -= SQUARES_ROUND) {
        own += SQUARES_ROUND;
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            squares = fmaf(ahead[s], ahead[s], squares);
            ahead[s] = own[s * SUM_LANES];
        }
    }
    return squares;
}

/* The scale of the norm of a row of n, from the partial sums of a warp's lanes; in all of them. */
static __device__ __forceinline__ float norm_scale(float squares, int32_t n, float eps)
{
#pragma unroll
    for (int width = SUM_LANES / 2; width; width /= 2)
        squares += __shfl_xor_sync(ALL_LANES, squares, width);
    return 1.0f / sqrtf(squares / (float)n + eps);
}

/* ---- activations --------------------------------------------------------------------------------------------- */

/* x to the nearest, ties to even, |x| below 128; NaN: 0. (The low bits of x + EXP_ROUND are round(x).) */
static __device__ __forceinline__ int32_t round_code(float x)
{
    return __float_as_int((x == x ? x : 0.0f) + EXP_ROUND) - __float_as_int(EXP_ROUND);
}

static __device__ __forceinline__ uint32_t pack_codes(int32_t a, int32_t b, int32_t c, int32_t d)
{
    return (uint32_t)(a & 255) | (uint32_t)(b & 255) << 8 | (uint32_t)(c & 255) << 16 | (uint32_t)d << 24;
}

/* Quads of a warp of those that write activations: whole groups, so that their codes are found among its lanes. Eight
 * lanes have none where groups are of 96 columns. */
static inline int32_t warp_quads(const struct activations *a)
{
    return a->q ? WARP - WARP % (a->group / QUAD) : WARP;
}

/* Where in the row the quad of a thread of these is, counted over those of the row; beyond any row if it has none. */
static __device__ __forceinline__ int32_t quad_at(int32_t thread, int32_t warp_quads)
{
    const int32_t lane = thread % WARP;

    return lane < warp_quads ? (thread / WARP * warp_quads + lane) * QUAD : INT32_MAX;
}

/* Elements [i, i + 4) of a, counted over rows, quantised. All lanes of a warp come here, with quads as quad_at says;
 * `in`: this one is wanted, and so is all of its group. Those that are not are zeros. */
static __device__ __forceinline__ void quantize_quad(const struct activations &a, int64_t i, bool in, float4 x)
{
    float most = fmaxf(fabsf(x.x), 0.0f); /* fmaxf passes over NaN */

    most = fmaxf(fmaxf(fabsf(x.y), fabsf(x.z)), fmaxf(fabsf(x.w), most));
#pragma unroll
    for (int width = 1; width < WARP; width *= 2)
        if (width < a.group / QUAD) /* 24 lanes of 32: the others have 0 */
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, width));

    float scale = most < SMALLEST_MAX ? 0.0f : most / 127.0f;
    float inverse = most < SMALLEST_MAX ? 0.0f : 127.0f / most;
    int32_t q0 = round_code(x.x * inverse), q1 = round_code(x.y * inverse);
    int32_t q2 = round_code(x.z * inverse), q3 = round_code(x.w * inverse);
    int32_t sum = q0 + q1 + q2 + q3;

#pragma unroll
    for (int width = 1; width < BLOCK_QUADS / 2; width *= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, width);

    int32_t other_half = __shfl_xor_sync(ALL_LANES, sum, BLOCK_QUADS / 2);

    if (!in)
        return;
    *(uint32_t *)(a.q + i) = pack_codes(q0, q1, q2, q3);
    if (threadIdx.x % BLOCK_QUADS == 0) {
        int64_t block = i / QUANT_BLOCK;

        a.d[block] = scale;
        if (a.z)
            a.z[block] = scale * (float)(sum + other_half);
        *(uint32_t *)(a.sums + 2 * block) = (uint32_t)(sum & 0xffff) | (uint32_t)other_half << 16;
    }
}

/* The same in whichever of the two forms are wanted. */
static __device__ __forceinline__ void put_quad(const struct activations &a, int64_t i, bool in, float4 x)
{
    if (a.x && in)
        store_quad(a.x + i, x);
    if (a.q)
        quantize_quad(a, i, in, x);
}

/* Whether quads of these can be read and written. */
static inline bool is_aligned(const void *p)
{
    return (uintptr_t)p % sizeof(float4) == 0;
}

/* And whether groups are such as warps have. */
static inline bool can_write_activations(const struct activations *a)
{
    return (!a->q || has_whole_groups(a)) && is_aligned(a->x) && is_aligned(a->q) &&
           (uintptr_t)a->sums % sizeof(uint32_t) == 0;
}

#endif
