/*
 * Values lie in the cache as they come. Keys of a block lie dimension by dimension, so those of one
 * row are scattered; rows that fill a block are transposed in registers instead. All of it is written for a
 * constant type. Codes are words until they are put into the cache.
 */
#include "kernels/cpu/kv_store.h"

#include "proto/base/memory.h"

#include <math.h>

enum { SIDE = 8 }; /* of the squares that are transposed */

/* Where a head's part of a block begins, of k or of v. */
INLINE void *head_at(const struct kv_layer *kv, uint16_t *base, int32_t block, int32_t head)
{
    return (char *)base + kv_head_at(kv, block, head);
}

/* ---- codes --------------------------------------------------------------------------------------- */

static void to_halves(uint16_t *to, const float *from, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES)
        vf_store_half(to + i, vf_load(from + i));
}

static void to_bfloat16(uint16_t *to, const float *from, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES)
        vi_store_u16(to + i, (vi)((vu)vf_bfloat16(vf_load(from + i)) >> 16));
}

static void to_fp8(uint16_t *to, const float *from, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES)
        vi_store_u16(to + i, vf_to_fp8(vf_load(from + i)));
}

/* Of the largest magnitude, where NaN is larger than all. */
static float max_magnitude(const float *x, int32_t count)
{
    vi most = vi_set(0);
    int32_t max = 0;
    float f;

    for (int32_t i = 0; i < count; i += LANES) {
        vi bits = (vi)vf_abs(vf_load(x + i)), more = bits > most;

        most = (more & bits) | (~more & most);
    }
    for (int i = 0; i < LANES; i++)
        max = MAX(max, most[i]);
    memcpy(&f, &max, sizeof(f));
    return f;
}

/* Returns the scale. */
static float to_int8(uint16_t *to, const float *from, int32_t count)
{
    float max = max_magnitude(from, count);

    if (!(max >= SMALLEST_MAX && max <= __FLT_MAX__)) {
        memset(to, 0, (size_t)count * sizeof(*to));
        return max < SMALLEST_MAX ? 0 : NAN;
    }
    for (int32_t i = 0; i < count; i += LANES)
        vi_store_u16(to + i, (vi)(vf_load(from + i) * (127.0f / max) + EXP_ROUND) - (vi)vf_set(EXP_ROUND));
    return max / 127.0f;
}

/* head: that of the cache to which the codes will go. */
INLINE void to_codes(const enum kv_type type, uint16_t *to, const float *from, int32_t dim, void *head,
                     int32_t token)
{
    if (type == KV_BFLOAT16)
        to_bfloat16(to, from, dim);
    else if (type == KV_FLOAT16)
        to_halves(to, from, dim);
    else if (type == KV_FP8)
        to_fp8(to, from, dim);
    else
        ((float *)((char *)head + dim * KV_BLOCK_TOKENS))[token] = to_int8(to, from, dim);
}

/* ---- rows ------------------------------------------------------------------------------------------ */

INLINE void store_values(const enum kv_type type, const struct kv_rows *rows, int64_t row, int32_t block,
                         int32_t head)
{
    int32_t token = rows->batch->positions[row] % KV_BLOCK_TOKENS, dim = rows->kv->head_dim;
    const float *v = rows->v + row * rows->v_stride + (int64_t)head * dim;
    void *to = head_at(rows->kv, rows->kv->v, block, head);
    uint16_t codes[MAX_HEAD_DIM];

    if (type == KV_FLOAT16) {
        to_halves((uint16_t *)to + token * dim, v, dim);
        return;
    }
    to_codes(type, codes, v, dim, to, token);
    for (int32_t i = 0; i < dim; i++)
        if (type == KV_BFLOAT16) /* the other of the pair may be another thread's */
            ((uint16_t *)to)[(token / 2 * dim + i) * 2 + token % 2] = codes[i];
        else
            ((uint8_t *)to)[token * dim + i] = (uint8_t)codes[i];
}

