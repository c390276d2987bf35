#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <math.h>

/* Where element `dim` of the key and the value of a position lie. */
static int64_t key_at(const struct kv_layer *kv, int32_t block, int32_t head, int32_t token,
                      int32_t dim)
{
    return block * kv->block_stride + ((int64_t)head * kv->head_dim + dim) * KV_BLOCK_TOKENS + token;
}

static int64_t value_at(const struct kv_layer *kv, int32_t block, int32_t head, int32_t token,
                        int32_t dim)
{
    return block * kv->block_stride + ((int64_t)head * KV_BLOCK_TOKENS + token) * kv->head_dim + dim;
}

void kv_store_ref(const struct kv_layer *kv, const struct batch_view *batch, const float *k,
                  int64_t k_stride, const float *v, int64_t v_stride)
{
    for (int32_t request = 0; request < batch->num_requests; request++)
        for (int32_t r = batch->row_start[request]; r < batch->row_start[request + 1]; r++) {
            int32_t token = batch->positions[r] % KV_BLOCK_TOKENS;
            int32_t block = batch->block_tables[(int64_t)request * batch->block_table_stride +
                                                batch->positions[r] / KV_BLOCK_TOKENS];

            for (int32_t h = 0; h < kv->num_kv_heads; h++)
                for (int32_t i = 0; i < kv->head_dim; i++) {
                    kv->k[key_at(kv, block, h, token, i)] =
                        float_to_half(k[r * k_stride + h * kv->head_dim + i]);
                    kv->v[value_at(kv, block, h, token, i)] =
                        float_to_half(v[r * v_stride + h * kv->head_dim + i]);
                }
        }
}

/* Over some positions of one row and head: out / sum is their softmax times their values. */
struct softmax {
    float max;             /* of the scores */
    float sums[SUM_LANES]; /* of exp(score - max), by position % SUM_LANES */
    float out[MAX_HEAD_DIM]; /* the sum of exp(score - max) * v */
};

/* Positions [first, end), all of one tile. */
static void attend_tile(struct softmax *tile, const float *q, const struct kv_layer *kv,
                        const int32_t *blocks, int32_t head, int32_t first, int32_t end)
{
    float p[KV_TILE_TOKENS];

    *tile = (struct softmax){.max = NO_SCORE};
    for (int32_t j = first; j < end; j++) {
        float s = 0;

        for (int32_t i = 0; i < kv->head_dim; i++)
            s = fmaf(q[i], half_to_float(kv->k[key_at(kv, blocks[j / KV_BLOCK_TOKENS], head,
                                                      j % KV_BLOCK_TOKENS, i)]), s);
        p[j - first] = s;
        tile->max = s > tile->max ? s : tile->max;
    }
    for (int32_t j = first; j < end; j++) {
        float e = exp_ref(p[j - first] - tile->max);

        tile->sums[j % SUM_LANES] += e;
        for (int32_t i = 0; i < kv->head_dim; i++)
            tile->out[i] = fmaf(e, half_to_float(kv->v[value_at(kv, blocks[j / KV_BLOCK_TOKENS], head,
                                                                j % KV_BLOCK_TOKENS, i)]),
                                tile->out[i]);
    }
}

/* `row` goes on with the next tile. */
static void merge(struct softmax *row, const struct softmax *tile, int32_t dim)
{
    float max = tile->max > row->max ? tile->max : row->max;
    float old = exp_ref(row->max - max), new = exp_ref(tile->max - max);

    row->max = max;
    for (int i = 0; i < SUM_LANES; i++)
        row->sums[i] = fmaf(tile->sums[i], new, row->sums[i] * old);
    for (int32_t i = 0; i < dim; i++)
        row->out[i] = fmaf(tile->out[i], new, row->out[i] * old);
}

static void attend(const struct attention_args *args, int32_t request, int32_t r, int32_t h)
{
    const struct kv_layer *kv = args->kv;
    const struct batch_view *batch = args->batch;
    const int32_t *blocks = batch->block_tables + (int64_t)request * batch->block_table_stride;
    int32_t position = batch->positions[r], dim = kv->head_dim;
    int32_t first = args->window ? MAX(position - args->window + 1, 0) : 0;
    struct softmax row = {.max = NO_SCORE}, tile;
    float q[MAX_HEAD_DIM];

    for (int32_t i = 0; i < dim; i++)
        q[i] = args->q[r * args->q_stride + (int64_t)h * dim + i] * args->scale;
    while (first <= position) {
        int32_t end = MIN((first / KV_TILE_TOKENS + 1) * KV_TILE_TOKENS, position + 1);

        attend_tile(&tile, q, kv, blocks, args->kv_head_of[h], first, end);
        merge(&row, &tile, dim);
        first = end;
    }

    float inverse = 1.0f / sum_lanes_ref(row.sums);

    for (int32_t i = 0; i < dim; i++)
        args->out[((int64_t)r * args->num_heads + h) * dim + i] = row.out[i] * inverse;
}

void attention_ref(struct device *dev, const struct attention_args *args)
{
    const struct batch_view *batch = args->batch;

    (void)dev;
    ASSERT(args->kv->head_dim <= MAX_HEAD_DIM, "head_dim %d", args->kv->head_dim);
    for (int32_t request = 0; request < batch->num_requests; request++)
        for (int32_t r = batch->row_start[request]; r < batch->row_start[request + 1]; r++)
            for (int32_t h = 0; h < args->num_heads; h++)
                attend(args, request, r, h);
}
