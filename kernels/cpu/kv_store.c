/*
 * Values lie in the cache as they come. Keys of a block lie dimension by dimension, so those of one
 * row are scattered; rows that fill a block are transposed in registers instead.
 */
#include "kernels/cpu/kv_store.h"

#include "proto/base/memory.h"

enum { SIDE = 8 }; /* of the squares that are transposed */

/* Where a head's part of a block begins, of k and of v. */
static int64_t head_at(const struct kv_layer *kv, int32_t block, int32_t head)
{
    return block * kv->block_stride + (int64_t)head * kv->head_dim * KV_BLOCK_TOKENS;
}

static void to_halves(uint16_t *to, const float *from, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES)
        vf_store_half(to + i, vf_load(from + i));
}

static void store_values(const struct kv_rows *rows, int64_t row, int32_t block, int32_t head)
{
    int32_t token = rows->batch->positions[row] % KV_BLOCK_TOKENS, dim = rows->kv->head_dim;

    to_halves(rows->kv->v + head_at(rows->kv, block, head) + (int64_t)token * dim,
              rows->v + row * rows->v_stride + (int64_t)head * dim, dim);
}

static void store_row(const struct kv_rows *rows, int64_t row, int32_t block)
{
    const struct kv_layer *kv = rows->kv;
    int32_t token = rows->batch->positions[row] % KV_BLOCK_TOKENS, dim = kv->head_dim;
    uint16_t halves[MAX_HEAD_DIM];

    for (int32_t head = 0; head < kv->num_kv_heads; head++) {
        uint16_t *k = kv->k + head_at(kv, block, head) + token;

        to_halves(halves, rows->k + row * rows->k_stride + (int64_t)head * dim, dim);
        for (int32_t i = 0; i < dim; i++)
            k[i * KV_BLOCK_TOKENS] = halves[i];
        store_values(rows, row, block, head);
    }
}

typedef uint16_t side __attribute__((vector_size(2 * SIDE), aligned(2), may_alias));

/* x[i][j] to x[j][i]. Each round interleaves halves of the whole, which moves one bit of the row's number
 * to the column's. */
INLINE void transpose(side *x)
{
    UNROLL for (int round = 0; round < 3; round++) {
        side y[SIDE];

        UNROLL for (int i = 0; i < SIDE / 2; i++) {
            y[2 * i] = __builtin_shufflevector(x[i], x[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        UNROLL for (int i = 0; i < SIDE; i++)
            x[i] = y[i];
    }
}

/* The keys of a whole block, from its first row on. */
static void store_block_keys(const struct kv_rows *rows, int64_t row, int32_t block, int32_t head)
{
    int32_t dim = rows->kv->head_dim;
    uint16_t *k = rows->kv->k + head_at(rows->kv, block, head), halves[KV_BLOCK_TOKENS][MAX_HEAD_DIM];

    for (int32_t t = 0; t < KV_BLOCK_TOKENS; t++)
        to_halves(halves[t], rows->k + (row + t) * rows->k_stride + (int64_t)head * dim, dim);
    for (int32_t t = 0; t < KV_BLOCK_TOKENS; t += SIDE)
        for (int32_t d = 0; d < dim; d += SIDE) {
            side x[SIDE];

            UNROLL for (int i = 0; i < SIDE; i++)
                x[i] = *(const side *)&halves[t + i][d];
            transpose(x);
            UNROLL for (int i = 0; i < SIDE; i++)
                *(side *)&k[(d + i) * KV_BLOCK_TOKENS + t] = x[i];
        }
}

static void store_block(const struct kv_rows *rows, int64_t row, int32_t block)
{
    for (int32_t head = 0; head < rows->kv->num_kv_heads; head++) {
        store_block_keys(rows, row, block, head);
        for (int32_t t = 0; t < KV_BLOCK_TOKENS; t++)
            store_values(rows, row + t, block, head);
    }
}

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
            store_block(rows, row, block);
        } else {
            store_row(rows, row, block);
            next = row + 1;
        }
    }
}
