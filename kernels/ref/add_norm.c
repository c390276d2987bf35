#include "kernels/quant_block.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <string.h>

/* What is added to element i of the residual, before its norm. */
static float addend(const struct add_norm_args *args, int64_t i)
{
    double sum = 0;

    if (args->sum)
        return args->sum[i];
    for (int32_t p = 0; p < args->num_parts; p++)
        sum = p ? sum + args->parts[p][i] : args->parts[p][i];
    return (float)sum;
}

static void add_row(const struct add_norm_args *args, int64_t row, float *x)
{
    int64_t start = row * args->n;

    for (int32_t i = 0; i < args->n; i++)
        x[i] = addend(args, start + i);
    if (args->post_norm)
        rms_norm_ref(x, x, args->post_norm, args->n, args->eps);
    for (int32_t i = 0; i < args->n; i++)
        args->residual[start + i] += x[i];
}

/* The activations of one row, in the forms that are wanted. */
void put_row_ref(const struct activations *a, int64_t row, const float *x)
{
    struct activations one = activations_rows(a, row, 1);

    if (one.x)
        memcpy(one.x, x, (size_t)a->k * sizeof(float));
    one.x = (float *)x;
    if (one.q)
        quantize_ref(NULL, &one);
}

void add_norm_ref(struct device *dev, const struct add_norm_args *args)
{
    float *x = mem_new_array(float, args->n);

    (void)dev;
    for (int32_t r = 0; r < args->rows; r++) {
        int64_t row = args->row_ids ? args->row_ids[r] : r;

        if (args->sum || args->num_parts)
            add_row(args, row, x);
        if (args->norm) {
            rms_norm_ref(x, args->residual + row * args->n, args->norm, args->n, args->eps);
            put_row_ref(args->out, r, x);
        }
    }
    mem_free(x);
}
