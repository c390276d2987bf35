#include "kernels/bench/roofline.h"

#include "kernels/bench/arrays.h"
#include "kernels/bench/limits.h"
#include "kernels/quant_block.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <math.h>
#include <string.h>

/* ---- shapes ---------------------------------------------------------------------------------- */

struct model_shape {
    const char *name;
    int32_t hidden, ffn, num_heads, num_kv_heads, head_dim, window;
    int32_t vocab; /* rows of an embedding table; a real one's first, as few of it are read */
};

enum { SMOLLM2, GEMMA3, NUM_MODELS };

static const struct model_shape models[NUM_MODELS] = {
    [SMOLLM2] = {"smollm2", 576, 1536, 9, 3, 64, 0, 49152},
    [GEMMA3] = {"gemma3", 640, 2048, 4, 1, 256, 512, 49152},
};

/* The matrices of SmolLM2-135M Q4_1 and of Gemma 3 270M Q4_K_M, as the layers pack them. */
static const struct matrix_row {
    const char *shape;
    enum tensor_type type;
    int32_t n, k;
    int32_t group_k;   /* 0: a matmul, else matmul_groups and what a rank alone does in its place */
    int32_t most_rows; /* logits are not wanted of more; 0: any */
    bool is_gate_up;
} matrices[] = {
    {"smollm2 qkv", TYPE_Q4_1, 960, 576, 0, 0},
    {"smollm2 attention_output", TYPE_Q4_1, 576, 576, 64, 0},
    {"smollm2 gate_up", TYPE_Q4_1, 3072, 576, 0, 0, true},
    {"smollm2 down", TYPE_Q4_1, 576, 1536, 96, 0},
    {"smollm2 logits", TYPE_Q8_0, 49152, 576, 0, 64},
    {"gemma3 qkv", TYPE_Q5_0, 1536, 640, 0, 0},
    {"gemma3 v", TYPE_Q8_0, 256, 640, 0, 0},
    {"gemma3 attention_output", TYPE_Q4_K, 640, 1024, 256, 0},
    {"gemma3 gate_up", TYPE_Q5_0, 4096, 640, 0, 0, true},
    {"gemma3 down", TYPE_Q4_K, 640, 2048, 128, 0},
    {"gemma3 down", TYPE_Q6_K, 640, 2048, 128, 0},
    {"gemma3 logits", TYPE_Q8_0, 262144, 640, 0, 8},
};

/* The last `rows` of `length` tokens, of each of `requests` requests. Those that decode read layers in
 * turn, as a step does. */
