/* What becomes of a row's queries, keys and values between their projection and attention. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/norm.h"

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

/* k, v: the heads of one row, to its token's place in a block: see struct kv_layer. */
static void store_row(const struct kv_layer *kv, int32_t block, int32_t token, const float *k,
                      const float *v)
{
    int32_t dim = kv->head_dim;
    uint16_t halves[LANES];

    for (int32_t h = 0; h < kv->num_kv_heads; h++, k += dim, v += dim) {
        int64_t head = ((int64_t)block * kv->num_kv_heads + h) * dim * KV_BLOCK_TOKENS;

        for (int32_t i = 0; i < dim; i += LANES) {
            vf_store_half(halves, vf_load(k + i));
            for (int l = 0; l < LANES; l++)
                kv->k[head + (int64_t)(i + l) * KV_BLOCK_TOKENS + token] = halves[l];
            vf_store_half(kv->v + head + (int64_t)token * dim + i, vf_load(v + i));
        }
    }
}

static void rope_store_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct rope_args *args = arg;
    const struct batch_view *batch = args->batch;
    const struct kv_layer *kv = args->kv;
    int32_t request = 0, dim = kv->head_dim;

    (void)scratch;
    for (int64_t r = first; r < end; r++) {
        int32_t position = batch->positions[r];
        const float *angles = args->cos_sin + (int64_t)position * args->rope_dim;
        float *q = args->qkv + r * args->stride, *k = q + (int64_t)args->num_heads * dim;

        while (batch->row_start[request + 1] <= r)
            request++;
        for (int32_t h = 0; h < args->num_heads; h++)
            turn_head(args, q + (int64_t)h * dim, args->q_norm, angles);
        for (int32_t h = 0; h < kv->num_kv_heads; h++)
            turn_head(args, k + (int64_t)h * dim, args->k_norm, angles);
        store_row(kv,
                  batch->block_tables[(int64_t)request * batch->block_table_stride +
                                      position / KV_BLOCK_TOKENS],
                  position % KV_BLOCK_TOKENS, k, k + (int64_t)kv->num_kv_heads * dim);
    }
}

void KERNEL(rope_store)(struct device *dev, const struct rope_args *args)
{
    ASSERT(args->kv->head_dim % SUM_LANES == 0, "head_dim %d", args->kv->head_dim);
    device_run(dev, args->batch->rows, 4, rope_store_rows, args);
}
