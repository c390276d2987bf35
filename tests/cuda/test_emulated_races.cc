/* That races of kernels are told, and nothing else is: each kernel runs in a process of its own. */
extern "C" {
#include "tests/support/expect.h"
}

#include "kernels/cuda/simt.h"
#include "tests/cuda/hear.h"

#include <stdio.h>

enum { THREADS = 64, BLOCKS = 2 };

static __device__ int *shared_ints()
{
    return (int *)dynamic_shared();
}

/* ---- barriers -------------------------------------------------------------------------------- */

template <bool has_barrier> static __global__ void read_another_warp_s(int *out)
{
    int *x = shared_ints();

    x[threadIdx.x] = (int)threadIdx.x;
    if (has_barrier)
        __syncthreads();
    else
        __syncwarp();
    out[blockIdx.x * THREADS + threadIdx.x] = x[THREADS - 1 - threadIdx.x];
}

template <bool has_barrier> static __global__ void write_again(int *out)
{
    __shared__ int x[THREADS];

    x[threadIdx.x] = (int)threadIdx.x;
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = x[THREADS - 1 - threadIdx.x];
    if (has_barrier)
        __syncthreads();
    x[threadIdx.x] = 0;
}

/* ---- words of a warp ------------------------------------------------------------------------- */

template <bool has_syncwarp> static __global__ void read_another_lane_s(int *out)
{
    int *x = shared_ints();

    x[threadIdx.x] = (int)threadIdx.x;
    if (has_syncwarp)
        __syncwarp();
    else
        __shfl_xor_sync(ALL_LANES, 0, 1);
    out[blockIdx.x * THREADS + threadIdx.x] = x[threadIdx.x ^ 1];
}

template <bool has_syncwarp> static __global__ void write_what_ldmatrix_read(int *out)
{
    int *x = shared_ints() + threadIdx.x / WARP * WARP * 4, *own = x + threadIdx.x % WARP * 4;
    uint32_t words[4];

    for (int i = 0; i < 4; i++)
        own[i] = i;
    __syncwarp();
    ldmatrix_x4(words, own);
    if (has_syncwarp)
        __syncwarp();
    x[(WARP - 1 - threadIdx.x % WARP) * 4] = 0;
    out[blockIdx.x * THREADS + threadIdx.x] = (int)words[0];
}

static __global__ void write_as_one(int *out)
{
    int *x = shared_ints();

    *x = 5; /* the same, and yet 64 times */
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = *x;
}

static __global__ void write_neighbours(int *out)
{
    uint8_t *x = (uint8_t *)dynamic_shared();

    x[threadIdx.x] = (uint8_t)threadIdx.x;
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = x[threadIdx.x ^ 1];
}

/* ---- cp.async -------------------------------------------------------------------------------- */

enum order { WAIT_AND_MEET, MEET_AND_WAIT, NO_WAIT };

template <enum order order> static __global__ void read_what_comes(int *out)
{
    int *x = shared_ints();

    cp_async_16(x + threadIdx.x * 4, out + (BLOCKS + blockIdx.x * 4) * THREADS + threadIdx.x * 4);
    cp_async_commit();
    if (order == WAIT_AND_MEET)
        cp_async_wait<0>();
    __syncthreads();
    if (order == MEET_AND_WAIT)
        cp_async_wait<0>();
    out[blockIdx.x * THREADS + threadIdx.x] = x[(threadIdx.x ^ 32) * 4];
}

template <bool has_barrier> static __global__ void fetch_over_what_is_read(int *out)
{
    int *x = shared_ints();

    x[threadIdx.x * 4] = 1;
    __syncthreads();
    out[blockIdx.x * THREADS + threadIdx.x] = x[(threadIdx.x ^ 32) * 4];
    if (has_barrier)
        __syncthreads();
    cp_async_16(x + threadIdx.x * 4, out + (BLOCKS + blockIdx.x * 4) * THREADS + threadIdx.x * 4);
    cp_async_commit();
    cp_async_wait<0>();
}

