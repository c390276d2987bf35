/*
 * matmul of packed weights, for every type, with the arithmetic of quant_block.h.
 *
 * A tile is up to MAX_ROWS rows by one panel, through a chunk of k: the first tile of a chunk
 * unpacks the codes to bytes and leaves them in the second cache, the other rows' tiles read the
 * bytes. Few rows are not worth it (most_packed_tiles): each of their tiles reads the packed codes, the
 * first at the speed of memory.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gated.h"
#include "kernels/cpu/packed.h"

#include "proto/base/memory.h"

/* So that rows × columns of accumulators stay in registers. */
#if UNROLLED && LANES == 16
#define MAX_ROWS 6
#elif UNROLLED && LANES == 8
#define MAX_ROWS 4
#else
#define MAX_ROWS 2
#endif

enum {
    SLICE_ROWS = 256, /* rows that go through a panel together: their activations stay in L2 */
    CHUNK_BLOCKS = 64,
    FLOAT_CHUNK = 128,
    FAR_BYTES = 16384, /* ahead, or more, weights are fetched to the second-level cache, */
    NEAR_BYTES = 3072, /* and from there to the first */
    UNIT_CHUNK = 9,         /* blocks whose bytes stay in the first cache, beside activations of 16 rows */
    LEAST_UNIT_ROWS = 64,   /* that are worth the unit that multiplies matrices */
    STREAM_COLUMNS = 16384, /* rows of so many results, logits, pass by the caches */
};

/* A block of 32 that a storing tile leaves for the others. */
struct expanded {
    uint8_t codes[8 * GROUP_BYTES];
    float d[PANEL], m[PANEL];       /* d_w and m_w; the super's own in SCALE_HALVES */
    int16_t scales[PANEL][2], mins[PANEL][2]; /* SCALE_HALVES */
};

/* The same of SCALE_WHOLE. */
struct expanded_whole {
    uint8_t codes[8 * GROUP_BYTES];
    int16_t st[PANEL][2];
};

/* The bytes of weights of a chunk: four elements of k of each column side by side. */
struct weight_bytes {
    uint8_t high[8 * UNIT_CHUNK][GROUP_BYTES], low[8 * UNIT_CHUNK][GROUP_BYTES];
};

struct scratch {
    union {
        _Alignas(64) struct expanded expanded[CHUNK_BLOCKS];
        struct expanded_whole whole[CHUNK_BLOCKS];
        struct weight_bytes bytes;
    };
    float partial[SLICE_ROWS][PANEL];   /* accumulators of groups, between chunks */
    double sums[SLICE_ROWS][PANEL];     /* of groups, between chunks */
    float edge[SLICE_ROWS][PANEL];      /* output of a panel with fewer than 32 columns */
    double edge_sums[SLICE_ROWS][PANEL]; /* the same, where doubles are wanted */
    float gated[2][SLICE_ROWS][PANEL];  /* output of a panel of gates, and of that of their ups */
    float activated[SLICE_ROWS][MAX_ACTIVATION_GROUP]; /* and what comes of a group of these */
};
_Static_assert(sizeof(struct scratch) <= SCRATCH_BYTES, "scratch of a matmul");

struct tile {
    /* weights */
    const uint8_t *records; /* of the chunk */
    const uint8_t *supers;  /* of the panel */
    int32_t super_block;    /* the chunk's first block, counted from the start of supers[0] */
    const uint8_t *end;     /* of what this thread reads of the matrix, and where it goes on in the next */
    const uint8_t *next;
    int32_t turn, turns; /* it fetches what comes `far_bytes` after record `turn` and each `turns`th from there */
    int64_t far_bytes;
    struct expanded *expanded;
    struct expanded_whole *whole;

    /* activations: the tile's first row at the chunk's start */
    const float *x;
    const int8_t *q;
    const float *d, *z;
    const int16_t *sums;
    const int32_t *starts[NUM_STARTS]; /* those that the type reads */
    int32_t shared; /* blocks that share d */
    int64_t k, num_blocks; /* strides */

    int32_t count; /* records in the chunk */
    bool begins;   /* accumulators begin at zero: the chunk is the first */
    bool ends;     /* the chunk is the last */
    float (*acc)[PANEL]; /* between chunks, and groups of activations */
    float *out; /* of the last chunk; NULL: doubles are wanted */
    double *sums_out; /* these; of types with whole scales, as finish_sums makes those of others */
    int64_t out_stride;
    bool streams; /* to `out`, past the caches */

    /* matmul_groups; NULL otherwise */
    double *sum;          /* [rows, PANEL] */
    bool sum_begins;      /* no group has ended before the chunk: what `sum` holds is nothing */
    int32_t group, left;  /* records of a group; of the current one from here */
};

/* ---- one record --------------------------------------------------------------------------------- */

enum source { PACKED, PACKED_STORING, EXPANDED, NUM_SOURCES };

/* Bit `from` of every byte to bit `to`; what crosses into other bytes is the caller's to mask. */
INLINE vu move_bits(vi bytes, int from, int to)
{
    return from < to ? (vu)bytes << (to - from) : (vu)bytes >> (from - to);
}

/* The codes of k-group g, of the vector of columns that begins at `at`. */
INLINE vi load_codes(int bits, enum source source, const uint8_t *at, int g)
{
    if (source == EXPANDED)
        return vi_load(at + g * GROUP_BYTES);
    if (bits == 8)
        return signed_codes(vi_load(at + g * GROUP_BYTES));

    vu code = (vu)vi_load(at + g % 4 * GROUP_BYTES) >> (g < 4 ? 0 : 4) & 0x0f0f0f0f;

    if (bits == 5)
        code |= move_bits(vi_load(at + 4 * GROUP_BYTES), g, 4) & 0x10101010;
    else if (bits == 6)
        code |= move_bits(vi_load(at + (4 + g / 4) * GROUP_BYTES), 2 * (g % 4), 4) & 0x30303030;
    return (vi)code;
}