/* KV_BFLOAT16: those of a row and the next, which are a pair. */
INLINE void store_pairs_of_values(const struct kv_rows *rows, int64_t row, int32_t block, int32_t head)
{
    int32_t token = rows->batch->positions[row] % KV_BLOCK_TOKENS, dim = rows->kv->head_dim;
    const float *v = rows->v + row * rows->v_stride + (int64_t)head * dim;
    uint32_t *to = (uint32_t *)head_at(rows->kv, rows->kv->v, block, head) + token / 2 * dim;

    for (int32_t i = 0; i < dim; i += LANES)
        vi_store(to + i, (vi)vf_bfloat16(vf_load(v + rows->v_stride + i)) |
                             (vi)((vu)vf_bfloat16(vf_load(v + i)) >> 16));
}

INLINE void store_row(const enum kv_type type, const struct kv_rows *rows, int64_t row, int32_t block)
{
    const struct kv_layer *kv = rows->kv;
    int32_t token = rows->batch->positions[row] % KV_BLOCK_TOKENS, dim = kv->head_dim;
    uint16_t codes[MAX_HEAD_DIM];

    for (int32_t head = 0; head < kv->num_kv_heads; head++) {
        void *k = head_at(kv, kv->k, block, head);

        to_codes(type, codes, rows->k + row * rows->k_stride + (int64_t)head * dim, dim, k, token);
        for (int32_t i = 0; i < dim; i++)
            if (type == KV_BFLOAT16)
                ((uint16_t *)k)[(i / 2 * KV_BLOCK_TOKENS + token) * 2 + i % 2] = codes[i];
            else if (type == KV_FLOAT16)
                ((uint16_t *)k)[i * KV_BLOCK_TOKENS + token] = codes[i];
            else
                ((uint8_t *)k)[i * KV_BLOCK_TOKENS + token] = (uint8_t)codes[i];
        store_values(type, rows, row, block, head);
    }
}

typedef uint16_t side __attribute__((vector_size(2 * SIDE), aligned(2), may_alias));
typedef uint32_t side_of_pairs __attribute__((vector_size(4 * SIDE), aligned(2), may_alias));

/* x[i][j] to x[j][i]. Each round interleaves halves of the whole, which moves one bit of the row's number
 * to the column's. */
#define TRANSPOSE(name, side)                                                                      \
    INLINE void name(side *x)                                                                      \
    {                                                                                              \
        UNROLL for (int round = 0; round < 3; round++) {                                           \
            side y[SIDE];                                                                          \
                                                                                                   \
            UNROLL for (int i = 0; i < SIDE / 2; i++) {                                            \
                y[2 * i] = __builtin_shufflevector(x[i], x[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);      \
                y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 4], 4, 12, 5, 13, 6, 14, 7, 15); \
            }                                                                                      \
            UNROLL for (int i = 0; i < SIDE; i++)                                                  \
                x[i] = y[i];                                                                       \
        }                                                                                          \
    }

TRANSPOSE(transpose, side)
TRANSPOSE(transpose_pairs, side_of_pairs)

/* SIDE codes. */
INLINE void store_side(const enum kv_type type, void *head, int32_t at, side x)
{
    typedef uint8_t bytes __attribute__((vector_size(SIDE), aligned(1), may_alias));

    if (type == KV_FLOAT16)
        *(side *)((uint16_t *)head + at) = x;
    else
        *(bytes *)((uint8_t *)head + at) = __builtin_convertvector(x, bytes);
}

/* Those of a whole block, [KV_BLOCK_TOKENS][dim]. */
static void store_transposed_pairs(uint32_t *k, const uint16_t (*codes)[MAX_HEAD_DIM], int32_t dim)
{
    for (int32_t t = 0; t < KV_BLOCK_TOKENS; t += SIDE)
        for (int32_t pair = 0; pair < dim / 2; pair += SIDE) {
            side_of_pairs x[SIDE];

            UNROLL for (int i = 0; i < SIDE; i++)
                x[i] = *(const side_of_pairs *)&codes[t + i][2 * pair];
            transpose_pairs(x);
            UNROLL for (int i = 0; i < SIDE; i++)
                *(side_of_pairs *)(k + (pair + i) * KV_BLOCK_TOKENS + t) = x[i];
        }
}

