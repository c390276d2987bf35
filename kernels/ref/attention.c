#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <math.h>

/* Of k or of v: one KV head's part of a block. */
static char *head_at(const struct kv_layer *kv, const uint16_t *base, int32_t block, int32_t head)
{
    return (char *)base + kv_head_at(kv, block, head);
}

/* Where element `dim` of the key and the value of a position lie in that. */
static int32_t key_at(const struct kv_layer *kv, int32_t token, int32_t dim)
{
    if (kv->type == KV_BFLOAT16)
        return (dim / 2 * KV_BLOCK_TOKENS + token) * 2 + dim % 2;
    return dim * KV_BLOCK_TOKENS + token;
}

static int32_t value_at(const struct kv_layer *kv, int32_t token, int32_t dim)
{
    if (kv->type == KV_BFLOAT16)
        return (token / 2 * kv->head_dim + dim) * 2 + token % 2;
    return token * kv->head_dim + dim;
}

static float *scales_of(const struct kv_layer *kv, char *head)
{
    return (float *)(head + kv->head_dim * KV_BLOCK_TOKENS);
}

static float read_bfloat16(const char *head, int32_t at)
{
    return float_of_bfloat16(((const uint16_t *)head)[at]);
}

static float read_half(const char *head, int32_t at)
{
    return half_to_float(((const uint16_t *)head)[at]);
}

static float read_fp8(const char *head, int32_t at)
{
    uint32_t code = ((const uint8_t *)head)[at];

    return half_to_float((uint16_t)((code & 0x80) << 8 | (code & 0x7f) << 7));
}

static float read_int8(const char *head, int32_t at)
{
    return ((const int8_t *)head)[at];
}

static void write_bfloat16(char *head, int32_t at, float x)
{
    ((uint16_t *)head)[at] = bfloat16_of_float(x);
}

static void write_half(char *head, int32_t at, float x)
{
    ((uint16_t *)head)[at] = float_to_half(x);
}

static void write_fp8(char *head, int32_t at, float x)
{
    ((uint8_t *)head)[at] = float_to_fp8(x);
}

static void write_int8(char *head, int32_t at, float x)
{
    ((int8_t *)head)[at] = (int8_t)rintf(x);
}

static const struct format {
    float (*read)(const char *head, int32_t at);
    void (*write)(char *head, int32_t at, float x); /* of KV_INT8: times inverse_scale */
} formats[NUM_KV_TYPES] = {
    [KV_BFLOAT16] = {read_bfloat16, write_bfloat16},
    [KV_FLOAT16] = {read_half, write_half},
    [KV_FP8] = {read_fp8, write_fp8},
    [KV_INT8] = {read_int8, write_int8},
};

static float scale_of(const struct kv_layer *kv, char *head, int32_t token)
{
    return kv->type == KV_INT8 ? scales_of(kv, head)[token] : kv->type == KV_FP8 ? FP8_SCALE : 1;
}

/* Sets the scale of a position and returns what its elements are multiplied by. */
static float inverse_scale(const struct kv_layer *kv, char *head, int32_t token, const float *x)
{
    float max = 0;

    if (kv->type != KV_INT8)
        return 1;
    for (int32_t i = 0; i < kv->head_dim; i++)
        max = isnan(max) || fabsf(x[i]) <= max ? max : fabsf(x[i]); /* NaN is the largest */
    scales_of(kv, head)[token] = !isfinite(max) ? NAN : max < SMALLEST_MAX ? 0 : max / 127.0f;
    return !isfinite(max) || max < SMALLEST_MAX ? 0 : 127.0f / max;
}

/* One head of a row. */
static void store_head(const struct kv_layer *kv, char *k, char *v, int32_t token, const float *key,
                       const float *value)
{
    const struct format *format = &formats[kv->type];
    float k_inverse = inverse_scale(kv, k, token, key), v_inverse = inverse_scale(kv, v, token, value);

    for (int32_t i = 0; i < kv->head_dim; i++) {
        format->write(k, key_at(kv, token, i), k_inverse == 0 ? 0 : key[i] * k_inverse);
        format->write(v, value_at(kv, token, i), v_inverse == 0 ? 0 : value[i] * v_inverse);
    }
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
                store_head(kv, head_at(kv, kv->k, block, h), head_at(kv, kv->v, block, h), token,
                           k + r * k_stride + h * kv->head_dim, v + r * v_stride + h * kv->head_dim);
        }
}

/* Over some positions of one row and head: out / sum is their softmax times their values. */
struct softmax {
    float max;             /* of the scores */
    float sums[SUM_LANES]; /* of exp(score - max), by position % SUM_LANES */
    float out[MAX_HEAD_DIM]; /* the sum of exp(score - max) * v */
};

/* As the products read it. */
static float factor(const struct kv_layer *kv, float x)
{
    return kv->type == KV_BFLOAT16 ? float_of_bfloat16(bfloat16_of_float(x)) : x;
}

static float exponential(const struct kv_layer *kv, float x)
{
    return kv->type == KV_BFLOAT16 && x < BFLOAT16_EXP_LOWEST ? 0 : factor(kv, exp_ref(x));
}

/* Positions [first, end), all of one tile. */
static void attend_tile(struct softmax *tile, const float *q, const struct kv_layer *kv,
                        const int32_t *blocks, int32_t head, int32_t first, int32_t end)
{
    float (*read)(const char *head, int32_t at) = formats[kv->type].read;
    int32_t swap = kv->type == KV_BFLOAT16; /* the second of a pair comes first */
    float p[KV_TILE_TOKENS];

    *tile = (struct softmax){.max = NO_SCORE};
    for (int32_t j = first; j < end; j++) {
        char *k = head_at(kv, kv->k, blocks[j / KV_BLOCK_TOKENS], head);
        int32_t token = j % KV_BLOCK_TOKENS;
        float s = 0;

        for (int32_t i = 0; i < kv->head_dim; i++)
            s = fmaf(q[i ^ swap], read(k, key_at(kv, token, i ^ swap)), s);
        s *= scale_of(kv, k, token);
        p[j - first] = s;
        tile->max = s > tile->max ? s : tile->max;
    }
    for (int32_t n = first / 2 * 2; n < (end + 1) / 2 * 2; n++) {
        int32_t j = n ^ swap, token = j % KV_BLOCK_TOKENS;

        if (j < first || j >= end)
            continue;

        char *v = head_at(kv, kv->v, blocks[j / KV_BLOCK_TOKENS], head);
        float e = exponential(kv, p[j - first] - tile->max);

        tile->sums[j % SUM_LANES] += e;
        e *= scale_of(kv, v, token);
        for (int32_t i = 0; i < kv->head_dim; i++)
            tile->out[i] = fmaf(e, read(v, value_at(kv, token, i)), tile->out[i]);
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
        q[i] = factor(kv, args->q[r * args->q_stride + (int64_t)h * dim + i] * args->scale);
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
    if (args->quantized)
        quantize_ref(dev, args->quantized);
}
