/*
 * pack: from the rows of a tensor to the panels of packed.h.
 *
 * A panel's columns are packed side by side where a block holds the codes as a record does; then their scales become
 * vectors, too: memory is what takes the time then.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/packed.h"

#include <math.h>

enum { VECTORS = PANEL / LANES };

/* Rows of the tensor that become the columns of a panel, from its first on. */
struct columns {
    const uint8_t *rows;
    int64_t stride; /* bytes */
    int count;
};

/* ---- scales ------------------------------------------------------------------------------------- */

enum { SCALE_BLOCKS = 512 };

/* Halves, of some blocks of each column; 0 for columns that the panel lacks. */
struct block_scales {
    uint16_t d[SCALE_BLOCKS][PANEL], m[SCALE_BLOCKS][PANEL];
};
_Static_assert(sizeof(struct block_scales) <= SCRATCH_BYTES, "scratch of packing");

/* Of blocks [first, first + count), of a type whose block begins with d, and m if there is one. Rows follow one another
 * in memory, which is read best in that order; what reads a panel across its rows comes afterwards. */
static void read_scales(const struct columns *from, int64_t first, int32_t count, int block_bytes, bool has_min,
                        struct block_scales *out)
{
    if (from->count < PANEL)
        memset(out, 0, sizeof *out);
    for (int c = 0; c < from->count; c++) {
        const uint8_t *block = from->rows + c * from->stride + first * block_bytes;

        for (int32_t b = 0; b < count; b++, block += block_bytes) {
            memcpy(&out->d[b][c], block, 2);
            if (has_min)
                memcpy(&out->m[b][c], block + 2, 2);
        }
    }
}

INLINE vi is_not_finite(vf x)
{
    return ((vi)x & 0x7f800000) == 0x7f800000;
}

/* The largest offset * |d| + |m + offset * d| of each column; NaN where one is not finite. */
static void add_most(struct quant_form form, const struct block_scales *scales, int32_t count, vf most[VECTORS])
{
    for (int v = 0; v < VECTORS; v++)
        for (int32_t b = 0; b < count; b++) {
            vf d = vf_load_half(scales->d[b] + v * LANES);
            vf weight = vf_abs(d) * (float)form.offset;

            if (form.has_min)
                weight += vf_abs(vf_load_half(scales->m[b] + v * LANES) + (float)form.offset * d);
            most[v] = vf_select(is_not_finite(weight) | (most[v] != most[v]), vf_set(NAN), vf_max(most[v], weight));
        }
}

/* quant_row_step of each column, which goes to the panel, and its inverse. */
static void put_steps(struct quant_form form, const struct columns *from, int64_t num_blocks, int block_bytes,
                      uint8_t *panel, vf inverse[VECTORS], struct block_scales *scales)
{
    vf most[VECTORS] = {{0}};

    for (int64_t first = 0; first < num_blocks; first += SCALE_BLOCKS) {
        int32_t count = (int32_t)MIN(num_blocks - first, (int64_t)SCALE_BLOCKS);

        read_scales(from, first, count, block_bytes, form.has_min, scales);
        add_most(form, scales, count, most);
    }
    for (int v = 0; v < VECTORS; v++) {
        vf step = (vf)(((vu)(most[v] / (float)MOST_WEIGHT) + QUANT_STEP_UP) & QUANT_STEP_MASK);

        step = vf_select(most[v] != most[v], vf_set(NAN), step);
        vf_store(panel + v * sizeof(step), step);
        inverse[v] = vf_select(step > 0, 1.0f / step, vf_set(0));
    }
}

/* Halves in units of steps, to nearest even: below 2^22. 0 where there is no step, whatever the half. */
INLINE vi in_steps(const uint16_t *halves, vf inverse)
{
    vf x = vf_select(inverse > 0, vf_load_half(halves) * inverse, vf_set(0));

    return __builtin_convertvector(x + EXP_ROUND - EXP_ROUND, vi);
}

/* quant_block_whole of each column. */
static void put_whole_scales(struct quant_form form, const uint16_t *d, const uint16_t *m, const vf inverse[VECTORS],
                             uint8_t *out)
{
    UNROLL for (int v = 0; v < VECTORS; v++) {
        vi s = in_steps(d + v * LANES, inverse[v]);

        if (form.has_min) {
            vi t = in_steps(m + v * LANES, inverse[v]) + form.offset * s;

            vi_store(out + v * LANES * 4, (s & 0xffff) | (vi)((vu)t << 16));
        } else {
            for (int i = 0; i < LANES; i++)
                memcpy(out + (v * LANES + i) * 2, &(int16_t){(int16_t)s[i]}, 2);
        }
    }
}

/* ---- codes -------------------------------------------------------------------------------------- */

/* Some types hold the codes of a block as a record does: behind d (and m) come 4 bits in the same pairs, behind the fifth
 * bits if there are any, or 8 bits. */
