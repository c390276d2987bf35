/*
 * attention and kv_store over the paged cache; the order of every sum is that of ref/attention.c.
 *
 * The unit of work is up to MAX_QUERIES queries (a row and a head) of one request that read the same
 * KV head. They go through the cache one tile of 64 positions at a time; with more than
 * a handful of queries the tile is first converted to floats, once for all of them. Queries
 * are taken MAX_ROWS at a time, so a key or value in a register serves several.
 */
#include "kernels/cpu/cpu.h"

#include "proto/base/memory.h"

#include <math.h>
#include <stdatomic.h>

enum {
    MAX_HEAD_DIM = 256,
    MAX_QUERIES = 64,
    MAX_ROWS = LANES == 4 ? 2 : 4,
    KEY_VECTORS = KV_BLOCK_TOKENS / LANES,
    TILE_BLOCKS = KV_TILE_TOKENS / KV_BLOCK_TOKENS,
    CONVERT_QUERIES = 8, /* from this many on, converting a tile first pays */
};

/* ---- kv_store --------------------------------------------------------------------------------------- */

struct store {
    const struct kv_layer *kv;
    const struct batch_view *batch;
    const float *k, *v;
    int64_t k_stride, v_stride;
};

static void store_row(const struct store *args, int64_t row, int32_t block)
{
    const struct kv_layer *kv = args->kv;
    int32_t token = args->batch->positions[row] % KV_BLOCK_TOKENS, dim = kv->head_dim;
    uint16_t halves[LANES];

    for (int32_t h = 0; h < kv->num_kv_heads; h++) {
        int64_t head = ((int64_t)block * kv->num_kv_heads + h) * dim * KV_BLOCK_TOKENS;
        const float *k = args->k + row * args->k_stride + h * dim;
        const float *v = args->v + row * args->v_stride + h * dim;

        for (int32_t i = 0; i < dim; i += LANES) {
            vf_store_half(halves, vf_load(k + i));
            for (int l = 0; l < LANES; l++)
                kv->k[head + (int64_t)(i + l) * KV_BLOCK_TOKENS + token] = halves[l];
            vf_store_half(kv->v + head + (int64_t)token * dim + i, vf_load(v + i));
        }
    }
}

static void store_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct store *args = arg;
    const struct batch_view *batch = args->batch;
    int32_t request = 0;

    (void)scratch;
    for (int64_t row = first; row < end; row++) {
        while (batch->row_start[request + 1] <= row)
            request++;
        store_row(args, row, batch->block_tables[(int64_t)request * batch->block_table_stride +
                                                 batch->positions[row] / KV_BLOCK_TOKENS]);
    }
}

void KERNEL(kv_store)(struct device *dev, const struct kv_layer *kv, const struct batch_view *batch,
                      const float *k, int64_t k_stride, const float *v, int64_t v_stride)
{
    struct store args = {kv, batch, k, v, k_stride, v_stride};

    device_run(dev, batch->rows, 16, store_rows, &args);
}

/* ---- the queries of one unit of work ------------------------------------------------------------------ */

struct query {
    int32_t first, end; /* positions it sees */
    float max;
    float sums[SUM_LANES];
    float *result;
};

struct scratch {
    _Alignas(64) float q[MAX_QUERIES][MAX_HEAD_DIM]; /* scaled */
    float out[MAX_QUERIES][MAX_HEAD_DIM];            /* not yet divided by the sum */
    float p[MAX_ROWS][KV_TILE_TOKENS];               /* scores, then exponentials */
    float k[TILE_BLOCKS * MAX_HEAD_DIM * KV_BLOCK_TOKENS]; /* a converted tile */
    float v[TILE_BLOCKS * MAX_HEAD_DIM * KV_BLOCK_TOKENS];
    struct query queries[MAX_QUERIES];
};
_Static_assert(sizeof(struct scratch) <= SCRATCH_BYTES, "scratch of attention");

/* A tile of the cache: where each of its blocks lies, as halves or converted to floats. */
struct kv_tile {
    int32_t first, end; /* positions, of those that any query here sees */
    int32_t base;       /* position of token 0 of blocks[0] */
    const void *k[TILE_BLOCKS], *v[TILE_BLOCKS];
};

INLINE vf load_kv(bool is_half, const void *p, int64_t i)
{
    return is_half ? vf_load_half((const uint16_t *)p + i) : vf_load((const float *)p + i);
}

