#include "kernels/quant_block.h"
#include "kernels/ref/ref.h"

void embedding_ref(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                   const struct matrix *w, int32_t first_id, float scale)
{
    struct quant_form form = quant_form(w->type);
    const float *steps = matrix_steps_ref(w);

    (void)dev;
    for (int32_t r = 0; r < rows; r++) {
        int64_t at = (int64_t)ids[r] - first_id;
        bool here = at >= 0 && at < w->n;

        for (int32_t i = 0; i < w->k; i++) {
            float x = 0;

            if (here && form.scales == SCALE_NONE)
                x = ((const float *)w->data)[at * w->k + i];
            else if (here)
                x = quant_block_weight(form, (const struct quant_block *)w->data +
                                                 at * (w->k / QUANT_BLOCK) + i / QUANT_BLOCK,
                                       steps ? steps[at] : 0, i % QUANT_BLOCK);
            out[(int64_t)r * w->k + i] = here ? x * scale : 0;
        }
    }
}

void take_rows_ref(struct device *dev, const struct take_rows_args *args)
{
    (void)dev;
    for (int32_t r = 0; r < args->rows; r++)
        for (int32_t i = 0; i < args->n; i++)
            args->out[r * args->stride + i] = args->in[args->row_ids[r] * args->stride + i];
}
