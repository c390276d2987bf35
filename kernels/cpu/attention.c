/*
 * attention over the paged cache; the order of every sum is that of ref/attention.c.
 *
 * A unit of work is some rows of a request and the heads that read one KV head (attention_tasks.h).
 * All its queries go through a tile together: scores = q · k, exponentials, values = p · v, each
 * for the whole tile. Both products are those of matrices, in registers of MAX_ROWS queries × some
 * vectors of keys or of columns of v. They read the cache a piece of 64 tokens at a time: with many
 * queries it is first converted to floats, once for all of them, and stays in the first-level cache;
 * with few it is read as it lies there, while a later piece is fetched. Products are of codes; their scales
 * come to the scores and exponentials of a whole tile, in between.
 *
 * A vector of KV_BFLOAT16 is one of pairs, which an instruction multiplies by pairs of the other factor and adds up, and
 * then it is never converted; or its two halves are floats as they are, but for a shift or a mask.
 */
#include "kernels/cpu/attention_tasks.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantize.h"

#include "proto/base/memory.h"

#include <math.h>

enum {
    MAX_ROWS = LANES == 4 ? 2 : 6, /* queries in registers */
    MAX_VECTORS = 4,               /* and vectors for each */
    PIECE_TOKENS = 64,
    PIECE_BLOCKS = PIECE_TOKENS / KV_BLOCK_TOKENS,
    KEY_VECTORS = KV_BLOCK_TOKENS / LANES,
    BLOCK_PAIRS = KV_BLOCK_TOKENS / 2,
    FETCH_ELEMENTS = 4 << 10,           /* how far ahead the cache is fetched, in whole pieces; */
    FETCH_CODES = 16 << 10,             /* if these are of 8 bits */
    LINE_BYTES = 64,                    /* that are fetched at once */
    CONVERT_QUERIES = 2 * MAX_ROWS + 1, /* from this many on, converting a piece first pays */
};

/* What 16 registers hold: 6 × 2 sums, or 3 × 4; of PAIRS, whose halves want a few, 3 × 2. */
#define VECTORS(R) (LANES == 8 && (R) > 3 ? 2 : 4)
#define VECTORS_OF(form, R) (LANES == 8 && (form) == PAIRS && (R) > 1 ? 2 : VECTORS(R))

/* What a product reads: k or v as they lie in the cache, or floats. An element of PAIRS is two of bfloat16; TURNED are
 * floats that were, the second of each pair first, as they are added up, and so are the other factors then. */
enum form { PAIRS = KV_BFLOAT16, HALF = KV_FLOAT16, FP8 = KV_FP8, INT8 = KV_INT8, FLOAT, TURNED, NUM_FORMS };

/* The other factors, q and exponentials, are floats; for PAIRS two are packed where pairs are multiplied as such, and
 * a pair takes so many floats of memory. */
#if defined(VEC_AVX512BF16)
enum { PAIR_FLOATS = 1 };
#else
enum { PAIR_FLOATS = 2 };
#endif

/* Whether many queries are worth pairs' becoming floats. 16 lanes halve so few vectors that it gains nothing. */
#define TURNS_PAIRS (LANES < 16)

/* Positions, or tokens of a tile. */
struct range {
    int32_t first, end;
};

static struct range overlap(struct range a, struct range b)
{
    return (struct range){MAX(a.first, b.first), MIN(a.end, b.end)};
}

static bool is_empty(struct range range)
{
    return range.first >= range.end;
}

/* Queries side by side in registers, and what they see of a tile. */
struct query_group {
    int32_t first, count; /* of the unit's queries */
    struct range any;     /* tokens that some query sees */
    struct range all;     /* tokens that every query sees; its ends lie within `any` */
};

/* Of codes, by token of a tile. */
struct scales {
    float k[KV_TILE_TOKENS], v[KV_TILE_TOKENS];
};

struct scratch {
    _Alignas(64) float q[MAX_QUERIES][MAX_HEAD_DIM]; /* scaled; factors */
    float p[MAX_QUERIES][KV_TILE_TOKENS];            /* scores of a tile, then exponentials: factors, too */
    float piece[PIECE_TOKENS * MAX_HEAD_DIM];        /* of k or v, converted */
    struct scales scales;                            /* of a tile */
    struct softmax rows[MAX_QUERIES];                /* up to the last tile */
    struct softmax tile[MAX_QUERIES];                /* of this tile alone */
    struct range seen[MAX_QUERIES];                  /* positions */
    struct query_group groups[MAX_QUERIES];
};
_Static_assert(sizeof(struct scratch) <= SCRATCH_BYTES, "scratch of attention");

/* Where the blocks of a piece lie, and those of the piece to fetch meanwhile. */
struct piece {
    const void *blocks[PIECE_BLOCKS];
    const void *ahead[PIECE_BLOCKS];
};

/* A unit of work, and the part of it that one task does. */
struct unit {
    const struct attention_args *args;
    struct attention_task task;
    struct range tiles;       /* of this task */
    int32_t dim;
    const int32_t *heads;     /* [num_heads] */
    int32_t num_heads, kv_head;
    int32_t num_queries;      /* row by row, num_heads each */
    int32_t num_groups;       /* of queries */
    enum form form;           /* of k and v */
    int64_t head_bytes;       /* of a block */
    const int32_t *blocks;    /* of the request */
    struct range blocks_seen; /* by any query */
    const struct unit *following; /* that this thread does next, if that is known */
    struct scratch *s;
};

/* ---- the product of both kinds ----------------------------------------------------------------------- */

#define FORM_BYTES(form) ((form) == HALF ? 2 : (form) == FP8 || (form) == INT8 ? 1 : 4)
#define IS_CONVERTED(form) ((form) == FLOAT || (form) == TURNED)

/* Element i of k or v. */
INLINE const void *element(const enum form form, const void *p, int64_t i)
{
    return (const char *)p + i * FORM_BYTES(form);
}

INLINE vf load_kv(const enum form form, const void *p, int64_t i)
{
    p = element(form, p, i);
    return form == HALF  ? vf_load_half(p)
           : form == FP8  ? vf_load_fp8(p)
           : form == INT8 ? vf_load_s8(p)
                          : vf_load(p);
}

