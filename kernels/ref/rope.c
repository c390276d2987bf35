#include "kernels/ref/ref.h"

#include <math.h>

static void turn_head(const struct rope_args *args, float *head, const float *norm, int32_t position)
{
    int32_t half = args->rope_dim / 2;

    if (norm)
        rms_norm_ref(head, head, norm, args->kv->head_dim, args->eps);
    for (int32_t i = 0; i < half; i++) {
        const float *angle = args->cos_sin + ((int64_t)position * half + i) * 2;
        float *first = head + (args->adjacent ? 2 * i : i);
        float *second = head + (args->adjacent ? 2 * i + 1 : i + half);
        float a = *first, b = *second;

        *first = fmaf(a, angle[0], -(b * angle[1]));
        *second = fmaf(a, angle[1], b * angle[0]);
    }
}

void rope_store_ref(struct device *dev, const struct rope_args *args)
{
    int32_t dim = args->kv->head_dim, num_kv_heads = args->kv->num_kv_heads;
    int32_t width = (args->num_heads + 2 * num_kv_heads) * dim;
    float *k = args->qkv + args->num_heads * dim;

    (void)dev;
    for (int32_t r = 0; args->bias && r < args->batch->rows; r++)
        for (int32_t i = 0; i < width; i++)
            args->qkv[r * args->stride + i] += args->bias[i];
    for (int32_t r = 0; r < args->batch->rows; r++)
        for (int32_t h = 0; h < args->num_heads + num_kv_heads; h++)
            turn_head(args, args->qkv + r * args->stride + h * dim,
                      h < args->num_heads ? args->q_norm : args->k_norm, args->batch->positions[r]);
    kv_store_ref(args->kv, args->batch, k, args->stride, k + num_kv_heads * dim, args->stride);
}