/* d_w and m_w of the vector of columns; the super's own d and m in SCALE_HALVES. */
INLINE void load_scales(enum tensor_type type, const uint8_t *scales, const uint8_t *super,
                        int column, vf *d_out, vf *m_out)
{
    const struct quant_form form = quant_form(type);
    const uint16_t *halves = (const uint16_t *)(form.scales == SCALE_PLAIN ? scales : super);

    *d_out = vf_load_half(halves + column);
    *m_out = vf_set(0);
    if (form.has_min)
        *m_out = vf_load_half(halves + PANEL + column);
    if (form.scales == SCALE_SUPER) {
        *d_out *= __builtin_convertvector(vi_load_u8(scales + column), vf);
        *m_out *= -__builtin_convertvector(vi_load_u8(scales + PANEL + column), vf);
    }
}

/* sum(u * a) of a block, in SCALE_HALVES with scales applied: R rows × C vectors of columns. */
INLINE void dot_block(const int R, const int C, enum tensor_type type, enum source source,
                      const struct tile *t, const uint8_t *codes, const vi *scales, int64_t b,
                      int first_column, vi sum[MAX_ROWS][4])
{
    const struct quant_form form = quant_form(type);
    const int bits = form.code_bits, halves = form.scales == SCALE_HALVES;
    const int steps = halves && DOT_STEPS(bits) > 4 ? 4 : DOT_STEPS(bits);
    uint8_t *store = source == PACKED_STORING ? t->expanded[b].codes + first_column * 4 : NULL;
    const int8_t *q[MAX_ROWS];

    codes += first_column * 4;
    UNROLL for (int r = 0; r < R; r++)
        q[r] = t->q + b * QUANT_BLOCK + r * t->k;
    if (bits == 8) {
        UNROLL for (int r = 0; r < R; r++) {
            const int16_t *sums = t->sums + 2 * (r * t->num_blocks + b);
            vi start = signed_start(sums[0] + sums[1]);

            UNROLL for (int c = 0; c < C; c++)
                sum[r][c] = start;
        }
        UNROLL for (int g = 0; g < 8; g++)
            UNROLL for (int c = 0; c < C; c++) {
                vi code = load_codes(bits, source, codes + c * LANES * 4, g);

                if (source == PACKED_STORING)
                    vi_store(store + g * GROUP_BYTES + c * LANES * 4, code);
                UNROLL for (int r = 0; r < R; r++)
                    sum[r][c] = signed_step(sum[r][c], code, vi_broadcast(q[r] + g * 4));
            }
        return;
    }
    UNROLL for (int g0 = 0; g0 < 8; g0 += steps) {
        vi acc[MAX_ROWS][4];

        UNROLL for (int g = g0; g < g0 + steps; g++)
            UNROLL for (int c = 0; c < C; c++) {
                vi code = load_codes(bits, source, codes + c * LANES * 4, g);

                if (source == PACKED_STORING)
                    vi_store(store + g * GROUP_BYTES + c * LANES * 4, code);
                UNROLL for (int r = 0; r < R; r++)
                    acc[r][c] = dot_step(g == g0 ? vi_set(0) : acc[r][c], code,
                                         vi_broadcast(q[r] + g * 4));
            }
        UNROLL for (int c = 0; c < C; c++)
            UNROLL for (int r = 0; r < R; r++) {
                vi part = halves ? dot_scale(acc[r][c], scales[c], g0 / 4) : dot_widen(acc[r][c]);

                sum[r][c] = part + (g0 ? sum[r][c] : vi_set(0));
            }
    }
}

/* A thread's weights are one stream through all matrices, but for the jumps between them. */
INLINE const uint8_t *far_from(const struct tile *t, const uint8_t *record)
{
    const uint8_t *far = record + t->far_bytes;

    return far < t->end ? far : t->next + (far - t->end);
}

INLINE void fetch_far(const struct tile *t, const uint8_t *record, const int record_bytes)
{
    const uint8_t *far = far_from(t, record);

    for (int i = 0; i < record_bytes; i += 64)
        fetch_second_level(far + i);
}

INLINE void fetch_near(const uint8_t *record, const int record_bytes)
{
    for (int i = 0; i < record_bytes; i += 64)
        __builtin_prefetch(record + NEAR_BYTES + i);
}

/* In turns: what goes to the first level does not wait behind all that goes to the second. */
INLINE void fetch_both(const struct tile *t, const uint8_t *record, const int record_bytes)
{
    const uint8_t *far = far_from(t, record);

    for (int i = 0; i < record_bytes; i += 64) {
        fetch_second_level(far + i);
        __builtin_prefetch(record + NEAR_BYTES + i);
    }
}

/* What comes after a record that a tile reads. until_fetch: how many records others see to before it is its turn. */
INLINE void fetch(enum source source, const struct tile *t, const uint8_t *record, const int record_bytes,
                  int32_t *until_fetch)
{
    if (source == PACKED_STORING || t->turns == 1) {
        fetch_both(t, record, record_bytes);
        return;
    }
    if ((*until_fetch)-- == 0) {
        fetch_far(t, record, record_bytes);
        *until_fetch = t->turns - 1;
    }
    if (t->turn == 0) /* the others find it in the caches */
        fetch_near(record, record_bytes);
}

/* What lies before the first record of a panel, in whose stead records fetch something else. */
INLINE void fetch_supers(enum source source, const struct tile *t)
{
    if (source == EXPANDED || !t->begins || t->turn != 0)
        return;

    const uint8_t *far = far_from(t, t->supers);

    for (const uint8_t *p = t->supers; p < t->records; p += 64) {
        fetch_second_level(far + (p - t->supers));
        __builtin_prefetch(p + NEAR_BYTES);
    }
}

/* ---- a tile of a quantised type ------------------------------------------------------------------- */

