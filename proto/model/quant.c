#include "proto/model/quant.h"

#include <math.h>
#include <string.h>
#include <strings.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "model files are read in place");

enum { GROUP = 32 }; /* elements that a quantised type unpacks at a time */

uint16_t float_to_half(float f)
{
    uint32_t bits, magnitude, half;

    memcpy(&bits, &f, 4);
    magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) { /* NaN stays one when its payload is cut to nothing */
        half = magnitude >> 13 & 0x3ff;
        half = 0x7c00 | (half ? half : 0x200);
    } else if (magnitude >= 0x477ff000) { /* 65520 and above round to infinity */
        half = 0x7c00;
    } else if (magnitude < 0x38800000) { /* below 2^-14: the sum rounds to a multiple of 2^-24 */
        float sum;

        memcpy(&sum, &magnitude, 4);
        sum += 0.5f;
        memcpy(&half, &sum, 4);
        half -= 0x3f000000;
    } else {
        half = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    return (uint16_t)(half | (bits >> 16 & 0x8000));
}

float fp8_to_float(uint8_t code)
{
    uint32_t bits = (code & 0x7fu) << 20; /* the exponent is off by 120 */
    float f;

    memcpy(&f, &bits, 4);
    f = (code & 0x7f) == 0x7f ? NAN : f * 0x1p120f;
    return code & 0x80 ? -f : f;
}

uint8_t float_to_fp8(float f)
{
    uint32_t bits, code;
    float magnitude = fabsf(f);

    if (magnitude < 0x1p-6f) { /* a multiple of 2^-9, in whose units floats from 2^14 on count */
        magnitude += 0x1p14f;
        memcpy(&code, &magnitude, 4);
        code -= 0x46800000;
    } else {
        magnitude = magnitude > 448 ? 448 : magnitude;
        memcpy(&bits, &magnitude, 4);
        code = f == f ? (bits - (120u << 23) + 0x7ffff + (bits >> 20 & 1)) >> 20 : 0x7f;
    }
    return (uint8_t)(code | (signbit(f) ? 0x80 : 0));
}

void fp8_to_bf16(const uint8_t *codes, int64_t n, float scale, uint16_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = codes[i] & 0x7fu, bits = magnitude << 20 | (codes[i] & 0x80u) << 24;
        float f;

        memcpy(&f, &bits, 4); /* as fp8_to_float, without a branch */
        f = f * 0x1p120f * scale;
        memcpy(&bits, &f, 4);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[i] = (uint16_t)(magnitude == 0x7f || f != f ? 0x7fc0 : bits);
    }
}

static float half_at(const uint8_t *p)
{
    uint16_t h;

    memcpy(&h, p, 2);
    return half_to_float(h);
}

/* ---- plain types: n elements ----------------------------------------------------------------- */

static void f32_to_float(const uint8_t *in, int64_t n, float *out)
{
    memcpy(out, in, (size_t)n * 4);
}

static void f16_to_float(const uint8_t *in, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = half_at(in + 2 * i);
}

static void bf16_to_float(const uint8_t *in, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t high;
        uint32_t bits;

        memcpy(&high, in + 2 * i, 2);
        bits = (uint32_t)high << 16;
        memcpy(&out[i], &bits, 4);
    }
}

static void f8_e4m3_to_float(const uint8_t *in, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = fp8_to_float(in[i]);
}

/* ---- blocks of 32: scale, (minimum,) (fifth bits,) nibbles ----------------------------------- */

/* Element i of 32: the low nibbles of 16 bytes, then their high nibbles. */
static int nibble(const uint8_t *nibbles, int i)
{
    return i < 16 ? nibbles[i] & 0xf : nibbles[i - 16] >> 4;
}

/* The same with a fifth bit, one of the 32 at `high`. */
static int five_bits(const uint8_t *high, const uint8_t *nibbles, int i)
{
    return nibble(nibbles, i) | (high[i / 8] >> i % 8 & 1) << 4;
}

