/*
 * Weights that are floats: a lane has a column and runs through all of its k, since a sum of floats takes its order
 * from there; a warp has a panel and some rows. Weights and rows come through shared memory, the weights long
 * before their turn.
 */
#include "kernels/cuda/matmul.cuh"

enum {
    FLOAT_WARPS = 4,
    FLOAT_THREADS = FLOAT_WARPS * WARP,
    FLOAT_BLOCKS = 4, /* on a multiprocessor at a time: 128 registers */
    STEP = 4,         /* of k at a time: x is read as float4 */
};

/* CHAINS: rows of a warp. */
template <int CHAINS> struct float_shared {
    enum {
        STAGES = CHAINS > 2 ? 4 : 8, /* of weights; all but one of them are on their way */
        STAGE_BYTES = CHAINS > 2 ? 2048 : 4096,
        K = STAGE_BYTES / packed_record_bytes(TYPE_F32), /* of a stage */
        RUN = K < QUANT_BLOCK ? K : QUANT_BLOCK,     /* so often a group may end */
        ROWS = CHAINS * FLOAT_WARPS,
        X_STEP = FLOAT_THREADS / K, /* a thread has an element of every so many rows */
        XS = ROWS / X_STEP,
    };

    uint8_t weights[STAGES][STAGE_BYTES];
    float x[2][ROWS][K];
};

/* The weights of a stage that begins with `first`, if there are any, set out for shared memory. */
template <int STAGE_BYTES>
static __device__ __forceinline__ void copy_weights(uint8_t *to, const struct matmul_task &task,
                                                    const uint8_t *panel, int32_t first)
{
    constexpr int record_bytes = packed_record_bytes(TYPE_F32);
    const uint8_t *from = panel + (int64_t)first * record_bytes;
    const int32_t records = task.num_records - first;

#pragma unroll
    for (int i = 0; i < STAGE_BYTES; i += FLOAT_THREADS * 16) {
        int at = i + (int)threadIdx.x * 16;

        if (at < STAGE_BYTES && at / record_bytes < records)
            cp_async_16(to + at, from + at);
    }
    cp_async_commit();
}

/* A thread's part of [first, first + K) of the block's rows. */
template <typename Shared>
static __device__ __forceinline__ void load_x(float *x, const struct matmul_task &task, int32_t row0, int32_t first)
{
    const int32_t row = row0 + (int32_t)(threadIdx.x / Shared::K), k = first + (int32_t)(threadIdx.x % Shared::K);
    const float *from = task.a.x + (int64_t)row * task.a.k + k;

#pragma unroll
    for (int i = 0; i < Shared::XS; i++) {
        x[i] = row + i * Shared::X_STEP < task.a.rows && k < task.a.k ? __ldg(from) : 0.0f;
        from += (int64_t)Shared::X_STEP * task.a.k;
    }
}

template <typename Shared> static __device__ __forceinline__ void store_x(Shared *shared, int turn, const float *x)
{
    const int row = threadIdx.x / Shared::K, k = threadIdx.x % Shared::K;

#pragma unroll
    for (int i = 0; i < Shared::XS; i++)
        shared->x[turn][row + i * Shared::X_STEP][k] = x[i];
}

static __device__ __forceinline__ float weight_at(const uint8_t *weights, int k)
{
    return ((const float *)weights)[k * PANEL + (int)threadIdx.x % WARP];
}

/* Elements [k, k + STEP) of the stage. x: the warp's first row there. */
template <int CHAINS>
static __device__ __forceinline__ void add_step(float acc[CHAINS], const uint8_t *weights, const float *x, int k)
{
    constexpr int x_stride = FLOAT_WARPS * float_shared<CHAINS>::K;
    float w[STEP];

#pragma unroll
    for (int i = 0; i < STEP; i++)
        w[i] = weight_at(weights, k + i);
#pragma unroll
    for (int j = 0; j < CHAINS; j++) {
        float4 xs = *(const float4 *)(x + j * x_stride + k);

        acc[j] = fmaf(xs.x, w[0], acc[j]);
        acc[j] = fmaf(xs.y, w[1], acc[j]);
        acc[j] = fmaf(xs.z, w[2], acc[j]);
        acc[j] = fmaf(xs.w, w[3], acc[j]);
    }
}