/* A finished group: rounded to the grid, and added to those before it, if there are any. */
INLINE void add_group(const int R, const int C, const struct tile *t, int first_column, bool is_first,
                      vf f[MAX_ROWS][4])
{
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) {
            double *sum = t->sum + r * PANEL + first_column + c * LANES;
            vd low = (vd_low(f[r][c]) + EXACT_MAGIC) - EXACT_MAGIC;
            vd high = (vd_high(f[r][c]) + EXACT_MAGIC) - EXACT_MAGIC;

            vd_store(sum, (is_first ? (vd){0} : vd_load(sum)) + low);
            vd_store(sum + LANES / 2, (is_first ? (vd){0} : vd_load(sum + LANES / 2)) + high);
            f[r][c] = vf_set(0);
        }
}

INLINE void begin_acc(const int R, const int C, const struct tile *t, int first_column,
                      vf f[MAX_ROWS][4])
{
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            f[r][c] = t->begins ? vf_set(0)
                                : vf_load(&t->acc[r][first_column + c * LANES]);
}

/* Of one row and vector of columns. */
INLINE void keep_vector(const struct tile *t, int r, int column, bool is_result, vf f)
{
    float *out = is_result ? t->out + r * t->out_stride + column : &t->acc[r][column];

    if (is_result && t->streams)
        vf_stream(out, f);
    else
        vf_store(out, f);
}

INLINE void keep_acc(const int R, const int C, const struct tile *t, int first_column, bool is_result,
                     vf f[MAX_ROWS][4])
{
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            keep_vector(t, r, first_column + c * LANES, is_result, f[r][c]);
}

INLINE void tile_columns(const int R, const int C, enum tensor_type type, enum source source,
                         const struct tile *t, const int first_column)
{
    const struct quant_form form = quant_form(type);
    const bool halves = form.scales == SCALE_HALVES;
    const bool has_m = !halves && form.has_min;
    const int record_bytes = packed_record_bytes(type);
    int32_t left = t->left, until_fetch = t->turn;
    vf f[MAX_ROWS][4];

    begin_acc(R, C, t, first_column, f);
    for (int64_t b = 0; b < t->count; b++) {
        const uint8_t *record = t->records + b * record_bytes;
        struct expanded *e = source == PACKED ? NULL : &t->expanded[b];
        const uint8_t *packed_scales = record + packed_code_bytes(type);
        vi sum[MAX_ROWS][4], scales[4], mins[4];

        if (source != EXPANDED && first_column == 0)
            fetch(source, t, record, record_bytes, &until_fetch);
        if (halves) {
            UNROLL for (int c = 0; c < C; c++) {
                int column = first_column + c * LANES;

                scales[c] = source == EXPANDED ? vi_load(e->scales[column])
                                               : vs_load_s8((const int8_t *)packed_scales + 2 * column);
                mins[c] = !form.has_min ? vi_set(0)
                          : source == EXPANDED
                              ? vi_load(e->mins[column])
                              : vs_load_s8((const int8_t *)packed_scales + 2 * PANEL + 2 * column);
            }
        }
        dot_block(R, C, type, source, t, source == EXPANDED ? e->codes : record, scales, b,
                  first_column, sum);
        UNROLL for (int c = 0; c < C; c++) {
            int column = first_column + c * LANES;
            const uint8_t *super = t->supers + (t->super_block + b) / SUPER_BLOCKS *
                                                   packed_super_bytes(type);
            vf d, m;

            if (source == EXPANDED) {
                d = vf_load(e->d + column);
                m = vf_load(e->m + column);
            } else {
                load_scales(type, packed_scales, super, column, &d, &m);
            }
            if (source == PACKED_STORING) {
                vf_store(e->d + column, d);
                vf_store(e->m + column, m);
                if (halves)
                    vi_store(e->scales[column], scales[c]);
                if (halves && form.has_min)
                    vi_store(e->mins[column], mins[c]);
            }
            UNROLL for (int r = 0; r < R; r++) {
                int64_t at = r * t->num_blocks + b;
                vf d_a = vf_set(t->d[at]);

                if (halves) {
                    vi sums = vi_broadcast(t->sums + 2 * at);

                    if (form.offset)
                        sum[r][c] -= form.offset * vs_dot(scales[c], sums);
                    f[r][c] = vf_fma(__builtin_convertvector(sum[r][c], vf), d * d_a, f[r][c]);
                    if (form.has_min)
                        f[r][c] = vf_fma(__builtin_convertvector(vs_dot(mins[c], sums), vf),
                                         -(m * d_a), f[r][c]);
                } else {
                    f[r][c] = vf_fma(__builtin_convertvector(sum[r][c], vf), d * d_a, f[r][c]);
                    if (has_m)
                        f[r][c] = vf_fma(m, vf_set(t->z[at]), f[r][c]);
                }
            }
        }
        if (t->sum && --left == 0) {
            add_group(R, C, t, first_column, t->sum_begins && b < t->group, f);
            left = t->group;
        }
    }
    keep_acc(R, C, t, first_column, t->ends && !t->sum, f);
}

/* ---- a tile of a type with whole scales ------------------------------------------------------------ */

/* s and t of the vector of columns. */
INLINE vi load_whole_scales(enum tensor_type type, const uint8_t *scales, int column)
{
    if (quant_form(type).has_min)
        return vi_load(scales + 4 * column);
    return vi_load_u16((const uint16_t *)scales + column);
}

