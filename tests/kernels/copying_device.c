#include "tests/kernels/copying_device.h"

#include "tests/support/expect.h"

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/module.h"

#include "proto/base/memory.h"

struct copying {
    struct cuda_device base; /* base.host packs */
    struct device *inner;
};

static struct copying *copying_of(struct device *dev)
{
    return (struct copying *)dev;
}

/* ---- what a call copies ------------------------------------------------------------------------ */

struct copy {
    void *host, *device;
    int64_t bytes;
    bool comes_back;
};

struct call {
    struct device *inner;
    const struct kernels *kernels;
    struct copy copies[24];
    int num_copies;
};

static struct call begin(struct device *dev)
{
    struct device *inner = copying_of(dev)->inner;

    return (struct call){.inner = inner, .kernels = device_kernels(inner)};
}

static void *send(struct call *call, const void *host, int64_t bytes, bool comes_back)
{
    struct copy *copy = &call->copies[call->num_copies];

    if (!host)
        return NULL;
    assert_true(call->num_copies++ < (int)COUNT_OF(call->copies));
    *copy = (struct copy){(void *)host, NULL, bytes, comes_back};
    expect_ok(device_alloc(call->inner, MAX(bytes, (int64_t)1), "a test's array", &copy->device));
    expect_ok(device_write(call->inner, copy->device, host, bytes));
    return copy->device;
}

static void *in(struct call *call, const void *host, int64_t bytes)
{
    return send(call, host, bytes, false);
}

static void *out(struct call *call, void *host, int64_t bytes)
{
    return send(call, host, bytes, true);
}

static void end(struct call *call)
{
    for (int i = 0; i < call->num_copies; i++) {
        struct copy *copy = &call->copies[i];

        if (copy->comes_back)
            expect_ok(device_read(call->inner, copy->host, copy->device, copy->bytes));
    }
    for (int i = 0; i < call->num_copies; i++)
        device_free(call->inner, call->copies[i].device, MAX(call->copies[i].bytes, (int64_t)1));
}

/* Also what kernels of a kind read that others write. */
static struct activations activations(struct call *call, const struct activations *a, bool are_written)
{
    int64_t count = (int64_t)a->rows * a->k, blocks = (int64_t)a->rows * (a->k / 32);

    return (struct activations){
        .rows = a->rows,
        .k = a->k,
        .group = a->group,
        .x = send(call, a->x, count * 4, are_written),
        .q = send(call, a->q, blocks * 32, are_written),
        .d = send(call, a->d, blocks * 4, are_written),
        .z = send(call, a->z, blocks * 4, are_written),
        .sums = send(call, a->sums, blocks * 4, are_written),
    };
}

static struct matrix matrix(struct call *call, const struct matrix *w)
{
    struct matrix copy = *w;

    copy.data = in(call, w->data, matrix_bytes_cuda(w->type, w->n, w->k));
    copy.next = NULL;
    return copy;
}

static struct kv_layer kv_layer(struct call *call, const struct kv_layer *kv, bool is_written)
{
    struct kv_layer copy = *kv;
    int64_t bytes = kv_num_groups(kv->num_blocks) * kv->group_stride * 2;

    copy.k = send(call, kv->k, bytes, is_written);
    copy.v = send(call, kv->v, bytes, is_written);
    return copy;
}

static struct batch_view batch_view(struct call *call, const struct batch_view *batch)
{
    struct batch_view copy = *batch;

    copy.row_start = in(call, batch->row_start, (batch->num_requests + 1) * 4);
    copy.positions = in(call, batch->positions, batch->rows * 4);
    copy.block_tables = in(call, batch->block_tables, (int64_t)batch->num_requests * batch->block_table_stride * 4);
    copy.max_position = 0;
    for (int32_t i = 0; i < batch->rows; i++)
        copy.max_position = MAX(copy.max_position, batch->positions[i]);
    return copy;
}

/* ---- the table ----------------------------------------------------------------------------------- */

static void matrix_pack_copying(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                                int64_t src_row_bytes, int64_t k0)
{
    matrix_pack_cuda_host(copying_of(dev)->base.host, w, at, n, src, src_row_bytes, k0);
}