static bool has_codes_of_record(enum tensor_type type)
{
    return type == TYPE_Q4_0 || type == TYPE_Q4_1 || type == TYPE_Q5_0 || type == TYPE_Q5_1 || type == TYPE_Q8_0;
}

/* Four words of each of four columns. */
INLINE void copy_square(const uint8_t *from, int64_t stride, uint8_t *out)
{
    typedef uint32_t words __attribute__((vector_size(16)));
    words a, b, c, d;

    memcpy(&a, from, 16);
    memcpy(&b, from + stride, 16);
    memcpy(&c, from + 2 * stride, 16);
    memcpy(&d, from + 3 * stride, 16);

    words low_ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    words low_cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);

    a = __builtin_shufflevector(low_ab, low_cd, 0, 1, 4, 5);
    b = __builtin_shufflevector(low_ab, low_cd, 2, 3, 6, 7);
    c = __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5);
    d = __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7);
    memcpy(out, &a, 16);
    memcpy(out + GROUP_BYTES, &b, 16);
    memcpy(out + 2 * GROUP_BYTES, &c, 16);
    memcpy(out + 3 * GROUP_BYTES, &d, 16);
}

/* Of a block of each column, as they are: so many words each, a multiple of 4. */
static void copy_words(const struct columns *from, int64_t codes_at, int num_words, uint8_t *record)
{
    const uint8_t *codes = from->rows + codes_at;
    int c = 0;

    for (; c + 4 <= from->count; c += 4)
        for (int i = 0; i < num_words; i += 4)
            copy_square(codes + c * from->stride + 4 * i, from->stride, record + 4 * c + i * GROUP_BYTES);
    for (; c < from->count; c++)
        for (int i = 0; i < num_words; i++)
            store32(record + 4 * c + i * GROUP_BYTES, load32(codes + c * from->stride + 4 * i));
}

/* A block's fifth bits, of element i bit i, become bytes of elements 4 * g + 0 … 3 with bit g for them. */
INLINE vi spread_fifth_bits(vi high)
{
    vi bytes = vi_set(0);

    UNROLL for (int g = 0; g < 8; g++) /* bits 0 to 3 of a product are far enough apart */
        bytes |= ((((vi)((vu)high >> 4 * g) & 0xf) * 0x00204081) & 0x01010101) << g;
    return bytes;
}

/* Of a block of each column, which begin there. */
static void put_fifth_bits(const struct columns *from, int64_t bits_at, uint8_t *out)
{
    uint32_t high[PANEL] = {0};

    for (int c = 0; c < from->count; c++)
        high[c] = load32(from->rows + c * from->stride + bits_at);
    for (int c = 0; c < PANEL; c += LANES)
        vi_store(out + 4 * c, spread_fifth_bits(vi_load(high + c)));
}

/* The codes of one column, of less than 8 bits; `out` is its place in the first k-group. */
static void put_codes(int bits, const uint8_t *codes, uint8_t *out)
{
    uint32_t high[2] = {0, 0};

    for (int g = 0; g < 4; g++)
        store32(out + g * GROUP_BYTES, (load32(codes + 4 * g) & 0x0f0f0f0f) |
                                           (load32(codes + 16 + 4 * g) & 0x0f0f0f0f) << 4);
    for (int g = 0; g < 8; g++) {
        uint32_t top = load32(codes + 4 * g) >> 4;

        if (bits == 5)
            high[0] |= (top & 0x01010101) << g;
        else if (bits == 6)
            high[g / 4] |= (top & 0x03030303) << 2 * (g % 4);
    }
    for (int i = 0; i < bits - 4; i++)
        store32(out + (4 + i) * GROUP_BYTES, high[i]);
}

/* The scales of column c in the record's scales at `out`, of a K type. */
static void put_scales(const struct quant_form *form, const struct quant_block *block, int c, uint8_t *out)
{
    if (form->scales == SCALE_SUPER) {
        out[c] = (uint8_t)block->scale[0];
        out[PANEL + c] = (uint8_t)block->min[0];
    } else {
        memcpy(out + 2 * c, block->scale, 2);
        if (form->has_min)
            memcpy(out + 2 * PANEL + 2 * c, block->min, 2);
    }
}

/* ---- a panel ------------------------------------------------------------------------------------ */

struct pack {
    const struct matrix *w;
    int32_t at, n;
    const char *src;
    int64_t src_row_bytes, k0;
};

/* The codes of a block of each column, which has_codes_of_record. */
static void copy_codes(struct quant_form form, const struct columns *from, int64_t block_at, uint8_t *record)
{
    int64_t codes_at = block_at + (form.has_min ? 4 : 2);

    if (form.code_bits == 5) {
        put_fifth_bits(from, codes_at, record + 4 * GROUP_BYTES);
        codes_at += QUANT_BLOCK / 8;
    }
    copy_words(from, codes_at, form.code_bits == 8 ? 8 : 4, record);
}