/* ---- atomics --------------------------------------------------------------------------------- */

enum reading { NONE, PLAIN, VOLATILE };

template <enum reading reading> static __global__ void add_up(int *out)
{
    int *x = shared_ints();

    if (threadIdx.x == 0)
        *x = 0;
    __syncthreads();
    atomicAdd(x, 1);
    if (reading == PLAIN)
        out[blockIdx.x * THREADS + threadIdx.x] = *x;
    if (reading == VOLATILE)
        out[blockIdx.x * THREADS + threadIdx.x] = *(volatile int *)x;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static __global__ void write_over_each_other(int *out)
{
    out[threadIdx.x] = (int)blockIdx.x;
}

static __global__ void write_what_all_read(int *out)
{
    if (blockIdx.x + 1 < BLOCKS)
        out[threadIdx.x] = out[BLOCKS * THREADS];
    else if (threadIdx.x == 0)
        out[BLOCKS * THREADS] = 1;
}

static __global__ void count_together(int *out)
{
    atomicAdd(out, 1);
}

/* ---- all of them ----------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*kernel)(int *out);
    const char *said; /* NULL: there is no race */
} cases[] = {
    {"read_another_warp_s", read_another_warp_s<true>, NULL},
    {"read_another_warp_s, apart", read_another_warp_s<false>, " shared memory at "},
    {"write_again", write_again<true>, NULL},
    {"write_again, early", write_again<false>, " shared memory at "},
    {"read_another_lane_s", read_another_lane_s<true>, NULL},
    {"read_another_lane_s, behind a shuffle", read_another_lane_s<false>, " shared memory at "},
    {"write_what_ldmatrix_read", write_what_ldmatrix_read<true>, NULL},
    {"write_what_ldmatrix_read, early", write_what_ldmatrix_read<false>, " shared memory at "},
    {"write_as_one", write_as_one, "writes shared memory at "},
    {"write_neighbours", write_neighbours, NULL},
    {"read_what_comes", read_what_comes<WAIT_AND_MEET>, NULL},
    {"read_what_comes, which others wait for late", read_what_comes<MEET_AND_WAIT>, " shared memory at "},
    {"read_what_comes, for which nobody waits", read_what_comes<NO_WAIT>, "asked for and not waited for"},
    {"fetch_over_what_is_read", fetch_over_what_is_read<true>, NULL},
    {"fetch_over_what_is_read, early", fetch_over_what_is_read<false>, ": nothing puts one before"},
    {"add_up", add_up<NONE>, NULL},
    {"add_up, and read at once", add_up<PLAIN>, ": nothing puts one before the other"},
    {"add_up, and look at once", add_up<VOLATILE>, NULL},
    {"write_over_each_other", write_over_each_other, "of another block has written"},
    {"write_what_all_read", write_what_all_read, " global memory at "},
    {"count_together", count_together, NULL},
};

static void run(void (*kernel)(int *out))
{
    int *p;

    if (cudaMalloc(&p, 1 << 16) != cudaSuccess || cudaMemset(p, 0, 1 << 16) != cudaSuccess)
        _exit(1);
    launch(kernel, dim3(BLOCKS), dim3(THREADS), 4096, 0, p);
    _exit(cudaGetLastError() != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess);
}

static void races_are_told_and_nothing_else_is(void **)
{
    for (const auto &c : cases) {
        struct heard heard;
        int ends[2];
        pid_t child;

        assert_int_equal(pipe(ends), 0);
        child = fork();
        if (child == 0) {
            dup2(ends[1], 2);
            run(c.kernel);
        }
        hear(child, ends, &heard);
        if ((heard.status == 0) != !c.said || (c.said && !strstr(heard.said, c.said)))
            fail_msg("%s: status %d: %s", c.name, heard.status, heard.said);
    }
}

int main()
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(races_are_told_and_nothing_else_is)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
