/* Kernels that compute nothing: each says what it would have to do. */
#include "kernels/sim/sim.h"

#include "proto/base/memory.h"

/* Activations on a real device are 16 bits wide. */
enum { VALUE_BYTES = 2 };

static void stream(struct device *dev, int64_t num_values)
{
    sim_launch(dev, 0, (double)num_values * VALUE_BYTES);
}

static int64_t matrix_bytes(enum tensor_type type, int32_t n, int32_t k)
{
    return tensor_row_bytes(type, k) * n;
}

static void matrix_pack(struct device *dev, struct matrix *w, int32_t at, int32_t n,
                        const void *src, int64_t src_row_bytes, int64_t k0)
{
    (void)dev, (void)w, (void)at, (void)n, (void)src, (void)src_row_bytes, (void)k0;
}

static void quantize(struct device *dev, const struct activations *a)
{
    stream(dev, 2 * (int64_t)a->rows * a->k);
}

static void multiply(struct device *dev, const struct activations *a, const struct matrix *w)
{
    double bytes = (double)matrix_bytes(w->type, w->n, w->k);

    sim_launch(dev, 2.0 * a->rows * w->n * w->k,
               bytes + (double)a->rows * ((double)w->n + w->k) * VALUE_BYTES);
}

static void matmul(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                   const struct matrix *w)
{
    (void)out, (void)out_stride;
    multiply(dev, a, w);
}

static void matmul_groups(struct device *dev, double *sums, const struct activations *a,
                          const struct matrix *w, int32_t group_k)
{
    (void)sums, (void)group_k;
    multiply(dev, a, w);
}

static void matmul_groups_float(struct device *dev, float *out, const struct activations *a,
                                const struct matrix *w, int32_t group_k)
{
    (void)out, (void)group_k;
    multiply(dev, a, w);
}

static void embedding(struct device *dev, float *out, const int32_t *ids, int32_t rows,
                      const struct matrix *w, int32_t first_id, float scale)
{
    (void)out, (void)ids, (void)first_id, (void)scale;
    stream(dev, 2 * (int64_t)rows * w->k);
}

static void take_rows(struct device *dev, const struct take_rows_args *args)
{
    stream(dev, 2 * (int64_t)args->rows * args->n);
}

/* A fused kernel: the residual is read and written where something is added, and its norm written. */
static void add_norm(struct device *dev, const struct add_norm_args *args)
{
    int64_t count = (int64_t)args->rows * args->n, adds = args->sum || args->num_parts;

    stream(dev, count * (1 + 2 * adds + (args->norm != NULL)));
}

/* Of k and v of one position. */
static double kv_bytes(const struct kv_layer *kv)
{
    return 2.0 * kv->num_kv_heads * (double)kv_head_bytes(kv->type, kv->head_dim) / KV_BLOCK_TOKENS;
}

/* q and k are read and written, v read; k and v go to the cache. */
static void rope_store(struct device *dev, const struct rope_args *args)
{
    double heads = 2.0 * args->num_heads + 3.0 * args->kv->num_kv_heads;

    sim_launch(dev, 0, args->batch->rows * (heads * args->kv->head_dim * VALUE_BYTES + kv_bytes(args->kv)));
}

/* Each request's keys and values are read once, and each row meets all that come before it. */
static void attention(struct device *dev, const struct attention_args *args)
{
    const struct batch_view *batch = args->batch;
    double num_read = 0, num_met = 0, head_dim = args->kv->head_dim;

    for (int32_t i = 0; i < batch->num_requests; i++) {
        int32_t first = batch->row_start[i], end = batch->row_start[i + 1];

        num_read += batch->positions[end - 1] + 1;
        for (int32_t row = first; row < end; row++)
            num_met += batch->positions[row] + 1;
    }
    sim_launch(dev, 4 * num_met * args->num_heads * head_dim,
               num_read * kv_bytes(args->kv));
    if (args->quantized)
        quantize(dev, args->quantized);
}

static void gated(struct device *dev, const struct activations *out, const float *gate,
                  const float *up, int64_t stride)
{
    (void)gate, (void)up, (void)stride;
    stream(dev, 3 * (int64_t)out->rows * out->k);
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

/* The first token from `token` on, around the end, that the mask allows; -1: none. */
static int32_t next_allowed(const uint32_t *bitmask, int32_t vocab_size, int32_t token)
{
    for (int32_t i = 0; i < vocab_size;) {
        int32_t t = (token + i) % vocab_size;
        uint32_t rest = bitmask[t / 32] >> (t % 32);

        if (rest & 1)
            return t;
        /* The rest of a word that has nothing more, but not beyond the last token. */
        i += rest == 0 ? MIN(32 - t % 32, vocab_size - t) : 1;
    }
    return -1;
}

/* Logits with one peak: where it is depends on the request, the place and the token before, so that
 * a step that came out of order shows. */
static int32_t draw(struct device *dev, const struct draw_args *args)
{
    uint64_t place = (uint64_t)args->position << 32 | (uint32_t)args->previous;
    int32_t token = (int32_t)(mix(args->seed ^ mix(place)) % (uint64_t)args->vocab_size);

    sim_extend(dev, 0, (double)args->vocab_size * sizeof(float)); /* a row of one kernel for all */
    return args->bitmask ? next_allowed(args->bitmask, args->vocab_size, token) : token;
}

const struct kernels kernels_sim = {
    .name = "sim",
    .matrix_bytes = matrix_bytes,
    .matrix_pack = matrix_pack,
    .quantize = quantize,
    .matmul = matmul,
    .matmul_groups = matmul_groups,
    .matmul_groups_float = matmul_groups_float,
    .embedding = embedding,
    .take_rows = take_rows,
    .add_norm = add_norm,
    .rope_store = rope_store,
    .attention = attention,
    .silu_mul = gated,
    .gelu_mul = gated,
    .draw = draw,
};
