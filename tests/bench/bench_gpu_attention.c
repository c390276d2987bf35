/*
 * bench_gpu_attention: what a layer's attention costs on a GPU, a JSON line for each shape, batch, length and type
 * of the KV cache, in the device's own order (of 16-bit weights) and in that of kernels/ref.
 *
 *   bench_gpu_attention MODULE [MOST]
 *
 * MODULE: tandem_cuda.so. MOST: requests, and tokens of each, to which loads are cut, to see that it runs: then a
 * call is all that is measured. Decoding requests read other memory in every call, as layers do, so that no cache
 * has it. The best of several runs, by the device's clock.
 */
#include "kernels/bench/arrays.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { RUNS = 5, CALLS = 8, KEY_BYTES = 640 << 20, FILL_BYTES = 1 << 20 };

static const struct model {
    const char *name;
    int32_t num_heads, num_kv_heads, head_dim, window;
} models[] = {
    {"llama-3-8b, qwen3-8b", 32, 8, 128, 0},
    {"llama-3-70b on 8 ranks", 8, 1, 128, 0},
    {"smollm2-135m", 9, 3, 64, 0},
    {"gemma-3-270m", 4, 1, 256, 0},
    {"gemma-3-270m, local", 4, 1, 256, 512},
};

/* The last `rows` of `length` tokens, of each of `requests` requests. */
static const struct load {
    const char *name;
    int32_t requests, rows, length;
} loads[] = { /* KEY_BYTES are enough for the largest */
    {"decode", 1, 1, 1024},    {"decode", 1, 1, 4096},   {"decode", 1, 1, 32768},    {"decode", 8, 1, 1024},
    {"decode", 8, 1, 8192},    {"decode", 64, 1, 1024},  {"decode", 256, 1, 1024},   {"prefill", 1, 512, 512},
    {"prefill", 1, 8192, 8192}, {"late chunk", 1, 2048, 8192}, {"late chunk", 1, 512, 32768},
};

struct bench {
    struct device *dev;
    int32_t most;      /* requests, and tokens of each */
    int32_t runs, calls;
    int64_t key_bytes; /* and as many of values */
    uint16_t *k, *v;
};

/* One model and load: arrays of the device. */
struct place {
    struct kv_layer kv;
    struct batch_view batch; /* of the first call; others have other blocks */
    struct attention_args args;
    int32_t turns; /* block tables */
    int32_t *row_start, *positions, *tables, *kv_head_of;
    float *q, *out;
};

static void must(enum status status)
{
    if (status == OK)
        return;
    fprintf(stderr, "%s\n", fail_text());
    exit(1);
}

static void *array(struct bench *bench, const void *from, int64_t bytes)
{
    void *p;

    must(device_alloc(bench->dev, bytes, "a bench's array", &p));
    if (from)
        must(device_write(bench->dev, p, from, bytes));
    return p;
}

static int32_t *ints(struct bench *bench, int32_t count, int32_t (*of)(const struct place *, int32_t),
                     const struct place *place)
{
    AUTO_MEM int32_t *host = mem_new_array(int32_t, (size_t)count);

    for (int32_t i = 0; i < count; i++)
        host[i] = of(place, i);
    return array(bench, host, count * (int64_t)sizeof(int32_t));
}

static int32_t rows_of(const struct place *place)
{
    return place->batch.rows / place->batch.num_requests;
}

static int32_t row_start_of(const struct place *place, int32_t i)
{
    return i * rows_of(place);
}

static int32_t position_of(const struct place *place, int32_t i)
{
    return place->batch.max_position + 1 - rows_of(place) + i % rows_of(place);
}

/* In no order, as after a while: a step that has no divisor in common with their number. */
static int32_t block_of(const struct place *place, int32_t i)
{
    int64_t step = 7919;

    while (place->kv.num_blocks % step == 0)
        step += 2;
    return (int32_t)(i * step % place->kv.num_blocks);
}

static int32_t kv_head_of(const struct place *place, int32_t head)
{
    return head * place->kv.num_kv_heads / place->args.num_heads;
}

static void place_init(struct place *place, struct bench *bench, const struct model *model, const struct load *load,
                       enum kv_type type)
{
    int32_t blocks = divide_up(load->length, KV_BLOCK_TOKENS);
    int32_t width = model->num_heads * model->head_dim;
    int32_t rows = load->requests * load->rows, all = blocks * load->requests;
    int64_t group_bytes = KV_GROUP_BLOCKS * model->num_kv_heads * kv_head_bytes(type, model->head_dim);
    int32_t most = (int32_t)(bench->key_bytes / group_bytes) * KV_GROUP_BLOCKS / all;
    struct random random = {1};
    AUTO_MEM float *q = mem_new_array(float, (size_t)rows * (size_t)width);

    *place = (struct place){
        .turns = load->rows > 1 ? 1 : most,
        .batch = {.rows = rows, .num_requests = load->requests, .block_table_stride = blocks,
                  .max_position = load->length - 1},
    };
    place->kv = (struct kv_layer){bench->k, bench->v, all * place->turns, model->num_kv_heads, model->head_dim,
                                  group_bytes / 2, type};
    place->args = (struct attention_args){.num_heads = model->num_heads, .scale = 0.1f, .window = model->window,
                                          .q_stride = width};
    place->batch.row_start = place->row_start = ints(bench, load->requests + 1, row_start_of, place);
    place->batch.positions = place->positions = ints(bench, rows, position_of, place);
    place->tables = ints(bench, place->kv.num_blocks, block_of, place);
    place->args.kv_head_of = place->kv_head_of = ints(bench, model->num_heads, kv_head_of, place);
    random_hidden(&random, q, (int64_t)rows * width);
    place->args.q = place->q = array(bench, q, (int64_t)rows * width * (int64_t)sizeof(float));
    place->args.out = place->out = array(bench, NULL, (int64_t)rows * width * (int64_t)sizeof(float));
}

