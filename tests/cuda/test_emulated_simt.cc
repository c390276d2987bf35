extern "C" {
#include "tests/support/expect.h"
}

#include "kernels/cuda/simt.h"
#include "tests/cuda/hear.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#define HAS_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_ASAN
#endif
#endif

enum { THREADS = 256 };

/* ---- what tests are made of ------------------------------------------------------------------ */

static void *device_alloc(size_t bytes)
{
    void *p;

    assert_int_equal(cudaMalloc(&p, bytes), cudaSuccess);
    assert_int_equal(cudaMemset(p, 0, bytes), cudaSuccess);
    return p;
}

static void to_device(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
}

static void to_host(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

static uint32_t random_state = 1;

static uint32_t random_word()
{
    random_state = random_state * 1664525 + 1013904223;
    return random_state >> 8 ^ random_state << 16;
}

static const char *const orders[] = {"forward", "backward", "1", "2", "3"};

/* ---- threads that meet ----------------------------------------------------------------------- */

struct words {
    int *out;
};

/* Through static shared memory and back, THREADS times over. */
static __global__ void turn_round(struct words args)
{
    __shared__ int values[THREADS];
    int t = (int)threadIdx.x, sum = 0;

    for (int i = 0; i < THREADS; i++) {
        values[(t + i) % THREADS] = t + i;
        __syncthreads();
        sum += values[t]; /* of thread t - i */
        __syncthreads();
    }
    args.out[blockIdx.x * THREADS + threadIdx.x] = sum;
}

static void barriers_hold_every_thread_in_every_order(void **)
{
    enum { BLOCKS = 7 };
    int *out = (int *)device_alloc(BLOCKS * THREADS * sizeof(int)), got[BLOCKS * THREADS];

    for (const char *order : orders) {
        emulated_cuda_order(order);
        launch(turn_round, BLOCKS, THREADS, 0, 0, words{out});
        to_host(got, out, sizeof got);
        for (int i = 0; i < BLOCKS * THREADS; i++) {
            int wanted = 0, t = i % THREADS;

            for (int step = 0; step < THREADS; step++)
                wanted += (t - step + THREADS) % THREADS + step;
            assert_int_equal(got[i], wanted);
        }
    }
    emulated_cuda_order(NULL);
    cudaFree(out);
}

static __global__ void reverse(int *out, int has_barrier)
{
    int *values = (int *)dynamic_shared();

    values[threadIdx.x] = (int)threadIdx.x;
    if (has_barrier)
        __syncthreads();
    out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

static __global__ void reverse_warp(int *out, int has_barrier)
{
    __shared__ int values[32];

    values[threadIdx.x] = (int)threadIdx.x;
    if (has_barrier)
        __syncwarp();
    out[threadIdx.x] = values[31 - threadIdx.x];
}

/* Of launches in a row, how many gave the right answer. */
static int num_right(void (*kernel)(int *, int), int threads, int has_barrier)
{
    int *out = (int *)device_alloc(THREADS * sizeof(int)), got[THREADS], right = 0;

    for (int i = 0; i < 30; i++) {
        bool is_right = true;

        launch(kernel, 1, threads, THREADS * sizeof(int), 0, out, has_barrier);
        to_host(got, out, sizeof got);
        for (int t = 0; t < threads; t++)
            is_right = is_right && got[t] == threads - 1 - t;
        right += is_right;
    }
    cudaFree(out);
    return right;
}

static void a_missing_barrier_shows(void **)
{
    assert_int_equal(num_right(reverse, THREADS, 1), 30);
    assert_int_equal(num_right(reverse, THREADS, 0), 0);
    assert_int_equal(num_right(reverse_warp, 32, 1), 30);
    assert_int_equal(num_right(reverse_warp, 32, 0), 0);
}

/* Values read, then overwritten: without the second barrier only some orders go wrong. */
static __global__ void overwrite(int *out, int has_barrier)
{
    int *values = (int *)dynamic_shared(), t = (int)threadIdx.x, last = (int)blockDim.x - 1;

    values[t] = t;
    __syncthreads();

    int got = values[last - t];

    if (has_barrier)
        __syncthreads();
    values[t] = -1;
    out[t] = got;
}

static void a_missing_barrier_after_reading_shows(void **)
{
    assert_int_equal(num_right(overwrite, THREADS, 1), 30);
    assert_in_range(num_right(overwrite, THREADS, 0), 0, 29);
}

struct lane_words {
    int own, xored, down, first_of_8;
    unsigned even, any;
    double half;
};

static __global__ void speak(struct lane_words *out)
{
    struct lane_words *w = &out[threadIdx.x];
    int value = (int)threadIdx.x * 3;

    w->own = __shfl_sync(ALL_LANES, value, (int)threadIdx.x % 32);
    w->xored = __shfl_xor_sync(ALL_LANES, value, 5);
    w->down = __shfl_down_sync(ALL_LANES, value, 7);
    w->first_of_8 = __shfl_sync(ALL_LANES, value, 0, 8);
    w->even = __ballot_sync(ALL_LANES, value % 2 == 0);
    w->any = (unsigned)__any_sync(ALL_LANES, value == 96);
    w->half = __shfl_xor_sync(ALL_LANES, value / 2.0, 16);
}

static void shuffles_and_ballots_go_between_lanes(void **)
{
    struct lane_words *out = (struct lane_words *)device_alloc(64 * sizeof *out), got[64];

    for (const char *order : orders) {
        emulated_cuda_order(order);
        launch(speak, 1, 64, 0, 0, out);
        to_host(got, out, sizeof got);
        for (int t = 0; t < 64; t++) {
            assert_int_equal(got[t].own, t * 3);
            assert_int_equal(got[t].xored, (t ^ 5) * 3);
            assert_int_equal(got[t].down, t % 32 < 25 ? (t + 7) * 3 : t * 3);
            assert_int_equal(got[t].first_of_8, t / 8 * 8 * 3);
            assert_int_equal(got[t].even, 0x55555555);
            assert_int_equal(got[t].any, t >= 32);
            assert_true(got[t].half == (t ^ 16) * 1.5);
        }
    }
    emulated_cuda_order(NULL);
    cudaFree(out);
}

/* ---- tensor cores ---------------------------------------------------------------------------- */

struct product {
    int32_t d[16][8];
    int8_t a[16][32], b[8][32]; /* rows of a, columns of b */
};

/* Fragments as the PTX ISA draws them. */
static __global__ void mma(struct product *p, int depth)
{
    int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
    uint32_t a[4], b[2];
    int32_t d[4];

    for (int i = 0; i < 4; i++) {
        d[i] = p->d[g + i / 2 * 8][2 * t + i % 2];
        memcpy(&a[i], &p->a[g + i % 2 * 8][i / 2 * 16 + 4 * t], 4);
        memcpy(&b[i / 2], &p->b[g][i / 2 * 16 + 4 * t], 4);
    }
    if (depth == 32)
        mma_s8_k32(d, a, b);
    else
        mma_s8_k16(d, a, b[0]);
    for (int i = 0; i < 4; i++)
        p->d[g + i / 2 * 8][2 * t + i % 2] = d[i];
}

static void mma_is_the_product_of_whole_numbers(void **)
{
    struct product *device = (struct product *)device_alloc(sizeof *device), p, got;

    for (int trial = 0; trial < 200; trial++) {
        int depth = trial % 2 ? 16 : 32;
        uint8_t *bytes = (uint8_t *)&p;

        for (size_t i = 0; i < sizeof p; i++)
            bytes[i] = trial < 2 ? 0x80 : (uint8_t)random_word(); /* the largest products; d wraps */
        to_device(device, &p, sizeof p);
        launch(mma, 1, 32, 0, 0, device, depth);
        to_host(&got, device, sizeof got);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                uint32_t sum = (uint32_t)p.d[i][j];

                for (int k = 0; k < depth; k++)
                    sum += (uint32_t)(p.a[i][k] * p.b[j][k]);
                assert_int_equal((uint32_t)got.d[i][j], sum);
            }
    }
    cudaFree(device);
}

struct float_product {
    float d[16][8], a[16][16], b[8][16]; /* rows of a, columns of b */
};

enum { BF16, HALF, TF32 };

static uint32_t pair_of_floats(int kind, float low, float high)
{
    return kind == BF16 ? bf16_pair_of_floats(low, high) : half_pair_of_floats(low, high);
}

static __global__ void mma_of_floats(struct float_product *p, int kind)
{
    int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
    uint32_t a[4], b[2];
    float d[4];

    for (int i = 0; i < 4; i++) {
        const float *row = p->a[g + i % 2 * 8], *column = p->b[g];
        int k = kind == TF32 ? i / 2 * 4 + t : i / 2 * 8 + 2 * t;

        d[i] = p->d[g + i / 2 * 8][2 * t + i % 2];
        a[i] = kind == TF32 ? tf32_of_float(row[k]) : pair_of_floats(kind, row[k], row[k + 1]);
        b[i / 2] = kind == TF32 ? tf32_of_float(column[k]) : pair_of_floats(kind, column[k], column[k + 1]);
    }
    if (kind == BF16)
        mma_bf16_k16(d, a, b);
    else if (kind == HALF)
        mma_f16_k16(d, a, b);
    else
        mma_tf32_k8(d, a, b);
    for (int i = 0; i < 4; i++)
        p->d[g + i / 2 * 8][2 * t + i % 2] = d[i];
}

static float random_float(int bits)
{
    return ldexpf((float)((int)(random_word() % (2u << bits)) - (1 << bits)), (int)(random_word() % 12) - bits);
}

static void mma_is_nearly_the_product_of_floats(void **)
{
    struct float_product *device = (struct float_product *)device_alloc(sizeof *device), p, got;

    for (int trial = 0; trial < 200; trial++) {
        int kind = trial % 3, depth = kind == TF32 ? 8 : 16, bits = kind == BF16 ? 8 : 11;

        for (int i = 0; i < 16 * 16; i++) {
            p.a[i / 16][i % 16] = random_float(bits);
            p.b[i / 32][i % 16] = random_float(bits);
            p.d[i / 16][i % 8] = trial < 3 ? 0 : random_float(24);
        }
        to_device(device, &p, sizeof p);
        launch(mma_of_floats, 1, 32, 0, 0, device, kind);
        to_host(&got, device, sizeof got);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                double sum = p.d[i][j], most = fabs(sum);

                for (int k = 0; k < depth; k++) {
                    sum += (double)p.a[i][k] * p.b[j][k];
                    most += fabs((double)p.a[i][k] * p.b[j][k]);
                }
                assert_true(fabs(got.d[i][j] - sum) <= most * 0x1p-21);
            }
    }
    /* Of what is infinite there is no whole. */
    memset(&p, 0, sizeof p);
    p.a[3][2] = INFINITY;
    for (int j = 0; j < 8; j++)
        p.b[j][2] = j ? (float)j : 0;
    for (int kind = BF16; kind <= TF32; kind++) {
        to_device(device, &p, sizeof p);
        launch(mma_of_floats, 1, 32, 0, 0, device, kind);
        to_host(&got, device, sizeof got);
        assert_true(isnan(got.d[3][0]) && got.d[3][1] == INFINITY && got.d[2][1] == 0);
    }
    /* Of zeros nothing changes. */
    memset(&p, 0, sizeof p);
    for (int i = 0; i < 16 * 8; i++) {
        p.b[i / 16][i % 16] = random_float(8);
        p.d[i / 8][i % 8] = random_float(24) * 0x1p-100f;
    }
    for (int kind = BF16; kind <= TF32; kind++) {
        to_device(device, &p, sizeof p);
        launch(mma_of_floats, 1, 32, 0, 0, device, kind);
        to_host(&got, device, sizeof got);
        assert_memory_equal(got.d, p.d, sizeof p.d);
    }
    cudaFree(device);
}