/* q · k of R queries and the 16 keys of a block. */
INLINE void score_block(const int R, const bool is_half, const float *q, const void *k, int32_t dim,
                        float *p)
{
    vf s[MAX_ROWS][KEY_VECTORS];

    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < KEY_VECTORS; c++)
            s[r][c] = vf_set(0);
    for (int32_t i = 0; i < dim; i++)
        UNROLL for (int c = 0; c < KEY_VECTORS; c++) {
            vf key = load_kv(is_half, k, (int64_t)i * KV_BLOCK_TOKENS + c * LANES);

            UNROLL for (int r = 0; r < R; r++)
                s[r][c] = vf_fma(vf_set(q[r * MAX_HEAD_DIM + i]), key, s[r][c]);
        }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < KEY_VECTORS; c++)
            vf_store(p + r * KV_TILE_TOKENS + c * LANES, s[r][c]);
}

/* Scores to exponentials, for blocks [block, end_block) of the tile; `out` is scaled for the new
 * maximum. Positions that the query does not see get 0. */
static void softmax_step(struct query *query, const struct kv_tile *tile, int block, int end_block,
                         float *p, float *out, int32_t dim)
{
    const float infinity = INFINITY;
    vi lane;
    vf most = vf_set(-infinity), sums[KEY_VECTORS];
    float max = query->max;

    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    for (int i = block * KV_BLOCK_TOKENS; i < end_block * KV_BLOCK_TOKENS; i += LANES) {
        vi position = lane + (tile->base + i);
        vi seen = (position >= query->first) & (position < query->end);
        vf s = vf_select(seen, vf_load(p + i), vf_set(-infinity));

        vf_store(p + i, s);
        most = vf_max(s, most);
    }
    for (int i = 0; i < LANES; i++)
        max = most[i] > max ? most[i] : max;

    float correction = vf_exp(vf_set(query->max - max))[0];

    for (int c = 0; c < KEY_VECTORS; c++)
        sums[c] = vf_load(query->sums + c * LANES) * correction;
    for (int i = block * KV_BLOCK_TOKENS; i < end_block * KV_BLOCK_TOKENS; i += KV_BLOCK_TOKENS)
        UNROLL for (int c = 0; c < KEY_VECTORS; c++) {
            vi position = lane + (tile->base + i + c * LANES);
            vi seen = (position >= query->first) & (position < query->end);
            vf e = vf_exp(vf_load(p + i + c * LANES) - max);

            e = (vf)((vi)e & seen);
            vf_store(p + i + c * LANES, e);
            sums[c] += e;
        }
    for (int c = 0; c < KEY_VECTORS; c++)
        vf_store(query->sums + c * LANES, sums[c]);
    if (query->max != max)
        for (int32_t i = 0; i < dim; i += LANES)
            vf_store(out + i, vf_load(out + i) * correction);
    query->max = max;
}