static void quantize_copying(struct device *dev, const struct activations *a)
{
    struct call call = begin(dev);
    struct activations copy = activations(&call, a, true);

    call.kernels->quantize(call.inner, &copy);
    end(&call);
}

static void matmul_copying(struct device *dev, float *sums, int64_t stride, const struct activations *a,
                           const struct matrix *w)
{
    struct call call = begin(dev);
    struct activations x = activations(&call, a, false);
    struct matrix copy = matrix(&call, w);

    call.kernels->matmul(call.inner, out(&call, sums, ((a->rows - 1) * stride + w->n) * 4), stride, &x, &copy);
    end(&call);
}

static void matmul_groups_copying(struct device *dev, double *sums, const struct activations *a,
                                  const struct matrix *w, int32_t group_k)
{
    struct call call = begin(dev);
    struct activations x = activations(&call, a, false);
    struct matrix copy = matrix(&call, w);

    call.kernels->matmul_groups(call.inner, out(&call, sums, (int64_t)a->rows * w->n * 8), &x, &copy, group_k);
    end(&call);
}

static void matmul_groups_float_copying(struct device *dev, float *sums, const struct activations *a,
                                        const struct matrix *w, int32_t group_k)
{
    struct call call = begin(dev);
    struct activations x = activations(&call, a, false);
    struct matrix copy = matrix(&call, w);

    call.kernels->matmul_groups_float(call.inner, out(&call, sums, (int64_t)a->rows * w->n * 4), &x, &copy, group_k);
    end(&call);
}

static void embedding_copying(struct device *dev, float *vectors, const int32_t *ids, int32_t rows,
                              const struct matrix *w, int32_t first_id, float scale)
{
    struct call call = begin(dev);
    struct matrix copy = matrix(&call, w);

    call.kernels->embedding(call.inner, out(&call, vectors, (int64_t)rows * w->k * 4), in(&call, ids, rows * 4), rows,
                            &copy, first_id, scale);
    end(&call);
}

static void take_rows_copying(struct device *dev, const struct take_rows_args *args)
{
    struct call call = begin(dev);
    struct take_rows_args copy = *args;
    int64_t most = 0;

    for (int32_t i = 0; i < args->rows; i++)
        most = MAX(most, (int64_t)args->row_ids[i]);
    copy.out = out(&call, args->out, args->rows * args->stride * 4);
    copy.in = in(&call, args->in, (most * args->stride + args->n) * 4);
    copy.row_ids = in(&call, args->row_ids, args->rows * 4);
    call.kernels->take_rows(call.inner, &copy);
    end(&call);
}

static void add_norm_copying(struct device *dev, const struct add_norm_args *args)
{
    struct call call = begin(dev);
    struct add_norm_args copy = *args;
    struct activations normed = args->out ? activations(&call, args->out, true) : (struct activations){0};
    const double *parts[16];
    int64_t rows = args->rows;

    for (int32_t i = 0; args->row_ids && i < args->rows; i++)
        rows = MAX(rows, (int64_t)args->row_ids[i] + 1);
    copy.residual = out(&call, args->residual, rows * args->n * 4);
    copy.sum = in(&call, args->sum, rows * args->n * 4);
    for (int32_t p = 0; p < args->num_parts; p++)
        parts[p] = in(&call, args->parts[p], rows * args->n * 8);
    copy.parts = parts;
    copy.post_norm = in(&call, args->post_norm, args->n * 4);
    copy.norm = in(&call, args->norm, args->n * 4);
    copy.row_ids = in(&call, args->row_ids, args->rows * 4);
    copy.out = &normed;
    call.kernels->add_norm(call.inner, &copy);
    end(&call);
}

