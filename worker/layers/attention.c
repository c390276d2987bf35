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
    linear_forward(pass, &layer->qkv, pass->normed, pass->batch->rows, pass->qkv, qkv_width(pass));
}

/* x: heads side by side in each row of qkv. The kernel takes one stride, so it runs over the rows
 * of one head or over the heads of one row, whichever needs fewer calls. */
static void norm_heads(struct pass *pass, float *x, int32_t num_heads, const float *weight)
{
    int32_t rows = pass->batch->rows, n = pass->config->head_dim;
    int64_t stride = qkv_width(pass);
    float eps = pass->config->rms_norm_eps;

    if (rows < num_heads)
        for (int32_t row = 0; row < rows; row++, x += stride)
            pass->kernels->rms_norm(pass->dev, x, n, x, n, weight, num_heads, n, eps);
    else
        for (int32_t head = 0; head < num_heads; head++, x += n)
            pass->kernels->rms_norm(pass->dev, x, stride, x, stride, weight, rows, n, eps);
}

void attention_norm_heads(struct pass *pass, const struct layer *layer)
{
    norm_heads(pass, pass->qkv, pass->shard->num_heads, layer->q_norm);
    norm_heads(pass, pass->qkv + q_width(pass), pass->shard->num_kv_heads, layer->k_norm);
}

void attention_rotate(struct pass *pass, const struct rope_table *rope)
{
    /* k lies right behind q, so both are one run of heads. */
    int32_t num_heads = pass->shard->num_heads + pass->shard->num_kv_heads;

    pass->kernels->rope(pass->dev, pass->qkv, qkv_width(pass), pass->batch->positions,
                        rope->cos_sin, pass->batch->rows, num_heads, pass->config->head_dim,
                        rope->dim, rope->adjacent);
}

void attention_attend(struct pass *pass, const struct kv_layer *kv, float scale, int32_t window)
{
    int64_t stride = qkv_width(pass);
    const float *k = pass->qkv + q_width(pass), *v = k + kv_width(pass);

    pass->kernels->kv_store(pass->dev, kv, pass->batch, k, stride, v, stride);
    pass->kernels->attention(pass->dev, &(struct attention_args){
                                            .out = pass->attended,
                                            .q = pass->qkv,
                                            .q_stride = stride,
                                            .kv = kv,
                                            .batch = pass->batch,
                                            .num_heads = pass->shard->num_heads,
                                            .kv_head_of = pass->kv_head_of,
                                            .scale = scale,
                                            .window = window,
                                        });
}

enum status attention_output(struct pass *pass, const struct layer *layer)
{
    return linear_sum(pass, &layer->attention_output, pass->config->head_dim, pass->attended,
                      pass->batch->rows, pass->sum);
}
