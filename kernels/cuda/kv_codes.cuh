/*
 * kv_codes: what a KV cache holds of a float; and codes of 8 bits on their way to kernels, which attend to halves: in
 * shared memory a code becomes the half that it stands for. What codes mean is at struct kv_layer, in kernels.h.
 */
#ifndef KERNELS_CUDA_KV_CODES_CUH
#define KERNELS_CUDA_KV_CODES_CUH

#include "kernels/cuda/simt.h"
#include "kernels/kernels.h"
#include "kernels/numerics.h"

/* Bytes 0 and 1 of a word, in the low byte of a half each; and bytes 2 and 3. */
static __device__ __forceinline__ uint32_t low_bytes(uint32_t word)
{
    return (word & 0xff) | (word & 0xff00) << 8;
}

static __device__ __forceinline__ uint32_t high_bytes(uint32_t word)
{
    return low_bytes(word >> 16);
}

/* Two codes, one in each half, as halves: those of KV_FP8 with their scale, those of KV_INT8 without. */
static __device__ __forceinline__ uint32_t half_pair_of_codes(enum kv_type type, uint32_t codes)
{
    const uint32_t plus_128 = 0x64806480, scales = 0x5c005c00, minus_0 = 0x80008000; /* 1024 + 128; 256 */
    const uint32_t ones = 0x3c003c00, minus_1152 = 0xe480e480;

    if (type == KV_FP8)
        return half_pair_fma((codes & 0x00800080) << 8 | (codes & 0x007f007f) << 7, scales, minus_0);
    return half_pair_fma(codes ^ plus_128, ones, minus_1152);
}

/* Eight codes, in order. */
static __device__ __forceinline__ uint4 halves_of_codes(enum kv_type type, uint2 codes)
{
    return make_uint4(half_pair_of_codes(type, low_bytes(codes.x)), half_pair_of_codes(type, high_bytes(codes.x)),
                      half_pair_of_codes(type, low_bytes(codes.y)), half_pair_of_codes(type, high_bytes(codes.y)));
}

/* The bits of numerics.h's bfloat16_of_float. */
static __device__ __forceinline__ uint16_t bf16_of_float(float f)
{
    uint32_t bits = __float_as_uint(f), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;

    rounded = fabsf(f) < BFLOAT16_LEAST ? 0 : rounded;
    return (uint16_t)(f == f ? rounded : 0x7fc0);
}

/* The code of KV_FP8. */
static __device__ __forceinline__ uint8_t fp8_of_float(float f)
{
    float magnitude = fminf(fabsf(f), 448.0f);
    uint32_t bits = __float_as_uint(magnitude), sign = __float_as_uint(f) >> 24 & 0x80;
    uint32_t few = __float_as_uint(magnitude + 0x1p14f) - __float_as_uint(0x1p14f); /* steps of 2^-9 */
    uint32_t code = (bits - (120u << 23) + 0x7ffff + (bits >> 20 & 1)) >> 20;

    code = magnitude < 0x1p-6f ? few : code;
    return (uint8_t)((f == f ? code : 0x7f) | sign);
}

#endif