static void rope_store_copying(struct device *dev, const struct rope_args *args)
{
    struct call call = begin(dev);
    struct rope_args copy = *args;
    struct kv_layer kv = kv_layer(&call, args->kv, true);
    struct batch_view batch = batch_view(&call, args->batch);
    int32_t dim = args->kv->head_dim, width = (args->num_heads + 2 * args->kv->num_kv_heads) * dim;

    copy.kv = &kv;
    copy.batch = &batch;
    copy.qkv = out(&call, args->qkv, ((args->batch->rows - 1) * args->stride + width) * 4);
    copy.bias = in(&call, args->bias, width * 4);
    copy.q_norm = in(&call, args->q_norm, dim * 4);
    copy.k_norm = in(&call, args->k_norm, dim * 4);
    copy.cos_sin = in(&call, args->cos_sin, (int64_t)(batch.max_position + 1) * args->rope_dim * 4);
    call.kernels->rope_store(call.inner, &copy);
    end(&call);
}

static void attention_copying(struct device *dev, const struct attention_args *args)
{
    struct call call = begin(dev);
    struct attention_args copy = *args;
    struct kv_layer kv = kv_layer(&call, args->kv, false);
    struct batch_view batch = batch_view(&call, args->batch);
    struct activations quantized;
    int64_t rows = batch.rows, width = (int64_t)args->num_heads * args->kv->head_dim;

    copy.kv = &kv;
    copy.batch = &batch;
    copy.out = out(&call, args->out, rows * width * 4);
    copy.q = in(&call, args->q, ((rows - 1) * args->q_stride + width) * 4);
    if (args->quantized) {
        quantized = activations(&call, args->quantized, true);
        copy.out = quantized.x;
        copy.quantized = &quantized;
    }
    copy.kv_head_of = in(&call, args->kv_head_of, args->num_heads * 4);
    call.kernels->attention(call.inner, &copy);
    end(&call);
}

static void gate(struct device *dev, bool is_silu, const struct activations *activated, const float *gate,
                 const float *up, int64_t stride)
{
    struct call call = begin(dev);
    struct activations copy = activations(&call, activated, true);
    int64_t bytes = ((activated->rows - 1) * stride + activated->k) * 4;

    (is_silu ? call.kernels->silu_mul : call.kernels->gelu_mul)(call.inner, &copy, in(&call, gate, bytes),
                                                                in(&call, up, bytes), stride);
    end(&call);
}

static void silu_mul_copying(struct device *dev, const struct activations *activated, const float *gates,
                             const float *up, int64_t stride)
{
    gate(dev, true, activated, gates, up, stride);
}

static void gelu_mul_copying(struct device *dev, const struct activations *activated, const float *gates,
                             const float *up, int64_t stride)
{
    gate(dev, false, activated, gates, up, stride);
}

static const struct kernels kernels_copying = {
    .name = "cuda",
    .matrix_bytes = matrix_bytes_cuda,
    .matrix_pack = matrix_pack_copying,
    .quantize = quantize_copying,
    .matmul = matmul_copying,
    .matmul_groups = matmul_groups_copying,
    .matmul_groups_float = matmul_groups_float_copying,
    .embedding = embedding_copying,
    .take_rows = take_rows_copying,
    .add_norm = add_norm_copying,
    .rope_store = rope_store_copying,
    .attention = attention_copying,
    .silu_mul = silu_mul_copying,
    .gelu_mul = gelu_mul_copying,
};

/* ---- the device ---------------------------------------------------------------------------------- */

static void copying_close(struct device *dev)
{
    struct copying *copying = copying_of(dev);

    device_close(copying->inner);
    mem_free(copying);
}

static enum status copying_alloc(struct device *dev, int64_t bytes, const char *what, void **p)
{
    (void)dev;
    return mem_map((size_t)bytes, what, p);
}

static void copying_free(struct device *dev, void *p, int64_t bytes)
{
    (void)dev;
    mem_unmap(p, (size_t)bytes);
}

static const struct device_ops copying_ops = {
    .close = copying_close,
    .alloc = copying_alloc,
    .free = copying_free,
};

struct device *copying_device_new(struct device *inner)
{
    struct copying *copying = mem_new(struct copying);

    copying->base.device = (struct device){.ops = &copying_ops, .kernels = &kernels_copying};
    copying->base.host = ((struct cuda_device *)inner)->host;
    copying->inner = inner;
    return &copying->base.device;
}
