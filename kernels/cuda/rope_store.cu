/*
 * rope_store: 16 threads to a head of a row: a norm adds up its squares in 16 chains. What is kept as KV_INT8 is
 * stored when all of a head is known, as other types it is as it comes.
 */
#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/kv_codes.cuh"
#include "kernels/cuda/rows.cuh"
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
    const float *bias;
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
    char *to;          /* its part of a block of k, or of v; NULL: it is q's */
    int32_t first, next, pair; /* element i is to[first + i / 2 * pair + i % 2 * next] */
};

/* All lanes of a warp come here: what one adds another turns. */
static __device__ __forceinline__ void add_bias(float *x, const float *bias, int32_t dim)
{
    if (bias)
#pragma unroll 4
        for (int32_t i = threadIdx.x % SUM_LANES; i < dim; i += SUM_LANES)
            x[i] += bias[i];
    __syncwarp();
}

/* Of the norm of a head: 16 lanes. All lanes of a warp come here, with `norm` or without. */
static __device__ __forceinline__ float head_scale(const struct rope_task &task, const float *x, const float *norm)
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
    __syncwarp(); /* others write what was read here */
    return 1.0f / sqrtf(squares / (float)dim + task.eps);
}

static __device__ __forceinline__ float normed(const struct head &head, int32_t i)
{
    return head.norm ? head.x[i] * head.scale * head.norm[i] : head.x[i];
}

static __device__ __forceinline__ int32_t place_of(const struct head &head, int32_t i)
{
    return head.first + (i >> 1) * head.pair + (i & 1) * head.next;
}

/* Into the cache; what is of KV_INT8 has been multiplied. A word of it may be two threads', or two rows'. */
template <enum kv_type TYPE>
static __device__ __forceinline__ void store(const struct head &head, int32_t i, float x)
{
    int32_t at = place_of(head, i);

    if (TYPE == KV_BFLOAT16)
        ((uint16_t *)head.to)[at] = bf16_of_float(x);
    else if (TYPE == KV_FLOAT16)
        ((uint16_t *)head.to)[at] = half_of_float(x);
    else
        ((uint8_t *)head.to)[at] = TYPE == KV_FP8 ? fp8_of_float(x) : (uint8_t)round_code(x);
}

template <enum kv_type TYPE>
static __device__ __forceinline__ void put(const struct head &head, int32_t i, float x)
{
    head.x[i] = x;
    if (TYPE != KV_INT8 && head.to)
        store<TYPE>(head, i, x);
}

/* Elements i and i + apart. Of KV_BFLOAT16 two of k that are neighbours are a word of the cache. */
template <enum kv_type TYPE>
static __device__ __forceinline__ void put_two(const struct head &head, int32_t i, int32_t apart, float x, float y)
{
    if (TYPE == KV_BFLOAT16 && apart == 1 && head.to) {
        head.x[i] = x;
        head.x[i + 1] = y;
        *(uint32_t *)((uint16_t *)head.to + place_of(head, i)) = bf16_of_float(x) | (uint32_t)bf16_of_float(y) << 16;
    } else {
        put<TYPE>(head, i, x);
        put<TYPE>(head, i + apart, y);
    }
}

/* The dimensions that turn, in pairs, a few at a time: a thread reads them all before it writes one. */
template <enum kv_type TYPE>
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

            if (i < half)
                put_two<TYPE>(head, i * step, apart, fmaf(a[p], angle[p].x, -(b[p] * angle[p].y)),
                              fmaf(a[p], angle[p].y, b[p] * angle[p].x));
        }
    }
}

/* Those that do not. */
template <enum kv_type TYPE>
static __device__ __forceinline__ void keep(const struct rope_task &task, const struct head &head)
{
    int32_t lane = threadIdx.x % SUM_LANES;

    if (head.norm || (TYPE != KV_INT8 && head.to))
        for (int32_t i = task.rope_dim / 2 * 2 + lane; i < task.kv.head_dim; i += SUM_LANES)
            put<TYPE>(head, i, normed(head, i));
}

