/*
 * matmul_amx: many rows of types with whole scales, by the unit that multiplies matrices of bytes (amx.h).
 *
 * Weights are whole numbers of a step that fit in 16 bits (quant_block.h): a signed byte and, below it, an unsigned one.
 * The weights of a chunk become these once for all rows of a slice. Then the unit multiplies group after group of 16 rows
 * of activations by both, and vectors make of 256 times the ones and the others what a group's totals are in the other
 * tiles: the same bits. The unit does not wait for them: while it multiplies a group, the results of the one before go to
 * memory and from there to the vectors. A value that the unit begins is there after 52 cycles, four begin within 64.
 *
 * Part of matmul.c.
 */
#ifndef KERNELS_CPU_MATMUL_AMX_H
#define KERNELS_CPU_MATMUL_AMX_H

#include "kernels/cpu/amx.h"

#include <stddef.h>

enum { UNIT_VECTORS = PANEL / LANES };

/* Elements of k that are multiplied at a time: of groups of 96 half, since 64 are what tiles have room for. */
INLINE int32_t unit_step(int32_t blocks)
{
    return blocks == 3 ? 48 : blocks * QUANT_BLOCK;
}

/* ---- weights in two bytes ----------------------------------------------------------------------------- */

typedef uint16_t words __attribute__((vector_size(LANES * 4), may_alias));

/* The weights of the chunk, as the unit reads them: four elements of k of 32 columns side by side. */
INLINE void split_weights(enum tensor_type type, const struct tile *t, struct weight_bytes *out)
{
    const struct quant_form form = quant_form(type);
    const int record_bytes = packed_record_bytes(type);

    fetch_supers(PACKED, t);
    for (int64_t b = 0; b < t->count; b++) {
        const uint8_t *record = t->records + b * record_bytes;

        fetch_near(record, record_bytes);
        UNROLL for (int c = 0; c < PANEL; c += LANES) {
            vi st = load_whole_scales(type, record + packed_code_bytes(type), c);
            words s = (words)vs_twice(st), base = (words)vs_twice((vi)((vu)st >> 16)) - s * (uint16_t)form.offset;

            UNROLL for (int g = 0; g < 8; g++) {
                vu code = (vu)load_codes(form.code_bits, PACKED, record + c * 4, g);
                vu even = (vu)((words)(code & 0x00ff00ff) * s + base);
                vu odd = (vu)((words)(code >> 8 & 0x00ff00ff) * s + base);

                vi_store(out->low[8 * b + g] + c * 4, (vi)((even & 0x00ff00ff) | (odd & 0x00ff00ff) << 8));
                vi_store(out->high[8 * b + g] + c * 4, (vi)((even >> 8 & 0x00ff00ff) | (odd & 0xff00ff00)));
            }
        }
    }
}

/* ---- products become results -------------------------------------------------------------------------- */

/* What the unit leaves of a group: 256 times the ones and the others are totals. */
struct unit_products {
    _Alignas(64) int32_t high[AMX_ROWS][PANEL], low[AMX_ROWS][PANEL];
};

/* How a group becomes results: a plain one, which is all of a tile's 16 rows, is the first, the last, or neither, of a
 * row, and its sums are floats, or exact. */
enum finish {
    FINISH_NOTHING,
    FINISH_OTHERWISE,
    FINISH_FIRST,
    FINISH_MIDDLE,
    FINISH_LAST,
    FINISH_EXACT_FIRST,
    FINISH_EXACT_MIDDLE,
    FINISH_EXACT_LAST,
};

/* A group of a tile's rows that the unit has multiplied. */
struct group {
    enum finish finish;
    int32_t r0, first, end; /* the tile's first row, and those rows that are wanted */
    int64_t b;              /* its first block */
    bool begins, is_last;   /* of a row's groups */
};

INLINE vi join(vi high, vi low)
{
    return (vi)((vu)high << 8) + low;
}

INLINE void total_row(const struct unit_products *products, int32_t row, vi total[UNIT_VECTORS])
{
    UNROLL for (int c = 0; c < UNIT_VECTORS; c++)
        total[c] = join(vi_load(&products->high[row][c * LANES]), vi_load(&products->low[row][c * LANES]));
}

/* A group of either kind, plain or not. */
static void finish_otherwise(const struct tile *t, const struct unit_products *products, const struct group *g)
{
    for (int32_t r = g->first; r < g->end; r++) {
        vi total[UNIT_VECTORS];

        total_row(products, r - g->r0, total);
        if (t->sum)
            add_row_totals_exactly(UNIT_VECTORS, t, r, g->b, 0, g->begins, g->is_last, total);
        else
            add_row_totals(UNIT_VECTORS, t, r, g->b, 0, g->begins, g->is_last, total);
    }
}