/* out += p[j] * v[j] for tokens [first, end) of the tile, in order: R queries × C vectors. */
INLINE void add_columns(const int R, const int C, const bool is_half, const struct kv_tile *tile,
                        int32_t first, int32_t end, const float *p, float *out, int32_t dim,
                        int32_t column)
{
    vf o[MAX_ROWS][2];

    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            o[r][c] = vf_load(out + r * MAX_HEAD_DIM + column + c * LANES);
    for (int32_t j = first; j < end; j++) {
        const void *v = tile->v[j / KV_BLOCK_TOKENS];
        int64_t at = (int64_t)(j % KV_BLOCK_TOKENS) * dim + column;

        UNROLL for (int c = 0; c < C; c++) {
            vf value = load_kv(is_half, v, at + c * LANES);

            UNROLL for (int r = 0; r < R; r++)
                o[r][c] = vf_fma(vf_set(p[r * KV_TILE_TOKENS + j]), value, o[r][c]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            vf_store(out + r * MAX_HEAD_DIM + column + c * LANES, o[r][c]);
}

/* The same for positions [first, end) and all columns. */
INLINE void add_values(const int R, const bool is_half, const struct kv_tile *tile, int32_t first,
                       int32_t end, const float *p, float *out, int32_t dim)
{
    int32_t column = 0;

    first -= tile->base;
    end -= tile->base;
    if (first >= end)
        return;
    for (; column + 2 * LANES <= dim; column += 2 * LANES)
        add_columns(R, 2, is_half, tile, first, end, p, out, dim, column);
    if (column < dim)
        add_columns(R, 1, is_half, tile, first, end, p, out, dim, column);
}

/* R queries through one tile; each of them sees some of it. */
INLINE void tile_queries(const int R, const bool is_half, struct scratch *s,
                         const struct kv_tile *tile, int first_query, int32_t dim)
{
    struct query *queries = &s->queries[first_query];
    float *out = s->out[first_query];
    int32_t first[MAX_ROWS], end[MAX_ROWS];
    int32_t all_first = tile->base, all_end = tile->end; /* what every one sees */
    int32_t any_first = tile->end, any_end = tile->base; /* what any one sees */

    for (int r = 0; r < R; r++) {
        first[r] = MAX(queries[r].first, tile->base);
        end[r] = MIN(queries[r].end, tile->end);
        all_first = MAX(all_first, first[r]);
        all_end = MIN(all_end, end[r]);
        any_first = MIN(any_first, first[r]);
        any_end = MAX(any_end, end[r]);
    }
    if (all_first > all_end)
        all_first = all_end;

    int block = (any_first - tile->base) / KV_BLOCK_TOKENS;
    int end_block = (any_end - tile->base + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;

    for (int b = block; b < end_block; b++)
        score_block(R, is_half, s->q[first_query], tile->k[b], dim, s->p[0] + b * KV_BLOCK_TOKENS);
    for (int r = 0; r < R; r++)
        softmax_step(&queries[r], tile, block, end_block, s->p[r], out + r * MAX_HEAD_DIM, dim);
    for (int r = 0; r < R; r++)
        add_values(1, is_half, tile, first[r], MIN(all_first, end[r]), s->p[r],
                   out + r * MAX_HEAD_DIM, dim);
    add_values(R, is_half, tile, all_first, all_end, s->p[0], out, dim);
    for (int r = 0; r < R; r++)
        add_values(1, is_half, tile, MAX(all_end, first[r]), end[r], s->p[r],
                   out + r * MAX_HEAD_DIM, dim);
}

#define TILE_QUERIES(R)                                                                            \
    static void half_##R(struct scratch *s, const struct kv_tile *tile, int query, int32_t dim)    \
    {                                                                                              \
        tile_queries(R, true, s, tile, query, dim);                                                \
    }                                                                                              \
    static void float_##R(struct scratch *s, const struct kv_tile *tile, int query, int32_t dim)   \
    {                                                                                              \
        tile_queries(R, false, s, tile, query, dim);                                               \
    }
TILE_QUERIES(1)
TILE_QUERIES(2)
#if LANES > 4
TILE_QUERIES(3)
TILE_QUERIES(4)
#endif

static void (*const tile_rows[2][MAX_ROWS])(struct scratch *, const struct kv_tile *, int, int32_t) = {
#if LANES > 4
    {float_1, float_2, float_3, float_4},
    {half_1, half_2, half_3, half_4},
#else
    {float_1, float_2},
    {half_1, half_2},
#endif
};

static bool sees(const struct query *query, const struct kv_tile *tile)
{
    return MAX(query->first, tile->base) < MIN(query->end, tile->end);
}

/* All queries through one tile, in runs of up to MAX_ROWS that see something of it. */
static void do_tile(struct scratch *s, const struct kv_tile *tile, int num_queries, bool is_half,
                    int32_t dim)
{
    for (int i = 0; i < num_queries;) {
        int n = 0;

        while (n < MAX_ROWS && i + n < num_queries && sees(&s->queries[i + n], tile))
            n++;
        if (n)
            tile_rows[is_half][n - 1](s, tile, i, dim);
        i += MAX(n, 1);
    }
}

/* ---- a unit of work ---------------------------------------------------------------------------------- */

static void convert(const uint16_t *from, float *to, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES)
        vf_store(to + i, vf_load_half(from + i));
}

static void load_tile(const struct attention_args *args, const int32_t *blocks, int32_t kv_head,
                      struct scratch *s, bool is_half, struct kv_tile *tile)
{
    const struct kv_layer *kv = args->kv;
    int32_t count = kv->head_dim * KV_BLOCK_TOKENS;

    for (int32_t b = (tile->first - tile->base) / KV_BLOCK_TOKENS;
         tile->base + b * KV_BLOCK_TOKENS < tile->end; b++) {
        int32_t block = blocks[tile->base / KV_BLOCK_TOKENS + b];
        int64_t at = ((int64_t)block * kv->num_kv_heads + kv_head) * count;

        tile->k[b] = kv->k + at;
        tile->v[b] = kv->v + at;
        if (!is_half) {
            convert(kv->k + at, s->k + b * count, count);
            convert(kv->v + at, s->v + b * count, count);
            tile->k[b] = s->k + b * count;
            tile->v[b] = s->v + b * count;
        }
    }
}

/* Queries [first, end) of the request's, counted row by row, `num_heads` heads each. */
static void attend(const struct attention_args *args, int32_t request, int32_t kv_head,
                   const int32_t *heads, int32_t num_heads, int32_t first, int32_t end,
                   struct scratch *s)
{
    const struct batch_view *batch = args->batch;
    const int32_t *blocks = batch->block_tables + (int64_t)request * batch->block_table_stride;
    int32_t dim = args->kv->head_dim, num_queries = end - first;
    bool is_half = num_queries < CONVERT_QUERIES;
    int32_t any_first = INT32_MAX, any_end = 0;

    for (int32_t i = 0; i < num_queries; i++) {
        int64_t row = batch->row_start[request] + (first + i) / num_heads;
        int32_t head = heads[(first + i) % num_heads], position = batch->positions[row];
        const float *q = args->q + row * args->q_stride + (int64_t)head * dim;
        struct query *query = &s->queries[i];

        *query = (struct query){
            .first = args->window ? MAX(position - args->window + 1, 0) : 0,
            .end = position + 1,
            .max = -INFINITY,
            .result = args->out + (row * args->num_heads + head) * dim,
        };
        any_first = MIN(any_first, query->first);
        any_end = MAX(any_end, query->end);
        memset(s->out[i], 0, (size_t)dim * sizeof(float));
        for (int32_t d = 0; d < dim; d += LANES)
            vf_store(s->q[i] + d, vf_load(q + d) * args->scale);
    }
    for (int32_t base = any_first / KV_TILE_TOKENS * KV_TILE_TOKENS; base < any_end;
         base += KV_TILE_TOKENS) {
        struct kv_tile tile = {.base = base,
                               .first = MAX(base, any_first),
                               .end = MIN(base + KV_TILE_TOKENS, any_end)};

        load_tile(args, blocks, kv_head, s, is_half, &tile);
        do_tile(s, &tile, num_queries, is_half, dim);
    }
    for (int32_t i = 0; i < num_queries; i++) {
        vf sums[KEY_VECTORS];

        for (int c = 0; c < KEY_VECTORS; c++)
            sums[c] = vf_load(s->queries[i].sums + c * LANES);

        float inverse = 1.0f / vf_sum_lanes(sums);

        for (int32_t d = 0; d < dim; d += LANES)
            vf_store(s->queries[i].result + d, vf_load(s->out[i] + d) * inverse);
    }
}

enum { MAX_HEADS = 256 };

struct attention {
    const struct attention_args *args;
    _Atomic int64_t *next; /* unit of work that nobody has taken */
};

/* Every thread walks all units in the same order and does those that it takes. Which thread does
 * one is left to chance, since later rows of a prompt have more to read; it shows nowhere. */
static void attend_units(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct attention *attention = arg;
    const struct attention_args *args = attention->args;
    const struct batch_view *batch = args->batch;
    int64_t unit = 0, mine = atomic_fetch_add(attention->next, 1);

    (void)first, (void)end;
    for (int32_t kv_head = 0; kv_head < args->kv->num_kv_heads; kv_head++) {
        int32_t heads[MAX_HEADS], num_heads = 0;

        for (int32_t h = 0; h < args->num_heads; h++)
            if (args->kv_head_of[h] == kv_head)
                heads[num_heads++] = h;
        for (int32_t request = 0; request < batch->num_requests; request++) {
            int32_t count = (batch->row_start[request + 1] - batch->row_start[request]) * num_heads;

            for (int32_t at = 0; at < count; at += MAX_QUERIES, unit++) {
                if (unit != mine)
                    continue;
                attend(args, request, kv_head, heads, num_heads, at,
                       MIN(at + MAX_QUERIES, count), scratch);
                mine = atomic_fetch_add(attention->next, 1);
            }
        }
    }
}

void KERNEL(attention)(struct device *dev, const struct attention_args *args)
{
    _Atomic int64_t next = 0;
    struct attention attention = {args, &next};

    ASSERT(args->kv->head_dim <= MAX_HEAD_DIM && args->kv->head_dim % 16 == 0, "head_dim %d",
           args->kv->head_dim);
    ASSERT(args->num_heads <= MAX_HEADS, "%d heads", args->num_heads);
    device_run(dev, team_num_threads(cpu_device_of(dev)->team), 1, attend_units, &attention);
}