static const struct attention_row {
    const char *shape;
    int model;
    int32_t requests, rows, length;
    bool is_local; /* sees its model's window alone */
    enum kv_type type;
} attentions[] = {
    {"smollm2 prefill", SMOLLM2, 1, 512, 512, false},
    {"smollm2 prefill", SMOLLM2, 1, 4096, 4096, false},
    {"smollm2 late chunk", SMOLLM2, 1, 512, 4096, false},
    {"smollm2 decode", SMOLLM2, 1, 1, 512, false},
    {"smollm2 decode", SMOLLM2, 1, 1, 2048, false},
    {"smollm2 decode", SMOLLM2, 1, 1, 8000, false},
    {"smollm2 decode", SMOLLM2, 8, 1, 512, false},
    {"smollm2 decode", SMOLLM2, 8, 1, 2048, false},
    {"smollm2 decode", SMOLLM2, 8, 1, 8000, false},
    {"smollm2 decode", SMOLLM2, 32, 1, 512, false},
    {"smollm2 decode", SMOLLM2, 32, 1, 2048, false},
    {"smollm2 decode", SMOLLM2, 256, 1, 512, false},
    {"gemma3 prefill", GEMMA3, 1, 512, 512, false},
    {"gemma3 local prefill", GEMMA3, 1, 2048, 2048, true},
    {"gemma3 local late chunk", GEMMA3, 1, 512, 4096, true},
    {"gemma3 decode", GEMMA3, 1, 1, 2048, false},
    {"gemma3 local decode", GEMMA3, 1, 1, 2048, true},
    {"gemma3 decode", GEMMA3, 8, 1, 2048, false},
    {"smollm2 prefill", SMOLLM2, 1, 512, 512, false, KV_FLOAT16},
    {"smollm2 decode", SMOLLM2, 1, 1, 2048, false, KV_FLOAT16},
    {"smollm2 decode", SMOLLM2, 32, 1, 512, false, KV_FLOAT16},
    {"smollm2 decode", SMOLLM2, 32, 1, 2048, false, KV_FLOAT16},
    {"gemma3 decode", GEMMA3, 8, 1, 2048, false, KV_FLOAT16},
    {"smollm2 prefill", SMOLLM2, 1, 512, 512, false, KV_FP8},
    {"smollm2 decode", SMOLLM2, 1, 1, 512, false, KV_FP8},
    {"smollm2 decode", SMOLLM2, 1, 1, 2048, false, KV_FP8},
    {"smollm2 decode", SMOLLM2, 1, 1, 8000, false, KV_FP8},
    {"smollm2 decode", SMOLLM2, 32, 1, 2048, false, KV_FP8},
    {"gemma3 decode", GEMMA3, 8, 1, 2048, false, KV_FP8},
    {"smollm2 prefill", SMOLLM2, 1, 512, 512, false, KV_INT8},
    {"smollm2 decode", SMOLLM2, 1, 1, 512, false, KV_INT8},
    {"smollm2 decode", SMOLLM2, 1, 1, 2048, false, KV_INT8},
    {"smollm2 decode", SMOLLM2, 1, 1, 8000, false, KV_INT8},
    {"smollm2 decode", SMOLLM2, 32, 1, 2048, false, KV_INT8},
    {"gemma3 decode", GEMMA3, 8, 1, 2048, false, KV_INT8},
};

static const int32_t row_counts[] = {1, 2, 4, 8, 16, 32, 64, 512};

/* ---- one figure ------------------------------------------------------------------------------ */

enum { COPIES_BYTES = 96 << 20, MAX_COPIES = 512, LEAST_NS = 100000, NUM_RUNS = 3 };

struct run {
    const struct roofline_options *options;
    struct roofline_limits limits; /* of as many threads as the device has */
    struct device *dev;
    const struct kernels *kernels;
    struct random random;
    bool found; /* a kernel of the wanted name */
};

static bool is_wanted(struct run *run, const char *kernel)
{
    bool is = !run->options->kernel || strcmp(run->options->kernel, kernel) == 0;

    run->found |= is;
    return is;
}

/* Of one call of work(args, i), i = 0, 1, ... A run is as many as the clock can tell. */
static double best_seconds(const struct run *run, void (*work)(void *args, int64_t i), void *args)
{
    int64_t best = INT64_MAX, end = clock_deadline_ns(run->options->run_ms), calls = 1, at = 0;

    for (int n = 0; n < NUM_RUNS || clock_now_ns() < end;) {
        int64_t ns = -limit_clock_ns(run->limits.threads);

        for (int64_t i = 0; i < calls; i++)
            work(args, at++);
        ns += limit_clock_ns(run->limits.threads);
        if (ns < LEAST_NS) {
            calls = 1 + calls * LEAST_NS / MAX(ns, (int64_t)1000);
            continue;
        }
        best = MIN(best, ns / calls);
        n++;
    }
    return (double)best * 1e-9;
}

/* What a call moves and does. */
struct work {
    double bytes, int8_ops, float_ops, bfloat16_ops;
};

