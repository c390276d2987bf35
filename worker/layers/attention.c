#include "worker/layers/attention.h"

/* Where the three lie in a row of qkv. */
static int32_t q_width(const struct pass *pass)
{
    return pass->shard->num_heads * pass->config->head_dim;
}

static int32_t kv_width(const struct pass *pass)
{
    return pass->shard->num_kv_heads * pass->config->head_dim;
}

static int32_t qkv_width(const struct pass *pass)
{
    return q_width(pass) + 2 * kv_width(pass);
}

void attention_project(struct pass *pass, const struct layer *layer)
{
    struct activations x = linear_reads(&layer->qkv, &pass->normed, pass->batch->rows);

    linear_forward(pass, &layer->qkv, &x, pass->qkv, qkv_width(pass));
}

void attention_rotate_and_store(struct pass *pass, const struct layer *layer,
                                const struct rope_table *rope, const struct kv_layer *kv)
{
    pass->kernels->rope_store(pass->dev, &(struct rope_args){
                                             .qkv = pass->qkv,
                                             .stride = qkv_width(pass),
                                             .kv = kv,
                                             .batch = pass->batch,
                                             .num_heads = pass->shard->num_heads,
                                             .bias = layer->qkv_bias,
                                             .q_norm = layer->q_norm,
                                             .k_norm = layer->k_norm,
                                             .eps = pass->config->rms_norm_eps,
                                             .cos_sin = rope->cos_sin,
                                             .rope_dim = rope->dim,
                                             .adjacent = rope->adjacent,
                                         });
}

/* Rows pass->logit_rows of an array, n floats of `stride` each. */
static void take_wanted(struct pass *pass, float *out, const float *in, int32_t stride, int32_t n)
{
    pass->kernels->take_rows(pass->dev, &(struct take_rows_args){
                                            .rows = pass->wanted->rows,
                                            .n = n,
                                            .out = out,
                                            .in = in,
                                            .stride = stride,
                                            .row_ids = pass->logit_rows,
                                        });
}

bool attention_narrow(struct pass *pass, int32_t layer)
{
    int32_t hidden = pass->config->hidden_size;

    if (layer + 1 < pass->config->num_layers || !pass->wanted)
        return true;
    take_wanted(pass, pass->few.qkv, pass->qkv, qkv_width(pass), q_width(pass));
    take_wanted(pass, pass->few.residual, pass->residual, hidden, hidden);
    pass_begin(pass, pass->wanted, &pass->few);
    pass->logit_rows = NULL;
    return pass->batch->rows > 0;
}

/* Every rank has matrices of the same types. */
static bool is_half(const struct layer *layer)
{
    return linear_is_half(&layer->qkv) && linear_is_half(&layer->attention_output) &&
           linear_is_half(&layer->gate_up) && linear_is_half(&layer->down);
}

static struct activations output_reads(const struct pass *pass, const struct layer *layer)
{
    return linear_reads(&layer->attention_output, &pass->attended, pass->batch->rows);
}

void attention_attend(struct pass *pass, const struct layer *layer, const struct kv_layer *kv, float scale,
                      int32_t window)
{
    struct activations quantized = output_reads(pass, layer);

    quantized.x = pass->attended.x;
    pass->kernels->attention(pass->dev, &(struct attention_args){
                                            .out = pass->attended.x,
                                            .quantized = quantized.q ? &quantized : NULL,
                                            .q = pass->qkv,
                                            .q_stride = qkv_width(pass),
                                            .kv = kv,
                                            .batch = pass->batch,
                                            .num_heads = pass->shard->num_heads,
                                            .kv_head_of = pass->kv_head_of,
                                            .scale = scale,
                                            .window = window,
                                            .device_order = is_half(layer),
                                        });
}

enum status attention_output(struct pass *pass, const struct layer *layer,
                             const struct norm_step *next)
{
    struct activations x = output_reads(pass, layer);

    return pass_add_linear(pass, &layer->attention_output, pass->config->head_dim, &x, next);
}
