#include "kernels/cpu/cpu.h"

struct store {
    const struct kv_layer *kv;
    const struct batch_view *batch;
    const float *k, *v;
    int64_t k_stride, v_stride;
};

static void store_row(const struct store *args, int64_t row, int32_t block)
{
    const struct kv_layer *kv = args->kv;
    int32_t token = args->batch->positions[row] % KV_BLOCK_TOKENS, dim = kv->head_dim;
    uint16_t halves[LANES];

    for (int32_t h = 0; h < kv->num_kv_heads; h++) {
        int64_t head = ((int64_t)block * kv->num_kv_heads + h) * dim * KV_BLOCK_TOKENS;
        const float *k = args->k + row * args->k_stride + h * dim;
        const float *v = args->v + row * args->v_stride + h * dim;

        for (int32_t i = 0; i < dim; i += LANES) {
            vf_store_half(halves, vf_load(k + i));
            for (int l = 0; l < LANES; l++)
                kv->k[head + (int64_t)(i + l) * KV_BLOCK_TOKENS + token] = halves[l];
            vf_store_half(kv->v + head + (int64_t)token * dim + i, vf_load(v + i));
        }
    }
}

static void store_rows(const void *arg, int64_t first, int64_t end, void *scratch)
{
    const struct store *args = arg;
    const struct batch_view *batch = args->batch;
    int32_t request = 0;

    (void)scratch;
    for (int64_t row = first; row < end; row++) {
        while (batch->row_start[request + 1] <= row)
            request++;
        store_row(args, row, batch->block_tables[(int64_t)request * batch->block_table_stride +
                                                 batch->positions[row] / KV_BLOCK_TOKENS]);
    }
}

void KERNEL(kv_store)(struct device *dev, const struct kv_layer *kv, const struct batch_view *batch,
                      const float *k, int64_t k_stride, const float *v, int64_t v_stride)
{
    struct store args = {kv, batch, k, v, k_stride, v_stride};

    device_run(dev, batch->rows, 16, store_rows, &args);
}