static void tell(const struct run *run, struct roofline_figure figure, const struct work *work,
                 double seconds)
{
    const struct roofline_limits *limits = &run->limits;
    const struct {
        const char *name;
        double amount, limit;
    } bounds[] = {
        {"memory", work->bytes, limits->read_gb_s},
        {"int8", work->int8_ops, limits->gop_s.int8},
        {"float", work->float_ops, limits->gop_s.floats},
        {"bfloat16", work->bfloat16_ops, limits->gop_s.bfloat16},
    };

    figure.isa = run->kernels->name;
    figure.threads = limits->threads;
    figure.us = seconds * 1e6;
    figure.gb_s = work->bytes * 1e-9 / seconds;
    figure.gop_s = (work->int8_ops + work->float_ops + work->bfloat16_ops) * 1e-9 / seconds;
    figure.bound = "memory";
    for (size_t i = 0; i < COUNT_OF(bounds); i++) {
        double share = bounds[i].limit > 0 ? bounds[i].amount * 1e-9 / bounds[i].limit / seconds : 0;

        if (share > figure.share) {
            figure.share = share;
            figure.bound = bounds[i].name;
        }
    }
    run->options->on_figure(run->options->user, &figure);
}

/* ---- matrices -------------------------------------------------------------------------------- */

struct matmul_kind;

struct matmul {
    struct run *run;
    const struct matrix_row *row;
    const struct matmul_kind *kind;
    struct activations a, gated;
    struct matrix copies[MAX_COPIES];
    int32_t num_copies;
    void *out; /* [rows, n] */
};

static void do_matmul(struct matmul *m, const struct matrix *w)
{
    m->run->kernels->matmul(m->run->dev, m->out, w->n, &m->a, w);
}

static void do_matmul_groups(struct matmul *m, const struct matrix *w)
{
    m->run->kernels->matmul_groups(m->run->dev, m->out, &m->a, w, m->row->group_k);
}

static void do_matmul_groups_float(struct matmul *m, const struct matrix *w)
{
    m->run->kernels->matmul_groups_float(m->run->dev, m->out, &m->a, w, m->row->group_k);
}

static void do_matmul_silu_mul(struct matmul *m, const struct matrix *w)
{
    struct activations codes = m->gated;

    codes.x = NULL;
    m->run->kernels->matmul_silu_mul(m->run->dev, &codes, &m->a, w);
}

static bool is_plain(const struct run *run, const struct matrix_row *row)
{
    (void)run;
    return row->group_k == 0;
}

static bool is_of_groups(const struct run *run, const struct matrix_row *row)
{
    (void)run;
    return row->group_k > 0;
}

static bool is_gated(const struct run *run, const struct matrix_row *row)
{
    return row->is_gate_up && run->kernels->matmul_silu_mul;
}

static const struct matmul_kind {
    const char *kernel;
    void (*run)(struct matmul *m, const struct matrix *w);
    bool (*is_for)(const struct run *run, const struct matrix_row *row);
    double out_bytes; /* of a column of w */
} matmuls[] = {
    {"matmul", do_matmul, is_plain, 4},
    {"matmul_groups", do_matmul_groups, is_of_groups, 8},
    {"matmul_groups_float", do_matmul_groups_float, is_of_groups, 4},
    {"matmul_silu_mul", do_matmul_silu_mul, is_gated, 1.375 / 2},
};

static void run_matmul(void *args, int64_t i)
{
    struct matmul *m = args;

    m->kind->run(m, &m->copies[i % m->num_copies]);
}

static enum status bench_rows_of(struct matmul *m, int32_t rows, int64_t matrix_bytes)
{
    const struct matrix_row *row = m->row;
    struct run *run = m->run;
    bool is_float = quant_form(row->type).scales == SCALE_NONE;
    double ops = 2.0 * rows * row->n * row->k;
    int64_t out_bytes = (int64_t)rows * row->n * (int64_t)sizeof(double);
    struct work work = {
        .bytes = (double)matrix_bytes + (double)rows * row->k * (is_float ? 4 : 1.375) +
                 (double)rows * row->n * m->kind->out_bytes,
        .int8_ops = is_float ? 0 : ops,
        .float_ops = is_float ? ops : 0,
    };