/* Adds block b of the chunk to the totals of its group. */
INLINE void add_whole_block(const int R, const int C, enum tensor_type type, enum source source, const struct tile *t,
                            int64_t b, const int first_column, vi total[MAX_ROWS][4])
{
    const struct quant_form form = quant_form(type);
    const uint8_t *record = t->records + b * packed_record_bytes(type);
    const uint8_t *codes = (source == EXPANDED ? t->whole[b].codes : record) + first_column * 4;
    uint8_t *store = source == PACKED_STORING ? t->whole[b].codes + first_column * 4 : NULL;
    vi st[4], sum[MAX_ROWS][4];

    _Static_assert(DOT_STEPS(4) == 8 && DOT_STEPS(5) >= 4, "sums of blocks and of halves");
    UNROLL for (int c = 0; c < C; c++) {
        int column = first_column + c * LANES;

        st[c] = source == EXPANDED ? vi_load(t->whole[b].st[column])
                                   : load_whole_scales(type, record + packed_code_bytes(type), column);
        if (source == PACKED_STORING)
            vi_store(t->whole[b].st[column], st[c]);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++)
            sum[r][c] = whole_start(form, t->starts, r * t->num_blocks + b);
    UNROLL for (int g = 0; g < 8; g++) {
        vi code[4];

        if (form.code_bits == 5 && g == 4)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int c = 0; c < C; c++)
                    sum[r][c] = whole_middle(&total[r][c], sum[r][c], t->starts, r * t->num_blocks + b, st[c]);
        UNROLL for (int c = 0; c < C; c++) {
            code[c] = load_codes(form.code_bits, source, codes + c * LANES * 4, g);
            if (source == PACKED_STORING)
                vi_store(store + g * GROUP_BYTES + c * LANES * 4, code[c]);
        }
        UNROLL for (int r = 0; r < R; r++) {
            vi q = vi_broadcast(t->q + b * QUANT_BLOCK + r * t->k + g * 4);

            UNROLL for (int c = 0; c < C; c++)
                sum[r][c] = dot_step(sum[r][c], code[c], q);
        }
    }
    UNROLL for (int c = 0; c < C; c++)
        UNROLL for (int r = 0; r < R; r++)
            total[r][c] = whole_end(form, total[r][c], sum[r][c], t->starts, r * t->num_blocks + b, st[c]);
}

/* Totals of the group of activations that begins with block b come to the accumulators, which are in memory, since
 * registers have totals; where the group is the last, results are made. Of row r, C vectors of columns. */
INLINE void add_row_totals(const int C, const struct tile *t, int r, int64_t b, const int first_column, bool begins,
                           bool is_last, const vi *total)
{
    vf d = vf_set(t->d[r * t->num_blocks + b]);

    UNROLL for (int c = 0; c < C; c++) {
        int column = first_column + c * LANES;
        vf f = vf_fma(__builtin_convertvector(total[c], vf), d, begins ? vf_set(0) : vf_load(&t->acc[r][column]));

        if (is_last)
            f *= vf_load(t->supers + column * sizeof(float));
        keep_vector(t, r, column, is_last, f);
    }
}

/* x: sums of a group, added. To where results are wanted. */
INLINE void put_exact_result(const struct tile *t, int r, int column, const vd x[2])
{
    vf step = vf_load(t->supers + column * sizeof(float));
    vd low = (x[0] - WHOLE_MAGIC) * vd_low(step), high = (x[1] - WHOLE_MAGIC) * vd_high(step);
    int64_t at = r * t->out_stride + column;

    if (t->out) {
        vf_store(t->out + at, vf_round(low, high));
    } else {
        vd_store(t->sums_out + at, low);
        vd_store(t->sums_out + at + LANES / 2, high);
    }
}

/* The same of matmul_groups. */
INLINE void add_row_totals_exactly(const int C, const struct tile *t, int r, int64_t b, const int first_column, bool begins,
                                   bool is_last, const vi *total)
{
    vd d = vd_set(quant_odd(t->d[r * t->num_blocks + b]));

    UNROLL for (int c = 0; c < C; c++) {
        double *sum = t->sum + r * PANEL + first_column + c * LANES;
        vd x[2];

        vd_of_ints(total[c], x);
        UNROLL for (int h = 0; h < 2; h++)
            x[h] = vd_fma(x[h], d, begins ? vd_set(WHOLE_MAGIC) : vd_load(sum + h * LANES / 2));
        if (is_last) {
            put_exact_result(t, r, first_column + c * LANES, x);
        } else {
            vd_store(sum, x[0]);
            vd_store(sum + LANES / 2, x[1]);
        }
    }
}

INLINE void tile_whole_columns(const int R, const int C, enum tensor_type type, enum source source,
                               const struct tile *t, const int first_column)
{
    const int record_bytes = packed_record_bytes(type);
    int32_t until_fetch = t->turn;
    bool begins = t->begins;

    for (int64_t first = 0; first < t->count; first += t->shared) {
        vi total[MAX_ROWS][4];
        int64_t end = first + t->shared;
        bool is_last = t->ends && end == t->count;

        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int c = 0; c < C; c++)
                total[r][c] = vi_set(0);
        for (int64_t b = first; b < end; b++) {
            if (source != EXPANDED && first_column == 0)
                fetch(source, t, t->records + b * record_bytes, record_bytes, &until_fetch);
            add_whole_block(R, C, type, source, t, b, first_column, total);
        }
        UNROLL for (int r = 0; r < R; r++)
            if (t->sum)
                add_row_totals_exactly(C, t, r, first, first_column, begins, is_last, total[r]);
            else
                add_row_totals(C, t, r, first, first_column, begins, is_last, total[r]);
        begins = false;
    }
}

INLINE void tile_quantised(const int R, enum tensor_type type, enum source source,
                           const struct tile *t)
{
    const int C = R == 1 && LANES < 16 ? 4 : 2;

    fetch_supers(source, t);
    for (int column = 0; column < PANEL; column += C * LANES)
        if (quant_form(type).scales == SCALE_WHOLE)
            tile_whole_columns(R, C, type, source, t, column);
        else
            tile_columns(R, C, type, source, t, column);
}

/* ---- a tile of a float type ------------------------------------------------------------------------ */

INLINE vf load_weights(enum tensor_type type, const uint8_t *record, int column)
{
    if (type == TYPE_F16)
        return vf_load_half((const uint16_t *)record + column);
    if (type == TYPE_BF16)
        return (vf)(vi_load_u16((const uint16_t *)record + column) << 16);
    return vf_load((const float *)record + column);
}