static void q4_0_to_float(const uint8_t *block, int group, float *out)
{
    float d = half_at(block);

    (void)group;
    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)(nibble(block + 2, i) - 8);
}

static void q4_1_to_float(const uint8_t *block, int group, float *out)
{
    float d = half_at(block), m = half_at(block + 2);

    (void)group;
    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)nibble(block + 4, i) + m;
}

static void q5_0_to_float(const uint8_t *block, int group, float *out)
{
    float d = half_at(block);

    (void)group;
    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)(five_bits(block + 2, block + 6, i) - 16);
}

static void q5_1_to_float(const uint8_t *block, int group, float *out)
{
    float d = half_at(block), m = half_at(block + 2);

    (void)group;
    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)five_bits(block + 4, block + 8, i) + m;
}

static void q8_0_to_float(const uint8_t *block, int group, float *out)
{
    float d = half_at(block);

    (void)group;
    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)(int8_t)block[2 + i];
}

/* ---- blocks of 256: `group` is which 32 of them ---------------------------------------------- */

/* Two bits of element i of a group: four groups share 32 bytes. */
static int two_bits(const uint8_t *packed, int group, int i)
{
    return packed[32 * (group / 4) + i] >> 2 * (group % 4) & 3;
}

/* Four bits of element i of a group: two groups share 32 bytes. */
static int four_bits(const uint8_t *packed, int group, int i)
{
    return packed[32 * (group / 2) + i] >> 4 * (group % 2) & 0xf;
}

static void q2_k_to_float(const uint8_t *block, int group, float *out)
{
    const uint8_t *scales = block, *packed = block + 16;
    float d = half_at(block + 80), dmin = half_at(block + 82);

    for (int i = 0; i < GROUP; i++) {
        uint8_t scale = scales[2 * group + i / 16];

        out[i] = d * (float)(scale & 0xf) * (float)two_bits(packed, group, i) -
                 dmin * (float)(scale >> 4);
    }
}

static void q3_k_to_float(const uint8_t *block, int group, float *out)
{
    const uint8_t *high = block, *packed = block + 32, *scales = block + 96;
    float d = half_at(block + 108);

    for (int i = 0; i < GROUP; i++) {
        int j = 2 * group + i / 16; /* 16 scales of 6 bits: nibbles in 8 bytes, top pairs in 4 */
        int low_scale = scales[j % 8] >> 4 * (j / 8) & 0xf;
        int high_scale = scales[8 + j % 4] >> 2 * (j / 4) & 3;
        int q = two_bits(packed, group, i) - (high[i] >> group & 1 ? 0 : 4);

        out[i] = d * (float)((low_scale | high_scale << 4) - 32) * (float)q;
    }
}

/* The 6-bit scale and minimum of a group, of eight each in 12 bytes: the first four are the low
 * bits of bytes 0-3 and 4-7; the last four have their nibbles in 8-11, and their top pairs in the
 * top pairs of 0-3 and 4-7. */
static void q4_k_scale(const uint8_t *packed, int group, int *scale_out, int *min_out)
{
    if (group < 4) {
        *scale_out = packed[group] & 63;
        *min_out = packed[group + 4] & 63;
    } else {
        *scale_out = (packed[group + 4] & 0xf) | packed[group - 4] >> 6 << 4;
        *min_out = packed[group + 4] >> 4 | packed[group] >> 6 << 4;
    }
}

static void q4_k_to_float(const uint8_t *block, int group, float *out)
{
    int scale, min;

    q4_k_scale(block + 4, group, &scale, &min);

    float d = half_at(block) * (float)scale, m = half_at(block + 2) * (float)min;

    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)four_bits(block + 16, group, i) - m;
}

static void q5_k_to_float(const uint8_t *block, int group, float *out)
{
    const uint8_t *high = block + 16, *packed = block + 48;
    int scale, min;

    q4_k_scale(block + 4, group, &scale, &min);

    float d = half_at(block) * (float)scale, m = half_at(block + 2) * (float)min;

    for (int i = 0; i < GROUP; i++)
        out[i] = d * (float)(four_bits(packed, group, i) | (high[i] >> group & 1) << 4) - m;
}

