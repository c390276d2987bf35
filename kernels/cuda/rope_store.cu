/*
 * rope_store: 16 threads to a head of a row: a norm adds up its squares in 16 chains.
 */
#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/state.h"
#include "kernels/numerics.h"

enum {
    THREADS = 128,
    BLOCK_HEADS = THREADS / SUM_LANES,
    BATCH = 4, /* pairs of a thread that are on their way from memory */
};

/* By value: all pointers are the device's. */
struct rope_task {
    float *qkv;
    int64_t stride;
    struct kv_layer kv;
    struct batch_view batch;
    int32_t num_heads;
    const float *q_norm, *k_norm;
    float eps;
    const float *cos_sin;
    int32_t rope_dim;
    bool adjacent;
    int32_t row_blocks; /* of threads, for a row */
};

/* What a thread turns a part of. */
struct head {
    float *x;
    const float *norm; /* NULL: none */
    float scale;       /* of the norm */
    uint16_t *k;       /* the slot of its key: [head_dim] at stride KV_BLOCK_TOKENS; NULL: it is q's */
};

/* Of the norm of a head: 16 lanes. All lanes of a warp come here, with `norm` or without. */
static __device__ __forceinline__ float norm_scale(const struct rope_task &task, const float *x, const float *norm)
{
    int32_t dim = task.kv.head_dim;
    float squares = 0;

    if (norm)
#pragma unroll 8
        for (int32_t i = threadIdx.x % SUM_LANES; i < dim; i += SUM_LANES)
            squares = fmaf(x[i], x[i], squares);
#pragma unroll
    for (int width = SUM_LANES / 2; width; width /= 2)
        squares += __shfl_xor_sync(ALL_LANES, squares, width);
    return 1.0f / sqrtf(squares / (float)dim + task.eps);
}

static __device__ __forceinline__ float normed(const struct head &head, int32_t i)
{
    return head.norm ? head.x[i] * head.scale * head.norm[i] : head.x[i];
}

static __device__ __forceinline__ void put(const struct head &head, int32_t i, float x)
{
    head.x[i] = x;
    if (head.k)
        head.k[i * KV_BLOCK_TOKENS] = half_of_float(x);
}

/* The dimensions that turn, in pairs, a few at a time: a thread reads them all before it writes one. */
static __device__ __forceinline__ void turn(const struct rope_task &task, const struct head &head, int32_t position)
{
    int32_t half = task.rope_dim / 2, step = task.adjacent ? 2 : 1, apart = task.adjacent ? 1 : half;
    const float2 *angles = (const float2 *)task.cos_sin + (int64_t)position * half;

    for (int32_t first = threadIdx.x % SUM_LANES; first < half; first += BATCH * SUM_LANES) {
        float a[BATCH], b[BATCH];
        float2 angle[BATCH];

#pragma unroll
        for (int p = 0; p < BATCH; p++) {
            int32_t i = first + p * SUM_LANES;

            if (i < half) {
                a[p] = normed(head, i * step);
                b[p] = normed(head, i * step + apart);
                angle[p] = angles[i];
            }
        }
#pragma unroll
        for (int p = 0; p < BATCH; p++) {
            int32_t i = first + p * SUM_LANES;

            if (i < half) {
                put(head, i * step, fmaf(a[p], angle[p].x, -(b[p] * angle[p].y)));
                put(head, i * step + apart, fmaf(a[p], angle[p].y, b[p] * angle[p].x));
            }
        }
    }
}

/* Those that do not. */
static __device__ __forceinline__ void keep(const struct rope_task &task, const struct head &head)
{
    int32_t lane = threadIdx.x % SUM_LANES;

    if (head.norm || head.k)
        for (int32_t i = task.rope_dim / 2 * 2 + lane; i < task.kv.head_dim; i += SUM_LANES)
            put(head, i, normed(head, i));
}

static __global__ void __launch_bounds__(THREADS) rope_and_store(const struct rope_task task)
{
    int32_t row = (int32_t)(blockIdx.x / (unsigned)task.row_blocks), dim = task.kv.head_dim;
    int32_t in_row = (int32_t)(blockIdx.x % (unsigned)task.row_blocks) * BLOCK_HEADS;
    int32_t first = in_row + (int32_t)threadIdx.x / WARP * (WARP / SUM_LANES); /* the warp's first head */
    int32_t number = first + (int32_t)threadIdx.x % WARP / SUM_LANES;          /* q's heads, then k's, then v's */
    int32_t num_kv_heads = task.kv.num_kv_heads, kv_head = number - task.num_heads;
    bool is_q = kv_head < 0, is_k = !is_q && kv_head < num_kv_heads;
    bool is_v = !is_q && !is_k && kv_head < 2 * num_kv_heads;
    int32_t position = task.batch.positions[row], token = position % KV_BLOCK_TOKENS;
    struct head head = {task.qkv + row * task.stride + (int64_t)number * dim,
                        is_q   ? task.q_norm
                        : is_k ? task.k_norm
                               : NULL,
                        1, NULL};
    int64_t block = 0;

    if (first + WARP / SUM_LANES > task.num_heads) { /* some of the warp's heads are stored */
        int32_t request = request_of_row(task.batch, row);

        const int32_t *blocks = task.batch.block_tables + (int64_t)request * task.batch.block_table_stride;

        block = kv_block_at(task.kv, blocks[position / KV_BLOCK_TOKENS], 0);
    }
    head.scale = norm_scale(task, head.x, head.norm);
    if (is_k)
        head.k = task.kv.k + block + kv_block_at(task.kv, 0, kv_head) + token;
    if (is_q || is_k) {
        turn(task, head, position);
        keep(task, head);
    }
    if (is_v) {
        uint16_t *v = task.kv.v + block + kv_block_at(task.kv, 0, kv_head - num_kv_heads) + (int64_t)token * dim;

        for (int32_t i = threadIdx.x % SUM_LANES; i < dim; i += SUM_LANES)
            v[i] = half_of_float(head.x[i]);
    }
}

void rope_store_cuda(struct device *dev, const struct rope_args *args)
{
    struct cuda_state *state = state_of(dev);
    struct rope_task task = {};

    if (args->batch->rows == 0)
        return;
    task.qkv = args->qkv;
    task.stride = args->stride;
    task.kv = *args->kv;
    task.batch = *args->batch;
    task.num_heads = args->num_heads;
    task.q_norm = args->q_norm;
    task.k_norm = args->k_norm;
    task.eps = args->eps;
    task.cos_sin = args->cos_sin;
    task.rope_dim = args->rope_dim;
    task.adjacent = args->adjacent;
    task.row_blocks = (args->num_heads + 2 * args->kv->num_kv_heads + BLOCK_HEADS - 1) / BLOCK_HEADS;
    launch(rope_and_store, dim3((unsigned)args->batch->rows * (unsigned)task.row_blocks), dim3(THREADS), 0,
           state->stream, task);
    note_launch(state);
}