    TRY(device_alloc(run->dev, out_bytes, "what a matrix makes", &m->out));
    activations_init(&m->a, &run->random, rows, row->k);
    if (row->group_k)
        m->a.group = activation_group(row->group_k);
    run->kernels->quantize(run->dev, &m->a);
    activations_init(&m->gated, &run->random, rows, row->n / 2);
    tell(run,
         (struct roofline_figure){
             .kernel = m->kind->kernel,
             .shape = row->shape,
             .type = tensor_type_info(row->type)->name,
             .rows = rows,
             .n = row->n,
             .k = row->k,
         },
         &work, best_seconds(run, run_matmul, m));
    activations_close(&m->a);
    activations_close(&m->gated);
    device_free(run->dev, m->out, out_bytes);
    return OK;
}

static enum status pack_copies(struct matmul *m, const void *tensor, int64_t bytes)
{
    const struct matrix_row *row = m->row;
    int64_t copies = MIN(COPIES_BYTES / bytes + 1, (int64_t)MAX_COPIES);

    while (m->num_copies < copies) {
        struct matrix *w = &m->copies[m->num_copies];

        *w = (struct matrix){.type = row->type, .n = row->n, .k = row->k};
        TRY(device_alloc(m->run->dev, bytes, "a matrix", &w->data));
        m->num_copies++;
        device_expect_full(m->run->dev, w->data, bytes);
        m->run->kernels->matrix_pack(m->run->dev, w, 0, row->n, tensor,
                                     tensor_row_bytes(row->type, row->k), 0);
    }
    return OK;
}

static enum status bench_matrix(struct run *run, const struct matmul_kind *kind,
                                const struct matrix_row *row)
{
    AUTO_MEM struct matmul *m = mem_new(struct matmul);
    AUTO_MEM void *tensor = random_weights(&run->random, row->type, row->n, row->k);
    int64_t bytes = run->kernels->matrix_bytes(row->type, row->n, row->k);
    enum status status;

    m->run = run;
    m->kind = kind;
    m->row = row;
    status = pack_copies(m, tensor, bytes);
    for (size_t i = 0; i < COUNT_OF(row_counts) && status == OK; i++)
        if (row->most_rows == 0 || row_counts[i] <= row->most_rows)
            status = bench_rows_of(m, row_counts[i], bytes);
    for (int32_t i = 0; i < m->num_copies; i++)
        device_free(run->dev, m->copies[i].data, bytes);
    return status;
}

static enum status bench_matrices(struct run *run)
{
    for (size_t k = 0; k < COUNT_OF(matmuls); k++)
        if (is_wanted(run, matmuls[k].kernel))
            for (size_t i = 0; i < COUNT_OF(matrices); i++)
                if (matmuls[k].is_for(run, &matrices[i]))
                    TRY(bench_matrix(run, &matmuls[k], &matrices[i]));
    return OK;
}

/* ---- a batch --------------------------------------------------------------------------------- */

/* Requests with their KV cache, and what a layer has in its workspaces. */
struct place {
    struct run *run;
    const struct model_shape *model;
    struct batch_view batch;
    void *kv;
    int64_t kv_bytes;
    struct kv_layer layers[MAX_COPIES]; /* of the model, taken in turn */
    int32_t num_layers;
    enum kv_type kv_type;
    int32_t *row_start, *positions, *tables, *kv_head_of, *ids;
    int32_t q_width, kv_width; /* columns */
    int64_t qkv_stride;
    float *qkv;          /* [rows, q_width + 2 kv_width] */
    float *attended;     /* [rows, q_width] */
    float *gate_up;      /* [rows, 2 ffn] */
    float *weights;      /* [hidden], of norms */
    float *cos_sin;      /* [length, head_dim / 2, 2] */
    float *residual;     /* [rows, hidden] */
    struct activations narrow, wide; /* of hidden and of ffn columns */
    struct activations normed, activated; /* the same, only as quantised weights read them */
    struct matrix table; /* embedding */
};

static float *random_array(struct run *run, int64_t count)
{
    float *x = mem_new_array(float, (size_t)count);

    random_hidden(&run->random, x, count);
    return x;
}

