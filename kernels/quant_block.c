#include "kernels/quant_block.h"

#include <math.h>
#include <string.h>

static uint16_t half_bits(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, 2);
    return h;
}

/* ---- blocks of 32: scale, (minimum,) (fifth bits,) nibbles ------------------------------------ */

static void read_nibbles(const uint8_t *packed, uint8_t *codes)
{
    for (int i = 0; i < 16; i++) {
        codes[i] = packed[i] & 0xf;
        codes[i + 16] = packed[i] >> 4;
    }
}

static void read_fifth_bits(const uint8_t *high, uint8_t *codes)
{
    for (int i = 0; i < QUANT_BLOCK; i++)
        codes[i] |= (high[i / 8] >> i % 8 & 1) << 4;
}

static void read_q4_0(const uint8_t *p, int group, struct quant_block *out)
{
    (void)group;
    out->d = half_bits(p);
    read_nibbles(p + 2, out->codes);
}

static void read_q4_1(const uint8_t *p, int group, struct quant_block *out)
{
    (void)group;
    out->d = half_bits(p);
    out->m = half_bits(p + 2);
    read_nibbles(p + 4, out->codes);
}

static void read_q5_0(const uint8_t *p, int group, struct quant_block *out)
{
    (void)group;
    out->d = half_bits(p);
    read_nibbles(p + 6, out->codes);
    read_fifth_bits(p + 2, out->codes);
}

static void read_q5_1(const uint8_t *p, int group, struct quant_block *out)
{
    (void)group;
    out->d = half_bits(p);
    out->m = half_bits(p + 2);
    read_nibbles(p + 8, out->codes);
    read_fifth_bits(p + 4, out->codes);
}

static void read_q8_0(const uint8_t *p, int group, struct quant_block *out)
{
    (void)group;
    out->d = half_bits(p);
    memcpy(out->codes, p + 2, QUANT_BLOCK);
}

/* ---- blocks of 256: `group` is which 32 of them ----------------------------------------------- */

/* Two bits of element i of a group: four groups share 32 bytes. */
static int two_bits(const uint8_t *packed, int group, int i)
{
    return packed[32 * (group / 4) + i] >> 2 * (group % 4) & 3;
}

static void read_q2_k(const uint8_t *p, int group, struct quant_block *out)
{
    for (int h = 0; h < 2; h++) {
        out->scale[h] = p[2 * group + h] & 0xf;
        out->min[h] = p[2 * group + h] >> 4;
    }
    for (int i = 0; i < QUANT_BLOCK; i++)
        out->codes[i] = two_bits(p + 16, group, i);
    out->d = half_bits(p + 80);
    out->m = half_bits(p + 82);
}

static void read_q3_k(const uint8_t *p, int group, struct quant_block *out)
{
    const uint8_t *high = p, *scales = p + 96;

    for (int h = 0; h < 2; h++) { /* 16 scales of 6 bits: nibbles in 8 bytes, top pairs in 4 */
        int j = 2 * group + h;
        int scale = (scales[j % 8] >> 4 * (j / 8) & 0xf) | (scales[8 + j % 4] >> 2 * (j / 4) & 3) << 4;

        out->scale[h] = scale - 32;
    }
    for (int i = 0; i < QUANT_BLOCK; i++)
        out->codes[i] = two_bits(p + 32, group, i) | (high[i] >> group & 1) << 2;
    out->d = half_bits(p + 108);
}

/* Eight 6-bit scales and minima in 12 bytes: the first four are the low bits of bytes 0-3 and 4-7;
 * the last four have their nibbles in 8-11, and their top pairs in the top pairs of 0-3 and 4-7. */
static void read_packed_scale(const uint8_t *p, int group, struct quant_block *out)
{
    if (group < 4) {
        out->scale[0] = p[group] & 63;
        out->min[0] = p[group + 4] & 63;
    } else {
        out->scale[0] = (p[group + 4] & 0xf) | p[group - 4] >> 6 << 4;
        out->min[0] = p[group + 4] >> 4 | p[group] >> 6 << 4;
    }
}

