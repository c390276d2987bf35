/*
 * simt: the words of CUDA that kernels here are written in, beyond those of the language itself.
 *
 * Everything that is not CUDA C++ proper (PTX, launches, dynamic shared memory) is here and nowhere else, so that
 * the kernels are also ordinary C++ in which tests run them without a GPU: there, <emulated_simt.h> is found in
 * the place of the toolkit (tests/cuda).
 *
 * Words used from the toolkit: __global__, __device__, __shared__, __restrict__, __launch_bounds__, threadIdx,
 * blockIdx, blockDim, gridDim, dim3, float2, float4, int2, int4, uint2, uint4 and their make_, __syncthreads,
 * __syncwarp, __shfl_sync, __shfl_xor_sync, __shfl_down_sync, __ballot_sync, __any_sync, __ldg, __threadfence,
 * __threadfence_system, atomicAdd, atomicMax, __float_as_uint, __uint_as_float, __float_as_int, __int_as_float,
 * fma, fmaf, sqrtf, rintf, fabsf, fmaxf, fminf, log, nextafterf, memcpy, __popc, __ffs, __clz, min, max, INFINITY,
 * and __host__ beside __device__. No others, without adding them to both sides.
 *
 * One answer: nothing is fused or approximated unless a kernel says so (-fmad=false, no fast math), and all lanes of a
 * warp take part in every _sync word.
 */
#ifndef KERNELS_CUDA_SIMT_H
#define KERNELS_CUDA_SIMT_H

#include <stdint.h>

#ifdef __CUDACC__

#include <cuda_fp16.h>
#include <cuda_runtime.h>

/* Of the block; 16-byte aligned, as many bytes as its launch said. */
static __device__ __forceinline__ char *dynamic_shared()
{
    extern __shared__ __align__(16) char tandem_dynamic_shared[];

    return tandem_dynamic_shared;
}

static __device__ __forceinline__ float float_of_half(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}

/* Nearest, ties to even. */
static __device__ __forceinline__ uint16_t half_of_float(float f)
{
    return __half_as_ushort(__float2half_rn(f));
}

static __device__ __forceinline__ float float_of_bf16(uint16_t b)
{
    return __uint_as_float((uint32_t)b << 16);
}

