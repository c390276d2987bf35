#include "worker/layers/mlp.h"

static int32_t ffn_width(const struct pass *pass)
{
    return pass->shard->num_groups * pass->shard->group_columns;
}

void mlp_gate_up(struct pass *pass, const struct layer *layer)
{
    struct activations x = linear_reads(&layer->gate_up, &pass->normed, pass->batch->rows);

    linear_forward(pass, &layer->gate_up, &x, pass->gate_up, 2 * ffn_width(pass));
}

static struct activations down_reads(const struct pass *pass, const struct layer *layer)
{
    return linear_reads(&layer->down, &pass->activated, pass->batch->rows);
}

void mlp_silu(struct pass *pass, const struct layer *layer)
{
    int32_t n = ffn_width(pass);
    struct activations out = down_reads(pass, layer);

    pass->kernels->silu_mul(pass->dev, &out, pass->gate_up, pass->gate_up + n, 2 * n);
}

void mlp_gelu(struct pass *pass, const struct layer *layer)
{
    int32_t n = ffn_width(pass);
    struct activations out = down_reads(pass, layer);

    pass->kernels->gelu_mul(pass->dev, &out, pass->gate_up, pass->gate_up + n, 2 * n);
}

enum status mlp_down(struct pass *pass, const struct layer *layer, const struct norm_step *next)
{
    struct activations x = down_reads(pass, layer);

    return pass_add_linear(pass, &layer->down, pass->shard->group_columns, &x, next);
}