static __global__ void load_matrices(uint32_t *out, int is_turned)
{
    __shared__ uint4 rows[64];

    for (int i = 0; i < 2; i++) {
        unsigned row = threadIdx.x + 32 * (unsigned)i;

        rows[row] = make_uint4(4 * row, 4 * row + 1, 4 * row + 2, 4 * row + 3);
    }
    __syncwarp();
    if (is_turned)
        ldmatrix_x4_trans(out + 4 * threadIdx.x, &rows[63 - 2 * threadIdx.x]);
    else
        ldmatrix_x4(out + 4 * threadIdx.x, &rows[63 - 2 * threadIdx.x]);
}

static void ldmatrix_deals_rows_to_lanes(void **)
{
    uint32_t *out = (uint32_t *)device_alloc(128 * sizeof *out), got[128];

    launch(load_matrices, 1, 32, 0, 0, out, 0);
    to_host(got, out, sizeof got);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            assert_int_equal(got[4 * lane + i], 4 * (63 - 2 * (8 * i + lane / 4)) + lane % 4);
    /* Turned round, a lane's two halves are of two rows: even words' numbers are in the low halves. */
    launch(load_matrices, 1, 32, 0, 0, out, 1);
    to_host(got, out, sizeof got);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            int row = 63 - 2 * (8 * i + lane % 4 * 2), element = lane / 4;
            uint32_t low = element % 2 ? 0 : (uint32_t)(4 * row + element / 2);
            uint32_t high = element % 2 ? 0 : (uint32_t)(4 * (row - 2) + element / 2);

            assert_int_equal(got[4 * lane + i], low | high << 16);
        }
    cudaFree(out);
}

static __global__ void powers(const float *x, float *out)
{
    out[threadIdx.x] = exp2_approx(x[threadIdx.x]);
}

static void powers_of_two_are_nearly_right(void **)
{
    static const float special[] = {-INFINITY, -1e30f, -127, INFINITY, 0, -126};
    float *device = (float *)device_alloc(512 * sizeof *device), x[256], got[256];

    for (int i = 0; i < 256; i++)
        x[i] = i < 6 ? special[i] : (float)(i - 128) * 0.37f;
    to_device(device, x, sizeof x);
    launch(powers, 1, 256, 0, 0, (const float *)device, device + 256);
    to_host(got, device + 256, sizeof got);
    for (int i = 0; i < 3; i++)
        assert_true(got[i] == 0 && !signbit(got[i]));
    assert_true(got[3] == INFINITY && got[4] == 1);
    for (int i = 4; i < 256; i++)
        assert_true(fabs(got[i] - exp2(x[i])) <= exp2(x[i]) * 0x1p-21);
    cudaFree(device);
}

static void pairs_of_halves_are_low_then_high(void **)
{
    assert_int_equal(half_pair_of_floats(1.5f, -2.0f), 0xc0003e00);
    assert_int_equal(half_pair_of_floats(65520, 0x1p-25f * 1.5f), 0x00017c00);
    assert_int_equal(half_pair_of_floats(1 + 0x1p-11f, 1 + 0x1.8p-10f), 0x3c023c00);
    assert_int_equal(half_pair_fma(0x3c006480, 0x40003c00, 0xbc00e480), 0x3c000000);
}