/* A head of KV_INT8 as its codes, and their scale. All lanes of a warp come here, and what they wrote is there. */
static __device__ __forceinline__ void store_codes(const struct rope_task &task, const struct head &head,
                                                   int32_t token)
{
    const uint32_t infinite = 0x7f800000, nan = 0x7fc00000;
    int32_t dim = task.kv.head_dim, lane = threadIdx.x % SUM_LANES;
    uint32_t most = 0; /* of magnitudes, by their bits: NaN is the largest */

    if (head.to)
        for (int32_t i = lane; i < dim; i += SUM_LANES)
            most = max(most, __float_as_uint(fabsf(head.x[i])));
#pragma unroll
    for (int width = SUM_LANES / 2; width; width /= 2)
        most = max(most, __shfl_xor_sync(ALL_LANES, most, width));
    if (!head.to)
        return;

    float largest = __uint_as_float(most), scale = largest / 127.0f, inverse = 127.0f / largest;

    if (!(most < infinite && largest >= SMALLEST_MAX)) {
        scale = most < infinite ? 0 : __uint_as_float(nan);
        inverse = 0;
    }
    for (int32_t i = lane; i < dim; i += SUM_LANES)
        store<KV_INT8>(head, i, inverse == 0 ? 0 : head.x[i] * inverse);
    if (lane == 0)
        ((float *)(head.to + kv_element_bytes(task.kv)))[token] = scale;
}

template <enum kv_type TYPE>
static __global__ void __launch_bounds__(THREADS) rope_and_store(const struct rope_task task)
{
    int32_t row = (int32_t)(blockIdx.x / (unsigned)task.row_blocks), dim = task.kv.head_dim;
    int32_t in_row = (int32_t)(blockIdx.x % (unsigned)task.row_blocks) * BLOCK_HEADS;
    int32_t first = in_row + (int32_t)threadIdx.x / WARP * (WARP / SUM_LANES); /* the warp's first head */
    int32_t number = first + (int32_t)threadIdx.x % WARP / SUM_LANES;          /* q's heads, then k's, then v's */
    int32_t num_kv_heads = task.kv.num_kv_heads, kv_head = number - task.num_heads;
    bool is_q = kv_head < 0, is_k = !is_q && kv_head < num_kv_heads;
    bool is_v = !is_q && !is_k && kv_head < 2 * num_kv_heads;
    const bool has_pairs = TYPE == KV_BFLOAT16;
    int32_t position = task.batch.positions[row], token = position % KV_BLOCK_TOKENS;
    struct head head = {task.qkv + row * task.stride + (int64_t)number * dim,
                        is_q   ? task.q_norm
                        : is_k ? task.k_norm
                               : NULL,
                        1, NULL, 0, 0, 0};
    int64_t block = 0;

    if (first + WARP / SUM_LANES > task.num_heads) { /* some of the warp's heads are stored */
        int32_t request = request_of_row(task.batch, row);

        const int32_t *blocks = task.batch.block_tables + (int64_t)request * task.batch.block_table_stride;

        block = kv_block_at(task.kv, blocks[position / KV_BLOCK_TOKENS], 0);
    }
    if (task.bias)
        add_bias(head.x, is_q || is_k || is_v ? task.bias + number * dim : NULL, dim);
    head.scale = head_scale(task, head.x, head.norm);
    if (is_k) {
        head.to = (char *)task.kv.k + block + kv_block_at(task.kv, 0, kv_head);
        head.first = has_pairs ? 2 * token : token;
        head.next = has_pairs ? 1 : KV_BLOCK_TOKENS;
        head.pair = 2 * KV_BLOCK_TOKENS;
    }
    if (is_v) {
        head.to = (char *)task.kv.v + block + kv_block_at(task.kv, 0, kv_head - num_kv_heads);
        head.first = has_pairs ? token / 2 * 2 * dim + token % 2 : token * dim;
        head.next = has_pairs ? 2 : 1;
        head.pair = 2 * head.next;
    }
    if (is_q || is_k) {
        turn<TYPE>(task, head, position);
        keep<TYPE>(task, head);
    }
    if (TYPE == KV_INT8) {
        __syncwarp();
        store_codes(task, head, token);
    } else if (is_v) {
        for (int32_t i = threadIdx.x % SUM_LANES; i < dim; i += SUM_LANES)
            store<TYPE>(head, i, head.x[i]);
    }
}

static void (*const kernels_by_type[])(const struct rope_task) = {
    rope_and_store<KV_BFLOAT16>, rope_and_store<KV_FLOAT16>, rope_and_store<KV_FP8>, rope_and_store<KV_INT8>};

static_assert(sizeof(kernels_by_type) / sizeof(kernels_by_type[0]) == NUM_KV_TYPES, "a kernel for each");

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
    task.bias = args->bias;
    task.q_norm = args->q_norm;
    task.k_norm = args->k_norm;
    task.eps = args->eps;
    task.cos_sin = args->cos_sin;
    task.rope_dim = args->rope_dim;
    task.adjacent = args->adjacent;
    task.row_blocks = divide_up(args->num_heads + 2 * args->kv->num_kv_heads, BLOCK_HEADS);
    launch(kernels_by_type[args->kv->type], dim3((unsigned)args->batch->rows * (unsigned)task.row_blocks),
           dim3(THREADS), 0, state->stream, task);
    note_launch(state);
}
