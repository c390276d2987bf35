/*
 * bench_gpu_matmul: matmuls of 16-bit weights on a GPU, those of an 8B model: by our own kernels, in one answer
 * (--batch-invariant on), and by cuBLASLt (off), side by side; and by codes of 8 bits in the place of BF16, both ways:
 * what cuBLASLt has none of there is done by our own. A JSON line for each type, matmul and number of rows, and one
 * for all of a layer's, at last of a prompt of 8192 tokens.
 *
 *   bench_gpu_matmul MODULE [CUBLASLT [MOST]]
 *
 * MODULE: tandem_cuda.so. CUBLASLT: its file, or "" as the system finds it; where there is none our own are
 * measured alone. MOST: rows, and 32 columns and elements of k each, to which matmuls are cut, to see that it runs:
 * then a call is all that is measured. Calls read other weights each, as layers do, so that no cache has them. The
 * best of several runs, by the device's clock.
 */
#include "kernels/bench/arrays.h"

#include "proto/base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { RUNS = 5, CALLS = 8, LAYERS = 32, PREFILL = 8192, LOGIT_ROWS = 256, FILL_BYTES = 1 << 20 };
static const int64_t POOL_BYTES = (int64_t)1100 << 20; /* of weights; the largest matmul's are less */

/* llama-3-8b. */
static const struct shape {
    const char *name;
    int32_t n, k;
    int32_t group_k;  /* of a row-parallel one; 0: none */
    int32_t per_layer;
    int32_t most_rows;
} shapes[] = {
    {"q, k and v", 6144, 4096, 0, 1, INT32_MAX},
    {"attention's output", 4096, 4096, 128, 1, INT32_MAX},
    {"gate and up", 28672, 4096, 0, 1, INT32_MAX},
    {"down", 4096, 14336, 896, 1, INT32_MAX},
    {"logits", 128256, 4096, 0, 0, LOGIT_ROWS},
};

static const int32_t row_counts[] = {1, 2, 4, 8, 9, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, PREFILL};
static const enum tensor_type types[] = {TYPE_BF16, TYPE_F16};

/* FP8: codes of 8 bits in the place of BF16's, with a scale for each column, or for each block. */
enum { OWN, OWN_FP8, OWN_FP8_BLOCKS, CUBLASLT, FP8, FP8_BLOCKS, WAYS };

static const struct way {
    const char *name;
    bool is_own, is_fp8, has_blocks;
} ways[WAYS] = {
    [OWN] = {"own", true, false, false},
    [OWN_FP8] = {"own_fp8", true, true, false},
    [OWN_FP8_BLOCKS] = {"own_fp8_blocks", true, true, true},
    [CUBLASLT] = {"cublaslt", false, false, false},
    [FP8] = {"fp8", false, true, false},
    [FP8_BLOCKS] = {"fp8_blocks", false, true, true},
};

struct bench {
    struct device *devs[WAYS]; /* of one GPU: our own kernels', and cuBLASLt's; NULL: there is none */
    int32_t runs, calls, most;
    int64_t pool_bytes;
    void *pool;
    int32_t turn; /* of the pool */
};

static void must(enum status status)
{
    if (status == OK)
        return;
    fprintf(stderr, "%s\n", fail_text());
    exit(1);
}

static enum status open_gpu(const char *module, int32_t cublaslt_rows, const char *cublaslt, struct device **out)
{
    return device_open(&(struct device_options){.name = "cuda",
                                                .num_threads = 1,
                                                .module = module,
                                                .cublaslt_rows = cublaslt_rows,
                                                .cublaslt = cublaslt && *cublaslt ? cublaslt : NULL},
                       out);
}

static int64_t passed_ns(struct device *dev, const struct device_mark *mark)
{
    int64_t ns;

    while (!device_has_passed(dev, mark, &ns)) {
        must(device_check(dev));
        usleep(100);
    }
    return ns;
}

static struct matrix matrix_of(int way, const struct shape *shape, enum tensor_type type)
{
    return (struct matrix){.type = ways[way].is_fp8 ? TYPE_F8_E4M3 : type,
                           .n = shape->n,
                           .k = shape->k,
                           .fp8_has_blocks = ways[way].has_blocks};
}

