/* What becomes of a row's queries, keys and values between their projection and attention. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kv_store.h"
#include "kernels/cpu/norm.h"

#include "proto/base/memory.h"

/* angles: [half, 2] cosines and sines */
static void rotate_halves(float *restrict first, float *restrict second,
                          const float *restrict angles, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = first[i], b = second[i], cos = angles[2 * i], sin = angles[2 * i + 1];

        first[i] = __builtin_fmaf(a, cos, -(b * sin));
        second[i] = __builtin_fmaf(a, sin, b * cos);
    }
}

static void rotate_adjacent(float *restrict x, const float *restrict angles, int32_t half)
{
    for (int32_t i = 0; i < half; i++) {
        float a = x[2 * i], b = x[2 * i + 1], cos = angles[2 * i], sin = angles[2 * i + 1];

        x[2 * i] = __builtin_fmaf(a, cos, -(b * sin));
        x[2 * i + 1] = __builtin_fmaf(a, sin, b * cos);
    }
}

static void norm_head(float *head, const float *weight, int32_t dim, float eps)
{
    vf squares[SUM_VECTORS] = {0};

    for (int32_t i = 0; i < dim; i += SUM_LANES) {
        vf x[SUM_VECTORS];

        UNROLL for (int v = 0; v < SUM_VECTORS; v++)
            x[v] = vf_load(head + i + v * LANES);
        add_squares(squares, x);
    }

    vf scale = vf_set(norm_scale(squares, dim, eps));

    for (int32_t i = 0; i < dim; i += LANES)
        vf_store(head + i, vf_load(head + i) * scale * vf_load(weight + i));
}

static void turn_head(const struct rope_args *args, float *head, const float *weight,
                      const float *angles)
{
    int32_t half = args->rope_dim / 2;

    if (weight)
        norm_head(head, weight, args->kv->head_dim, args->eps);
    if (args->adjacent)
        rotate_adjacent(head, angles, half);
    else
        rotate_halves(head, head + half, angles, half);
}

static void add_bias(const struct rope_args *args, float *row)
{
    int32_t width = (args->num_heads + 2 * args->kv->num_kv_heads) * args->kv->head_dim;

    for (int32_t i = 0; i < width; i += LANES)
        vf_store(row + i, vf_load(row + i) + vf_load(args->bias + i));
}

static void turn_row(const struct rope_args *args, int64_t row)
{
    const float *angles = args->cos_sin + (int64_t)args->batch->positions[row] * args->rope_dim;
    int32_t dim = args->kv->head_dim;
    float *q = args->qkv + row * args->stride, *k = q + (int64_t)args->num_heads * dim;

    if (args->bias)
        add_bias(args, q);
    for (int32_t h = 0; h < args->num_heads; h++)
        turn_head(args, q + (int64_t)h * dim, args->q_norm, angles);
    for (int32_t h = 0; h < args->kv->num_kv_heads; h++)
        turn_head(args, k + (int64_t)h * dim, args->k_norm, angles);
}

/* Rows up to the end of a block are turned, then stored together. */
static void rope_store_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct rope_args *args = arg;
    const struct kv_layer *kv = args->kv;
    const float *k = args->qkv + (int64_t)args->num_heads * kv->head_dim;
    struct kv_rows rows = {kv, args->batch, k, k + (int64_t)kv->num_kv_heads * kv->head_dim,
                           args->stride, args->stride};
    int32_t request = 0;

    (void)scratch;
    for (int64_t row = first, next; row < end; row = next) {
        next = MIN(row + KV_BLOCK_TOKENS - args->batch->positions[row] % KV_BLOCK_TOKENS, end);
        for (int64_t r = row; r < next; r++)
            turn_row(args, r);
        KERNEL(kv_store_rows)(&rows, row, next, &request);
    }
}

void KERNEL(rope_store)(struct device *dev, const struct rope_args *args)
{
    ASSERT(args->kv->head_dim % SUM_LANES == 0 && args->kv->head_dim <= MAX_HEAD_DIM, "head_dim %d",
           args->kv->head_dim);
    device_run(dev, args->batch->rows, 4, rope_store_rows, args);
}