/* Rotations, so that numbers rotated again and again stay as large as they are. */
static float *rotations(int64_t count)
{
    float *cos_sin = mem_new_array(float, (size_t)count);

    for (int64_t i = 0; i < count; i += 2) {
        cos_sin[i] = cosf((float)i);
        cos_sin[i + 1] = sinf((float)i);
    }
    return cos_sin;
}

static void place_batch(struct place *place, int32_t requests, int32_t rows, int32_t length)
{
    int32_t blocks = divide_up(length, KV_BLOCK_TOKENS), total = requests * rows;

    place->row_start = mem_new_array(int32_t, (size_t)requests + 1);
    place->positions = mem_new_array(int32_t, (size_t)total);
    place->ids = mem_new_array(int32_t, (size_t)total);
    place->tables = mem_new_array(int32_t, (size_t)requests * (size_t)blocks);
    for (int32_t i = 0; i <= requests; i++)
        place->row_start[i] = i * rows;
    for (int32_t i = 0; i < total; i++) {
        place->positions[i] = length - rows + i % rows;
        place->ids[i] = (int32_t)(random_u32(&place->run->random) % (uint32_t)place->model->vocab);
    }
    for (int32_t i = 0; i < requests * blocks; i++) { /* in no order, as after a while */
        int32_t other = (int32_t)(random_u32(&place->run->random) % (uint32_t)(i + 1));

        place->tables[i] = place->tables[other];
        place->tables[other] = i;
    }
    place->batch = (struct batch_view){total, requests, place->row_start, place->positions,
                                       place->tables, blocks};
}

static struct kv_layer like_of_layers(const struct place *place)
{
    return (struct kv_layer){
        .num_blocks = place->batch.num_requests * place->batch.block_table_stride,
        .num_kv_heads = place->model->num_kv_heads,
        .head_dim = place->model->head_dim,
        .type = place->kv_type,
    };
}

static int64_t kv_bytes(const struct place *place, int32_t num_layers)
{
    struct kv_layer like = like_of_layers(place);

    return kv_num_groups(like.num_blocks) * kv_group_bytes(&like, num_layers);
}

/* 0.25 to 0.5, of either sign. */
static void random_bfloat16(struct random *random, void *memory, int64_t bytes)
{
    uint16_t *elements = memory;

    for (int64_t i = 0; i < bytes / 2; i++)
        elements[i] = (uint16_t)((random_u32(random) & 0x807f) | 0x3e80);
}

static void random_halves(struct random *random, void *memory, int64_t bytes)
{
    uint16_t *halves = memory;

    for (int64_t i = 0; i < bytes / 2; i++)
        halves[i] = (uint16_t)((random_u32(random) & 0x83ff) | 0x3400);
}

static void random_fp8(struct random *random, void *memory, int64_t bytes)
{
    uint8_t *codes = memory;

    for (int64_t i = 0; i < bytes; i++)
        codes[i] = (uint8_t)((random_u32(random) & 0x87) | 0x28);
}

/* Codes are pieces of scales too. */
static void random_int8(struct random *random, void *memory, int64_t bytes)
{
    float *scales = memory;

    for (int64_t i = 0; i < bytes / 4; i++)
        scales[i] = random_float(random, 0.002f, 0.004f);
}

static void (*const random_elements[NUM_KV_TYPES])(struct random *random, void *memory, int64_t bytes) = {
    [KV_BFLOAT16] = random_bfloat16, [KV_FLOAT16] = random_halves, [KV_FP8] = random_fp8, [KV_INT8] = random_int8,
};

/* As a worker lays them out. */
static enum status place_kv(struct place *place, int32_t num_layers)
{
    struct kv_layer like = like_of_layers(place);

    place->kv_bytes = kv_bytes(place, num_layers);
    TRY(device_alloc(place->run->dev, place->kv_bytes, "keys and values", &place->kv));
    device_expect_full(place->run->dev, place->kv, place->kv_bytes);
    random_elements[place->kv_type](&place->run->random, place->kv, place->kv_bytes);
    place->num_layers = num_layers;
    kv_place_layers(&like, place->kv, num_layers, place->layers);
    return OK;
}

