#include "worker/layers/mlp.h"

static int32_t ffn_width(const struct pass *pass)
{
    return pass->shard->num_groups * pass->shard->group_columns;
}

static struct activations down_reads(const struct pass *pass, const struct layer *layer)
{
    return linear_reads(&layer->down, &pass->activated, pass->batch->rows);
}

/* What a device has of it. */
struct gated_kernels {
    void (*fused)(struct device *dev, const struct activations *out, const struct activations *a,
                  const struct matrix *w);
    void (*mul)(struct device *dev, const struct activations *out, const float *gate, const float *up, int64_t stride);
};

static void gate_up(struct pass *pass, const struct layer *layer, struct gated_kernels kernels)
{
    const struct linear *linear = &layer->gate_up;
    struct activations x = linear_reads(linear, &pass->normed, pass->batch->rows);
    struct activations out = down_reads(pass, layer);
    int32_t n = ffn_width(pass);

    if (kernels.fused && linear->num_matrices == 1) {
        kernels.fused(pass->dev, &out, &x, &linear->matrices[0]);
        return;
    }
    linear_forward(pass, linear, &x, pass->gate_up, 2 * n);
    kernels.mul(pass->dev, &out, pass->gate_up, pass->gate_up + n, 2 * n);
}

void mlp_silu(struct pass *pass, const struct layer *layer)
{
    const struct kernels *kernels = pass->kernels;

    gate_up(pass, layer, (struct gated_kernels){kernels->matmul_silu_mul, kernels->silu_mul});
}

void mlp_gelu(struct pass *pass, const struct layer *layer)
{
    const struct kernels *kernels = pass->kernels;

    gate_up(pass, layer, (struct gated_kernels){kernels->matmul_gelu_mul, kernels->gelu_mul});
}

enum status mlp_down(struct pass *pass, const struct layer *layer, const struct norm_step *next)
{
    struct activations x = down_reads(pass, layer);

    return pass_add_linear(pass, &layer->down, pass->shard->group_columns, &x, next);
}