/* Factor i of a row, the first of a pair if they are PAIRS. */
INLINE const float *factors_at(enum form form, const float *row, int32_t i)
{
    return row + (form == PAIRS ? i / 2 * PAIR_FLOATS : i);
}

/* The first or the second of pair i of factors. */
INLINE vf factor_of_pair(const float *a, int64_t i, int second)
{
    return PAIR_FLOATS == 2 ? vf_set(a[2 * i + second]) : vf_of_pairs(vi_broadcast(a + i), second);
}

#if !defined(VEC_AVX512BF16)
/* vf_of_pairs. 16 registers have no room for its mask beside the sums. */
INLINE vf half_of_pairs(vi pairs, int second)
{
#if LANES == 8
    if (second) {
        vu high = (vu)pairs >> 16;

        __asm__("" : "+x"(high)); /* gcc 12 would make it the mask again */
        return (vf)(high << 16);
    }
#endif
    return vf_of_pairs(pairs, second);
}
#endif

/* acc[r][c] += the second of pair i of a[r] * the second of b[c][i], and then the first * the first. */
INLINE void add_pairs(const int R, const int C, vf acc[MAX_ROWS][MAX_VECTORS], const float *a, const int a_stride,
                      const void *const *b, int64_t b_stride, int32_t i)
{
#if defined(VEC_AVX512BF16)
    vi w[MAX_ROWS], x[MAX_VECTORS];

    if (R < C) { /* the fewer stay in registers */
        UNROLL for (int r = 0; r < R; r++)
            w[r] = vi_broadcast(a + r * a_stride + i);
        UNROLL for (int c = 0; c < C; c++) {
            x[0] = vi_load(element(PAIRS, b[c], i * b_stride));
            UNROLL for (int r = 0; r < R; r++)
                acc[r][c] = vf_dot_pairs(acc[r][c], w[r], x[0]);
        }
    } else {
        UNROLL for (int c = 0; c < C; c++)
            x[c] = vi_load(element(PAIRS, b[c], i * b_stride));
        UNROLL for (int r = 0; r < R; r++) {
            w[0] = vi_broadcast(a + r * a_stride + i);
            UNROLL for (int c = 0; c < C; c++)
                acc[r][c] = vf_dot_pairs(acc[r][c], w[0], x[c]);
        }
    }
#else
    UNROLL for (int second = 1; second >= 0; second--) {
        vf w[MAX_ROWS], x[MAX_VECTORS];

        if (R < C) {
            UNROLL for (int r = 0; r < R; r++)
                w[r] = factor_of_pair(a + r * a_stride, i, second);
            UNROLL for (int c = 0; c < C; c++) {
                x[0] = half_of_pairs(vi_load(element(PAIRS, b[c], i * b_stride)), second);
                UNROLL for (int r = 0; r < R; r++)
                    acc[r][c] = vf_fma(w[r], x[0], acc[r][c]);
            }
        } else {
            UNROLL for (int c = 0; c < C; c++)
                x[c] = half_of_pairs(vi_load(element(PAIRS, b[c], i * b_stride)), second);
            UNROLL for (int r = 0; r < R; r++) {
                w[0] = factor_of_pair(a + r * a_stride, i, second);
                UNROLL for (int c = 0; c < C; c++)
                    acc[r][c] = vf_fma(w[0], x[c], acc[r][c]);
            }
        }
    }
#endif
}

/*
 * acc[r][c] += a[r][i] * b[c][i] for i = 0 … count - 1 in order; b[c][i] is a vector. From the cache,
 * what lies at the same place ahead is fetched meanwhile, once for each `line_vectors` vectors and `line_rows` i.
 */
INLINE void multiply_add(const int R, const int C, const enum form form,
                         vf acc[MAX_ROWS][MAX_VECTORS], const float *a, const int a_stride,
                         const void *const *b, const void *const *ahead, const int line_vectors,
                         const int line_rows, int64_t b_stride, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        if (!IS_CONVERTED(form) && i % line_rows == 0)
            UNROLL for (int c = 0; c < C; c += line_vectors)
                __builtin_prefetch(element(form, ahead[c], i * b_stride));
        if (form == PAIRS) {
            add_pairs(R, C, acc, a, a_stride, b, b_stride, i);
        } else if (R < C) { /* the fewer stay in registers */
            vf w[MAX_ROWS];

            UNROLL for (int r = 0; r < R; r++)
                w[r] = vf_set(a[r * a_stride + i]);
            UNROLL for (int c = 0; c < C; c++) {
                vf x = load_kv(form, b[c], i * b_stride);

                UNROLL for (int r = 0; r < R; r++)
                    acc[r][c] = vf_fma(w[r], x, acc[r][c]);
            }
        } else {
            vf x[MAX_VECTORS];

            UNROLL for (int c = 0; c < C; c++)
                x[c] = load_kv(form, b[c], i * b_stride);
            UNROLL for (int r = 0; r < R; r++) {
                vf w = vf_set(a[r * a_stride + i]);

                UNROLL for (int c = 0; c < C; c++)
                    acc[r][c] = vf_fma(w, x[c], acc[r][c]);
            }
        }
    }
}

/* ---- scores ------------------------------------------------------------------------------------------- */