static void place_arrays(struct place *place)
{
    const struct model_shape *model = place->model;
    int32_t rows = place->batch.rows, length = place->batch.block_table_stride * KV_BLOCK_TOKENS;
    struct run *run = place->run;

    place->qkv = random_array(run, rows * place->qkv_stride);
    place->attended = random_array(run, (int64_t)rows * place->q_width);
    place->gate_up = random_array(run, (int64_t)rows * 2 * model->ffn);
    place->weights = random_array(run, MAX(model->hidden, model->head_dim));
    place->cos_sin = rotations((int64_t)length * model->head_dim);
    place->residual = random_array(run, (int64_t)rows * model->hidden);
    activations_init(&place->narrow, &run->random, rows, model->hidden);
    activations_init(&place->wide, &run->random, rows, model->ffn);
    place->normed = place->narrow;
    place->activated = place->wide;
    place->normed.x = place->activated.x = NULL;
    place->kv_head_of = mem_new_array(int32_t, (size_t)model->num_heads);
    for (int32_t h = 0; h < model->num_heads; h++)
        place->kv_head_of[h] = h * model->num_kv_heads / model->num_heads;
}

static struct place *place_new(struct run *run, const struct model_shape *model, int32_t requests,
                               int32_t rows, int32_t length)
{
    struct place *place = mem_new(struct place);

    *place = (struct place){
        .run = run,
        .model = model,
        .q_width = model->num_heads * model->head_dim,
        .kv_width = model->num_kv_heads * model->head_dim,
    };
    place->qkv_stride = place->q_width + 2 * place->kv_width;
    place_batch(place, requests, rows, length);
    place_arrays(place);
    return place;
}

static void place_free(struct place *place)
{
    void *arrays[] = {place->row_start, place->positions, place->tables,  place->kv_head_of,
                      place->ids,       place->qkv,       place->attended, place->gate_up,
                      place->weights,   place->cos_sin,   place->residual};

    for (size_t i = 0; i < COUNT_OF(arrays); i++)
        mem_free(arrays[i]);
    if (place->kv)
        device_free(place->run->dev, place->kv, place->kv_bytes);
    activations_close(&place->narrow);
    activations_close(&place->wide);
    if (place->table.data)
        device_free(place->run->dev, place->table.data,
                    place->run->kernels->matrix_bytes(place->table.type, place->table.n,
                                                      place->table.k));
    mem_free(place);
}
DEFINE_AUTO_FREE(place)

/* ---- attention ------------------------------------------------------------------------------- */

struct attention {
    const struct place *place;
    struct attention_args args;
};

static void do_attention(void *user, int64_t i)
{
    struct attention *attention = user;
    const struct place *place = attention->place;

    attention->args.kv = &place->layers[i % place->num_layers];
    place->run->kernels->attention(place->run->dev, &attention->args);
}

/* Keys that all rows of a request read, those that several read once. */
static int32_t keys_read(const struct attention_row *row, int32_t window)
{
    return window ? MIN(row->length, window - 1 + row->rows) : row->length;
}

static struct work attention_work(const struct attention_row *row, const struct place *place,
                                  int32_t window)
{
    struct work work = {
        .bytes = 2.0 * place->model->num_kv_heads * (double)kv_head_bytes(row->type, place->model->head_dim) /
                     KV_BLOCK_TOKENS * row->requests * keys_read(row, window) +
                 8.0 * place->batch.rows * place->q_width,
    };

    double *ops = row->type == KV_BFLOAT16 ? &work.bfloat16_ops : &work.float_ops;

    for (int32_t i = 0; i < place->batch.rows; i++) {
        int32_t keys = place->positions[i] + 1;

        *ops += 4.0 * (window ? MIN(keys, window) : keys) * place->q_width;
    }
    return work;
}

static enum status bench_attention(struct run *run, const struct attention_row *row)
{
    const struct model_shape *model = &models[row->model];
    int32_t window = row->is_local ? model->window : 0;
    AUTO_FREE(place) struct place *place =
        place_new(run, model, row->requests, row->rows, row->length);
    int64_t copies;

