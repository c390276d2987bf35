#include "worker/layers/mlp.h"

static int32_t ffn_width(const struct pass *pass)
{
    return pass->shard->num_groups * pass->shard->group_columns;
}

void mlp_gate_up(struct pass *pass, const struct layer *layer)
{
    linear_forward(pass, &layer->gate_up, pass->normed, pass->batch->rows, pass->gate_up,
                   2 * ffn_width(pass));
}

void mlp_silu(struct pass *pass)
{
    int32_t n = ffn_width(pass);

    pass->kernels->silu_mul(pass->dev, pass->activated, pass->gate_up, pass->gate_up + n, 2 * n,
                            pass->batch->rows, n);
}

void mlp_gelu(struct pass *pass)
{
    int32_t n = ffn_width(pass);

    pass->kernels->gelu_mul(pass->dev, pass->activated, pass->gate_up, pass->gate_up + n, 2 * n,
                            pass->batch->rows, n);
}

enum status mlp_down(struct pass *pass, const struct layer *layer)
{
    return linear_sum(pass, &layer->down, pass->shard->group_columns, pass->activated,
                      pass->batch->rows, pass->sum);
}