INLINE void tile_float(const int R, enum tensor_type type, const struct tile *t)
{
    const int C = R == 1 && LANES < 16 ? 4 : 2;
    const int record_bytes = type == TYPE_F32 ? 4 * PANEL : 2 * PANEL;

    for (int first_column = 0; first_column < PANEL; first_column += C * LANES) {
        int32_t left = t->left;
            vf f[MAX_ROWS][4];

        begin_acc(R, C, t, first_column, f);
        for (int64_t i = 0; i < t->count; i++) {
            UNROLL for (int c = 0; c < C; c++) {
                vf w = load_weights(type, t->records + i * record_bytes, first_column + c * LANES);

                UNROLL for (int r = 0; r < R; r++)
                    f[r][c] = vf_fma(vf_set(t->x[r * t->k + i]), w, f[r][c]);
            }
            if (t->sum && --left == 0) {
                add_group(R, C, t, first_column, t->sum_begins && i < t->group, f);
                left = t->group;
            }
        }
        keep_acc(R, C, t, first_column, t->ends && !t->sum, f);
    }
}

/* ---- every tile, compiled for its type and rows --------------------------------------------------- */

#define QUANTISED(type, source, R)                                                                 \
    static void type##_##source##_##R(const struct tile *t)                                        \
    {                                                                                              \
        tile_quantised(R, type, source, t);                                                        \
    }
#define FLOAT(type, R)                                                                             \
    static void type##_##R(const struct tile *t)                                                   \
    {                                                                                              \
        tile_float(R, type, t);                                                                    \
    }
#if MAX_ROWS == 6
#define ROWS(X, ...) X(__VA_ARGS__, 1) X(__VA_ARGS__, 2) X(__VA_ARGS__, 3) X(__VA_ARGS__, 4)       \
                     X(__VA_ARGS__, 5) X(__VA_ARGS__, 6)
#define ROW_LIST(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}
#define STORING_LIST(name) {[MAX_ROWS - 1] = name##_6}
#define STORING(type) QUANTISED(type, PACKED_STORING, 6)
#elif MAX_ROWS == 4
#define ROWS(X, ...) X(__VA_ARGS__, 1) X(__VA_ARGS__, 2) X(__VA_ARGS__, 3) X(__VA_ARGS__, 4)
#define ROW_LIST(name) {name##_1, name##_2, name##_3, name##_4}
#define STORING_LIST(name) {[MAX_ROWS - 1] = name##_4}
#define STORING(type) QUANTISED(type, PACKED_STORING, 4)
#else
#define ROWS(X, ...) X(__VA_ARGS__, 1) X(__VA_ARGS__, 2)
#define ROW_LIST(name) {name##_1, name##_2}
#define STORING_LIST(name) {[MAX_ROWS - 1] = name##_2}
#define STORING(type) QUANTISED(type, PACKED_STORING, 2)
#endif