static void q6_k_to_float(const uint8_t *block, int group, float *out)
{
    /* Nibbles: groups 0 and 2 share 32 bytes, 1 and 3 the next; then 4 to 7 likewise. */
    const uint8_t *low = block + 64 * (group / 4) + 32 * (group % 2), *high = block + 128;
    const uint8_t *scales = block + 192;
    int shift = group % 4 < 2 ? 0 : 4;
    float d = half_at(block + 208);

    for (int i = 0; i < GROUP; i++) {
        int q = (low[i] >> shift & 0xf) | two_bits(high, group, i) << 4;

        out[i] = d * (float)(int8_t)scales[2 * group + i / 16] * (float)(q - 32);
    }
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct type_row {
    struct tensor_type_info info;
    void (*plain)(const uint8_t *in, int64_t n, float *out); /* or NULL */
    void (*grouped)(const uint8_t *block, int group, float *out); /* or NULL; out: [GROUP] */
} types[] = {
    [TYPE_F32] = {{"F32", 1, 4}, f32_to_float, NULL},
    [TYPE_F16] = {{"F16", 1, 2}, f16_to_float, NULL},
    [TYPE_BF16] = {{"BF16", 1, 2}, bf16_to_float, NULL},
    [TYPE_Q4_0] = {{"Q4_0", 32, 18}, NULL, q4_0_to_float},
    [TYPE_Q4_1] = {{"Q4_1", 32, 20}, NULL, q4_1_to_float},
    [TYPE_Q5_0] = {{"Q5_0", 32, 22}, NULL, q5_0_to_float},
    [TYPE_Q5_1] = {{"Q5_1", 32, 24}, NULL, q5_1_to_float},
    [TYPE_Q8_0] = {{"Q8_0", 32, 34}, NULL, q8_0_to_float},
    [TYPE_Q2_K] = {{"Q2_K", 256, 84}, NULL, q2_k_to_float},
    [TYPE_Q3_K] = {{"Q3_K", 256, 110}, NULL, q3_k_to_float},
    [TYPE_Q4_K] = {{"Q4_K", 256, 144}, NULL, q4_k_to_float},
    [TYPE_Q5_K] = {{"Q5_K", 256, 176}, NULL, q5_k_to_float},
    [TYPE_Q6_K] = {{"Q6_K", 256, 210}, NULL, q6_k_to_float},
    [TYPE_F8_E4M3] = {{"F8_E4M3", 1, 1}, f8_e4m3_to_float, NULL},
};

const struct tensor_type_info *tensor_type_info(enum tensor_type type)
{
    ASSERT((unsigned)type <= TYPE_F8_E4M3, "tensor type %d", (int)type);
    return &types[type].info;
}

bool tensor_type_find(const char *name, enum tensor_type *out)
{
    for (int type = 0; type <= TYPE_F8_E4M3; type++) {
        if (strcasecmp(types[type].info.name, name) != 0)
            continue;
        *out = (enum tensor_type)type;
        return true;
    }
    return false;
}

int64_t tensor_row_bytes(enum tensor_type type, int64_t n)
{
    const struct tensor_type_info *info = tensor_type_info(type);

    ASSERT(n >= 0 && n % info->block_elements == 0, "%lld elements of %s", (long long)n,
           info->name);
    return n / info->block_elements * info->block_bytes;
}

void tensor_dequantize(enum tensor_type type, const void *row, int64_t first, int64_t n, float *out)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    const uint8_t *blocks = row;

    if (types[type].plain) {
        types[type].plain(blocks + first * info->block_bytes, n, out);
        return;
    }
    ASSERT(first % GROUP == 0 && n % GROUP == 0, "%lld elements of %s from %lld", (long long)n,
           info->name, (long long)first);
    for (int64_t i = 0; i < n; i += GROUP) {
        int64_t at = first + i;

        types[type].grouped(blocks + at / info->block_elements * info->block_bytes,
                            (int)(at % info->block_elements / GROUP), out + i);
    }
}