    place->kv_type = row->type;
    copies = MIN(COPIES_BYTES / kv_bytes(place, 1) + 1, (int64_t)MAX_COPIES);
    TRY(place_kv(place, row->rows > 1 ? 1 : (int32_t)copies));

    struct attention attention = {
        place,
        {.out = place->attended, .q = place->qkv, .q_stride = place->qkv_stride,
         .batch = &place->batch, .num_heads = model->num_heads, .kv_head_of = place->kv_head_of,
         .scale = 0.125f, .window = window},
    };
    struct work work = attention_work(row, place, window);

    tell(run,
         (struct roofline_figure){
             .kernel = "attention",
             .shape = row->shape,
             .type = kv_type_name(row->type),
             .rows = row->rows,
             .requests = row->requests,
             .length = row->length,
         },
         &work, best_seconds(run, do_attention, &attention));
    return OK;
}

static enum status bench_attentions(struct run *run)
{
    if (is_wanted(run, "attention"))
        for (size_t i = 0; i < COUNT_OF(attentions); i++)
            TRY(bench_attention(run, &attentions[i]));
    return OK;
}

/* ---- the small kernels ----------------------------------------------------------------------- */

static void do_embedding(struct place *p)
{
    p->run->kernels->embedding(p->run->dev, p->narrow.x, p->ids, p->batch.rows, &p->table, 0, 1);
}

static void do_quantize(struct place *p)
{
    p->run->kernels->quantize(p->run->dev, &p->narrow);
}

static void do_add_norm(struct place *p)
{
    p->run->kernels->add_norm(p->run->dev, &(struct add_norm_args){
                                               .rows = p->batch.rows,
                                               .n = p->model->hidden,
                                               .residual = p->residual,
                                               .sum = p->narrow.x,
                                               .norm = p->weights,
                                               .eps = 1e-5f,
                                               .out = &p->normed,
                                           });
}

static void do_rope_store(struct place *p)
{
    const float *head_norm = p->model == &models[GEMMA3] ? p->weights : NULL;

    p->run->kernels->rope_store(p->run->dev, &(struct rope_args){
                                                 .qkv = p->qkv,
                                                 .stride = p->qkv_stride,
                                                 .kv = &p->layers[0],
                                                 .batch = &p->batch,
                                                 .num_heads = p->model->num_heads,
                                                 .q_norm = head_norm,
                                                 .k_norm = head_norm,
                                                 .eps = 1e-5f,
                                                 .cos_sin = p->cos_sin,
                                                 .rope_dim = p->model->head_dim,
                                                 .adjacent = p->model == &models[SMOLLM2],
                                             });
}

static void do_silu_mul(struct place *p)
{
    int32_t n = p->model->ffn;

    p->run->kernels->silu_mul(p->run->dev, &p->activated, p->gate_up, p->gate_up + n, 2 * n);
}

static void do_gelu_mul(struct place *p)
{
    int32_t n = p->model->ffn;

    p->run->kernels->gelu_mul(p->run->dev, &p->activated, p->gate_up, p->gate_up + n, 2 * n);
}

/* A row of the batch costs it these bytes for each column of each width; a quantised column is 1.375,
 * one of Q8_0 1.0625. kv: of k and of v. */
static const struct small_row {
    const char *kernel;
    void (*run)(struct place *place);
    struct {
        double hidden, ffn, q, kv;
    } bytes;
} smalls[] = {
    {"embedding", do_embedding, {.hidden = 5.0625}},
    {"quantize", do_quantize, {.hidden = 5.375}},
    {"add_norm", do_add_norm, {.hidden = 13.375}},
    {"rope_store", do_rope_store, {.q = 8, .kv = 16}},
    {"silu_mul", do_silu_mul, {.ffn = 9.375}},
    {"gelu_mul", do_gelu_mul, {.ffn = 9.375}},
};

struct small {
    const struct small_row *row;
    struct place *place;
};

static void do_small(void *args, int64_t i)
{
    const struct small *small = args;

    (void)i;
    small->row->run(small->place);
}