static void place_close(struct place *place, struct bench *bench)
{
    int64_t vectors = (int64_t)place->batch.rows * place->args.q_stride * (int64_t)sizeof(float);

    device_free(bench->dev, place->row_start, (place->batch.num_requests + 1) * 4);
    device_free(bench->dev, place->positions, place->batch.rows * 4);
    device_free(bench->dev, place->tables, place->kv.num_blocks * 4);
    device_free(bench->dev, place->kv_head_of, place->args.num_heads * 4);
    device_free(bench->dev, place->q, vectors);
    device_free(bench->dev, place->out, vectors);
}

static void call(struct place *place, struct bench *bench, int32_t turn)
{
    struct batch_view batch = place->batch;
    struct attention_args args = place->args;

    batch.block_tables =
        place->tables + (int64_t)(turn % place->turns) * batch.num_requests * batch.block_table_stride;
    args.kv = &place->kv;
    args.batch = &batch;
    device_kernels(bench->dev)->attention(bench->dev, &args);
}

static int64_t passed_ns(struct bench *bench, const struct device_mark *mark)
{
    int64_t ns;

    while (!device_has_passed(bench->dev, mark, &ns)) {
        must(device_check(bench->dev));
        usleep(100);
    }
    return ns;
}

static double best_seconds(struct place *place, struct bench *bench)
{
    int64_t best = INT64_MAX;
    int32_t turn = 0;

    call(place, bench, turn++);
    for (int run = 0; run < bench->runs; run++) {
        struct device_mark begin, end;

        device_mark(bench->dev, &begin);
        for (int i = 0; i < bench->calls; i++)
            call(place, bench, turn++);
        device_mark(bench->dev, &end);

        int64_t ns = -passed_ns(bench, &begin);

        best = MIN(best, ns + passed_ns(bench, &end));
    }
    return (double)best / bench->calls * 1e-9;
}

static void measure(struct bench *bench, const struct model *model, const struct load *load, enum kv_type type)
{
    int32_t width = model->num_heads * model->head_dim;
    int32_t keys = model->window ? MIN(load->length, model->window - 1 + load->rows) : load->length;
    double key_bytes = (double)kv_head_bytes(type, model->head_dim) / KV_BLOCK_TOKENS;
    double bytes = 2 * key_bytes * keys * model->num_kv_heads + 8.0 * load->rows * width, ops = 0;
    struct place place;

    for (int32_t seen = load->length - load->rows + 1; seen <= load->length; seen++)
        ops += 4.0 * width * (model->window ? MIN(seen, model->window) : seen);
    place_init(&place, bench, model, load, type);
    for (int order = 0; order < 2; order++) {
        place.args.device_order = order == 0;

        double seconds = best_seconds(&place, bench);

        printf("{\"model\": \"%s\", \"load\": \"%s\", \"kv\": \"%s\", \"order\": \"%s\", \"requests\": %d, "
               "\"rows\": %d, \"length\": %d, \"us\": %.1f, \"gb_s\": %.0f, \"tflop_s\": %.2f}\n",
               model->name, load->name, kv_type_name(type), order ? "ref" : "device", load->requests, load->rows,
               load->length, seconds * 1e6, bytes * load->requests * 1e-9 / seconds,
               ops * load->requests * 1e-12 / seconds);
        fflush(stdout);
    }
    place_close(&place, bench);
}

/* bfloat16 and scales of 0.25 to 0.5, halves of 1.6 to 1.8, of either sign; codes of any size. None is infinite. */
static void fill(struct bench *bench, uint16_t *to)
{
    AUTO_MEM uint16_t *halves = mem_new_array(uint16_t, FILL_BYTES / 2);
    struct random random = {2};

    for (int32_t i = 0; i < FILL_BYTES / 2; i++)
        halves[i] = (uint16_t)((random_u32(&random) & 0x807f) | 0x3e80);
    for (int64_t at = 0; at < bench->key_bytes; at += FILL_BYTES)
        must(device_write(bench->dev, (char *)to + at, halves, FILL_BYTES));
}

int main(int argc, char **argv)
{
    bool is_cut = argc > 2;
    struct bench bench = {.most = is_cut ? atoi(argv[2]) : INT32_MAX,
                          .runs = is_cut ? 1 : RUNS,
                          .calls = is_cut ? 1 : CALLS,
                          .key_bytes = is_cut ? KEY_BYTES / 16 : KEY_BYTES};

    if (argc < 2 || bench.most < 1) {
        fprintf(stderr, "usage: bench_gpu_attention MODULE [MOST]\n");
        return 2;
    }
    must(device_open(&(struct device_options){.name = "cuda", .num_threads = 1, .module = argv[1]}, &bench.dev));
    bench.k = array(&bench, NULL, bench.key_bytes);
    bench.v = array(&bench, NULL, bench.key_bytes);
    fill(&bench, bench.k);
    fill(&bench, bench.v);
    for (size_t m = 0; m < COUNT_OF(models); m++)
        for (size_t i = 0; i < COUNT_OF(loads); i++) {
            struct load load = loads[i];

            load.requests = MIN(load.requests, bench.most);
            load.length = MIN(load.length, bench.most);
            load.rows = MIN(load.rows, load.length);
            for (enum kv_type type = 0; type < NUM_KV_TYPES; type++)
                measure(&bench, &models[m], &load, type);
        }
    device_free(bench.dev, bench.k, bench.key_bytes);
    device_free(bench.dev, bench.v, bench.key_bytes);
    device_close(bench.dev);
    return 0;
}
