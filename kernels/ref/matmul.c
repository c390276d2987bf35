#include "kernels/numerics.h"
#include "kernels/quant_block.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

/* Packed as [n, k] floats, or [n, k / 32] struct quant_block, and behind these, of SCALE_WHOLE, [n] float: steps. */

static int64_t blocks_bytes(int32_t n, int32_t k)
{
    return (int64_t)n * (k / QUANT_BLOCK) * (int64_t)sizeof(struct quant_block);
}

int64_t matrix_bytes_ref(enum tensor_type type, int32_t n, int32_t k)
{
    enum scale_kind scales = quant_form(type).scales;

    if (scales == SCALE_NONE)
        return (int64_t)n * k * (int64_t)sizeof(float);
    return blocks_bytes(n, k) + (scales == SCALE_WHOLE ? n * (int64_t)sizeof(float) : 0);
}

float *matrix_steps_ref(const struct matrix *w)
{
    return quant_form(w->type).scales == SCALE_WHOLE ? (float *)((char *)w->data + blocks_bytes(w->n, w->k)) : NULL;
}

void matrix_pack_ref(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                     int64_t src_row_bytes, int64_t k0)
{
    struct quant_form form = quant_form(w->type);
    int64_t row_blocks = src_row_bytes / tensor_type_info(w->type)->block_bytes;
    float *steps = matrix_steps_ref(w);

    (void)dev;
    ASSERT(at >= 0 && n >= 0 && at + n <= w->n, "rows %d + %d of %d", at, n, w->n);
    w->first_block = (int32_t)(k0 / QUANT_BLOCK % SUPER_BLOCKS);
    for (int32_t r = 0; r < n; r++) {
        const char *row = (const char *)src + r * src_row_bytes;

        if (form.scales == SCALE_NONE) {
            tensor_dequantize(w->type, row, k0, w->k, (float *)w->data + (int64_t)(at + r) * w->k);
            continue;
        }
        int32_t num_blocks = w->k / QUANT_BLOCK;
        struct quant_block *blocks = (struct quant_block *)w->data + (int64_t)(at + r) * num_blocks;

        if (steps)
            steps[at + r] = quant_row_step(w->type, row, row_blocks);
        for (int32_t b = 0; b < num_blocks; b++) {
            quant_block_read(w->type, row, k0 / QUANT_BLOCK + b, &blocks[b]);
            if (steps)
                quant_block_whole(form, quant_inverse(steps[at + r]), &blocks[b]);
        }
    }
}

/* ---- one block: the law of quant_block.h ------------------------------------------------------- */

struct activation_block {
    const int8_t *q;
    float d, z;
    const int16_t *sums;
};

static int dot(struct quant_form form, const struct quant_block *w, const int8_t *q,
               int first, int count)
{
    int sum = 0;

    for (int i = first; i < first + count; i++)
        sum += (form.code_bits == 8 ? (int8_t)w->codes[i] : w->codes[i]) * q[i];
    return sum;
}

static float add_block(float acc, struct quant_form form, const struct quant_block *w,
                       const struct activation_block *a)
{
    float d = half_to_float(w->d), m = half_to_float(w->m);

    if (form.scales == SCALE_HALVES) {
        int sum = 0, min = 0;

        for (int h = 0; h < 2; h++) {
            sum += w->scale[h] * (dot(form, w, a->q, 16 * h, 16) - form.offset * a->sums[h]);
            min += w->min[h] * a->sums[h];
        }
        acc = fmaf((float)sum, d * a->d, acc);
        return form.has_min ? fmaf((float)min, -(m * a->d), acc) : acc;
    }
    if (form.scales == SCALE_SUPER) {
        d *= (float)w->scale[0];
        m *= -(float)w->min[0];
    }
    acc = fmaf((float)dot(form, w, a->q, 0, QUANT_BLOCK), d * a->d, acc);
    return form.has_min ? fmaf(m, a->z, acc) : acc;
}

/* What the group of blocks that begins with block `first` adds to its columns' accumulators. */
static int32_t whole_total(const struct activations *a, int32_t r, const struct matrix *w, int32_t c, int32_t first)
{
    struct quant_form form = quant_form(w->type);
    int32_t num_blocks = w->k / QUANT_BLOCK, total = 0;
    const struct quant_block *blocks = (const struct quant_block *)w->data + (int64_t)c * num_blocks;

    for (int32_t b = first; b < first + a->group / QUANT_BLOCK; b++) {
        int64_t at = (int64_t)r * num_blocks + b;
        int32_t sum = a->sums[2 * at] + a->sums[2 * at + 1];

        total += blocks[b].s * (dot(form, &blocks[b], a->q + at * QUANT_BLOCK, 0, QUANT_BLOCK) - form.offset * sum) +
                 blocks[b].t * sum;
    }
    return total;
}

