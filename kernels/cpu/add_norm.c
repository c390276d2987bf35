/* What ends one sublayer and begins the next, in one pass over a row while it is in the first cache. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/quantize.h"

/* A vector of what is added, from element i of the array (rows and columns in one). */
INLINE vf load_addend(const struct add_norm_args *args, int64_t i)
{
    if (args->sum)
        return vf_load(args->sum + i);

    vd low = vd_load(args->parts[0] + i), high = vd_load(args->parts[0] + i + LANES / 2);

    for (int32_t p = 1; p < args->num_parts; p++) {
        low += vd_load(args->parts[p] + i);
        high += vd_load(args->parts[p] + i + LANES / 2);
    }
    return vf_round(low, high);
}

/* The scale of the norm of what is added to a row that begins at `start`. */
static float addend_scale(const struct add_norm_args *args, int64_t start)
{
    vf squares[SUM_VECTORS] = {0};

    for (int32_t i = 0; i < args->n; i += SUM_LANES) {
        vf x[SUM_VECTORS];

        UNROLL for (int v = 0; v < SUM_VECTORS; v++)
            x[v] = load_addend(args, start + i + v * LANES);
        add_squares(squares, x);
    }
    return norm_scale(squares, args->n, args->eps);
}

/* Adds to a row of the residual, and returns the scale of its norm. */
static float add_row(const struct add_norm_args *args, int64_t row)
{
    int64_t start = row * args->n;
    float *residual = args->residual + start;
    bool adds = args->sum || args->num_parts;
    vf squares[SUM_VECTORS] = {0}, scale = vf_set(1);

    if (args->post_norm)
        scale = vf_set(addend_scale(args, start));
    for (int32_t i = 0; i < args->n; i += SUM_LANES) {
        vf x[SUM_VECTORS];

        UNROLL for (int v = 0; v < SUM_VECTORS; v++) {
            int32_t at = i + v * LANES;

            x[v] = vf_load(residual + at);
            if (adds) {
                vf addend = load_addend(args, start + at);

                if (args->post_norm)
                    addend = addend * scale * vf_load(args->post_norm + at);
                x[v] += addend;
                vf_store(residual + at, x[v]);
            }
        }
        add_squares(squares, x);
    }
    return norm_scale(squares, args->n, args->eps);
}

/* Row r of `out`: the norm of a row of the residual. */
INLINE void put_norm(const int blocks, const struct add_norm_args *args, int64_t r, const float *residual, vf scale)
{
    for (int32_t b = 0; b < args->n / QUANT_BLOCK; b += blocks) {
        vf x[GROUP_VECTORS];

        UNROLL for (int v = 0; v < blocks * BLOCK_VECTORS; v++) {
            int32_t at = b * QUANT_BLOCK + v * LANES;

            x[v] = vf_load(residual + at) * scale * vf_load(args->norm + at);
        }
        put_group(args->out, r * (args->n / QUANT_BLOCK) + b, blocks, x);
    }
}

static void add_norm_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct add_norm_args *args = arg;
    int32_t blocks = args->norm ? group_blocks(args->out) : 0;

    (void)scratch;
    for (int64_t r = first; r < end; r++) {
        int64_t row = args->row_ids ? args->row_ids[r] : r;
        const float *residual = args->residual + row * args->n;
        vf scale = vf_set(add_row(args, row));

        if (args->norm)
            FOR_GROUP(blocks, put_norm, args, r, residual, scale);
    }
}

void KERNEL(add_norm)(struct device *dev, const struct add_norm_args *args)
{
    ASSERT(args->n % QUANT_BLOCK == 0, "rows of %d", args->n);
    ASSERT(!args->row_ids || !(args->sum || args->num_parts), "rows may be named twice");
    device_run(dev, args->rows, 4, add_norm_rows, args);
}