static int64_t matrix_bytes(const struct kernels *kernels, const struct matrix *w)
{
    return w->type == TYPE_F8_E4M3 ? kernels->fp8_bytes(w->n, w->k, w->fp8_has_blocks)
                                   : kernels->matrix_bytes(w->type, w->n, w->k);
}

static void call(struct bench *bench, int way, const struct shape *shape, enum tensor_type type,
                 const struct activations *a, float *out)
{
    struct device *dev = bench->devs[way];
    const struct kernels *kernels = device_kernels(dev);
    struct matrix w = matrix_of(way, shape, type);
    int64_t bytes = round_up(matrix_bytes(kernels, &w), 256);

    w.data = (char *)bench->pool + bench->turn++ % (bench->pool_bytes / bytes) * bytes;
    if (shape->group_k)
        kernels->matmul_groups_float(dev, out, a, &w, shape->group_k);
    else
        kernels->matmul(dev, out, shape->n, a, &w);
}

static double best_seconds(struct bench *bench, int way, const struct shape *shape, enum tensor_type type,
                           const struct activations *a, float *out)
{
    struct device *dev = bench->devs[way];
    int64_t best = INT64_MAX;

    call(bench, way, shape, type, a, out);
    for (int run = 0; run < bench->runs; run++) {
        struct device_mark begin, end;

        device_mark(dev, &begin);
        for (int i = 0; i < bench->calls; i++)
            call(bench, way, shape, type, a, out);
        device_mark(dev, &end);

        int64_t ns = -passed_ns(dev, &begin);

        best = MIN(best, ns + passed_ns(dev, &end));
    }
    return (double)best / bench->calls * 1e-9;
}

/* seconds, bytes: [WAYS]; 0 seconds: not measured. */
static void print_line(enum tensor_type type, const char *what, int32_t rows, const double seconds[WAYS],
                       double ops, const double bytes[WAYS])
{
    printf("{\"type\": \"%s\", \"matmul\": \"%s\", \"rows\": %d", tensor_type_info(type)->name, what, rows);
    for (int way = 0; way < WAYS; way++)
        if (seconds[way] > 0)
            printf(", \"%s_us\": %.1f, \"%s_tflop_s\": %.2f, \"%s_gb_s\": %.0f", ways[way].name, seconds[way] * 1e6,
                   ways[way].name, ops * 1e-12 / seconds[way], ways[way].name, bytes[way] * 1e-9 / seconds[way]);
    if (seconds[OWN] > 0 && seconds[CUBLASLT] > 0)
        printf(", \"own_to_cublaslt\": %.3f", seconds[OWN] / seconds[CUBLASLT]); /* above 1: cuBLASLt is faster */
    printf("}\n");
    fflush(stdout);
}

static void measure(struct bench *bench, const struct shape *shape, enum tensor_type type, int32_t rows,
                    double seconds[WAYS])
{
    int64_t x_bytes = (int64_t)rows * shape->k * 4, out_bytes = (int64_t)rows * shape->n * 4;
    AUTO_MEM float *x = mem_new_array(float, (size_t)rows * (size_t)shape->k);
    struct random random = {1};
    struct activations a = {.rows = rows, .k = shape->k};
    void *on_device, *out;

    random_hidden(&random, x, (int64_t)rows * shape->k);
    must(device_alloc(bench->devs[OWN], x_bytes, "a bench's activations", &on_device));
    must(device_alloc(bench->devs[OWN], out_bytes, "a bench's results", &out));
    must(device_write(bench->devs[OWN], on_device, x, x_bytes));
    must(device_read(bench->devs[OWN], x, on_device, 4)); /* all is there, for another device too */
    a.x = on_device;
    for (int way = 0; way < WAYS; way++)
        seconds[way] = bench->devs[way] && (!ways[way].is_fp8 || type == TYPE_BF16)
                           ? best_seconds(bench, way, shape, type, &a, out) : 0;
    device_free(bench->devs[OWN], on_device, x_bytes);
    device_free(bench->devs[OWN], out, out_bytes);
}