/* A type that has_codes_of_record. */
static void pack_columns(const struct pack *pack, const struct columns *from, uint8_t *panel,
                       struct block_scales *scales)
{
    enum tensor_type type = pack->w->type;
    struct quant_form form = quant_form(type);
    int block_bytes = tensor_type_info(type)->block_bytes;
    uint8_t *record = panel + packed_supers_bytes(type, pack->w->k);
    int32_t num_records = packed_num_records(type, pack->w->k);
    vf inverse[VECTORS] = {{0}}; /* of SCALE_WHOLE */

    if (form.scales == SCALE_WHOLE)
        put_steps(form, from, pack->src_row_bytes / block_bytes, block_bytes, panel, inverse, scales);
    for (int32_t b = 0; b < num_records; b++, record += packed_record_bytes(type)) {
        int64_t index = pack->k0 / QUANT_BLOCK + b;
        uint8_t *out = record + packed_code_bytes(type);
        int32_t i = b % SCALE_BLOCKS;

        if (i == 0)
            read_scales(from, index, MIN(num_records - b, (int32_t)SCALE_BLOCKS), block_bytes, form.has_min, scales);
        copy_codes(form, from, index * block_bytes, record);
        if (form.scales == SCALE_WHOLE)
            put_whole_scales(form, scales->d[i], scales->m[i], inverse, out);
        else
            memcpy(out, scales->d[i], sizeof scales->d[i]);
    }
}

/* Elements [first, end) of each column. */
INLINE void copy_elements(const int size, const struct columns *from, int64_t k0, int32_t first, int32_t end,
                          uint8_t *panel)
{
    for (int c = 0; c < from->count; c++) {
        const uint8_t *row = from->rows + c * from->stride + k0 * size;

        for (int32_t i = first; i < end; i++)
            memcpy(panel + (i * PANEL + c) * size, row + i * size, (size_t)size);
    }
}

/* A few elements at a time, so that those of all columns are in the first cache together. */
static void pack_floats(const struct pack *pack, const struct columns *from, uint8_t *panel)
{
    enum { FEW = 128 };
    int32_t k = pack->w->k;

    for (int32_t first = 0; first < k; first += FEW)
        if (pack->w->type == TYPE_F32)
            copy_elements(4, from, pack->k0, first, MIN(first + FEW, k), panel);
        else
            copy_elements(2, from, pack->k0, first, MIN(first + FEW, k), panel);
}

/* K types: a column at a time. */
static void pack_column(const struct pack *pack, const uint8_t *row, uint8_t *panel, int c)
{
    enum tensor_type type = pack->w->type;
    struct quant_form form = quant_form(type);
    uint8_t *record = panel + packed_supers_bytes(type, pack->w->k);

    for (int32_t b = 0; b < packed_num_records(type, pack->w->k); b++, record += packed_record_bytes(type)) {
        uint8_t *super = panel + (pack->w->first_block + b) / SUPER_BLOCKS * packed_super_bytes(type);
        struct quant_block block;

        quant_block_read(type, row, pack->k0 / QUANT_BLOCK + b, &block);
        put_codes(form.code_bits, block.codes, record + 4 * c);
        put_scales(&form, &block, c, record + packed_code_bytes(type));
        memcpy(super + 2 * c, &block.d, 2);
        if (form.has_min)
            memcpy(super + 2 * PANEL + 2 * c, &block.m, 2);
    }
}

static void pack_panels(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct pack *pack = args;
    enum scale_kind scales = quant_form(pack->w->type).scales;
    int64_t panel_bytes = packed_panel_bytes(pack->w->type, pack->w->k);

    for (int64_t i = first; i < end; i++) {
        struct columns from = {(const uint8_t *)pack->src + i * PANEL * pack->src_row_bytes, pack->src_row_bytes,
                               (int)MIN((int64_t)PANEL, pack->n - i * PANEL)};
        uint8_t *panel = (uint8_t *)pack->w->data + (pack->at / PANEL + i) * panel_bytes;

        if (scales == SCALE_NONE)
            pack_floats(pack, &from, panel);
        else if (has_codes_of_record(pack->w->type))
            pack_columns(pack, &from, panel, scratch);
        else
            for (int c = 0; c < from.count; c++)
                pack_column(pack, from.rows + c * from.stride, panel, c);
    }
}

void SHARED(matrix_pack)(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                         int64_t src_row_bytes, int64_t k0)
{
    struct pack pack = {w, at, n, src, src_row_bytes, k0};

    ASSERT(at >= 0 && n >= 0 && at + n <= w->n, "rows %d + %d of %d", at, n, w->n);
    ASSERT(at % PANEL == 0, "column %d is inside a panel", at);
    w->first_block = (int32_t)(k0 / QUANT_BLOCK % SUPER_BLOCKS);
    device_run(dev, divide_up(n, PANEL), 4, pack_panels, &pack);
}
