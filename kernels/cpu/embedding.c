/* Rows of a vocabulary are columns of the packed matrix: each is gathered from its panel. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/packed.h"

#include <string.h>

struct embedding {
    float *out;
    const int32_t *ids;
    const struct matrix *w;
    int32_t first_id;
    float scale;
};

INLINE void get_codes(int bits, const uint8_t *in, uint8_t *codes)
{
    if (bits == 8) {
        for (int g = 0; g < 8; g++)
            store32(codes + 4 * g, load32(in + g * GROUP_BYTES));
        return;
    }
    for (int g = 0; g < 8; g++) {
        uint32_t x = load32(in + g % 4 * GROUP_BYTES) >> 4 * (g / 4) & 0x0f0f0f0f;

        if (bits == 5)
            x |= (load32(in + 4 * GROUP_BYTES) >> g & 0x01010101) << 4;
        if (bits == 6)
            x |= (load32(in + (4 + g / 4) * GROUP_BYTES) >> 2 * (g % 4) & 0x03030303) << 4;
        store32(codes + 4 * g, x);
    }
}

/* Column c of a record; its super scales are at `super`. */
INLINE void get_block(const enum tensor_type type, const uint8_t *record, const uint8_t *super, int c,
                      struct quant_block *out)
{
    struct quant_form form = quant_form(type);
    const uint8_t *scales = record + packed_code_bytes(type);
    const uint8_t *halves = form.scales == SCALE_PLAIN ? scales : super;

    memset(out, 0, sizeof(*out));
    get_codes(form.code_bits, record + 4 * c, out->codes);
    if (form.scales == SCALE_WHOLE) {
        int width = form.has_min ? 4 : 2;

        memcpy(&out->s, scales + width * c, 2);
        if (form.has_min)
            memcpy(&out->t, scales + width * c + 2, 2);
        return;
    }
    memcpy(&out->d, halves + 2 * c, 2);
    if (form.has_min)
        memcpy(&out->m, halves + 2 * PANEL + 2 * c, 2);
    if (form.scales == SCALE_SUPER) {
        out->scale[0] = (int8_t)scales[c];
        out->min[0] = (int8_t)scales[PANEL + c];
    } else if (form.scales == SCALE_HALVES) {
        memcpy(out->scale, scales + 2 * c, 2);
        if (form.has_min)
            memcpy(out->min, scales + 2 * PANEL + 2 * c, 2);
    }
}

INLINE void embed(const enum tensor_type type, const struct embedding *args, int64_t column, float *out)
{
    const struct matrix *w = args->w;
    const struct quant_form form = quant_form(type);
    int c = (int)(column % PANEL), record_bytes = packed_record_bytes(type);
    const uint8_t *panel = (const uint8_t *)w->data + column / PANEL * packed_panel_bytes(type, w->k);
    const uint8_t *record = panel + packed_supers_bytes(type, w->k);
    float step = 0;

    if (form.scales == SCALE_WHOLE)
        memcpy(&step, panel + c * sizeof(step), sizeof(step));
    if (form.scales == SCALE_NONE) {
        for (int32_t i = 0; i < w->k; i++, record += record_bytes) {
            tensor_dequantize(type, record, c, 1, &out[i]);
            out[i] *= args->scale;
        }
        return;
    }
    for (int32_t b = 0; b < w->k / QUANT_BLOCK; b++, record += record_bytes) {
        struct quant_block block;

        get_block(type, record, panel + (w->first_block + b) / SUPER_BLOCKS * packed_super_bytes(type), c, &block);
        for (int i = 0; i < QUANT_BLOCK; i++)
            out[b * QUANT_BLOCK + i] = quant_block_weight(form, &block, step, i) * args->scale;
    }
}

/* Each type's, compiled for it. */
#define EMBED(type)                                                                                \
    static void embed_##type(const struct embedding *args, int64_t column, float *out)             \
    {                                                                                              \
        embed(type, args, column, out);                                                            \
    }
#define EACH_TYPE(X)                                                                               \
    X(TYPE_F32) X(TYPE_F16) X(TYPE_BF16) X(TYPE_Q4_0) X(TYPE_Q4_1) X(TYPE_Q5_0) X(TYPE_Q5_1)       \
    X(TYPE_Q8_0) X(TYPE_Q2_K) X(TYPE_Q3_K) X(TYPE_Q4_K) X(TYPE_Q5_K) X(TYPE_Q6_K)
#define ROW(type) [type] = embed_##type,

EACH_TYPE(EMBED)
static void (*const embeds[NUM_TENSOR_TYPES])(const struct embedding *, int64_t, float *) = {EACH_TYPE(ROW)};

/* A column lies four bytes at a time, each in another line. */
static void fetch(const struct embedding *args, int64_t row)
{
    const struct matrix *w = args->w;
    int64_t column = (int64_t)args->ids[row] - args->first_id;
    int record_bytes = packed_record_bytes(w->type);

    if (column < 0 || column >= w->n)
        return;

    const uint8_t *panel =
        (const uint8_t *)w->data + column / PANEL * packed_panel_bytes(w->type, w->k);
    const uint8_t *at = panel + packed_supers_bytes(w->type, w->k) + 4 * (column % PANEL);

    for (int32_t i = 0; i < packed_num_records(w->type, w->k); i++, at += record_bytes)
        for (int from = 0; from < record_bytes; from += GROUP_BYTES)
            __builtin_prefetch(at + from);
}

static void embed_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct embedding *args = arg;
    int32_t k = args->w->k;

    (void)scratch;
    fetch(args, first);
    for (int64_t r = first; r < end; r++) {
        if (r + 1 < end)
            fetch(args, r + 1);

        int64_t column = (int64_t)args->ids[r] - args->first_id;

        if (column >= 0 && column < args->w->n)
            embeds[args->w->type](args, column, args->out + r * k);
        else
            memset(args->out + r * k, 0, (size_t)k * sizeof(float));
    }
}

void KERNEL(embedding)(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                       const struct matrix *w, int32_t first_id, float scale)
{
    struct embedding args = {out, ids, w, first_id, scale};

    device_run(dev, rows, 4, embed_rows, &args);
}