static void measure_rows(struct bench *bench, enum tensor_type type, int32_t rows)
{
    double layer[WAYS] = {0}, layer_ops = 0, layer_bytes[WAYS] = {0};

    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        struct shape shape = shapes[i];
        double seconds[WAYS], ops, bytes[WAYS];

        shape.n = (int32_t)MIN(shape.n, (int64_t)bench->most * 32);
        shape.k = (int32_t)MIN(shape.k, (int64_t)bench->most * 32);
        if (shape.k % MAX(shape.group_k, 1) != 0) /* cut */
            shape.group_k = 32;
        if (rows > shape.most_rows)
            continue;
        measure(bench, &shape, type, rows, seconds);
        ops = 2.0 * rows * shape.n * shape.k;
        for (int way = 0; way < WAYS; way++)
            bytes[way] = (ways[way].is_fp8 ? 1.0 : 2.0) * shape.n * shape.k + 4.0 * rows * (shape.n + shape.k);
        print_line(type, shape.name, rows, seconds, ops, bytes);
        layer_ops += ops * shape.per_layer;
        for (int way = 0; way < WAYS; way++) {
            layer_bytes[way] += bytes[way] * shape.per_layer;
            layer[way] += seconds[way] * shape.per_layer;
        }
    }
    print_line(type, "a layer", rows, layer, layer_ops, layer_bytes);
    if (rows != MIN(PREFILL, bench->most))
        return;
    for (int way = 0; way < WAYS; way++) {
        layer_bytes[way] *= LAYERS;
        layer[way] *= LAYERS;
    }
    print_line(type, "a prompt, all layers", rows, layer, layer_ops * LAYERS, layer_bytes);
}

/* Small numbers of either sign, whose bits are random but for their exponents'. */
static void fill(struct bench *bench, enum tensor_type type)
{
    AUTO_MEM uint16_t *some = mem_new_array(uint16_t, FILL_BYTES / 2);
    uint16_t keep = type == TYPE_BF16 ? 0x807f : 0x83ff, exponent = type == TYPE_BF16 ? 0x3c00 : 0x2000;
    struct random random = {2};

    for (int32_t i = 0; i < FILL_BYTES / 2; i++)
        some[i] = (uint16_t)((random_u32(&random) & keep) | exponent);
    for (int64_t at = 0; at < bench->pool_bytes; at += FILL_BYTES)
        must(device_write(bench->devs[OWN], (char *)bench->pool + at, some, FILL_BYTES));
}

int main(int argc, char **argv)
{
    bool is_cut = argc > 3;
    const char *cublaslt = argc > 2 ? argv[2] : NULL;
    struct bench bench = {.most = is_cut ? atoi(argv[3]) : INT32_MAX,
                          .runs = is_cut ? 1 : RUNS,
                          .calls = is_cut ? 1 : CALLS,
                          .pool_bytes = is_cut ? FILL_BYTES : POOL_BYTES};

    if (argc < 2 || bench.most < 1) {
        fprintf(stderr, "usage: bench_gpu_matmul MODULE [CUBLASLT [MOST]]\n");
        return 2;
    }
    must(open_gpu(argv[1], 0, NULL, &bench.devs[OWN]));
    if (open_gpu(argv[1], 1, cublaslt, &bench.devs[CUBLASLT]) != OK) {
        if (is_cut)
            must(ERR_NOT_FOUND);
        fprintf(stderr, "our own kernels alone are measured: %s\n", fail_text());
    }
    for (int way = 0; way < WAYS; way++)
        bench.devs[way] = bench.devs[ways[way].is_own ? OWN : CUBLASLT];
    must(device_alloc(bench.devs[OWN], bench.pool_bytes, "a bench's weights", &bench.pool));
    for (size_t t = 0; t < COUNT_OF(types); t++) {
        fill(&bench, types[t]);
        for (size_t i = 0; i < COUNT_OF(row_counts); i++)
            if (i == 0 || row_counts[i - 1] < bench.most)
                measure_rows(&bench, types[t], MIN(row_counts[i], bench.most));
    }
    device_free(bench.devs[OWN], bench.pool, bench.pool_bytes);
    device_close(bench.devs[CUBLASLT]);
    device_close(bench.devs[OWN]);
    return 0;
}