/* Blocks [tiles of rows, panels]. */
template <int CHAINS>
static __global__ void __launch_bounds__(FLOAT_THREADS, FLOAT_BLOCKS) float_rows(struct matmul_task task)
{
    typedef struct float_shared<CHAINS> Shared;
    const int warp = threadIdx.x / WARP;
    const int32_t row0 = (int32_t)blockIdx.x * Shared::ROWS;
    const uint8_t *panel = task.weights + blockIdx.y * task.panel_bytes;
    Shared *shared = (Shared *)dynamic_shared();
    float next_x[Shared::XS], acc[CHAINS];
    double sum[CHAINS];
    int32_t left = task.group; /* of a group's k; never 0 where there are none */

#pragma unroll
    for (int j = 0; j < CHAINS; j++) {
        acc[j] = 0;
        sum[j] = 0;
    }
    for (int s = 0; s < Shared::STAGES - 1; s++)
        copy_weights<Shared::STAGE_BYTES>(shared->weights[s], task, panel, s * Shared::K);
    load_x<Shared>(next_x, task, row0, 0);
    store_x<Shared>(shared, 0, next_x);
#pragma unroll 1
    for (int32_t first = 0, s = 0; first < task.num_records; first += Shared::K, s++) {
        const int32_t count = min((int32_t)Shared::K, task.num_records - first);
        const uint8_t *weights = shared->weights[s % Shared::STAGES];
        const float *x = shared->x[s % 2][warp];
        int32_t k = 0;

        cp_async_wait<Shared::STAGES - 2>();
        __syncthreads(); /* this stage is there, and nobody needs the one before any more */
        copy_weights<Shared::STAGE_BYTES>(shared->weights[(s + Shared::STAGES - 1) % Shared::STAGES], task,
                                                panel, first + (Shared::STAGES - 1) * Shared::K);
        load_x<Shared>(next_x, task, row0, first + Shared::K);
#pragma unroll 1
        while (k + Shared::RUN <= count) {
#pragma unroll
            for (int i = 0; i < Shared::RUN; i += STEP)
                add_step<CHAINS>(acc, weights, x, k + i);
            k += Shared::RUN;
            left -= Shared::RUN;
            if (left == 0) {
#pragma unroll
                for (int j = 0; j < CHAINS; j++) {
                    sum[j] += on_grid(acc[j]);
                    acc[j] = 0;
                }
                left = task.group;
            }
        }
#pragma unroll 1
        for (; k < count; k++) { /* no group ends here */
#pragma unroll
            for (int j = 0; j < CHAINS; j++)
                acc[j] = fmaf(x[j * FLOAT_WARPS * Shared::K + k], weight_at(weights, k), acc[j]);
        }
        store_x<Shared>(shared, (s + 1) % 2, next_x);
    }
#pragma unroll
    for (int j = 0; j < CHAINS; j++) {
        int64_t row = row0 + warp + j * FLOAT_WARPS;

        if (row < task.a.rows)
            store_result(task, row, (int32_t)blockIdx.y * PANEL + (int)threadIdx.x % WARP, acc[j], sum[j]);
    }
}

/* ---- launches ------------------------------------------------------------------------------------------------ */

struct float_kernel {
    void (*kernel)(struct matmul_task task);
    int32_t rows;
    size_t shared_bytes;
};

#define FLOAT(chains)                                                                                        \
    {float_rows<chains>, float_shared<chains>::ROWS, sizeof(struct float_shared<chains>)}
static const struct float_kernel kernels[3] = {FLOAT(1), FLOAT(2), FLOAT(8)};

void matmul_float(struct cuda_state *state, const struct matmul_task *task)
{
    const struct float_kernel *k = kernels;

    while (k->rows < task->a.rows && k < &kernels[2])
        k++;

    int32_t num_tiles = divide_up(task->a.rows, k->rows);

    launch(k->kernel, dim3((unsigned)num_tiles, (unsigned)num_panels(task)), dim3(FLOAT_THREADS), k->shared_bytes,
           state->stream, *task);
    note_launch(state);
}