/* The keys of a whole block, from its first row on. */
INLINE void store_block_keys(const enum kv_type type, const struct kv_rows *rows, int64_t row, int32_t block,
                             int32_t head)
{
    int32_t dim = rows->kv->head_dim;
    void *k = head_at(rows->kv, rows->kv->k, block, head);
    uint16_t codes[KV_BLOCK_TOKENS][MAX_HEAD_DIM];

    for (int32_t t = 0; t < KV_BLOCK_TOKENS; t++)
        to_codes(type, codes[t], rows->k + (row + t) * rows->k_stride + (int64_t)head * dim, dim, k, t);
    if (type == KV_BFLOAT16) {
        store_transposed_pairs(k, codes, dim);
        return;
    }
    for (int32_t t = 0; t < KV_BLOCK_TOKENS; t += SIDE)
        for (int32_t d = 0; d < dim; d += SIDE) {
            side x[SIDE];

            UNROLL for (int i = 0; i < SIDE; i++)
                x[i] = *(const side *)&codes[t + i][d];
            transpose(x);
            UNROLL for (int i = 0; i < SIDE; i++)
                store_side(type, k, (d + i) * KV_BLOCK_TOKENS + t, x[i]);
        }
}

INLINE void store_block(const enum kv_type type, const struct kv_rows *rows, int64_t row, int32_t block)
{
    for (int32_t head = 0; head < rows->kv->num_kv_heads; head++) {
        store_block_keys(type, rows, row, block, head);
        for (int32_t t = 0; t < KV_BLOCK_TOKENS; t += type == KV_BFLOAT16 ? 2 : 1)
            if (type == KV_BFLOAT16)
                store_pairs_of_values(rows, row + t, block, head);
            else
                store_values(type, rows, row + t, block, head);
    }
}

/* ---- a table of both ------------------------------------------------------------------------------- */

#define STORES(name, type)                                                                         \
    static void store_row_##name(const struct kv_rows *rows, int64_t row, int32_t block)           \
    {                                                                                              \
        store_row(type, rows, row, block);                                                         \
    }                                                                                              \
    static void store_block_##name(const struct kv_rows *rows, int64_t row, int32_t block)         \
    {                                                                                              \
        store_block(type, rows, row, block);                                                       \
    }

STORES(bfloat16, KV_BFLOAT16)
STORES(half, KV_FLOAT16)
STORES(fp8, KV_FP8)
STORES(int8, KV_INT8)

static const struct {
    void (*row)(const struct kv_rows *rows, int64_t row, int32_t block);
    void (*block)(const struct kv_rows *rows, int64_t row, int32_t block);
} stores[NUM_KV_TYPES] = {
    [KV_BFLOAT16] = {store_row_bfloat16, store_block_bfloat16},
    [KV_FLOAT16] = {store_row_half, store_block_half},
    [KV_FP8] = {store_row_fp8, store_block_fp8},
    [KV_INT8] = {store_row_int8, store_block_int8},
};

void KERNEL(kv_store_rows)(const struct kv_rows *rows, int64_t first, int64_t end, int32_t *request)
{
    const struct batch_view *batch = rows->batch;

    for (int64_t row = first, next; row < end; row = next) {
        while (batch->row_start[*request + 1] <= row)
            ++*request;

        int32_t position = batch->positions[row];
        int32_t block = batch->block_tables[(int64_t)*request * batch->block_table_stride +
                                            position / KV_BLOCK_TOKENS];

        next = row + KV_BLOCK_TOKENS;
        if (position % KV_BLOCK_TOKENS == 0 && next <= MIN(end, (int64_t)batch->row_start[*request + 1])) {
            stores[rows->kv->type].block(rows, row, block);
        } else {
            stores[rows->kv->type].row(rows, row, block);
            next = row + 1;
        }
    }
}
