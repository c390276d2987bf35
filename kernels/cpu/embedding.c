/* Rows of a vocabulary are columns of the packed matrix: each is gathered from its panel. */
#include "kernels/cpu/device.h"
#include "kernels/cpu/packed.h"

#include <string.h>

struct embedding {
    float *out;
    const int32_t *ids;
    const struct matrix *w;
    int32_t first_id;
    float scale;
};

static void get_codes(int bits, const uint8_t *in, uint8_t *codes)
{
    for (int i = 0; i < QUANT_BLOCK; i++) {
        int g = i / 4;
        const uint8_t *at = in + i % 4;

        if (bits == 8) {
            codes[i] = at[g * GROUP_BYTES];
            continue;
        }
        codes[i] = at[g % 4 * GROUP_BYTES] >> 4 * (g / 4) & 0xf;
        if (bits == 5)
            codes[i] |= (at[4 * GROUP_BYTES] >> g & 1) << 4;
        if (bits == 6)
            codes[i] |= (at[(4 + g / 4) * GROUP_BYTES] >> 2 * (g % 4) & 3) << 4;
    }
}

/* Column c of a record; its super scales are at `super`. */
static void get_block(enum tensor_type type, const uint8_t *record, const uint8_t *super, int c,
                      struct quant_block *out)
{
    struct quant_form form = quant_form(type);
    const uint8_t *scales = record + packed_code_bytes(type);
    const uint8_t *halves = form.scales == SCALE_PLAIN ? scales : super;

    memset(out, 0, sizeof(*out));
    get_codes(form.code_bits, record + 4 * c, out->codes);
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

static void embed(const struct embedding *args, int64_t column, float *out)
{
    const struct matrix *w = args->w;
    struct quant_form form = quant_form(w->type);
    int c = (int)(column % PANEL), record_bytes = packed_record_bytes(w->type);
    const uint8_t *panel =
        (const uint8_t *)w->data + column / PANEL * packed_panel_bytes(w->type, w->k);
    const uint8_t *record = panel + packed_supers_bytes(w->type, w->k);

    if (form.scales == SCALE_NONE) {
        for (int32_t i = 0; i < w->k; i++, record += record_bytes) {
            tensor_dequantize(w->type, record, c, 1, &out[i]);
            out[i] *= args->scale;
        }
        return;
    }
    for (int32_t b = 0; b < w->k / QUANT_BLOCK; b++, record += record_bytes) {
        struct quant_block block;
        const uint8_t *super =
            panel + (w->first_block + b) / SUPER_BLOCKS * packed_super_bytes(w->type);

        get_block(w->type, record, super, c, &block);
        for (int i = 0; i < QUANT_BLOCK; i++)
            out[b * QUANT_BLOCK + i] = quant_block_weight(form, &block, i) * args->scale;
    }
}

static void embed_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct embedding *args = arg;
    int32_t k = args->w->k;

    (void)scratch;
    for (int64_t r = first; r < end; r++) {
        int64_t column = (int64_t)args->ids[r] - args->first_id;

        if (column >= 0 && column < args->w->n)
            embed(args, column, args->out + r * k);
        else
            memset(args->out + r * k, 0, (size_t)k * sizeof(float));
    }
}

void embedding_cpu(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                   const struct matrix *w, int32_t first_id, float scale)
{
    struct embedding args = {out, ids, w, first_id, scale};

    device_run(dev, rows, 4, embed_rows, &args);
}