static void floats_round_to_bf16_and_tf32(void **)
{
    assert_int_equal(bf16_pair_of_floats(1.5f, -2.0f), 0xc0003fc0);
    for (uint32_t high = 0; high < 0x7f80; high++) {
        uint32_t middle = high << 16 | 0x8000;
        uint32_t pair = bf16_pair_of_floats(__uint_as_float(middle), -__uint_as_float(middle + 1));

        assert_int_equal(pair & 0xffff, high + high % 2);
        assert_int_equal(pair >> 16, 0x8000 | (high + 1));
        assert_int_equal(bf16_pair_of_floats(__uint_as_float(middle - 1), 0), high);
    }
    assert_int_equal(bf16_pair_of_floats(NAN, INFINITY), 0x7f807fff);
    for (uint32_t high = 0; high < 0x7f800000; high += 0x2000 * 77) {
        assert_int_equal(tf32_of_float(__uint_as_float(high | 0xfff)), high);
        assert_int_equal(tf32_of_float(__uint_as_float(high | 0x1000)), high + 0x2000);
        assert_int_equal(tf32_of_float(-__uint_as_float(high | 0x1000)), 0x80000000 | (high + 0x2000));
    }
    assert_int_equal(tf32_of_float(INFINITY), 0x7f800000);
    assert_int_equal(tf32_of_float(NAN), 0x7fffffff);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static __global__ void copy_late(const int4 *in, int *seen)
{
    __shared__ int4 values[2];

    values[0].x = values[1].x = -1;
    cp_async_16(&values[0], &in[0]);
    cp_async_commit();
    cp_async_16(&values[1], &in[1]);
    cp_async_commit();
    seen[0] = values[0].x;
    cp_async_wait<1>();
    seen[1] = values[0].x;
    seen[2] = values[1].x;
    cp_async_wait<0>();
    seen[3] = values[1].x;
}

static void cp_async_copies_when_it_is_waited_for(void **)
{
    int4 in[2] = {{1, 2, 3, 4}, {5, 6, 7, 8}}, *device = (int4 *)device_alloc(sizeof in);
    int *seen = (int *)device_alloc(4 * sizeof(int)), got[4];

    to_device(device, in, sizeof in);
    launch(copy_late, 1, 1, 0, 0, device, seen);
    to_host(got, seen, sizeof got);
    assert_int_equal(got[0], -1);
    assert_int_equal(got[1], 1);
    assert_int_equal(got[2], -1);
    assert_int_equal(got[3], 5);
    cudaFree(device);
    cudaFree(seen);
}

static __global__ void look(unsigned *out)
{
    __shared__ unsigned values[THREADS];
    unsigned *dynamic = (unsigned *)dynamic_shared();

    out[2 * threadIdx.x] = values[threadIdx.x];
    out[2 * threadIdx.x + 1] = dynamic[threadIdx.x];
    values[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

static void memory_that_nobody_wrote_is_junk(void **)
{
    unsigned *out = (unsigned *)device_alloc(2 * THREADS * sizeof(unsigned)), got[2 * THREADS], *fresh;

    for (int i = 0; i < 3; i++) {
        launch(look, 1, THREADS, THREADS * sizeof(unsigned), 0, out);
        to_host(got, out, sizeof got);
        for (int t = 0; t < 2 * THREADS; t++)
            assert_int_equal(got[t], 0xffffffff);
    }
    assert_int_equal(cudaMalloc(&fresh, sizeof got), cudaSuccess);
    to_host(got, fresh, sizeof got);
    assert_int_equal(got[7], 0xffffffff);
    cudaFree(fresh);
    cudaFree(out);
}

struct sums {
    int i, highest;
    float f;
    double d;
};

static __global__ void add_up(struct sums *sums)
{
    atomicAdd(&sums->i, (int)threadIdx.x);
    atomicMax(&sums->highest, (int)threadIdx.x);
    atomicAdd(&sums->f, 0.5f);
    atomicAdd(&sums->d, 0.25);
}

static void atomics_return_nothing_lost(void **)
{
    struct sums *sums = (struct sums *)device_alloc(sizeof *sums), got;

    launch(add_up, 3, THREADS, 0, 0, sums);
    to_host(&got, sums, sizeof got);
    assert_int_equal(got.i, 3 * THREADS * (THREADS - 1) / 2);
    assert_int_equal(got.highest, THREADS - 1);
    assert_true(got.f == 1.5f * THREADS);
    assert_true(got.d == 0.75 * THREADS);
    cudaFree(sums);
}

static void halves_round_to_nearest_even(void **)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
        float wanted = exponent == 31 ? (mantissa ? NAN : INFINITY)
                       : exponent     ? ldexpf((float)(1024 + mantissa), exponent - 25)
                                      : ldexpf((float)mantissa, -24);
        float got = float_of_half((uint16_t)h);

        assert_true(h & 0x8000 ? signbit(got) : !signbit(got));
        assert_true(isnan(wanted) ? isnan(got) : fabsf(got) == wanted);
        assert_int_equal(half_of_float(got), isnan(wanted) ? 0x7fff : h);
        if ((h & 0x7fff) >= 0x7c00)
            continue;

        /* Up to the middle between it and the next, which is even's, and not beyond. */
        uint32_t next = h + 1;
        float middle =
            (h & 0x7fff) == 0x7bff ? copysignf(65520.0f, got) : (got + float_of_half((uint16_t)next)) / 2;

        assert_int_equal(half_of_float(middle), h % 2 ? next : h);
        assert_int_equal(half_of_float(nextafterf(middle, 0)), h);
        assert_int_equal(half_of_float(nextafterf(middle, 2 * middle)), next);
    }
    assert_true(float_of_bf16(0x3fc0) == 1.5f);
}

static __global__ void write_indices(uint3 *out)
{
    unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);

    out[block * blockDim.x + threadIdx.x] = blockIdx;
}

static void grids_have_three_dimensions(void **)
{
    uint3 *out = (uint3 *)device_alloc(2 * 3 * 4 * 5 * sizeof *out), got[2 * 3 * 4 * 5];

    launch(write_indices, dim3(2, 3, 4), 5, 0, 0, out);
    to_host(got, out, sizeof got);
    for (unsigned i = 0; i < 2 * 3 * 4 * 5; i++) {
        assert_int_equal(got[i].x, i / 5 % 2);
        assert_int_equal(got[i].y, i / 10 % 3);
        assert_int_equal(got[i].z, i / 30);
    }
    cudaFree(out);
}

/* ---- the runtime ----------------------------------------------------------------------------- */