static void read_q4_k(const uint8_t *p, int group, struct quant_block *out)
{
    const uint8_t *packed = p + 16 + 32 * (group / 2); /* two groups share 32 bytes */

    out->d = half_bits(p);
    out->m = half_bits(p + 2);
    read_packed_scale(p + 4, group, out);
    for (int i = 0; i < QUANT_BLOCK; i++)
        out->codes[i] = packed[i] >> 4 * (group % 2) & 0xf;
}

static void read_q5_k(const uint8_t *p, int group, struct quant_block *out)
{
    const uint8_t *high = p + 16, *packed = p + 48 + 32 * (group / 2);

    out->d = half_bits(p);
    out->m = half_bits(p + 2);
    read_packed_scale(p + 4, group, out);
    for (int i = 0; i < QUANT_BLOCK; i++)
        out->codes[i] = (packed[i] >> 4 * (group % 2) & 0xf) | (high[i] >> group & 1) << 4;
}

static void read_q6_k(const uint8_t *p, int group, struct quant_block *out)
{
    /* Nibbles: groups 0 and 2 share 32 bytes, 1 and 3 the next; then 4 to 7 likewise. */
    const uint8_t *low = p + 64 * (group / 4) + 32 * (group % 2), *high = p + 128;
    int shift = group % 4 < 2 ? 0 : 4;

    for (int h = 0; h < 2; h++)
        out->scale[h] = (int8_t)p[192 + 2 * group + h];
    for (int i = 0; i < QUANT_BLOCK; i++)
        out->codes[i] = (low[i] >> shift & 0xf) | two_bits(high, group, i) << 4;
    out->d = half_bits(p + 208);
}

/* ---- the table --------------------------------------------------------------------------------- */

static void (*const readers[NUM_TENSOR_TYPES])(const uint8_t *p, int group,
                                               struct quant_block *out) = {
    [TYPE_Q4_0] = read_q4_0, [TYPE_Q4_1] = read_q4_1, [TYPE_Q5_0] = read_q5_0,
    [TYPE_Q5_1] = read_q5_1, [TYPE_Q8_0] = read_q8_0, [TYPE_Q2_K] = read_q2_k,
    [TYPE_Q3_K] = read_q3_k, [TYPE_Q4_K] = read_q4_k, [TYPE_Q5_K] = read_q5_k,
    [TYPE_Q6_K] = read_q6_k,
};

void quant_block_read(enum tensor_type type, const void *row, int64_t index,
                      struct quant_block *out)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    int blocks_per_unit = info->block_elements / QUANT_BLOCK;

    ASSERT(readers[type], "%s has no blocks", info->name);
    memset(out, 0, sizeof(*out));
    readers[type]((const uint8_t *)row + index / blocks_per_unit * info->block_bytes,
                  (int)(index % blocks_per_unit), out);
}

/* ---- whole scales ------------------------------------------------------------------------------ */

float quant_row_step(enum tensor_type type, const void *row, int64_t num_blocks)
{
    const struct quant_form form = quant_form(type);
    const uint8_t *block = row;
    int block_bytes = tensor_type_info(type)->block_bytes;
    float most = 0;

    ASSERT(form.scales == SCALE_WHOLE, "scales of %s", tensor_type_info(type)->name);
    for (int64_t b = 0; b < num_blocks; b++, block += block_bytes) {
        float d = half_to_float(half_bits(block)), offset = (float)form.offset;
        float base = form.has_min ? half_to_float(half_bits(block + 2)) + offset * d : 0;
        float weight = offset * fabsf(d) + fabsf(base);

        if (!isfinite(weight))
            return NAN;
        most = weight > most ? weight : most;
    }

    float step = most / (float)MOST_WEIGHT;
    uint32_t bits;

    memcpy(&bits, &step, sizeof bits);
    bits = (bits + QUANT_STEP_UP) & QUANT_STEP_MASK;
    memcpy(&step, &bits, sizeof step);
    return step;
}