#define DEFINE_TYPE(type) ROWS(QUANTISED, type, PACKED) STORING(type) ROWS(QUANTISED, type, EXPANDED)
#define TYPE_LISTS(type)                                                                           \
    [type] = {ROW_LIST(type##_PACKED), STORING_LIST(type##_PACKED_STORING), ROW_LIST(type##_EXPANDED)}

ROWS(FLOAT, TYPE_F32)
ROWS(FLOAT, TYPE_F16)
ROWS(FLOAT, TYPE_BF16)
DEFINE_TYPE(TYPE_Q4_0)
DEFINE_TYPE(TYPE_Q4_1)
DEFINE_TYPE(TYPE_Q5_0)
DEFINE_TYPE(TYPE_Q5_1)
DEFINE_TYPE(TYPE_Q8_0)
DEFINE_TYPE(TYPE_Q2_K)
DEFINE_TYPE(TYPE_Q3_K)
DEFINE_TYPE(TYPE_Q4_K)
DEFINE_TYPE(TYPE_Q5_K)
DEFINE_TYPE(TYPE_Q6_K)

static void (*const tiles[NUM_TENSOR_TYPES][NUM_SOURCES][MAX_ROWS])(const struct tile *) = {
    [TYPE_F32] = {ROW_LIST(TYPE_F32), ROW_LIST(TYPE_F32), ROW_LIST(TYPE_F32)},
    [TYPE_F16] = {ROW_LIST(TYPE_F16), ROW_LIST(TYPE_F16), ROW_LIST(TYPE_F16)},
    [TYPE_BF16] = {ROW_LIST(TYPE_BF16), ROW_LIST(TYPE_BF16), ROW_LIST(TYPE_BF16)},
    TYPE_LISTS(TYPE_Q4_0),
    TYPE_LISTS(TYPE_Q4_1),
    TYPE_LISTS(TYPE_Q5_0),
    TYPE_LISTS(TYPE_Q5_1),
    TYPE_LISTS(TYPE_Q8_0),
    TYPE_LISTS(TYPE_Q2_K),
    TYPE_LISTS(TYPE_Q3_K),
    TYPE_LISTS(TYPE_Q4_K),
    TYPE_LISTS(TYPE_Q5_K),
    TYPE_LISTS(TYPE_Q6_K),
};

#if HAS_UNIT
#include "kernels/cpu/matmul_amx.h"

#define SPLIT(type)                                                                                \
    static void type##_split(const struct tile *t, struct weight_bytes *out)                       \
    {                                                                                              \
        split_weights(type, t, out);                                                               \
    }
SPLIT(TYPE_Q4_0)
SPLIT(TYPE_Q4_1)
SPLIT(TYPE_Q5_0)
SPLIT(TYPE_Q5_1)

/* NULL: of types that the unit does not multiply. */
static void (*const splits[NUM_TENSOR_TYPES])(const struct tile *t, struct weight_bytes *out) = {
    [TYPE_Q4_0] = TYPE_Q4_0_split,
    [TYPE_Q4_1] = TYPE_Q4_1_split,
    [TYPE_Q5_0] = TYPE_Q5_0_split,
    [TYPE_Q5_1] = TYPE_Q5_1_split,
};
#endif

/* ---- from panels to tiles ------------------------------------------------------------------------- */

struct job {
    const struct activations *a;
    const struct matrix *w;
    float *out; /* NULL: doubles are wanted */
    int64_t out_stride;
    double *sums;
    int32_t group; /* records of a group; 0: none */
};

/* Rows of a panel that go through it together. */
struct slice {
    const struct job *job;
    int32_t panel;
    int32_t first_row, rows;
    float *out; /* of the first row and column, at stride out_stride; NULL: doubles are wanted */
    int64_t out_stride;
    bool streams; /* to out */
    int32_t unit_rows; /* that tiles of the unit have now; 0: it is idle */
    struct scratch *scratch;
    const uint8_t *end, *next; /* as in struct tile */
};

static const uint8_t *panel_start(const struct matrix *w, int64_t panel)
{
    return (const uint8_t *)w->data + panel * packed_panel_bytes(w->type, w->k);
}

static int32_t slice_width(const struct slice *slice)
{
    return MIN((int32_t)PANEL, slice->job->w->n - slice->panel * PANEL);
}

/* Sums of groups become results, of types whose tiles leave that to others. */
static void finish_sums(const struct tile *t, int32_t rows)
{
    for (int64_t r = 0; r < rows; r++) {
        const double *sums = t->sum + r * PANEL;

        if (!t->out)
            memcpy(t->sums_out + r * t->out_stride, sums, PANEL * sizeof(double));
        else
            for (int c = 0; c < PANEL; c += LANES)
                vf_store(t->out + r * t->out_stride + c, vf_round(vd_load(sums + c), vd_load(sums + c + LANES / 2)));
    }
}

/* So many tiles or fewer cost less when each reads packed codes than when one leaves bytes for the others, measured for
 * each type. AVX-512 unpacks on ports that dot products leave idle, but on an Intel core, which has none. */
static int32_t most_packed_tiles(enum tensor_type type)
{
    struct quant_form form = quant_form(type);

#if LANES == 16
    if (form.scales == SCALE_HALVES)
        return 3;
    if (form.code_bits < 8 && __builtin_cpu_is("intel"))
        return 2;
    return form.scales == SCALE_SUPER ? 5 : 8;
#else
    return form.code_bits == 4 ? 2 : 1;
#endif
}

/* Where the tiles of rows [first, end) of a slice begin: tile i of n. The first of those that share
 * unpacked codes is a whole one, since that is the one there is with PACKED_STORING. */
static int32_t tile_start(int32_t rows, bool packed, int32_t i, int32_t n)
{
    if (packed)
        return rows * i / n;
    return i ? MAX_ROWS + (rows - MAX_ROWS) * (i - 1) / (n - 1) : 0;
}

/* Records [at, at + count) of rows r0 on of the slice. The tile is one of several: turn and turns as struct tile has them. */
static struct tile tile_of_rows(const struct slice *slice, int32_t at, int32_t count, int32_t r0, int32_t turn, int32_t turns)
{
    const struct job *job = slice->job;
    const struct matrix *w = job->w;
    const struct activations *a = job->a;
    struct scratch *scratch = slice->scratch;
    const uint8_t *supers = panel_start(w, slice->panel);
    const uint8_t *records = supers + packed_supers_bytes(w->type, w->k);
    bool is_float = quant_form(w->type).scales == SCALE_NONE;
    bool begins = at == 0, ends = at + count == packed_num_records(w->type, w->k);
    int32_t unit = is_float ? 1 : QUANT_BLOCK, num_blocks = a->k / QUANT_BLOCK;
    int64_t row = slice->first_row + r0, block = row * num_blocks + at;
    int64_t chunk_bytes = (int64_t)count * packed_record_bytes(w->type);
    int32_t kept = begins && ends ? 0 : r0; /* nothing outlasts a tile: the same memory for all */
    struct tile t = {
        .records = records + (int64_t)at * packed_record_bytes(w->type),
        .supers = supers,
        .super_block = w->first_block + at,
        .end = slice->end,
        .next = slice->next,
        .turn = turn,
        .turns = turns,
        .far_bytes = turns > 1 ? MAX(FAR_BYTES, chunk_bytes) : FAR_BYTES,
        .expanded = scratch->expanded,
        .whole = scratch->whole,
        .x = a->x + row * a->k + (int64_t)at * unit,
        .k = a->k,
        .num_blocks = num_blocks,
        .count = count,
        .begins = begins,
        .ends = ends,
        .acc = &scratch->partial[kept],
        .group = job->group,
    };

    if (!is_float) {
        t.q = a->q + block * QUANT_BLOCK;
        t.d = a->d + block;
        t.z = a->z ? a->z + block : NULL;
        t.sums = a->sums + 2 * block;
        for (int s = 0; s < NUM_STARTS; s++)
            t.starts[s] = a->starts[s] ? a->starts[s] + block : NULL;
        t.shared = a->group / QUANT_BLOCK;
    }
    if (job->group) {
        t.sum = scratch->sums[kept];
        t.sum_begins = at < job->group;
        t.left = job->group - at % job->group;
    }
    if (slice_width(slice) < PANEL) {
        t.out = slice->out ? scratch->edge[r0] : NULL;
        t.sums_out = scratch->edge_sums[r0];
        t.out_stride = PANEL;
    } else if (slice->out) {
        t.out = slice->out + r0 * slice->out_stride;
        t.out_stride = slice->out_stride;
        t.streams = slice->streams;
    } else {
        t.sums_out = job->sums + row * w->n + slice->panel * PANEL;
        t.out_stride = w->n;
    }
    return t;
}

/*
 * Records [at, at + count) for all rows of the slice. Tiles that read packed codes share the fetching of those that come
 * after the chunk, so that memory is not idle while the second and later ones multiply: on Ice Lake 8 rows of Q4_1 cost
 * mostly 5 to 15 % less for it, 8 to 32 rows of Q8_0 4 to 20 %, and 8 rows of Q5_0 the same.
 */
static void do_chunk(const struct slice *slice, int32_t at, int32_t count)
{
    enum tensor_type type = slice->job->w->type;
    int32_t num_tiles = divide_up(slice->rows, MAX_ROWS);
    bool packed = quant_form(type).scales == SCALE_NONE || num_tiles <= most_packed_tiles(type);

    for (int32_t i = 0; i < num_tiles; i++) {
        int32_t r0 = tile_start(slice->rows, packed, i, num_tiles);
        int32_t rows = tile_start(slice->rows, packed, i + 1, num_tiles) - r0;
        struct tile t = tile_of_rows(slice, at, count, r0, i, packed ? num_tiles : 1);

        tiles[type][packed ? PACKED : i ? EXPANDED : PACKED_STORING][rows - 1](&t);
        if (t.sum && t.ends && !has_whole_scales(type))
            finish_sums(&t, rows);
    }
}

#if HAS_UNIT
/* Whether the unit does the rows of the slice. */
static bool by_unit(const struct slice *slice)
{
    return slice->rows >= LEAST_UNIT_ROWS && splits[slice->job->w->type];
}

/* The same by the unit. */
static void do_unit_chunk(struct slice *slice, int32_t at, int32_t count)
{
    enum tensor_type type = slice->job->w->type;
    int32_t num_tiles = divide_up(slice->rows, AMX_ROWS), tile_rows = divide_up(slice->rows, num_tiles);
    int32_t blocks = group_blocks(slice->job->a), record_bytes = packed_record_bytes(type);
    struct tile t = tile_of_rows(slice, at, count, 0, 0, num_tiles);
    struct weight_bytes *bytes = &slice->scratch->bytes;

    splits[type](&t, bytes);
    if (slice->unit_rows != tile_rows)
        amx_begin(tile_rows, unit_step(blocks));
    slice->unit_rows = tile_rows;
    FOR_GROUP(blocks, multiply_rows, &t, slice->rows, tile_rows, bytes, record_bytes);
}

static void end_unit(const struct slice *slice)
{
    if (slice->unit_rows)
        amx_end();
}
#else
static bool by_unit(const struct slice *slice)
{
    (void)slice;
    return false;
}

static void do_unit_chunk(const struct slice *slice, int32_t at, int32_t count)
{
    ASSERT(false, "no unit for records %d to %d of %d rows", at, at + count, slice->rows);
}

static void end_unit(const struct slice *slice)
{
    (void)slice;
}
#endif

/* How many records of how many rows are done at a time: whole groups. */
static int32_t chunk_of(const struct slice *slice)
{
    int32_t blocks = by_unit(slice) ? UNIT_CHUNK : CHUNK_BLOCKS;

    if (quant_form(slice->job->w->type).scales == SCALE_NONE)
        return FLOAT_CHUNK;
    return blocks - blocks % group_blocks(slice->job->a);
}

static void do_slice(struct slice *slice)
{
    const struct job *job = slice->job;
    int32_t num_records = packed_num_records(job->w->type, job->w->k), width = slice_width(slice);
    int32_t chunk = slice->rows <= MAX_ROWS ? num_records : chunk_of(slice);

    for (int32_t at = 0; at < num_records; at += chunk)
        if (by_unit(slice))
            do_unit_chunk(slice, at, MIN(chunk, num_records - at));
        else
            do_chunk(slice, at, MIN(chunk, num_records - at));
    if (width == PANEL)
        return;
    for (int64_t r = 0; r < slice->rows; r++)
        if (slice->out)
            memcpy(slice->out + r * slice->out_stride, slice->scratch->edge[r], (size_t)width * sizeof(float));
        else
            memcpy(job->sums + (slice->first_row + r) * job->w->n + slice->panel * PANEL, slice->scratch->edge_sums[r],
                   (size_t)width * sizeof(double));
}

static int32_t num_panels(const struct matrix *w)
{
    return divide_up(w->n, PANEL);
}

/* Where a thread that begins with panel `first` of w begins in the next matrix, or about there. */
static const uint8_t *next_start(const struct matrix *w, int64_t first)
{
    const struct matrix *next = w->next ? w->next : w;

    return panel_start(next, first * num_panels(next) / num_panels(w));
}

/* Rows of logits are mostly a multiple of 4096 bytes apart, so that those of a tile fight for a few places of a cache,
 * and nobody reads them before all are there: on Zen 4 16 rows of 49,152 cost 20 % less when they pass by. */
static bool streams(const struct job *job)
{
    return job->out_stride >= STREAM_COLUMNS && job->out_stride % PANEL == 0 && (uintptr_t)job->out % (PANEL * 4) == 0;
}

static int32_t num_slices(const struct job *job)
{
    return divide_up(job->a->rows, SLICE_ROWS);
}

/*
 * Items of work are, slice by slice, its `count` panels: activations of a slice stay in the second cache of a thread while
 * all panels pass by, and where there are as many slices as threads, or twice as many, a thread has the same rows as in
 * the kernels before and after. Returns which panel an item is.
 */
static int32_t find_item(struct slice *slice, int64_t item, int32_t count)
{
    int64_t rows = slice->job->a->rows, n = num_slices(slice->job), i = item / count;

    slice->first_row = (int32_t)(rows * i / n);
    slice->rows = (int32_t)(rows * (i + 1) / n) - slice->first_row;
    return (int32_t)(item % count);
}

/* Which of `count` panels a thread reads that has this share of the items. */
static struct span panels_read(const struct job *job, struct span share, int32_t count)
{
    return num_slices(job) == 1 ? share : (struct span){0, count};
}

static void do_panels(const void *args, struct span piece, struct span share, void *scratch)
{
    const struct job *job = args;
    const struct matrix *w = job->w;
    struct span read = panels_read(job, share, num_panels(w));
    struct slice slice = {
        .job = job,
        .out_stride = job->out_stride,
        .streams = streams(job),
        .scratch = scratch,
        .end = panel_start(w, read.end),
        .next = next_start(w, read.first),
    };

    for (int64_t item = piece.first; item < piece.end; item++) {
        slice.panel = find_item(&slice, item, num_panels(w));
        if (job->out)
            slice.out = job->out + slice.first_row * job->out_stride + slice.panel * PANEL;
        do_slice(&slice);
    }
    if (slice.streams)
        vf_end_stream();
    end_unit(&slice);
}

static void run(struct device *dev, const struct job *job)
{
    ASSERT(job->a->k == job->w->k, "activations of %d columns, weights of %d", job->a->k, job->w->k);
    if (job->a->rows)
        device_share(dev, (int64_t)num_panels(job->w) * num_slices(job), job->a->rows == 1 ? 2 : 1, do_panels, job);
}

void KERNEL(matmul)(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                    const struct matrix *w)
{
    run(dev, &(struct job){.a = a, .w = w, .out = out, .out_stride = out_stride});
}

static int32_t records_of_group(const struct activations *a, const struct matrix *w, int32_t group_k)
{
    ASSERT(!a->q || group_k % a->group == 0, "groups of %d, of activations %d", group_k, a->group);
    ASSERT(group_k > 0 && group_k % QUANT_BLOCK == 0 && w->k % group_k == 0,
           "groups of %d in %d columns", group_k, w->k);
    return packed_num_records(w->type, group_k);
}

void KERNEL(matmul_groups)(struct device *dev, double *sums, const struct activations *a,
                           const struct matrix *w, int32_t group_k)
{
    run(dev, &(struct job){.a = a, .w = w, .sums = sums, .group = records_of_group(a, w, group_k)});
}

void KERNEL(matmul_groups_float)(struct device *dev, float *out, const struct activations *a,
                                 const struct matrix *w, int32_t group_k)
{
    run(dev, &(struct job){.a = a, .w = w, .out = out, .out_stride = w->n,
                           .group = records_of_group(a, w, group_k)});
}

/* ---- a gated MLP ---------------------------------------------------------------------------------- */

struct gated_job {
    struct job job;
    const struct activations *out;
    void (*gate_rows)(struct scratch *scratch, int32_t first, int32_t end, int32_t i);
};

/* Block i of a group of rows [first, end), of the panels of gates and ups in `gated`. */
static void silu_rows(struct scratch *s, int32_t first, int32_t end, int32_t i)
{
    for (int32_t r = first; r < end; r++)
        gate_block(silu, s->activated[r] + i * QUANT_BLOCK, s->gated[0][r], s->gated[1][r]);
}

static void gelu_rows(struct scratch *s, int32_t first, int32_t end, int32_t i)
{
    for (int32_t r = first; r < end; r++)
        gate_block(gelu, s->activated[r] + i * QUANT_BLOCK, s->gated[0][r], s->gated[1][r]);
}

/* The last block of the group of `blocks` blocks from block `first` on, and then all of it, of each row of a slice. Two
 * passes over a few rows: what a processor has in flight reaches further when a row's steps that wait for each other are
 * fewer. */
INLINE void put_rows(const int blocks, const struct gated_job *gated, const struct slice *slice, int32_t first)
{
    enum { FEW = 32 };
    int64_t row_blocks = gated->out->k / QUANT_BLOCK;

    for (int32_t few = 0; few < slice->rows; few += FEW) {
        int32_t end = MIN(few + FEW, slice->rows);

        gated->gate_rows(slice->scratch, few, end, blocks - 1);
        for (int32_t r = few; r < end; r++) {
            vf x[GROUP_VECTORS];

            UNROLL for (int v = 0; v < blocks * BLOCK_VECTORS; v++)
                x[v] = vf_load(slice->scratch->activated[r] + v * LANES);
            put_group(gated->out, (slice->first_row + r) * row_blocks + first, blocks, x);
        }
    }
}

/* One panel for the rows of a slice; `next` is read after it. */
static void do_gated_slice(struct slice *slice, int32_t panel, float (*out)[PANEL], const uint8_t *next)
{
    slice->panel = panel;
    slice->out = out[0];
    slice->end = panel_start(slice->job->w, panel + 1);
    slice->next = next;
    do_slice(slice);
}

/* A thread goes from a panel of gates to that of their ups, and on to the next gates. Pieces are of groups of these. */
static void do_gated_panels(const void *args, struct span piece, struct span share, void *scratch)
{
    const struct gated_job *gated = args;
    const struct matrix *w = gated->job.w;
    struct scratch *s = scratch;
    struct slice slice = {.job = &gated->job, .out_stride = PANEL, .scratch = scratch};
    int32_t pairs = num_panels(w) / 2, blocks = group_blocks(gated->out);
    struct span read = panels_read(&gated->job, share, pairs / blocks);

    for (int64_t item = piece.first; item < piece.end; item++) {
        int32_t first = find_item(&slice, item, pairs / blocks) * blocks;

        for (int32_t i = 0; i < blocks; i++) {
            int32_t p = first + i;

            do_gated_slice(&slice, p, s->gated[0], panel_start(w, pairs + p));
            do_gated_slice(&slice, pairs + p, s->gated[1],
                           p + 1 < read.end * blocks ? panel_start(w, p + 1) : next_start(w, 2 * read.first * blocks));
            if (i + 1 < blocks)
                gated->gate_rows(s, 0, slice.rows, i);
        }
        FOR_GROUP(blocks, put_rows, gated, &slice, first);
    }
    end_unit(&slice);
}

static void run_gated(struct device *dev, const struct gated_job *gated)
{
    const struct job *job = &gated->job;

    ASSERT(job->a->k == job->w->k && job->w->n == 2 * gated->out->k && gated->out->k % PANEL == 0,
           "activations of %d columns, weights of %d, %d for %d gates", job->a->k, job->w->k, job->w->n,
           gated->out->k);
    if (job->a->rows)
        device_share(dev, (int64_t)(num_panels(job->w) / 2 / group_blocks(gated->out)) * num_slices(job), 1, do_gated_panels,
                     gated);
}

void KERNEL(matmul_silu_mul)(struct device *dev, const struct activations *out, const struct activations *a,
                             const struct matrix *w)
{
    run_gated(dev, &(struct gated_job){.job = {.a = a, .w = w}, .out = out, .gate_rows = silu_rows});
}

void KERNEL(matmul_gelu_mul)(struct device *dev, const struct activations *out, const struct activations *a,
                             const struct matrix *w)
{
    run_gated(dev, &(struct gated_job){.job = {.a = a, .w = w}, .out = out, .gate_rows = gelu_rows});
}