static void launches_beyond_the_limits_are_refused(void **)
{
    int *out = (int *)device_alloc(1024 * sizeof(int));

    launch(reverse, 1, 1025, 0, 0, out, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    launch(reverse, 0, 32, 0, 0, out, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    launch(reverse, 1, 32, 48 * 1024 + 16, 0, out, 1);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(allow_shared(reverse, 164 * 1024), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(allow_shared(reverse, 163 * 1024), cudaSuccess);
    launch(reverse, 1, 32, 163 * 1024, 0, out, 1);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    cudaFree(out);
}

static void device_memory_is_counted_and_copies_stay_inside(void **)
{
    size_t before, after, total;
    char *p, host[256] = {};

    assert_int_equal(cudaMemGetInfo(&before, &total), cudaSuccess);
    assert_int_equal(cudaMalloc(&p, 128), cudaSuccess);
    assert_int_equal(cudaMemGetInfo(&after, &total), cudaSuccess);
    assert_int_equal(before - after, 128);
    assert_int_equal(cudaMemcpy(p, host, 128, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaMemcpy(p, host, 129, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(p, host, 128, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(p + 1, 0, 128), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(p + 1), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(p), cudaSuccess);
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    assert_int_equal(cudaMalloc(&p, total + 1), cudaErrorMemoryAllocation);
    assert_null(p);
    assert_int_equal(cudaMemGetInfo(&after, &total), cudaSuccess);
    assert_int_equal(after, before);
    cudaGetLastError();
}

/* Fewer pages than addresses: zeroes take none. */
static void gaps_are_used_again_and_zeroed(void **)
{
    enum { BYTES = 3 << 20 };
    char *p[4], *middle, got[3];

    for (char *&each : p)
        each = (char *)device_alloc(BYTES);
    cudaFree(p[1]);
    middle = (char *)device_alloc(BYTES - 5);
    assert_ptr_equal(middle, p[1]);
    cudaMemset(middle + 3, 7, BYTES - 8);
    cudaMemset(middle + 4, 0, BYTES - 10);
    to_host(got, middle + 2, 3);
    assert_memory_equal(got, "\0\7\0", 3);
    to_host(got, middle + BYTES - 8, 3);
    assert_memory_equal(got, "\0\0\7", 3);
    for (char *each : p)
        cudaFree(each);
}

struct flags {
    uint32_t *mine, *other;
    int rounds;
};

/* Two devices tell each other how far they are. */
static __global__ void take_turns(struct flags flags)
{
    for (int i = 1; i <= flags.rounds; i++) {
        if (threadIdx.x == 0)
            store_release_system(flags.mine, (uint32_t)i);
        if (threadIdx.x == blockDim.x - 1)
            while (load_acquire_system(flags.other) < (uint32_t)i)
                ;
        __syncthreads();
    }
}

static uint32_t *shared_flags[2];

static void *run_device(void *ordinal)
{
    int own = (int)(intptr_t)ordinal;
    struct flags flags = {shared_flags[own], shared_flags[1 - own], 300};
    cudaStream_t stream;

    if (cudaSetDevice(own) || cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking))
        return NULL;
    launch(take_turns, 1, 64, 0, stream, flags);
    return (void *)(intptr_t)(cudaStreamSynchronize(stream) == cudaSuccess && cudaGetLastError() == cudaSuccess &&
                              cudaStreamDestroy(stream) == cudaSuccess);
}

static void threads_of_the_host_run_devices_at_the_same_time(void **)
{
    pthread_t threads[2];
    uint32_t *flags;

    assert_int_equal(cudaMallocHost(&flags, 2 * sizeof *flags), cudaSuccess);
    flags[0] = flags[1] = 0;
    for (int i = 0; i < 2; i++)
        shared_flags[i] = flags + i;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_device, (void *)(intptr_t)i), 0);
    for (int i = 0; i < 2; i++) {
        void *went_well;

        pthread_join(threads[i], &went_well);
        assert_non_null(went_well);
    }
    assert_int_equal(flags[0], 300);
    assert_int_equal(flags[1], 300);
    assert_int_equal(cudaFreeHost(flags), cudaSuccess);
}

static void events_tell_time(void **)
{
    cudaEvent_t begin, end;
    float ms;

    cudaEventCreateWithFlags(&begin, cudaEventDefault);
    cudaEventCreateWithFlags(&end, cudaEventDefault);
    assert_int_equal(cudaEventElapsedTime(&ms, begin, end), cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaEventRecord(begin), cudaSuccess);
    assert_int_equal(cudaEventSynchronize(begin), cudaSuccess);
    usleep(2000);
    assert_int_equal(cudaEventRecord(end), cudaSuccess);
    assert_int_equal(cudaEventSynchronize(end), cudaSuccess);
    assert_int_equal(cudaEventQuery(end), cudaSuccess);
    assert_int_equal(cudaEventElapsedTime(&ms, begin, end), cudaSuccess);
    assert_true(ms >= 2 && ms < 1000);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGetLastError();
}

/* ---- streams that run behind the host -------------------------------------------------------- */

/* Tests that close a gate before a stream would wait for ever where calls wait for what they launch. */
static bool is_synchronous()
{
    const char *text = getenv("EMULATED_CUDA_SYNCHRONOUS");

    return text && atoi(text) != 0;
}

#define SKIP_IF_SYNCHRONOUS()                                                                                      \
    do {                                                                                                           \
        if (is_synchronous())                                                                                      \
            skip();                                                                                                \
    } while (0)

static __global__ void wait_at(const uint32_t *gate)
{
    while (!load_acquire_system(gate))
        ;
}

static __global__ void add(int *x, int value)
{
    x[threadIdx.x] += value;
}

static __global__ void copy_ints(int *to, const int *from)
{
    to[threadIdx.x] = from[threadIdx.x];
}

static void *host_alloc(size_t bytes)
{
    void *p;

    assert_int_equal(cudaMallocHost(&p, bytes), cudaSuccess);
    memset(p, 0, bytes);
    return p;
}

static cudaStream_t make_stream(unsigned flags)
{
    cudaStream_t stream;

    assert_int_equal(cudaStreamCreateWithFlags(&stream, flags), cudaSuccess);
    return stream;
}

static cudaEvent_t make_event(unsigned flags)
{
    cudaEvent_t event;

    assert_int_equal(cudaEventCreateWithFlags(&event, flags), cudaSuccess);
    return event;
}

static void expect_not_ready(cudaError_t error)
{
    assert_int_equal(error, cudaErrorNotReady);
    assert_int_equal(cudaGetLastError(), cudaErrorNotReady); /* or whoever asks for a launch's would get it */
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

/* A stream that stops at a gate, and what tests give it. */
struct scene {
    cudaStream_t stream;
    uint32_t *gate;
    int *device, *host; /* of 64; zeroes, the host's page-locked */
};

static struct scene make_scene()
{
    struct scene s = {make_stream(cudaStreamNonBlocking), (uint32_t *)host_alloc(sizeof *s.gate),
                      (int *)device_alloc(64 * sizeof(int)), (int *)host_alloc(64 * sizeof(int))};

    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess); /* device_alloc's zeroes come by another stream */
    launch(wait_at, 1, 1, 0, s.stream, s.gate);
    return s;
}

static void open_gate(const struct scene *s)
{
    __atomic_store_n(s->gate, 1, __ATOMIC_RELEASE);
}

static void end_scene(const struct scene *s)
{
    assert_int_equal(cudaStreamDestroy(s->stream), cudaSuccess);
    assert_int_equal(cudaFree(s->device), cudaSuccess);
    assert_int_equal(cudaFreeHost(s->host), cudaSuccess);
    assert_int_equal(cudaFreeHost(s->gate), cudaSuccess);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
}

static void launches_return_before_they_have_run(void **)
{
    SKIP_IF_SYNCHRONOUS();

    struct scene s = make_scene();
    cudaEvent_t event = make_event(cudaEventDisableTiming);

    for (int i = 0; i < 20; i++)
        launch(add, 1, 64, 0, s.stream, s.device, 1);
    assert_int_equal(cudaMemcpyAsync(s.host, s.device, 64 * sizeof(int), cudaMemcpyDeviceToHost, s.stream),
                     cudaSuccess);
    assert_int_equal(cudaEventQuery(event), cudaSuccess); /* nothing was recorded */
    assert_int_equal(cudaEventRecord(event, s.stream), cudaSuccess);
    expect_not_ready(cudaStreamQuery(s.stream));
    expect_not_ready(cudaEventQuery(event));
    assert_int_equal(s.host[63], 0);
    open_gate(&s);
    assert_int_equal(cudaEventSynchronize(event), cudaSuccess);
    assert_int_equal(s.host[63], 20);
    assert_int_equal(cudaStreamQuery(s.stream), cudaSuccess);
    cudaEventDestroy(event);
    end_scene(&s);
}

/* Memory that is used again too early shows where the device would show it. */
static void page_locked_memory_is_read_late_and_other_memory_at_once(void **)
{
    SKIP_IF_SYNCHRONOUS();

    struct scene s = make_scene();
    int other[16] = {}, *registered = (int *)calloc(16, sizeof(int)), got[48];

    assert_int_equal(cudaHostRegister(registered, 16 * sizeof(int), cudaHostRegisterDefault), cudaSuccess);
    cudaMemcpyAsync(s.device, s.host, sizeof other, cudaMemcpyHostToDevice, s.stream);
    cudaMemcpyAsync(s.device + 16, other, sizeof other, cudaMemcpyHostToDevice, s.stream);
    cudaMemcpyAsync(s.device + 32, registered, sizeof other, cudaMemcpyDefault, s.stream);
    s.host[0] = other[0] = registered[0] = 7;
    open_gate(&s);
    assert_int_equal(cudaMemcpyAsync(got, s.device, sizeof got, cudaMemcpyDeviceToHost, s.stream), cudaSuccess);
    assert_int_equal(got[0], 7); /* that copy waited: it is not to page-locked memory */
    assert_int_equal(got[16], 0);
    assert_int_equal(got[32], 7);
    assert_int_equal(cudaHostUnregister(registered), cudaSuccess);
    free(registered);
    end_scene(&s);
}

static void an_event_holds_back_a_stream_of_another_device(void **)
{
    SKIP_IF_SYNCHRONOUS();

    struct scene s = make_scene();
    cudaEvent_t event = make_event(cudaEventDisableTiming);
    cudaStream_t other;

    launch(add, 1, 64, 0, s.stream, s.device, 5);
    assert_int_equal(cudaEventRecord(event, s.stream), cudaSuccess);
    assert_int_equal(cudaSetDevice(1), cudaSuccess);
    cudaDeviceEnablePeerAccess(0, 0);
    cudaGetLastError();
    other = make_stream(cudaStreamNonBlocking);
    assert_int_equal(cudaEventRecord(event, other), cudaErrorInvalidResourceHandle);
    cudaGetLastError();
    assert_int_equal(cudaStreamWaitEvent(other, event), cudaSuccess);
    launch(copy_ints, 1, 64, 0, other, s.host, s.device);
    assert_int_equal(cudaStreamDestroy(other), cudaSuccess); /* it does its work all the same */
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    assert_int_equal(cudaEventRecord(event, s.stream), cudaSuccess); /* it waits for the first */
    usleep(1000);
    assert_int_equal(s.host[63], 0);
    open_gate(&s);
    assert_int_equal(cudaSetDevice(1), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(s.host[63], 5);
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    cudaEventDestroy(event);
    end_scene(&s);
}

/* As exchange.cu's kernels do. */
static void a_kernel_that_waits_for_another_stream_does_not_hold_it_back(void **)
{
    SKIP_IF_SYNCHRONOUS();

    cudaStream_t same[2] = {make_stream(cudaStreamNonBlocking), make_stream(cudaStreamNonBlocking)}, ofs[2];
    uint32_t *flags = (uint32_t *)host_alloc(4 * sizeof *flags);

    for (int i = 0; i < 2; i++)
        launch(take_turns, 1, 64, 0, same[i], (struct flags){flags + i, flags + 1 - i, 100});
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cudaSetDevice(i), cudaSuccess);
        ofs[i] = make_stream(cudaStreamNonBlocking);
        launch(take_turns, 1, 64, 0, ofs[i], (struct flags){flags + 2 + i, flags + 3 - i, 100});
    }
    for (int i = 1; i >= 0; i--) {
        assert_int_equal(cudaSetDevice(i), cudaSuccess);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        assert_int_equal(cudaStreamDestroy(ofs[i]), cudaSuccess);
        assert_int_equal(cudaStreamDestroy(same[i]), cudaSuccess);
    }
    for (int i = 0; i < 4; i++)
        assert_int_equal(flags[i], 100);
    cudaFreeHost(flags);
}

static void the_default_stream_waits_for_those_that_block(void **)
{
    SKIP_IF_SYNCHRONOUS();

    struct scene s = make_scene();
    cudaStream_t blocking = make_stream(cudaStreamDefault);
    uint32_t *gate = (uint32_t *)host_alloc(sizeof *gate);

    /* Past the one that stands at its gate, */
    launch(add, 1, 64, 0, 0, s.device, 1);
    assert_int_equal(cudaStreamSynchronize(0), cudaSuccess);
    assert_int_equal(cudaStreamQuery(0), cudaSuccess);
    /* but not past this one, nor does that overtake. */
    launch(wait_at, 1, 1, 0, blocking, gate);
    launch(add, 1, 64, 0, 0, s.device, 2);
    launch(copy_ints, 1, 64, 0, blocking, s.host, s.device);
    expect_not_ready(cudaStreamQuery(0));
    __atomic_store_n(gate, 1, __ATOMIC_RELEASE);
    assert_int_equal(cudaStreamSynchronize(blocking), cudaSuccess);
    assert_int_equal(s.host[63], 3);
    expect_not_ready(cudaStreamQuery(s.stream));
    open_gate(&s);
    cudaStreamDestroy(blocking);
    end_scene(&s);
    cudaFreeHost(gate);
}

static void *open_soon(void *gate)
{
    usleep(5000);
    __atomic_store_n((uint32_t *)gate, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void memory_is_freed_when_the_device_is_done(void **)
{
    SKIP_IF_SYNCHRONOUS();

    for (int way = 0; way < 4; way++) {
        struct scene s = make_scene();
        cudaStream_t idle = make_stream(cudaStreamNonBlocking);
        pthread_t thread;
        int got;

        launch(add, 1, 64, 0, s.stream, s.device, 3);
        pthread_create(&thread, NULL, open_soon, s.gate);
        assert_int_equal(cudaStreamSynchronize(idle), cudaSuccess);
        if (way == 0)
            assert_int_equal(cudaFree(device_alloc(1)), cudaSuccess);
        else if (way == 1)
            assert_int_equal(cudaFreeHost(host_alloc(1)), cudaSuccess);
        else if (way == 2)
            assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        else
            assert_int_equal(cudaMemcpyAsync(&got, s.device, sizeof got, cudaMemcpyDeviceToHost, s.stream),
                             cudaSuccess);
        assert_int_equal(cudaStreamQuery(s.stream), cudaSuccess);
        to_host(&got, s.device, sizeof got);
        assert_int_equal(got, 3);
        pthread_join(thread, NULL);
        cudaStreamDestroy(idle);
        end_scene(&s);
    }
}

/* Two threads give one stream work, and wait for theirs. */
static cudaStream_t shared_stream;
static int *shared_sums;

static void *add_often(void *ordinal)
{
    int own = (int)(intptr_t)ordinal, got = 0;

    for (int i = 1; i <= 200; i++) {
        launch(add, 1, 1, 0, shared_stream, shared_sums + own, 1);
        if (i % 20 == 0 && (cudaMemcpyAsync(&got, shared_sums + own, sizeof got, cudaMemcpyDeviceToHost,
                                            shared_stream) != cudaSuccess ||
                            got != i))
            return NULL;
    }
    return ordinal;
}

static void threads_share_a_stream(void **)
{
    pthread_t threads[2];
    void *returned;

    shared_sums = (int *)device_alloc(3 * sizeof(int));
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    shared_stream = make_stream(cudaStreamNonBlocking);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, add_often, (void *)(intptr_t)(i + 1));
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], &returned);
        assert_int_equal((intptr_t)returned, i + 1);
    }
    cudaStreamDestroy(shared_stream);
    cudaFree(shared_sums);
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static cudaGraph_t end_capture(cudaStream_t stream)
{
    cudaGraph_t graph;

    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_non_null(graph);
    return graph;
}

static enum cudaStreamCaptureStatus capture_status(cudaStream_t stream)
{
    enum cudaStreamCaptureStatus status;

    assert_int_equal(cudaStreamIsCapturing(stream, &status), cudaSuccess);
    return status;
}

static void a_graph_does_again_what_was_captured_with_what_is_there_now(void **)
{
    cudaStream_t stream = make_stream(cudaStreamNonBlocking);
    int *in = (int *)host_alloc(64 * sizeof(int)), *out = (int *)host_alloc(64 * sizeof(int));
    int *x = (int *)device_alloc(64 * sizeof(int)), *y = (int *)device_alloc(64 * sizeof(int)), by = 2;
    int *sums = (int *)device_alloc(THREADS * sizeof(int));
    cudaEvent_t event = make_event(cudaEventDefault);
    cudaGraphExec_t exec;
    cudaGraph_t graph;

    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    assert_int_equal(capture_status(stream), cudaStreamCaptureStatusActive);
    cudaMemcpyAsync(x, in, 64 * sizeof(int), cudaMemcpyHostToDevice, stream);
    cudaMemsetAsync(y, 0, 64 * sizeof(int), stream);
    launch(add, 1, 64, 0, stream, x, by);
    by = 1000; /* arguments are values, and this comes too late */
    launch(add, 1, 64, 0, stream, y, 1);
    cudaEventRecord(event, stream);
    cudaStreamWaitEvent(stream, event);
    launch(turn_round, 1, THREADS, 0, stream, words{sums});
    launch(copy_ints, 1, 32, 0, stream, x, (const int *)y);
    cudaMemcpyAsync(out, x, 64 * sizeof(int), cudaMemcpyDeviceToHost, stream);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    graph = end_capture(stream);
    assert_int_equal(capture_status(stream), cudaStreamCaptureStatusNone);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(out[40], 0); /* nothing has run */
    assert_int_equal(cudaGraphInstantiate(&exec, graph), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    for (int round = 1; round <= 3; round++) {
        in[40] = 100 * round;
        in[63] = round;
        assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
        if (round == 3)
            assert_int_equal(cudaGraphExecDestroy(exec), cudaSuccess); /* it ends all the same */
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        assert_int_equal(out[0], 1);
        assert_int_equal(out[40], 100 * round + 2);
        assert_int_equal(out[63], round + 2);
    }
    cudaEventDestroy(event);
    cudaStreamDestroy(stream);
    cudaFree(x);
    cudaFree(y);
    cudaFree(sums);
    cudaFreeHost(in);
    cudaFreeHost(out);
}

static void launches_of_a_graph_take_turns(void **)
{
    SKIP_IF_SYNCHRONOUS();

    struct scene s = make_scene();
    cudaStream_t other = make_stream(cudaStreamNonBlocking), third = make_stream(cudaStreamNonBlocking);
    cudaGraphExec_t exec, twice;
    cudaGraph_t graph;

    assert_int_equal(cudaStreamBeginCapture(other, cudaStreamCaptureModeRelaxed), cudaSuccess);
    launch(add, 1, 64, 0, other, s.device, 1);
    graph = end_capture(other);
    assert_int_equal(cudaGraphInstantiate(&exec, graph), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);

    /* Of a graph, too. */
    assert_int_equal(cudaStreamBeginCapture(other, cudaStreamCaptureModeRelaxed), cudaSuccess);
    for (int i = 0; i < 2; i++)
        assert_int_equal(cudaGraphLaunch(exec, other), cudaSuccess);
    graph = end_capture(other);
    assert_int_equal(cudaGraphInstantiate(&twice, graph), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);

    assert_int_equal(cudaGraphLaunch(exec, s.stream), cudaSuccess); /* behind the gate */
    assert_int_equal(cudaGraphLaunch(exec, other), cudaSuccess);    /* behind that one */
    assert_int_equal(cudaGraphLaunch(twice, third), cudaSuccess);   /* another graph */
    assert_int_equal(cudaStreamSynchronize(third), cudaSuccess);
    expect_not_ready(cudaStreamQuery(other));
    open_gate(&s);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaMemcpy(s.host, s.device, 64 * sizeof(int), cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(s.host[63], 4);
    cudaGraphExecDestroy(exec);
    cudaGraphExecDestroy(twice);
    cudaStreamDestroy(other);
    cudaStreamDestroy(third);
    end_scene(&s);
}

/* The capture is no good any more. */
static void expect_invalidated(cudaStream_t stream, cudaError_t error, cudaError_t wanted)
{
    cudaEvent_t event = make_event(0);
    cudaGraph_t graph;

    assert_int_equal(error, wanted);
    assert_int_equal(capture_status(stream), cudaStreamCaptureStatusInvalidated);
    assert_int_equal(cudaEventRecord(event, stream), cudaErrorStreamCaptureInvalidated);
    cudaEventDestroy(event);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_null(graph);
    assert_int_equal(capture_status(stream), cudaStreamCaptureStatusNone);
    cudaGetLastError();
}

static void *allocate(void *)
{
    void *p;

    return (void *)(intptr_t)(cudaMalloc(&p, 4) == cudaSuccess && cudaFree(p) == cudaSuccess);
}

static void *end_capture_elsewhere(void *stream)
{
    cudaGraph_t graph;

    return (void *)(intptr_t)(cudaStreamEndCapture((cudaStream_t)stream, &graph) ==
                              cudaErrorStreamCaptureWrongThread);
}

static bool is_true_in_a_thread(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    void *returned;

    pthread_create(&thread, NULL, run, arg);
    pthread_join(thread, &returned);
    return returned;
}

static void a_capture_refuses_what_waits(void **)
{
    static const enum cudaStreamCaptureMode own = cudaStreamCaptureModeThreadLocal,
                                            relaxed = cudaStreamCaptureModeRelaxed;
    cudaStream_t stream = make_stream(cudaStreamNonBlocking), blocking = make_stream(cudaStreamDefault);
    cudaEvent_t event = make_event(0);
    int *x = (int *)device_alloc(64 * sizeof(int)), here[64] = {};
    cudaGraph_t graph;
    void *p;

    assert_int_equal(cudaStreamBeginCapture(0, own), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorIllegalState);

    /* Even where it is relaxed: */
    cudaStreamBeginCapture(stream, relaxed);
    assert_int_equal(cudaStreamBeginCapture(stream, relaxed), cudaErrorIllegalState);
    expect_invalidated(stream, cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, relaxed);
    expect_invalidated(stream, cudaStreamQuery(stream), cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, relaxed);
    expect_invalidated(stream, cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, relaxed);
    expect_invalidated(stream, cudaMemcpyAsync(here, x, sizeof here, cudaMemcpyDeviceToHost, stream),
                       cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, relaxed);
    assert_int_equal(cudaEventRecord(event, blocking), cudaSuccess);
    expect_invalidated(stream, cudaStreamWaitEvent(stream, event), cudaErrorStreamCaptureIsolation);
    cudaStreamBeginCapture(stream, relaxed);
    assert_int_equal(cudaEventRecord(event, stream), cudaSuccess);
    assert_int_equal(cudaEventQuery(event), cudaErrorCapturedEvent);
    assert_int_equal(cudaEventSynchronize(event), cudaErrorCapturedEvent);
    assert_int_equal(cudaMalloc(&p, 64), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(blocking), cudaSuccess);
    assert_int_equal(cudaMemset(x, 0, 64), cudaSuccess);
    cudaGraphDestroy(end_capture(stream));
    assert_int_equal(cudaFree(p), cudaSuccess);
    cudaStreamBeginCapture(blocking, relaxed);
    expect_invalidated(blocking, cudaMemset(x, 0, 64), cudaErrorStreamCaptureImplicit);

    /* Where it is not, what is done beside it as well, but by other threads: */
    cudaStreamBeginCapture(stream, own);
    expect_invalidated(stream, cudaMalloc(&p, 64), cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, own);
    expect_invalidated(stream, cudaStreamSynchronize(blocking), cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, own);
    expect_invalidated(stream, cudaMemcpy(x, here, sizeof here, cudaMemcpyHostToDevice),
                       cudaErrorStreamCaptureUnsupported);
    cudaStreamBeginCapture(stream, own);
    assert_true(is_true_in_a_thread(allocate, NULL));
    assert_true(is_true_in_a_thread(end_capture_elsewhere, stream));
    cudaGraphDestroy(end_capture(stream));
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    assert_false(is_true_in_a_thread(allocate, NULL));
    expect_invalidated(stream, cudaSuccess, cudaSuccess);

    cudaGetLastError();
    cudaEventDestroy(event);
    cudaStreamDestroy(stream);
    cudaStreamDestroy(blocking);
    cudaFree(x);
}

/* ---- processes of their own: this program, given the name of one of these -------------------- */

#define CHECK(condition)                                                                                           \
    do {                                                                                                           \
        if (!(condition)) {                                                                                        \
            fprintf(stderr, "line %d: not %s\n", __LINE__, #condition);                                            \
            exit(1);                                                                                               \
        }                                                                                                          \
    } while (0)

static __global__ void store(int *out)
{
    out[threadIdx.x] = 1;
}

static void *quick_alloc(size_t bytes)
{
    void *p = NULL;

    CHECK(cudaMalloc(&p, bytes) == cudaSuccess);
    return p;
}

static void host_reads_device()
{
    volatile int *p = (int *)quick_alloc(64);

    launch(store, 1, 1, 0, 0, (int *)p);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(*p == 1);
}

/* EMULATED_CUDA_SYNCHRONOUS=1: the stream has no work; or each thread has rights of its own. */
static void host_reads_what_is_launched()
{
    volatile int *p = (int *)quick_alloc(64);

    launch(store, 1, 1, 0, 0, (int *)p);
    CHECK(*p == 1);
}

/* Where the CPU has protection keys, no other thread than the stream's reaches memory. */
static void host_reads_while_a_kernel_runs()
{
    int *p = (int *)quick_alloc(64), key = pkey_alloc(0, 0);
    uint32_t *gate;

    if (key < 0)
        abort(); /* it can not be told here */
    CHECK(cudaMallocHost(&gate, 4) == cudaSuccess);
    *gate = 0;
    launch(wait_at, 1, 1, 0, 0, gate);
    CHECK(*(volatile int *)p == -1);
}

static void kernel_gets_heap()
{
    launch(store, 1, 1, 0, 0, (int *)malloc(1 << 20));
}

struct deep {
    int n;
    struct {
        int *out[3];
    } inner;
};

static __global__ void store_deep(struct deep args)
{
    *args.inner.out[0] = args.n;
}

static void kernel_gets_stack()
{
    int here = 0;
    struct deep deep = {1, {{(int *)quick_alloc(64), NULL, &here}}};

    launch(store_deep, 1, 1, 0, 0, deep);
}

static void kernel_gets_freed()
{
    int *p = (int *)quick_alloc(64);

    cudaFree(p);
    launch(store, 1, 1, 0, 0, p);
}

static void kernel_gets_other_device()
{
    int *p = (int *)quick_alloc(64);

    CHECK(cudaSetDevice(1) == cudaSuccess);
    CHECK(cudaDeviceEnablePeerAccess(0, 0) == cudaSuccess);
    launch(store, 1, 1, 0, 0, p);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaSetDevice(0) == cudaSuccess);
    launch(store, 1, 1, 0, 0, p);
    CHECK(cudaMalloc(&p, 64) == cudaSuccess);
    CHECK(cudaSetDevice(1) == cudaSuccess && cudaMalloc(&p, 64) == cudaSuccess && cudaSetDevice(0) == cudaSuccess);
    launch(store, 1, 1, 0, 0, p);
}

static __global__ void lanes_stay_away(int *out)
{
    if (threadIdx.x >= 40)
        return;
    out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1, 1);
}

static __global__ void lanes_say_other_words(int *out)
{
    if (threadIdx.x < 7)
        __syncwarp();
    else
        out[threadIdx.x] = (int)__ballot_sync(ALL_LANES, 1);
}

static __global__ void warps_wait_apart(int *)
{
    if (threadIdx.x < 32)
        __syncthreads();
    else if (threadIdx.x < 40)
        __syncwarp();
}

static __global__ void writes_behind_shared(int *)
{
    ((volatile char *)dynamic_shared())[64] = 1;
}

static __global__ void copies_askew(int *out)
{
    __shared__ int4 values;

    cp_async_16(&values, out + 1);
}

static __global__ void writes_behind_device(int *out)
{
    ((volatile int *)out)[64] = 1;
}

static __global__ void fills_its_stack(int *out)
{
    volatile int big[1 << 17];

    for (int i = (1 << 17) - 1; i >= 0; i -= 64)
        big[i] = i;
    *out = big[*out];
}

template <void kernel(int *)> static void run_on_64()
{
    launch(kernel, 1, 64, 64, 0, (int *)quick_alloc(64 * sizeof(int)));
}

static void breaks_at_the_second_launch()
{
    int *p = (int *)quick_alloc(64), host;

    launch(store, 1, 1, 0, 0, p);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    launch(store, 1, 1, 0, 0, p);
    CHECK(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
    CHECK(cudaMemcpy(&host, p, 4, cudaMemcpyDeviceToHost) == cudaErrorIllegalAddress);
    launch(store, 1, 1, 0, 0, p);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaMalloc(&p, 4) == cudaErrorIllegalAddress);
    CHECK(cudaSetDevice(1) == cudaSuccess && cudaMalloc(&p, 4) == cudaSuccess);
}

static int64_t now_us()
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * (int64_t)1000000 + now.tv_nsec / 1000;
}

/* EMULATED_CUDA_LATE_US=5000 */
static void runs_ahead()
{
    enum { LAUNCHES = 20, TIME_US = 5000 * LAUNCHES };

    setenv("EMULATED_CUDA_SYNCHRONOUS", "0", 1);

    int *p = (int *)quick_alloc(64);
    cudaEvent_t begin, end;
    int64_t start_us = now_us();
    float ms;

    CHECK(cudaEventCreateWithFlags(&begin, 0) == cudaSuccess && cudaEventCreateWithFlags(&end, 0) == cudaSuccess);
    CHECK(cudaEventRecord(begin) == cudaSuccess);
    for (int i = 0; i < LAUNCHES; i++)
        launch(store, 1, 1, 0, 0, p);
    CHECK(cudaEventRecord(end) == cudaSuccess);
    CHECK(now_us() - start_us < TIME_US / 2);
    CHECK(cudaEventElapsedTime(&ms, begin, end) == cudaErrorNotReady);
    CHECK(cudaEventSynchronize(end) == cudaSuccess);
    CHECK(now_us() - start_us >= TIME_US);
    CHECK(cudaEventElapsedTime(&ms, begin, end) == cudaSuccess && ms * 1000 >= TIME_US);
    CHECK(cudaEventDestroy(begin) == cudaSuccess && cudaEventDestroy(end) == cudaSuccess);
}

/* EMULATED_CUDA_FAULT=launch:2 */
static void breaks_behind_the_host()
{
    setenv("EMULATED_CUDA_SYNCHRONOUS", "0", 1);

    int *p = (int *)quick_alloc(64), host = 5;
    uint32_t *gate;
    cudaEvent_t event;

    CHECK(cudaMallocHost(&gate, 4) == cudaSuccess && cudaEventCreateWithFlags(&event, 0) == cudaSuccess);
    *gate = 0;
    launch(wait_at, 1, 1, 0, 0, gate);
    for (int i = 0; i < 3; i++) {
        launch(store, 1, 1, 0, 0, p);
        CHECK(cudaGetLastError() == cudaSuccess);
    }
    CHECK(cudaEventRecord(event) == cudaSuccess);
    CHECK(cudaStreamQuery(0) == cudaErrorNotReady && cudaGetLastError() == cudaErrorNotReady);
    __atomic_store_n(gate, 1, __ATOMIC_RELEASE);
    CHECK(cudaEventSynchronize(event) == cudaErrorIllegalAddress);
    CHECK(cudaGetLastError() == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress);
    CHECK(cudaStreamQuery(0) == cudaErrorIllegalAddress && cudaEventQuery(event) == cudaErrorIllegalAddress);
    CHECK(cudaMemcpy(&host, p, 4, cudaMemcpyDeviceToHost) == cudaErrorIllegalAddress && host == 5);
    CHECK(cudaEventDestroy(event) == cudaErrorIllegalAddress);
}

static cudaGraphExec_t graph_that_stores(int *p, cudaStream_t *stream_out)
{
    cudaGraphExec_t exec;
    cudaGraph_t graph;

    CHECK(cudaStreamCreateWithFlags(stream_out, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(*stream_out, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    launch(store, 1, 1, 0, *stream_out, p);
    CHECK(cudaStreamEndCapture(*stream_out, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&exec, graph) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    return exec;
}

/* The same of a graph's kernels, which count when they are launched. */
static void breaks_in_a_graph()
{
    int *p = (int *)quick_alloc(64);
    cudaStream_t stream;
    cudaGraphExec_t exec = graph_that_stores(p, &stream);

    CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess);
    CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
    CHECK(cudaGraphLaunch(exec, stream) == cudaErrorIllegalAddress);
    CHECK(cudaGraphExecDestroy(exec) == cudaErrorIllegalAddress);
}

static void graph_gets_freed()
{
    int *p = (int *)quick_alloc(64);
    cudaStream_t stream;
    cudaGraphExec_t exec = graph_that_stores(p, &stream);

    CHECK(cudaFree(p) == cudaSuccess);
    cudaGraphLaunch(exec, stream);
}

static void finds_no_device()
{
    int count = -1;

    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
    CHECK(cudaSetDevice(0) == cudaErrorNoDevice);
    CHECK(strcmp(cudaGetErrorString(cudaGetLastError()), "no CUDA-capable device is detected") == 0);
}

static void finds_no_driver()
{
    int count = -1, version = -1;

    CHECK(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver);
    CHECK(cudaDriverGetVersion(&version) == cudaSuccess && version < CUDART_VERSION);
    CHECK(strcmp(cudaGetErrorName(cudaPeekAtLastError()), "cudaErrorInsufficientDriver") == 0);
}

static void finds_little_memory()
{
    size_t free_bytes, total;
    void *p, *q;

    CHECK(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess && total == 100000);
    CHECK(cudaMalloc(&p, 60000) == cudaSuccess && cudaMalloc(&q, 60000) == cudaErrorMemoryAllocation);
    CHECK(cudaFree(p) == cudaSuccess && cudaMalloc(&q, 60000) == cudaSuccess);
}

/* EMULATED_CUDA_CAPABILITY=8.0,8.9 */
static void finds_cards()
{
    static const int shared[] = {163 << 10, 99 << 10}, minors[] = {0, 9};
    struct cudaDeviceProp gpu;

    for (int i = 0; i < 2; i++) {
        CHECK(cudaGetDeviceProperties(&gpu, i) == cudaSuccess && gpu.major == 8 && gpu.minor == minors[i]);
        CHECK(gpu.sharedMemPerBlockOptin == (size_t)shared[i] && cudaSetDevice(i) == cudaSuccess);
        CHECK(allow_shared(reverse, shared[i] + 1) == cudaErrorInvalidValue);
        cudaGetLastError();
        CHECK(allow_shared(reverse, shared[i]) == cudaSuccess);
    }

    int *p = (int *)quick_alloc(32 * sizeof(int));

    launch(reverse, 1, 32, 100 << 10, 0, p, 1);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    launch(reverse, 1, 32, 99 << 10, 0, p, 1);
    CHECK(cudaGetLastError() == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess);
}

static void finds_no_card()
{
    int count;

    cudaGetDeviceCount(&count);
}

static void forks()
{
    int *p = (int *)quick_alloc(64), status;
    pid_t child = fork();

    if (child == 0)
        _exit(cudaMalloc(&p, 64) == cudaErrorInitializationError ? 0 : 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void reads_open_memory()
{
    volatile int *p = (int *)quick_alloc(64);

    *p = 5;
    CHECK(*p == 5);
}

/* A handle comes in at 0; what it lends is multiplied by 3, and a byte goes out at 1. */
static void borrows_memory();

static const struct {
    const char *name, *environment, *value;
    void (*run)();
    const char *said; /* in its last words; NULL: it ends well */
} cases[] = {
    {"host_reads_device", NULL, NULL, host_reads_device, ""},
    {"host_reads_what_is_launched", "EMULATED_CUDA_SYNCHRONOUS", "1", host_reads_what_is_launched, ""},
    {"host_reads_while_a_kernel_runs", "EMULATED_CUDA_SYNCHRONOUS", "0", host_reads_while_a_kernel_runs, ""},
    {"kernel_gets_heap", NULL, NULL, kernel_gets_heap, "store(int*), argument 0, byte 0: "},
    {"kernel_gets_stack", NULL, NULL, kernel_gets_stack, "store_deep(deep), argument 0, byte 24: "},
    {"kernel_gets_freed", NULL, NULL, kernel_gets_freed, " is device memory that is free"},
    {"kernel_gets_other_device", NULL, NULL, kernel_gets_other_device,
     " is memory of a device that it cannot reach"},
    {"lanes_stay_away", NULL, NULL, run_on_64<lanes_stay_away>,
     "warp 1: lanes 000000ff in __shfl_xor_sync, 00000000 in __syncthreads, ffffff00 have returned"},
    {"lanes_say_other_words", "EMULATED_CUDA_ORDER", "backward", run_on_64<lanes_say_other_words>,
     "lanes_say_other_words(int*), block (0, 0, 0), thread 6: __syncwarp, where lanes ffffff80 of its warp are in "
     "__ballot_sync"},
    {"warps_wait_apart", NULL, NULL, run_on_64<warps_wait_apart>,
     "warp 1: lanes 000000ff in __syncwarp, 00000000 in __syncthreads, ffffff00 have returned"},
    {"writes_behind_shared", NULL, NULL, run_on_64<writes_behind_shared>, ""},
    {"copies_askew", NULL, NULL, run_on_64<copies_askew>, "16-byte alignment"},
    {"fills_its_stack", NULL, NULL, run_on_64<fills_its_stack>, ""},
#ifdef HAS_ASAN
    {"writes_behind_device", NULL, NULL, run_on_64<writes_behind_device>, "use-after-poison"},
#else
    {"writes_behind_device", NULL, NULL, run_on_64<writes_behind_device>, NULL},
#endif
    {"breaks_at_the_second_launch", "EMULATED_CUDA_FAULT", "launch:2", breaks_at_the_second_launch, NULL},
    {"breaks_behind_the_host", "EMULATED_CUDA_FAULT", "launch:3", breaks_behind_the_host, NULL},
    {"breaks_in_a_graph", "EMULATED_CUDA_FAULT", "launch:2", breaks_in_a_graph, NULL},
    {"graph_gets_freed", NULL, NULL, graph_gets_freed, "store(int*), in a graph: "},
    {"runs_ahead", "EMULATED_CUDA_LATE_US", "5000", runs_ahead, NULL},
    {"finds_no_device", "EMULATED_CUDA_FAULT", "no_device", finds_no_device, NULL},
    {"finds_no_driver", "EMULATED_CUDA_FAULT", "no_driver", finds_no_driver, NULL},
    {"finds_an_old_driver", "EMULATED_CUDA_FAULT", "old_driver", finds_no_driver, NULL},
    {"finds_little_memory", "EMULATED_CUDA_FAULT", "no_memory:100000", finds_little_memory, NULL},
    {"finds_cards", "EMULATED_CUDA_CAPABILITY", "8.0,8.9", finds_cards, NULL},
    {"finds_no_card", "EMULATED_CUDA_CAPABILITY", "8.0,7.5", finds_no_card, "CAPABILITY: no GPU of 7.5 is emulated"},
    {"reads_open_memory", "EMULATED_CUDA_OPEN_MEMORY", "1", reads_open_memory, NULL},
    {"forks", NULL, NULL, forks, NULL},
    {"borrows_memory", NULL, NULL, borrows_memory, NULL},
};

/* Starts a case; its files 0, 1 and 2 are these, -1: as ours. */
static pid_t start_case(const char *name, int in, int out, int err)
{
    pid_t child = fork();

    if (child != 0)
        return child;
    if (in >= 0)
        dup2(in, 0);
    if (out >= 0)
        dup2(out, 1);
    if (err >= 0)
        dup2(err, 2);
    execl("/proc/self/exe", "test_emulated_simt", name, NULL);
    _exit(127);
}

static void mistakes_end_the_process_and_faults_are_errors(void **)
{
    for (const auto &c : cases) {
        struct heard heard;
        int ends[2];
        pid_t child;

        if (c.run == borrows_memory)
            continue;
        assert_int_equal(pipe(ends), 0);
        child = start_case(c.name, -1, -1, ends[1]);
        hear(child, ends, &heard);
        if ((heard.status == 0) != !c.said || (c.said && !strstr(heard.said, c.said)) || strstr(heard.said, ": not "))
            fail_msg("%s: status %d: %s", c.name, heard.status, heard.said);
    }
}

static __global__ void triple(int *values)
{
    values[threadIdx.x] *= 3;
}

static void borrows_memory()
{
    struct cudaIpcMemHandle_t handle;
    int *p = NULL;

    CHECK(read(0, &handle, sizeof handle) == sizeof handle);
    quick_alloc(64); /* so that addresses differ */
    CHECK(cudaIpcOpenMemHandle((void **)&p, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess);
    launch(triple, 1, 64, 0, 0, p);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaIpcCloseMemHandle(p) == cudaSuccess);
    CHECK(cudaIpcCloseMemHandle(p) == cudaErrorInvalidValue);
    CHECK(write(1, "", 1) == 1);
}

static void processes_lend_each_other_memory(void **)
{
    int in[2], out[2], values[64], status, *before = (int *)device_alloc(5000),
                                           *p = (int *)device_alloc(sizeof values);
    struct cudaIpcMemHandle_t handle;
    void *opened;
    char byte;
    pid_t child;

    for (int i = 0; i < 64; i++)
        values[i] = i;
    to_device(p, values, sizeof values);
    assert_int_equal(cudaIpcGetMemHandle(&handle, p + 1), cudaErrorInvalidValue);
    assert_int_equal(cudaIpcGetMemHandle(&handle, p), cudaSuccess);
    assert_int_equal(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
                     cudaErrorDeviceUninitialized);
    cudaGetLastError();

    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    child = start_case("borrows_memory", in[0], out[1], -1);
    close(in[0]);
    close(out[1]);
    assert_int_equal(write(in[1], &handle, sizeof handle), sizeof handle);
    assert_int_equal(read(out[0], &byte, 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(in[1]);
    close(out[0]);
    to_host(values, p, sizeof values);
    for (int i = 0; i < 64; i++)
        assert_int_equal(values[i], 3 * i);
    cudaFree(before);
    cudaFree(p);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers_hold_every_thread_in_every_order),
        cmocka_unit_test(a_missing_barrier_shows),
        cmocka_unit_test(a_missing_barrier_after_reading_shows),
        cmocka_unit_test(shuffles_and_ballots_go_between_lanes),
        cmocka_unit_test(mma_is_the_product_of_whole_numbers),
        cmocka_unit_test(mma_is_nearly_the_product_of_floats),
        cmocka_unit_test(ldmatrix_deals_rows_to_lanes),
        cmocka_unit_test(powers_of_two_are_nearly_right),
    cmocka_unit_test(pairs_of_halves_are_low_then_high),
    cmocka_unit_test(floats_round_to_bf16_and_tf32),
        cmocka_unit_test(cp_async_copies_when_it_is_waited_for),
        cmocka_unit_test(memory_that_nobody_wrote_is_junk),
        cmocka_unit_test(atomics_return_nothing_lost),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(grids_have_three_dimensions),
        cmocka_unit_test(launches_beyond_the_limits_are_refused),
        cmocka_unit_test(device_memory_is_counted_and_copies_stay_inside),
        cmocka_unit_test(gaps_are_used_again_and_zeroed),
        cmocka_unit_test(threads_of_the_host_run_devices_at_the_same_time),
        cmocka_unit_test(events_tell_time),
        cmocka_unit_test(launches_return_before_they_have_run),
        cmocka_unit_test(page_locked_memory_is_read_late_and_other_memory_at_once),
        cmocka_unit_test(an_event_holds_back_a_stream_of_another_device),
        cmocka_unit_test(a_kernel_that_waits_for_another_stream_does_not_hold_it_back),
        cmocka_unit_test(the_default_stream_waits_for_those_that_block),
        cmocka_unit_test(memory_is_freed_when_the_device_is_done),
        cmocka_unit_test(threads_share_a_stream),
        cmocka_unit_test(a_graph_does_again_what_was_captured_with_what_is_there_now),
        cmocka_unit_test(launches_of_a_graph_take_turns),
        cmocka_unit_test(a_capture_refuses_what_waits),
        cmocka_unit_test(mistakes_end_the_process_and_faults_are_errors),
        cmocka_unit_test(processes_lend_each_other_memory),
    };

    for (const auto &c : cases)
        if (argc > 1 && strcmp(argv[1], c.name) == 0) {
            if (c.environment)
                setenv(c.environment, c.value, 1);
            c.run();
            cudaDeviceSynchronize(); /* what kernels do wrong comes to light */
            return 0;
        }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