/* Columns [k0, k0 + k) of row r times column c of w, from zero. */
static float dot_range(const struct activations *a, int32_t r, const struct matrix *w, int32_t c,
                       int32_t k0, int32_t k)
{
    struct quant_form form = quant_form(w->type);
    float acc = 0;

    if (form.scales == SCALE_NONE) {
        const float *x = a->x + (int64_t)r * a->k, *row = (const float *)w->data + (int64_t)c * w->k;

        for (int32_t i = k0; i < k0 + k; i++)
            acc = fmaf(x[i], row[i], acc);
        return acc;
    }
    int32_t num_blocks = w->k / QUANT_BLOCK;
    const struct quant_block *blocks = (const struct quant_block *)w->data + (int64_t)c * num_blocks;

    if (form.scales == SCALE_WHOLE) {
        for (int32_t at = k0; at < k0 + k; at += a->group)
            acc = fmaf((float)whole_total(a, r, w, c, at / QUANT_BLOCK), a->d[((int64_t)r * w->k + at) / QUANT_BLOCK],
                       acc);
        return acc * matrix_steps_ref(w)[c];
    }
    for (int32_t b = k0 / QUANT_BLOCK; b < (k0 + k) / QUANT_BLOCK; b++) {
        int64_t at = (int64_t)r * num_blocks + b;

        acc = add_block(acc, form, &blocks[b],
                        &(struct activation_block){a->q + at * QUANT_BLOCK, a->d[at], form.has_min && form.scales == SCALE_SUPER ? a->z[at] : 0,
                                                   a->sums + 2 * at});
    }
    return acc;
}

/* ---- the kernels --------------------------------------------------------------------------------- */

void matmul_ref(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                const struct matrix *w)
{
    (void)dev;
    ASSERT(a->k == w->k, "activations of %d columns, weights of %d", a->k, w->k);
    for (int32_t r = 0; r < a->rows; r++)
        for (int32_t c = 0; c < w->n; c++)
            out[r * out_stride + c] = dot_range(a, r, w, c, 0, w->k);
}

static double sum_groups(const struct activations *a, int32_t r, const struct matrix *w, int32_t c,
                         int32_t group_k)
{
    double sum = 0;

    if (quant_form(w->type).scales == SCALE_WHOLE) {
        sum = WHOLE_MAGIC;
        for (int32_t at = 0; at < w->k; at += a->group)
            sum = fma(whole_total(a, r, w, c, at / QUANT_BLOCK),
                      quant_odd(a->d[((int64_t)r * w->k + at) / QUANT_BLOCK]), sum);
        return (sum - WHOLE_MAGIC) * (double)matrix_steps_ref(w)[c];
    }
    for (int32_t k0 = 0; k0 < w->k; k0 += group_k)
        sum += (dot_range(a, r, w, c, k0, group_k) + EXACT_MAGIC) - EXACT_MAGIC;
    return sum;
}

static void check_groups(const struct activations *a, const struct matrix *w, int32_t group_k)
{
    ASSERT(a->k == w->k, "activations of %d columns, weights of %d", a->k, w->k);
    ASSERT(group_k > 0 && group_k % QUANT_BLOCK == 0 && w->k % group_k == 0,
           "groups of %d in %d columns", group_k, w->k);
    ASSERT(!a->q || group_k % a->group == 0, "groups of %d, of activations %d", group_k, a->group);
}

void matmul_groups_ref(struct device *dev, double *sums, const struct activations *a,
                       const struct matrix *w, int32_t group_k)
{
    (void)dev;
    check_groups(a, w, group_k);
    for (int32_t r = 0; r < a->rows; r++)
        for (int32_t c = 0; c < w->n; c++)
            sums[(int64_t)r * w->n + c] = sum_groups(a, r, w, c, group_k);
}

void matmul_groups_float_ref(struct device *dev, float *out, const struct activations *a,
                             const struct matrix *w, int32_t group_k)
{
    (void)dev;
    check_groups(a, w, group_k);
    for (int32_t r = 0; r < a->rows; r++)
        for (int32_t c = 0; c < w->n; c++)
            out[(int64_t)r * w->n + c] = (float)sum_groups(a, r, w, c, group_k);
}