/* So many rows, from a tile's row `from` on, of a plain group of exact sums. */
INLINE void finish_exactly(const enum finish finish, const struct tile *t, const struct unit_products *products,
                           const struct group *g, const int from, const int count)
{
    UNROLL for (int row = from; row < from + count; row++) {
        vi total[UNIT_VECTORS];

        total_row(products, row, total);
        add_row_totals_exactly(UNIT_VECTORS, t, g->r0 + row, g->b, 0, finish == FINISH_EXACT_FIRST,
                               finish == FINISH_EXACT_LAST, total);
    }
}

/* What the next rows of a plain group are made of, and where they go. */
struct rows {
    const char *products;
    const float *d;
    int64_t num_blocks; /* from row to row of d */
    float *acc, *out;   /* the next rows; out: of the last group */
    int64_t out_stride;
    const uint8_t *steps;
};

/* So many rows of a group that is plain: as few instructions as can be, since the unit needs many, too. */
INLINE void finish_plain(const enum finish finish, struct rows *rows, const int count)
{
    UNROLL for (int r = 0; r < count; r++) {
        vf scale = vf_set(*rows->d);

        rows->d += rows->num_blocks;
        UNROLL for (int c = 0; c < UNIT_VECTORS; c++) {
            vi high = vi_load(rows->products + r * PANEL * 4 + c * LANES * 4);
            vi low = vi_load(rows->products + offsetof(struct unit_products, low) + r * PANEL * 4 + c * LANES * 4);
            vf f = vf_fma(__builtin_convertvector(join(high, low), vf), scale,
                          finish == FINISH_FIRST ? vf_set(0) : vf_load(rows->acc + r * PANEL + c * LANES));

            if (finish == FINISH_LAST)
                vf_store(rows->out + c * LANES, f * vf_load(rows->steps + c * LANES * sizeof(float)));
            else
                vf_store(rows->acc + r * PANEL + c * LANES, f);
        }
        if (finish == FINISH_LAST)
            rows->out += rows->out_stride;
    }
    rows->products += count * PANEL * 4;
    rows->acc += count * PANEL;
}

/* ---- the unit ------------------------------------------------------------------------------------------ */

/* What a group is multiplied by, and where what was multiplied before it goes. */
struct operands {
    const int8_t *q; /* 16 rows, or fewer, at stride k */
    int64_t k;
    const uint8_t *high;
    struct unit_products *products;
};

/* Multiplies a group, and finishes one of before meanwhile, some rows after each product of the unit. */
INLINE void multiply_group(const int blocks, const enum finish finish, const struct operands *operands, const struct tile *t,
                           const struct unit_products *done, const struct group *g)
{
    const struct operands o = *operands;
    const int slot_rows = blocks == 3 ? 2 : 4;
    enum { LOW = offsetof(struct weight_bytes, low) };
    const bool is_plain = finish == FINISH_FIRST || finish == FINISH_MIDDLE || finish == FINISH_LAST;
    const bool is_exact = finish >= FINISH_EXACT_FIRST;
    struct rows rows = {
        .products = (const char *)done,
        .d = t->d + g->r0 * t->num_blocks + g->b,
        .num_blocks = t->num_blocks,
        .acc = t->acc[g->r0],
        .out = t->out + g->r0 * t->out_stride,
        .out_stride = t->out_stride,
        .steps = t->supers,
    };

#define FINISH_ROWS(i)                                                                             \
    if (is_plain)                                                                                  \
        finish_plain(finish, &rows, slot_rows);                                                    \
    else if (is_exact)                                                                             \
        finish_exactly(finish, t, done, g, (i) * slot_rows, slot_rows)

    amx_load(4, o.q, o.k);
    amx_load(6, o.high, GROUP_BYTES);
    amx_store(0, o.products->high[0], PANEL * 4);
    amx_zero(0);
    amx_multiply_signed(0, 4, 6);
    FINISH_ROWS(0);
    amx_load(7, o.high + LOW, GROUP_BYTES);
    amx_store(1, o.products->low[0], PANEL * 4);
    amx_zero(1);
    amx_multiply_unsigned(1, 4, 7);
    FINISH_ROWS(1);
    amx_load(6, o.high + GROUP_BYTES / 2, GROUP_BYTES);
    amx_store(2, o.products->high[0] + AMX_COLUMNS, PANEL * 4);
    amx_zero(2);
    amx_multiply_signed(2, 4, 6);
    FINISH_ROWS(2);
    amx_load(7, o.high + LOW + GROUP_BYTES / 2, GROUP_BYTES);
    amx_store(3, o.products->low[0] + AMX_COLUMNS, PANEL * 4);
    amx_zero(3);
    amx_multiply_unsigned(3, 4, 7);
    FINISH_ROWS(3);
    if (blocks < 3)
        return;

    const uint8_t *rest = o.high + unit_step(blocks) / 4 * GROUP_BYTES;

    amx_load(5, o.q + unit_step(blocks), o.k);
    amx_load(6, rest, GROUP_BYTES);
    amx_multiply_signed(0, 5, 6);
    FINISH_ROWS(4);
    amx_load(7, rest + LOW, GROUP_BYTES);
    amx_multiply_unsigned(1, 5, 7);
    FINISH_ROWS(5);
    amx_load(6, rest + GROUP_BYTES / 2, GROUP_BYTES);
    amx_multiply_signed(2, 5, 6);
    FINISH_ROWS(6);
    amx_load(7, rest + LOW + GROUP_BYTES / 2, GROUP_BYTES);
    amx_multiply_unsigned(3, 5, 7);
    FINISH_ROWS(7);
}