/* Two bf16 side by side, `low` in the low half. Nearest, ties to even. */
static __device__ __forceinline__ uint32_t bf16_pair_of_floats(float low, float high)
{
    uint32_t pair;

    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Two halves, likewise. */
static __device__ __forceinline__ uint32_t half_pair_of_floats(float low, float high)
{
    uint32_t pair;

    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Of two halves each, a * b + c, which is a half: nothing is rounded. */
static __device__ __forceinline__ uint32_t half_pair_fma(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t pair;

    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
}

#if __CUDA_ARCH__ >= 890
#define HAS_FP8_HALVES /* the device knows what codes of 8 bits stand for */

/* Four codes of e4m3fn, the first in the low byte, as the halves of the same values: in two pairs. */
static __device__ __forceinline__ void half_pairs_of_fp8(uint32_t pairs[2], uint32_t codes)
{
    asm("{\n"
        ".reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low;\n"
        "cvt.rn.f16x2.e4m3x2 %1, high;\n"
        "}"
        : "=r"(pairs[0]), "=r"(pairs[1])
        : "r"(codes));
}
#endif

/* 2^x, nearly: off by 2^-22 of it, or a little more; 1 of 0, and 0 where it is below 2^-126, as of -infinity. */
static __device__ __forceinline__ float exp2_approx(float x)
{
    float power;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

/* A float's 19 highest bits, the others 0. Nearest, ties away from zero. */
static __device__ __forceinline__ uint32_t tf32_of_float(float f)
{
    uint32_t bits;

    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(f));
    return bits;
}

/* The same, but what follows from it is found out where it stands: a compiler that does so ahead of a loop, for
 * what is rarely wanted, has no registers left for the rest. */
static __device__ __forceinline__ int32_t unforeseen(int32_t x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/*
 * One warp's d = a · b + d of whole numbers, exact (PTX ISA, "Matrix Fragments for mma.m16n8k32"). With
 * g = lane / 4 and t = lane % 4, a lane holds
 *  a[0] row g,     k 4t..4t+3        b[0] column g, k 4t..4t+3         d[0], d[1] row g,     columns 2t, 2t + 1
 *  a[1] row g + 8, k 4t..4t+3        b[1] column g, k 16+4t..16+4t+3   d[2], d[3] row g + 8, columns 2t, 2t + 1
 *  a[2] row g,     k 16+4t..16+4t+3
 *  a[3] row g + 8, k 16+4t..16+4t+3
 * the lowest byte first, all signed.
 */
static __device__ __forceinline__ void mma_s8_k32(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* The same over k 0..15 alone: a[0], a[1] and b. */
static __device__ __forceinline__ void mma_s8_k16(int32_t d[4], const uint32_t a[2], uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                 "{%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

/*
 * The same of floats, of bf16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"). How the
 * products and d are rounded while they are added up is the device's affair: of each of d in the same way, from its
 * row of a and its column of b, in their order. With g and t as above, a lane holds
 *  a[0] row g,     k 2t, 2t + 1        b[0] column g, k 2t, 2t + 1         d as above
 *  a[1] row g + 8, k 2t, 2t + 1        b[1] column g, k 8 + 2t, 9 + 2t
 *  a[2] row g,     k 8 + 2t, 9 + 2t
 *  a[3] row g + 8, k 8 + 2t, 9 + 2t
 * the lower k in the low half.
 */
static __device__ __forceinline__ void mma_bf16_k16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* And of halves, which lie as bf16 do. A product with a zero changes nothing. */
static __device__ __forceinline__ void mma_f16_k16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/*
 * And of tf32, which are floats whose lowest 13 bits are not looked at ("mma.m16n8k8"). A lane holds
 *  a[0] row g,     k t          b[0] column g, k t         d as above
 *  a[1] row g + 8, k t          b[1] column g, k t + 4
 *  a[2] row g,     k t + 4
 *  a[3] row g + 8, k t + 4
 */
static __device__ __forceinline__ void mma_tf32_k8(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/*
 * Fragments of an mma from shared memory: four matrices of 8 x 8 words of 16 bits, whose rows are 16-byte aligned.
 * Lane 8 i + j knows where row j of matrix i is, and gets of each matrix, in order, elements 2t, 2t + 1 of row g.
 */
static __device__ __forceinline__ void ldmatrix_x4(uint32_t words[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* The same, turned round: of each matrix, elements g of rows 2t, 2t + 1. */
static __device__ __forceinline__ void ldmatrix_x4_trans(uint32_t words[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* 16 bytes from global to shared memory, both 16-byte aligned; there after cp_async_wait and a barrier of those
 * who read it. */
static __device__ __forceinline__ void cp_async_16(void *shared, const void *global)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global));
}

static __device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;");
}

/* Until at most `pending` of this thread's commits are still on their way. It may read then what it has copied. */
template <int pending> static __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Flags in memory that other devices, processes or the host see. */
static __device__ __forceinline__ void store_release_system(uint32_t *p, uint32_t value)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

static __device__ __forceinline__ uint32_t load_acquire_system(const uint32_t *p)
{
    uint32_t value;

    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}

/* Nanoseconds of the device's clock. */
static __device__ __forceinline__ uint64_t global_timer()
{
    uint64_t ns;

    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}

/* kernel<<<grid, block, shared_bytes, stream>>>(args): what goes wrong is cudaGetLastError's. */
template <typename... Params, typename... Args>
static void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Args... args)
{
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
}

/* Before the first launch of a kernel with more dynamic shared memory than 48 KiB. */
template <typename... Params> static cudaError_t allow_shared(void (*kernel)(Params...), int bytes)
{
    return cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

#else
#include <emulated_simt.h>
#endif

enum { WARP = 32 };
static const unsigned ALL_LANES = 0xffffffffu;

#endif