static void bench_small(struct place *place, const struct small_row *row)
{
    const struct model_shape *model = place->model;
    struct small small = {row, place};
    struct work work = {
        .bytes = place->batch.rows *
                 (row->bytes.hidden * model->hidden + row->bytes.ffn * model->ffn +
                  row->bytes.q * place->q_width + row->bytes.kv * place->kv_width),
    };

    tell(place->run,
         (struct roofline_figure){
             .kernel = row->kernel, .shape = model->name, .rows = place->batch.rows},
         &work, best_seconds(place->run, do_small, &small));
}

static enum status pack_table(struct place *place)
{
    struct run *run = place->run;
    int32_t n = place->model->vocab, k = place->model->hidden;
    AUTO_MEM void *tensor = random_weights(&run->random, TYPE_Q8_0, n, k);

    place->table = (struct matrix){.type = TYPE_Q8_0, .n = n, .k = k};
    TRY(device_alloc(run->dev, run->kernels->matrix_bytes(TYPE_Q8_0, n, k), "an embedding table",
                     &place->table.data));
    run->kernels->matrix_pack(run->dev, &place->table, 0, n, tensor, tensor_row_bytes(TYPE_Q8_0, k), 0);
    return OK;
}

/* Up to 64 rows are requests that decode, more are one prompt. */
static enum status bench_smalls_of(struct run *run, const struct model_shape *model, int32_t rows)
{
    bool is_prompt = rows > 64;
    AUTO_FREE(place) struct place *place =
        place_new(run, model, is_prompt ? 1 : rows, is_prompt ? rows : 1, 512);

    TRY(place_kv(place, 1));
    for (size_t i = 0; i < COUNT_OF(smalls); i++) {
        if (!is_wanted(run, smalls[i].kernel))
            continue;
        if (smalls[i].run == do_embedding)
            TRY(pack_table(place));
        bench_small(place, &smalls[i]);
    }
    return OK;
}

static enum status bench_smalls(struct run *run)
{
    for (int m = 0; m < NUM_MODELS; m++)
        for (size_t i = 0; i < COUNT_OF(row_counts); i++)
            TRY(bench_smalls_of(run, &models[m], row_counts[i]));
    return OK;
}

/* ---- all ------------------------------------------------------------------------------------- */

static enum status (*const parts[])(struct run *run) = {bench_matrices, bench_attentions,
                                                        bench_smalls};

static enum status find_limits(const char *isa, int32_t threads, struct roofline_limits *out)
{
    *out = (struct roofline_limits){.isa = isa, .threads = threads};
    TRY(limit_read_gb_s(threads, &out->read_gb_s));
    TRY(limit_barrier_us(threads, &out->barrier_us));
    return limit_arithmetic_gop_s(isa, threads, &out->gop_s);
}

static enum status run_parts(struct run *run, const char *isa)
{
    enum status status = OK;

    TRY(device_open(&(struct device_options){.name = "cpu",
                                             .isa = isa,
                                             .num_threads = run->limits.threads},
                    &run->dev));
    run->kernels = device_kernels(run->dev);
    for (size_t i = 0; i < COUNT_OF(parts) && status == OK; i++)
        status = parts[i](run);
    device_close(run->dev);
    return status;
}

enum status roofline_measure(const struct roofline_options *options)
{
    const char *isa = limit_isa(options->isa);
    struct roofline_limits limits[2];
    int num_limits = options->num_threads > 1 ? 2 : 1;
    struct run run = {.options = options};

    for (int i = 0; i < num_limits; i++) {
        TRY(find_limits(isa, i ? options->num_threads : 1, &limits[i]));
        options->on_limits(options->user, &limits[i]);
    }
    for (int i = 0; i < num_limits; i++) {
        run.limits = limits[i];
        run.random = (struct random){1};
        TRY(run_parts(&run, isa));
    }
    return run.found ? OK : fail(ERR_NOT_FOUND, "no kernel '%.64s' is measured", options->kernel);
}