/* The chunk, whose weights are in `bytes`, for all rows of the slice, of which t has the first; as many in each tile, of
 * which the last one begins early enough to have them, too. Fetches what comes after the chunk. */
INLINE void multiply_rows(const int blocks, const struct tile *t, int32_t num_rows, int32_t tile_rows,
                          const struct weight_bytes *bytes, int32_t record_bytes)
{
    struct unit_products products[2];
    struct group groups[2] = {{FINISH_NOTHING}}; /* the last and the one before it, by turns */
    int32_t n = 0;

    for (int32_t i = 0; i < t->turns; i++) {
        int32_t first = i * tile_rows, r0 = MIN(first, num_rows - tile_rows), next_fetch = i;
        bool is_plain = tile_rows == AMX_ROWS && r0 == first && !t->streams;

        for (int64_t b = 0; b < t->count; b += blocks, n++) {
            struct operands operands = {
                .q = t->q + r0 * t->k + b * QUANT_BLOCK,
                .k = t->k,
                .high = bytes->high[8 * b],
                .products = &products[n & 1],
            };
            const struct unit_products *done = &products[~n & 1];
            const struct group *g = &groups[n & 1];
            bool begins = t->begins && b == 0, is_last = t->ends && b + blocks == t->count;

            for (; next_fetch < b + blocks; next_fetch += t->turns)
                fetch_far(t, t->records + next_fetch * (int64_t)record_bytes, record_bytes);
            switch (g->finish) {
#define CASE(finish) case finish: multiply_group(blocks, finish, &operands, t, done, g); break
            CASE(FINISH_FIRST);
            CASE(FINISH_MIDDLE);
            CASE(FINISH_LAST);
            CASE(FINISH_EXACT_FIRST);
            CASE(FINISH_EXACT_MIDDLE);
            CASE(FINISH_EXACT_LAST);
            default:
                multiply_group(blocks, FINISH_NOTHING, &operands, t, done, g);
                if (g->finish == FINISH_OTHERWISE)
                    finish_otherwise(t, done, g);
            }
            groups[n & 1] = (struct group){
                .finish = !is_plain || (begins && is_last)
                              ? FINISH_OTHERWISE
                              : (t->sum ? FINISH_EXACT_MIDDLE : FINISH_MIDDLE) + (is_last ? 1 : begins ? -1 : 0),
                .r0 = r0,
                .first = first,
                .end = MIN(first + tile_rows, num_rows),
                .b = b,
                .begins = begins,
                .is_last = is_last,
            };
        }
    }
    if (n > 1)
        finish_otherwise(t, &products[~n & 1], &groups[n & 1]);
    amx_store(0, products[n & 1].high[0], PANEL * 4);
    amx_store(1, products[n & 1].low[0], PANEL * 4);
    amx_store(2, products[n & 1].high[0] + AMX_COLUMNS, PANEL * 4);
    amx_store(3, products[n & 1].low[0] + AMX_COLUMNS, PANEL * 4);
    finish_otherwise(t, &products[n & 1], &groups[~n & 1]);
}

#endif
