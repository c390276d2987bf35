#include "kernels/cpu/device.h"
#include "kernels/cpu/packed.h"

#include <string.h>

int64_t matrix_bytes_cpu(enum tensor_type type, int32_t n, int32_t k)
{
    return (int64_t)divide_up(n, PANEL) * packed_panel_bytes(type, k);
}

/* The codes of one column; `out` is its place in the first k-group. */
static void put_codes(int bits, const uint8_t *codes, uint8_t *out)
{
    uint32_t high[2] = {0, 0};

    if (bits == 8) {
        for (int g = 0; g < 8; g++)
            store32(out + g * GROUP_BYTES, load32(codes + 4 * g));
        return;
    }
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

/* The scales of column c in the record's scales at `out`; inverse: quant_inverse of its step, of SCALE_WHOLE. */
static void put_scales(const struct quant_form *form, float inverse, struct quant_block *block, int c,
                       uint8_t *out)
{
    if (form->scales == SCALE_WHOLE) {
        int width = form->has_min ? 4 : 2;

        quant_block_whole(*form, inverse, block);
        memcpy(out + width * c, &block->s, 2);
        if (form->has_min)
            memcpy(out + width * c + 2, &block->t, 2);
    } else if (form->scales == SCALE_PLAIN) {
        memcpy(out + 2 * c, &block->d, 2);
    } else if (form->scales == SCALE_SUPER) {
        out[c] = (uint8_t)block->scale[0];
        out[PANEL + c] = (uint8_t)block->min[0];
    } else {
        memcpy(out + 2 * c, block->scale, 2);
        if (form->has_min)
            memcpy(out + 2 * PANEL + 2 * c, block->min, 2);
    }
}

/*
 * Some types hold the codes of a block as a record does: behind d (and m), and 4 bits in the same
 * pairs. They are copied, which loads a model in half the time.
 */
static bool has_codes_of_record(enum tensor_type type)
{
    return type == TYPE_Q4_0 || type == TYPE_Q4_1 || type == TYPE_Q8_0;
}

static void copy_block(const struct quant_form *form, float inverse, const uint8_t *from, int c, uint8_t *record)
{
    int code_bytes = form->code_bits * QUANT_BLOCK / 8, scale_bytes = form->has_min ? 4 : 2;
    struct quant_block block;

    for (int i = 0; i < code_bytes; i += 4)
        store32(record + 4 * c + i / 4 * GROUP_BYTES, load32(from + scale_bytes + i));
    memcpy(&block.d, from, 2);
    memcpy(&block.m, from + 2, 2);
    put_scales(form, inverse, &block, c, record + code_bytes * PANEL);
}

struct pack {
    const struct matrix *w;
    int32_t at, n;
    const char *src;
    int64_t src_row_bytes, k0;
};

/* Row r of the source becomes column c of a panel. */
static void pack_column(const struct pack *pack, int32_t r, uint8_t *panel, int c)
{
    enum tensor_type type = pack->w->type;
    const char *row = pack->src + r * pack->src_row_bytes;
    struct quant_form form = quant_form(type);
    int record_bytes = packed_record_bytes(type), super_bytes = packed_super_bytes(type);
    uint8_t *record = panel + packed_supers_bytes(type, pack->w->k);
    int32_t num_records = packed_num_records(type, pack->w->k);
    float inverse = 0;

    if (form.scales == SCALE_WHOLE) {
        float step = quant_row_step(type, row, pack->src_row_bytes / tensor_type_info(type)->block_bytes);

        memcpy(panel + c * sizeof(step), &step, sizeof(step));
        inverse = quant_inverse(step);
    }
    if (form.scales == SCALE_NONE) {
        int size = tensor_type_info(type)->block_bytes;

        for (int32_t i = 0; i < num_records; i++)
            memcpy(record + (int64_t)i * record_bytes + c * size, row + (pack->k0 + i) * size,
                   (size_t)size);
        return;
    }
    if (has_codes_of_record(type)) {
        int block_bytes = tensor_type_info(type)->block_bytes;
        const uint8_t *block = (const uint8_t *)row + pack->k0 / QUANT_BLOCK * block_bytes;

        for (int32_t b = 0; b < num_records; b++, record += record_bytes, block += block_bytes)
            copy_block(&form, inverse, block, c, record);
        return;
    }
    for (int32_t b = 0; b < num_records; b++, record += record_bytes) {
        struct quant_block block;

        quant_block_read(type, row, pack->k0 / QUANT_BLOCK + b, &block);
        put_codes(form.code_bits, block.codes, record + 4 * c);
        put_scales(&form, inverse, &block, c, record + packed_code_bytes(type));
        if (super_bytes) {
            uint8_t *super = panel + (pack->w->first_block + b) / SUPER_BLOCKS * super_bytes;

            memcpy(super + 2 * c, &block.d, 2);
            if (form.has_min)
                memcpy(super + 2 * PANEL + 2 * c, &block.m, 2);
        }
    }
}

static void pack_panels(const void *args, int64_t first, int64_t end, void *scratch)
{
    const struct pack *pack = args;
    int64_t panel_bytes = packed_panel_bytes(pack->w->type, pack->w->k);

    (void)scratch;
    for (int64_t r = first * PANEL; r < end * PANEL && r < pack->n; r++) {
        int64_t column = pack->at + r;

        pack_column(pack, (int32_t)r, (uint8_t *)pack->w->data + column / PANEL * panel_bytes,
                    (int)(column % PANEL));
    }
}

void matrix_pack_cpu(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                     int64_t src_row_bytes, int64_t k0)
{
    struct pack pack = {w, at, n, src, src_row_bytes, k0};

    ASSERT(at >= 0 && n >= 0 && at + n <= w->n, "rows %d + %d of %d", at, n, w->n);
    ASSERT(at % PANEL == 0 || n == w->n, "column %d is inside a panel", at);
    w->first_block = (int32_t)(k0 / QUANT_BLOCK % SUPER_BLOCKS);
    device_run(dev, divide_up(n, PANEL), 4, pack_panels, &pack);
}