/* R queries and C vectors of keys, the first of them vector `at` of the piece. */
INLINE void score_keys(const int R, const int C, const enum form form, const float *q,
                       const struct piece *piece, int32_t at, int32_t dim, float *p)
{
    vf acc[MAX_ROWS][MAX_VECTORS];
    const void *keys[MAX_VECTORS], *ahead[MAX_VECTORS];

    UNROLL for (int c = 0; c < C; c++) {
        int32_t block = (at + c) / KEY_VECTORS;

        keys[c] = element(form, piece->blocks[block], (at + c) % KEY_VECTORS * LANES);
        ahead[c] = piece->ahead[block];
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            acc[r][c] = vf_set(0);
    multiply_add(R, C, form, acc, q, MAX_HEAD_DIM, keys, ahead, KEY_VECTORS,
                 LINE_BYTES / FORM_BYTES(form) / KV_BLOCK_TOKENS, KV_BLOCK_TOKENS, form == PAIRS ? dim / 2 : dim);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            vf_store(p + r * KV_TILE_TOKENS + (at + c) * LANES, acc[r][c]);
}

/* Tokens [first, end) of a piece, whole blocks of it; p at its first token. */
INLINE void score_group(const int R, const enum form form, const float *q, const struct piece *piece,
                        struct range tokens, int32_t dim, float *p)
{
    int32_t at = tokens.first / KV_BLOCK_TOKENS * KEY_VECTORS;
    int32_t end = divide_up(tokens.end, KV_BLOCK_TOKENS) * KEY_VECTORS;

    for (; at + VECTORS_OF(form, R) <= end; at += VECTORS_OF(form, R))
        score_keys(R, VECTORS_OF(form, R), form, q, piece, at, dim, p);
    if (VECTORS_OF(form, R) > 2 && at + 2 <= end) {
        score_keys(R, 2, form, q, piece, at, dim, p);
        at += 2;
    }
    if (KEY_VECTORS == 1 && at < end)
        score_keys(R, 1, form, q, piece, at, dim, p);
}

/* ---- exponentials -------------------------------------------------------------------------------------- */

/* The blocks around what a query sees, as tokens. */
static struct range whole_blocks(struct range seen)
{
    return (struct range){seen.first / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS,
                          divide_up(seen.end, KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS};
}

/* Scores of a block that the query does not see become those of no weight. */
static void hide_unseen(float *p, int32_t block, struct range seen)
{
    vi lane;

    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    for (int32_t j = block; j < block + KV_BLOCK_TOKENS; j += LANES) {
        vi token = lane + j, is_seen = (token >= seen.first) & (token < seen.end);

        vf_store(p + j, vf_select(is_seen, vf_load(p + j), vf_set(-INFINITY)));
    }
}

/* Whole blocks. */
static void scale_scores(float *p, const float *scales, struct range tokens)
{
    for (int32_t j = tokens.first; j < tokens.end; j += LANES)
        vf_store(p + j, vf_load(p + j) * vf_load(scales + j));
}

/* scales: of k, or NULL. */
INLINE float max_score(float *p, const float *scales, struct range seen)
{
    struct range tokens = whole_blocks(seen);
    vf most[KEY_VECTORS];

    if (scales)
        scale_scores(p, scales, tokens);
    if (tokens.first < seen.first)
        hide_unseen(p, tokens.first, seen);
    if (tokens.end > seen.end)
        hide_unseen(p, tokens.end - KV_BLOCK_TOKENS, seen);
    for (int c = 0; c < KEY_VECTORS; c++)
        most[c] = vf_set(NO_SCORE);
    for (int32_t j = tokens.first; j < tokens.end; j += KV_BLOCK_TOKENS)
        UNROLL for (int c = 0; c < KEY_VECTORS; c++)
            most[c] = vf_max(vf_load(p + j + c * LANES), most[c]);
    for (int c = 1; c < KEY_VECTORS; c++)
        most[0] = vf_max(most[c], most[0]);
    return vf_max_lanes(most[0]);
}

/* Bits of bfloat16 as the factors [at, at + LANES) of a row. */
INLINE void put_factors(const enum form form, float *row, int32_t at, vf x)
{
    if (form == TURNED)
        vf_store(row + at, vf_turn_pairs(x));
    else if (PAIR_FLOATS == 2)
        vf_store(row + at, x);
    else
        vi_store_u16((uint16_t *)row + at, (vi)((vu)x >> 16));
}

/* Scores to exponentials, n vectors from the row's position `at` on; each is added to the sums of its positions, and
 * then scaled. Those that are packed lie where scores have been read. */
INLINE void exponentials_of(const int n, const enum form form, float *p, int32_t at, float max, vf *sums,
                            const float *scales)
{
    const bool pairs = form == PAIRS || form == TURNED;
    vf e[MAX_VECTORS];

    UNROLL for (int i = 0; i < n; i++)
        e[i] = vf_load(p + at + i * LANES) - max;
    vf_exp_each(n, e, pairs ? BFLOAT16_EXP_LOWEST : EXP_LOWEST);
    UNROLL for (int i = 0; i < n; i++) {
        if (pairs)
            e[i] = vf_round_bfloat16(e[i]);
        sums[i % KEY_VECTORS] += e[i];
        if (scales)
            e[i] *= vf_load(scales + at + i * LANES);
        if (pairs)
            put_factors(form, p, at + i * LANES, e[i]);
        else
            vf_store(p + at + i * LANES, e[i]);
    }
}

/* In whole blocks around what the query sees, of no meaning where it does not. scales: of v, or NULL. */
INLINE void exponentials(const enum form form, struct softmax *tile, float *p, const float *scales, struct range seen)
{
    enum { STEP = MAX_VECTORS * LANES };
    struct range tokens = whole_blocks(seen);
    vf sums[KEY_VECTORS];
    int32_t j = tokens.first;

    for (int c = 0; c < KEY_VECTORS; c++)
        sums[c] = vf_set(0);
    for (; j + STEP <= tokens.end; j += STEP)
        exponentials_of(MAX_VECTORS, form, p, j, tile->max, sums, scales);
    for (; j < tokens.end; j += KV_BLOCK_TOKENS)
        exponentials_of(KEY_VECTORS, form, p, j, tile->max, sums, scales);
    for (int c = 0; c < KEY_VECTORS; c++)
        vf_store(tile->sums + c * LANES, sums[c]);
}

/* First all maxima, since the exponentials of a query would wait for its own. */
INLINE void softmax_group_of(const enum form form, const struct query_group *group, float (*p)[KV_TILE_TOKENS],
                             const struct range *seen, struct softmax *tiles, const struct scales *scales)
{
    for (int32_t i = group->first; i < group->first + group->count; i++)
        if (!is_empty(seen[i]))
            tiles[i].max = max_score(p[i], scales ? scales->k : NULL, seen[i]);
    for (int32_t i = group->first; i < group->first + group->count; i++)
        if (!is_empty(seen[i]))
            exponentials(form, &tiles[i], p[i], scales ? scales->v : NULL, seen[i]);
}

/* scales: NULL where there are none. */
static void softmax_group(enum form form, const struct query_group *group, float (*p)[KV_TILE_TOKENS],
                          const struct range *seen, struct softmax *tiles, const struct scales *scales)
{
    if (form == PAIRS)
        softmax_group_of(PAIRS, group, p, seen, tiles, NULL);
    else if (form == TURNED)
        softmax_group_of(TURNED, group, p, seen, tiles, NULL);
    else if (scales)
        softmax_group_of(FLOAT, group, p, seen, tiles, scales);
    else
        softmax_group_of(FLOAT, group, p, seen, tiles, NULL);
}

/* ---- values ------------------------------------------------------------------------------------------- */

/* The same sums as multiply_add for tokens that not every query of the group sees: what a query
 * does not see may be anything, NaN too, and must not reach its sums. */
INLINE void multiply_add_seen(const int R, const int C, const enum form form,
                              vf acc[MAX_ROWS][MAX_VECTORS], const float *p, const struct piece *piece,
                              int32_t dim, int32_t column, struct range tokens,
                              const struct range *seen)
{
    for (int32_t j = tokens.first; j < tokens.end; j++) {
        const void *v = element(form, piece->blocks[j / KV_BLOCK_TOKENS],
                                (int64_t)(j % KV_BLOCK_TOKENS) * dim + column);
        int32_t token = form == TURNED ? j ^ 1 : j;

        UNROLL for (int r = 0; r < R; r++) {
            if (token < seen[r].first || token >= seen[r].end)
                continue;
            UNROLL for (int c = 0; c < C; c++)
                acc[r][c] = vf_fma(vf_set(p[r * KV_TILE_TOKENS + j]),
                                   load_kv(form, v, c * LANES), acc[r][c]);
        }
    }
}

/* Tokens that all see. Converted blocks are one array, those of the cache lie anywhere. */
INLINE void multiply_add_all(const int R, const int C, const enum form form,
                             vf acc[MAX_ROWS][MAX_VECTORS], const float *p, const struct piece *piece,
                             int32_t dim, int32_t column, struct range tokens)
{
    for (int32_t j = tokens.first, next; j < tokens.end; j = next) {
        const void *v[MAX_VECTORS], *ahead[MAX_VECTORS];

        next = IS_CONVERTED(form) ? tokens.end : MIN((j / KV_BLOCK_TOKENS + 1) * KV_BLOCK_TOKENS, tokens.end);
        UNROLL for (int c = 0; c < C; c++) {
            int64_t at = (int64_t)(j % KV_BLOCK_TOKENS) * dim + column + c * LANES;

            v[c] = element(form, piece->blocks[j / KV_BLOCK_TOKENS], at);
            ahead[c] = element(form, piece->ahead[j / KV_BLOCK_TOKENS], at);
        }
        multiply_add(R, C, form, acc, p + j, KV_TILE_TOKENS, v, ahead, LINE_BYTES / FORM_BYTES(form) / LANES, 1,
                     dim, next - j);
    }
}

/* multiply_add_seen and multiply_add_all of PAIRS; `pairs` are numbers of pairs of tokens. */
INLINE void add_pairs_seen(const int R, const int C, vf acc[MAX_ROWS][MAX_VECTORS], const float *p,
                           const struct piece *piece, int32_t dim, int32_t column, struct range pairs,
                           const struct range *seen)
{
    for (int32_t j = pairs.first; j < pairs.end; j++) {
        const void *v = element(PAIRS, piece->blocks[j / BLOCK_PAIRS], (int64_t)(j % BLOCK_PAIRS) * dim + column);

        for (int second = 1; second >= 0; second--)
            UNROLL for (int r = 0; r < R; r++) {
                if (2 * j + second < seen[r].first || 2 * j + second >= seen[r].end)
                    continue;
                UNROLL for (int c = 0; c < C; c++)
                    acc[r][c] = vf_fma(factor_of_pair(p + r * KV_TILE_TOKENS, j, second),
                                       vf_of_pairs(vi_load(element(PAIRS, v, c * LANES)), second), acc[r][c]);
            }
    }
}

INLINE void add_pairs_all(const int R, const int C, vf acc[MAX_ROWS][MAX_VECTORS], const float *p,
                          const struct piece *piece, int32_t dim, int32_t column, struct range pairs)
{
    for (int32_t j = pairs.first, next; j < pairs.end; j = next) {
        const void *v[MAX_VECTORS], *ahead[MAX_VECTORS];

        next = MIN((j / BLOCK_PAIRS + 1) * BLOCK_PAIRS, pairs.end);
        UNROLL for (int c = 0; c < C; c++) {
            int64_t at = (int64_t)(j % BLOCK_PAIRS) * dim + column + c * LANES;

            v[c] = element(PAIRS, piece->blocks[j / BLOCK_PAIRS], at);
            ahead[c] = element(PAIRS, piece->ahead[j / BLOCK_PAIRS], at);
        }
        multiply_add(R, C, PAIRS, acc, factors_at(PAIRS, p, 2 * j), KV_TILE_TOKENS, v, ahead,
                     LINE_BYTES / FORM_BYTES(PAIRS) / LANES, 1, dim, next - j);
    }
}

/* The pairs of tokens that some query sees, and those of which all see both. */
static void find_pairs(const struct query_group *group, struct range *any_out, struct range *all_out)
{
    struct range all = {(group->all.first + 1) / 2, group->all.end / 2};

    *any_out = (struct range){group->any.first / 2, (group->any.end + 1) / 2};
    *all_out = (struct range){all.first, MAX(all.first, all.end)};
}

static struct range twice(int32_t first, int32_t end)
{
    return (struct range){2 * first, 2 * end};
}

/* Columns [column, column + C * LANES) of R queries' out += p · v, over the tokens of a piece. */
INLINE void add_columns(const int R, const int C, const enum form form, const float *p,
                        const struct piece *piece, int32_t dim, int32_t column,
                        const struct query_group *group, const struct range *seen,
                        struct softmax *tile)
{
    struct range any, all;
    vf acc[MAX_ROWS][MAX_VECTORS];

    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            acc[r][c] = vf_load(tile[r].out + column + c * LANES);
    find_pairs(group, &any, &all);
    if (form == PAIRS) {
        add_pairs_seen(R, C, acc, p, piece, dim, column, (struct range){any.first, all.first}, seen);
        add_pairs_all(R, C, acc, p, piece, dim, column, all);
        add_pairs_seen(R, C, acc, p, piece, dim, column, (struct range){all.end, any.end}, seen);
    } else if (form == TURNED) {
        multiply_add_seen(R, C, form, acc, p, piece, dim, column, twice(any.first, all.first), seen);
        multiply_add_all(R, C, form, acc, p, piece, dim, column, twice(all.first, all.end));
        multiply_add_seen(R, C, form, acc, p, piece, dim, column, twice(all.end, any.end), seen);
    } else {
        multiply_add_seen(R, C, form, acc, p, piece, dim, column,
                          (struct range){group->any.first, group->all.first}, seen);
        multiply_add_all(R, C, form, acc, p, piece, dim, column, group->all);
        multiply_add_seen(R, C, form, acc, p, piece, dim, column,
                          (struct range){group->all.end, group->any.end}, seen);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            vf_store(tile[r].out + column + c * LANES, acc[r][c]);
}

INLINE void add_values(const int R, const enum form form, const float *p, const struct piece *piece,
                       int32_t dim, const struct query_group *group, const struct range *seen,
                       struct softmax *tile)
{
    int32_t column = 0;

    for (; column + VECTORS_OF(form, R) * LANES <= dim; column += VECTORS_OF(form, R) * LANES)
        add_columns(R, VECTORS_OF(form, R), form, p, piece, dim, column, group, seen, tile);
    if (VECTORS_OF(form, R) > 2 && column + 2 * LANES <= dim) {
        add_columns(R, 2, form, p, piece, dim, column, group, seen, tile);
        column += 2 * LANES;
    }
    if (KEY_VECTORS == 1 && column < dim)
        add_columns(R, 1, form, p, piece, dim, column, group, seen, tile);
}

/* ---- a table of both, for each number of queries in registers ------------------------------------------ */

struct products {
    void (*scores)(const float *q, const struct piece *piece, struct range tokens, int32_t dim,
                   float *p);
    void (*values)(const float *p, const struct piece *piece, int32_t dim,
                   const struct query_group *group, const struct range *seen, struct softmax *tile);
};

#define PRODUCTS(R, name, form)                                                                    \
    static void scores_##name##_##R(const float *q, const struct piece *piece,                     \
                                    struct range tokens, int32_t dim, float *p)                    \
    {                                                                                              \
        score_group(R, form, q, piece, tokens, dim, p);                                            \
    }                                                                                              \
    static void values_##name##_##R(const float *p, const struct piece *piece, int32_t dim,        \
                                    const struct query_group *group, const struct range *seen,     \
                                    struct softmax *tile)                                          \
    {                                                                                              \
        add_values(R, form, p, piece, dim, group, seen, tile);                                     \
    }
#if TURNS_PAIRS
#define TURNED_PRODUCTS(R) PRODUCTS(R, turned, TURNED)
#else
#define TURNED_PRODUCTS(R)
#endif
#define ALL_PRODUCTS(R)                                                                            \
    PRODUCTS(R, pairs, PAIRS) TURNED_PRODUCTS(R)                                                   \
    PRODUCTS(R, half, HALF) PRODUCTS(R, fp8, FP8) PRODUCTS(R, int8, INT8) PRODUCTS(R, float, FLOAT)
#define ROW(R, name) {scores_##name##_##R, values_##name##_##R}

ALL_PRODUCTS(1)
ALL_PRODUCTS(2)
#if LANES > 4
ALL_PRODUCTS(3)
ALL_PRODUCTS(4)
ALL_PRODUCTS(5)
ALL_PRODUCTS(6)
#endif

#if LANES > 4
#define ROWS(name) {ROW(1, name), ROW(2, name), ROW(3, name), ROW(4, name), ROW(5, name), ROW(6, name)}
#else
#define ROWS(name) {ROW(1, name), ROW(2, name)}
#endif

static const struct products products[NUM_FORMS][MAX_ROWS] = {
    [PAIRS] = ROWS(pairs), [HALF] = ROWS(half), [FP8] = ROWS(fp8), [INT8] = ROWS(int8), [FLOAT] = ROWS(float),
#if TURNS_PAIRS
    [TURNED] = ROWS(turned),
#endif
};

/* ---- a tile --------------------------------------------------------------------------------------------- */

/* What query i sees of a tile, counted from its first position. */
static struct range seen_of_tile(const struct unit *unit, int32_t i, int32_t tile)
{
    struct range seen = unit->s->seen[i];
    int32_t base = tile * KV_TILE_TOKENS;

    return overlap((struct range){seen.first - base, seen.end - base},
                   (struct range){0, KV_TILE_TOKENS});
}

/* Fills any and all; `seen` of the queries of one group. */
static void see_together(struct query_group *group, const struct range *seen)
{
    struct range any = {KV_TILE_TOKENS, 0}, all = {0, KV_TILE_TOKENS};

    for (int32_t i = 0; i < group->count; i++) {
        all = overlap(all, seen[i]);
        if (!is_empty(seen[i]))
            any = (struct range){MIN(any.first, seen[i].first), MAX(any.end, seen[i].end)};
    }
    if (is_empty(any))
        any = (struct range){0, 0};
    group->any = any;
    group->all = is_empty(all) ? (struct range){any.end, any.end} : all;
}

/* One piece of k or v of a unit. */
struct place {
    const struct unit *unit;
    bool is_v;
    int32_t number; /* of the piece: positions [64 * number, 64 * number + 64) */
};

enum { TILE_PIECES = KV_TILE_TOKENS / PIECE_TOKENS };

/* What a unit reads of a tile: its pieces of k, then those of v. */
static struct range pieces_of_tile(const struct unit *unit, int32_t tile)
{
    struct range blocks = unit->blocks_seen;

    return overlap((struct range){blocks.first / PIECE_BLOCKS, (blocks.end - 1) / PIECE_BLOCKS + 1},
                   (struct range){tile * TILE_PIECES, (tile + 1) * TILE_PIECES});
}

static struct place first_place(const struct unit *unit)
{
    return (struct place){unit, false, pieces_of_tile(unit, unit->tiles.first).first};
}

/* The place that is read after `place`; after the last that is known, that one again. */
static struct place next_place(struct place place)
{
    const struct unit *unit = place.unit;
    int32_t tile = place.number / TILE_PIECES;
    struct range pieces = pieces_of_tile(unit, tile);

    if (place.number + 1 < pieces.end)
        return (struct place){unit, place.is_v, place.number + 1};
    if (!place.is_v)
        return (struct place){unit, true, pieces.first};
    if (tile + 1 < unit->tiles.end)
        return (struct place){unit, false, (tile + 1) * TILE_PIECES};
    return unit->following ? first_place(unit->following) : place;
}

/* KV_INT8: behind the codes of a block. */
static const float *scales_of(const struct unit *unit, const void *block)
{
    return (const float *)((const char *)block + unit->dim * KV_BLOCK_TOKENS);
}

/* The blocks of a piece in the cache; one that no query sees is replaced by one that some query does. */
static void find_cached(struct place place, const void *blocks_out[PIECE_BLOCKS])
{
    const struct unit *unit = place.unit;
    const struct kv_layer *kv = unit->args->kv;
    const char *head = (const char *)(place.is_v ? kv->v : kv->k) + kv_head_at(kv, 0, unit->kv_head);

    for (int32_t b = 0; b < PIECE_BLOCKS; b++) {
        int32_t at = MAX(MIN(place.number * PIECE_BLOCKS + b, unit->blocks_seen.end - 1), unit->blocks_seen.first);

        blocks_out[b] = head + kv_from_first_block(kv, unit->head_bytes, (uint32_t)unit->blocks[at]);
    }
}

INLINE void convert_from(const enum form form, const void *from, const void *ahead, float *to, int32_t count)
{
    for (int32_t i = 0; i < count; i += LANES) {
        if (i % (LINE_BYTES / FORM_BYTES(form)) == 0)
            __builtin_prefetch(element(form, ahead, i));
        vf_store(to + i, load_kv(form, from, i));
    }
}

/* Rows of `width` pairs as twice as many of floats. */
static void convert_pairs(const void *from, const void *ahead, float *to, int32_t count, int32_t width)
{
    for (int32_t row = 0; row < count / 2; row += width, to += 2 * width)
        for (int32_t i = 0; i < width; i += LANES) {
            vi pairs = vi_load(element(PAIRS, from, row + i));

            if ((row + i) % (LINE_BYTES / FORM_BYTES(PAIRS)) == 0)
                __builtin_prefetch(element(PAIRS, ahead, row + i));
            vf_store(to + i, vf_of_pairs(pairs, 1));
            vf_store(to + width + i, vf_of_pairs(pairs, 0));
        }
}

static void convert(enum kv_type type, const void *from, const void *ahead, float *to, int32_t count)
{
    if (type == KV_FLOAT16)
        convert_from(HALF, from, ahead, to, count);
    else if (type == KV_FP8)
        convert_from(FP8, from, ahead, to, count);
    else
        convert_from(INT8, from, ahead, to, count);
}

static struct piece find_piece(struct place place)
{
    const struct unit *unit = place.unit;
    enum kv_type type = unit->args->kv->type;
    int32_t count = unit->dim * KV_BLOCK_TOKENS, ahead = FETCH_ELEMENTS;
    struct place later = place;
    struct piece piece;

    find_cached(place, piece.blocks);
    if (type == KV_FP8 || type == KV_INT8)
        ahead = FETCH_CODES;
    for (int32_t i = 0; i < ahead; i += unit->dim * PIECE_TOKENS)
        later = next_place(later);
    find_cached(later, piece.ahead);
    if (type == KV_INT8)
        for (int32_t b = 0; b < PIECE_BLOCKS; b++)
            __builtin_prefetch(scales_of(unit, piece.ahead[b]));
    if (!IS_CONVERTED(unit->form))
        return piece;
    for (int32_t b = 0; b < PIECE_BLOCKS; b++) {
        float *to = unit->s->piece + b * count;

        if (unit->form == TURNED)
            convert_pairs(piece.blocks[b], piece.ahead[b], to, count, place.is_v ? unit->dim : KV_BLOCK_TOKENS);
        else
            convert(type, piece.blocks[b], piece.ahead[b], to, count);
        piece.blocks[b] = to;
    }
    return piece;
}

static struct range within_piece(struct range tokens, int32_t piece)
{
    tokens = overlap(tokens, (struct range){piece, piece + PIECE_TOKENS});
    return (struct range){tokens.first - piece, tokens.end - piece};
}

static void score_tile(const struct unit *unit, int32_t tile)
{
    struct range pieces = pieces_of_tile(unit, tile);
    struct scratch *s = unit->s;

    for (int32_t number = pieces.first; number < pieces.end; number++) {
        struct piece piece = find_piece((struct place){unit, false, number});
        int32_t token = number % TILE_PIECES * PIECE_TOKENS;

        for (int32_t g = 0; g < unit->num_groups; g++) {
            const struct query_group *group = &s->groups[g];
            struct range tokens = within_piece(group->any, token);

            if (!is_empty(tokens))
                products[unit->form][group->count - 1].scores(
                    s->q[group->first], &piece, tokens, unit->dim, s->p[group->first] + token);
        }
    }
}

/* What a group sees of a piece, and each of its queries. */
static struct query_group group_in_piece(const struct query_group *group, int32_t token,
                                         const struct range *seen, struct range *seen_out)
{
    struct query_group part = {.first = group->first, .count = group->count};

    for (int32_t i = 0; i < group->count; i++)
        seen_out[i] = within_piece(seen[i], token);
    see_together(&part, seen_out);
    return part;
}

static void add_tile_values(const struct unit *unit, int32_t tile, const struct range *seen,
                            struct softmax *tiles)
{
    struct range pieces = pieces_of_tile(unit, tile), seen_of_piece[MAX_ROWS];
    struct scratch *s = unit->s;

    for (int32_t number = pieces.first; number < pieces.end; number++) {
        struct piece piece = find_piece((struct place){unit, true, number});
        int32_t token = number % TILE_PIECES * PIECE_TOKENS;

        for (int32_t g = 0; g < unit->num_groups; g++) {
            int32_t first = s->groups[g].first;
            struct query_group group = group_in_piece(&s->groups[g], token, seen + first, seen_of_piece);

            if (!is_empty(group.any))
                products[unit->form][group.count - 1].values(
                    factors_at(unit->form, s->p[first], token), &piece, unit->dim, &group, seen_of_piece, tiles + first);
        }
    }
}

/* What the queries see of them. */
static const struct scales *find_scales(const struct unit *unit, int32_t tile)
{
    struct range pieces = pieces_of_tile(unit, tile);
    struct scales *scales = &unit->s->scales;

    if (unit->args->kv->type != KV_INT8)
        return unit->args->kv->type == KV_FP8 ? scales : NULL; /* see load_queries */
    for (int32_t number = pieces.first; number < pieces.end; number++) {
        const void *k[PIECE_BLOCKS], *v[PIECE_BLOCKS];

        find_cached((struct place){unit, false, number}, k);
        find_cached((struct place){unit, true, number}, v);
        for (int32_t b = 0; b < PIECE_BLOCKS; b++) {
            int32_t token = (number % TILE_PIECES * PIECE_BLOCKS + b) * KV_BLOCK_TOKENS;

            memcpy(scales->k + token, scales_of(unit, k[b]), KV_BLOCK_TOKENS * sizeof(float));
            memcpy(scales->v + token, scales_of(unit, v[b]), KV_BLOCK_TOKENS * sizeof(float));
        }
    }
    return scales;
}

/* The softmax of one tile, of every query that sees some of it. */
static void attend_tile(const struct unit *unit, int32_t tile, struct softmax *tiles)
{
    struct range seen[MAX_QUERIES];
    struct scratch *s = unit->s;

    for (int32_t i = 0; i < unit->num_queries; i++) {
        seen[i] = seen_of_tile(unit, i, tile);
        memset(tiles[i].out, 0, (size_t)unit->dim * sizeof(float));
    }
    for (int32_t g = 0; g < unit->num_groups; g++)
        see_together(&s->groups[g], seen + s->groups[g].first);
    score_tile(unit, tile);

    const struct scales *scales = find_scales(unit, tile);

    for (int32_t g = 0; g < unit->num_groups; g++)
        softmax_group(unit->form, &s->groups[g], s->p, seen, tiles, scales);
    add_tile_values(unit, tile, seen, tiles);
}

/* ---- a unit of work --------------------------------------------------------------------------------------- */

/* `row` goes on with the next tile. */
static void merge(struct softmax *row, const struct softmax *tile, int32_t dim)
{
    float max = MAX(row->max, tile->max);
    vf difference = vf_set(row->max - max);

    difference[1] = tile->max - max;
    difference = vf_exp(difference);

    vf old = vf_set(difference[0]), new = vf_set(difference[1]);

    row->max = max;
    for (int c = 0; c < SUM_LANES; c += LANES)
        vf_store(row->sums + c, vf_fma(vf_load(tile->sums + c), new, vf_load(row->sums + c) * old));
    for (int32_t i = 0; i < dim; i += LANES)
        vf_store(row->out + i, vf_fma(vf_load(tile->out + i), new, vf_load(row->out + i) * old));
}

/* Goes on with a tile in every query that sees some of it. */
static void merge_tile(const struct unit *unit, int32_t tile, const struct softmax *tiles)
{
    for (int32_t i = 0; i < unit->num_queries; i++)
        if (!is_empty(seen_of_tile(unit, i, tile)))
            merge(&unit->s->rows[i], &tiles[i], unit->dim);
}

static int32_t row_of(const struct unit *unit, int32_t query)
{
    return unit->task.chunk.first_row + query / unit->num_heads;
}

static int64_t column_of(const struct unit *unit, int32_t query)
{
    return (int64_t)unit->heads[query % unit->num_heads] * unit->dim;
}

static void load_query(const struct unit *unit, int32_t i)
{
    const struct attention_args *args = unit->args;
    struct scratch *s = unit->s;
    int32_t row = row_of(unit, i);
    const float *q = args->q + row * args->q_stride + column_of(unit, i);

    s->seen[i] = (struct range){attention_first_position(args, row), args->batch->positions[row] + 1};
    for (int32_t d = 0; d < unit->dim; d += LANES)
        if (args->kv->type == KV_BFLOAT16)
            put_factors(unit->form, s->q[i], d, vf_bfloat16(vf_load(q + d) * args->scale));
        else
            vf_store(s->q[i] + d, vf_load(q + d) * args->scale);
    s->rows[i].max = NO_SCORE;
    memset(s->rows[i].sums, 0, sizeof(s->rows[i].sums));
    memset(s->rows[i].out, 0, (size_t)unit->dim * sizeof(float));
}

/* As few groups as there can be, of sizes as even as can be. */
static void group_queries(struct unit *unit)
{
    int32_t n = unit->num_queries, groups = divide_up(n, MAX_ROWS);

    unit->num_groups = groups;
    for (int32_t g = 0; g < groups; g++) {
        int32_t first = n * g / groups;

        unit->s->groups[g] = (struct query_group){.first = first, .count = n * (g + 1) / groups - first};
    }
}

static void unit_init(struct unit *unit, const struct attention_tasks *tasks,
                      const struct attention_task *task, struct scratch *s)
{
    const struct batch_view *batch = tasks->args->batch;
    int32_t first_row = task->chunk.first_row, last_row = first_row + task->chunk.num_rows - 1;

    *unit = (struct unit){
        .args = tasks->args,
        .task = *task,
        .heads = tasks->heads + task->group->first,
        .num_heads = task->group->count,
        .kv_head = task->group->kv_head,
        .num_queries = task->chunk.num_rows * task->group->count,
        .dim = tasks->args->kv->head_dim,
        .blocks = batch->block_tables + (int64_t)task->chunk.request * batch->block_table_stride,
        .blocks_seen = {attention_first_position(tasks->args, first_row) / KV_BLOCK_TOKENS,
                        batch->positions[last_row] / KV_BLOCK_TOKENS + 1},
        .tiles = {task->first_tile, task->first_tile + task->num_tiles},
        .s = s,
    };
    unit->head_bytes = kv_head_bytes(tasks->args->kv->type, unit->dim);
    unit->form = (enum form)tasks->args->kv->type;
    if (unit->num_queries >= CONVERT_QUERIES && unit->form != PAIRS)
        unit->form = FLOAT;
    else if (unit->num_queries >= CONVERT_QUERIES && TURNS_PAIRS)
        unit->form = TURNED;
}

static void load_queries(struct unit *unit)
{
    struct scales *scales = &unit->s->scales;

    if (unit->args->kv->type == KV_FP8)
        for (int32_t i = 0; i < KV_TILE_TOKENS; i++)
            scales->k[i] = scales->v[i] = FP8_SCALE;
    group_queries(unit);
    for (int32_t i = 0; i < unit->num_queries; i++)
        load_query(unit, i);
}

/* From element `at` of all of the rows, in groups of `blocks`. */
INLINE void put_quantized(const int blocks, const struct activations *to, int64_t at, const float *x, float inverse,
                          int32_t dim)
{
    for (int32_t d = 0; d < dim; d += blocks * QUANT_BLOCK) {
        vf group[GROUP_VECTORS];

        UNROLL for (int i = 0; i < blocks * BLOCK_VECTORS; i++)
            group[i] = vf_load(x + d + i * LANES) * inverse;
        quantize_group(to, (at + d) / QUANT_BLOCK, blocks, group);
    }
}

static void write_results(const struct unit *unit)
{
    const struct attention_args *args = unit->args;
    int32_t blocks = args->quantized ? group_blocks(args->quantized) : 0;

    for (int32_t i = 0; i < unit->num_queries; i++) {
        const struct softmax *row = &unit->s->rows[i];
        int64_t at = (int64_t)row_of(unit, i) * args->num_heads * unit->dim + column_of(unit, i);
        vf sums[KEY_VECTORS];

        for (int c = 0; c < KEY_VECTORS; c++)
            sums[c] = vf_load(row->sums + c * LANES);

        float inverse = 1.0f / vf_sum_lanes(sums);

        if (args->quantized)
            FOR_GROUP(blocks, put_quantized, args->quantized, at, row->out, inverse, unit->dim)
        else
            for (int32_t d = 0; d < unit->dim; d += LANES)
                vf_store(args->out + at + d, vf_load(row->out + d) * inverse);
    }
}

/* Some tiles of a unit that is shared; whoever does the last one merges them all, in order. */
static void attend_shared(const struct unit *unit, struct attention_shared *shared)
{
    const struct attention_task *task = &unit->task;
    const struct attention_chunk *chunk = &task->chunk;
    struct softmax *parts = &shared->parts[task->first_part];
    _Atomic int32_t *done = &shared->tiles_done[task->shared];

    for (int32_t t = unit->tiles.first; t < unit->tiles.end; t++)
        attend_tile(unit, t, parts + (t - chunk->first_tile) * unit->num_queries);
    if (atomic_fetch_add(done, task->num_tiles) + task->num_tiles < chunk->num_tiles)
        return;
    atomic_store_explicit(done, 0, memory_order_relaxed); /* for the next call */
    for (int32_t t = 0; t < chunk->num_tiles; t++)
        merge_tile(unit, chunk->first_tile + t, parts + t * unit->num_queries);
    write_results(unit);
}

static void attend_whole(const struct unit *unit)
{
    for (int32_t t = unit->tiles.first; t < unit->tiles.end; t++) {
        attend_tile(unit, t, unit->s->tile);
        merge_tile(unit, t, unit->s->tile);
    }
    write_results(unit);
}

struct attention {
    struct attention_tasks tasks;
    struct attention_shared *shared;
    int64_t num_early;    /* so many first tasks are taken one ahead */
    _Atomic int64_t next; /* task that nobody has taken */
};

/* The next task; false: all are taken. */
static bool take(struct attention *attention, struct attention_chunk *cursor, struct scratch *s,
                 struct unit *unit)
{
    struct attention_task task;

    if (!attention_tasks_find(&attention->tasks, atomic_fetch_add(&attention->next, 1), cursor, &task))
        return false;
    unit_init(unit, &attention->tasks, &task, s);
    return true;
}

/* A thread that knows what it does next fetches the beginning of that in time; towards the end it
 * rather leaves to others what it cannot begin. */
static void attend(const void *arg, int64_t first, int64_t end, void *scratch)
{
    struct attention *attention = *(struct attention *const *)arg;
    struct attention_chunk cursor = attention_tasks_begin();
    struct unit units[2], *unit = &units[0], *following = &units[1];
    bool is_taken = take(attention, &cursor, scratch, unit);

    (void)first, (void)end;
    while (is_taken) {
        bool is_early = atomic_load_explicit(&attention->next, memory_order_relaxed) < attention->num_early;

        is_taken = is_early && take(attention, &cursor, scratch, following);
        unit->following = is_taken ? following : NULL;
        load_queries(unit);
        if (unit->task.shared >= 0)
            attend_shared(unit, attention->shared);
        else
            attend_whole(unit);
        is_taken = is_taken || take(attention, &cursor, scratch, following);
        following = unit;
        unit = unit == &units[0] ? &units[1] : &units[0];
    }
}

void KERNEL(attention)(struct device *dev, const struct attention_args *args)
{
    struct cpu_device *cpu = cpu_device_of(dev);
    int32_t num_threads = team_num_threads(cpu->team);
    struct attention attention = {.shared = cpu->attention}, *arg = &attention;

    ASSERT(args->kv->head_dim <= MAX_HEAD_DIM && args->kv->head_dim % 16 == 0, "head_dim %d",
           args->kv->head_dim);
    ASSERT(args->num_heads <= MAX_HEADS, "%d heads", args->num_heads);
    ASSERT(!args->quantized || args->kv->head_dim % args->quantized->group == 0, "heads of %d, groups of %d",
           args->kv->head_dim, args->quantized->group);
    attention_tasks_init(&attention.tasks, args, num_threads);
    attention.num_early = attention.tasks.num_tasks - (num_threads > 1 ? 4 * num_threads : 0);
    device_run(dev, num_threads, 1, attend, &arg);
}
