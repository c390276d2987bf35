#include "kernels/cuda/cuda.h"

#include "kernels/cpu/packed.h"
#include "kernels/cuda/fp8_layout.h"
#include "kernels/cuda/half_layout.h"
#include "kernels/cuda/host.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/memory.h"
#include "proto/base/module.h"

#include <string.h>

enum { MARKS = 64, LOOK_NS = 20 * 1000 };

struct cuda {
    struct cuda_device base;
    int32_t num_users; /* of its memory */
    int64_t *marks;    /* [MARKS]: page-locked, when the device got there, by its clock; 0: it has not yet */
    int32_t next_mark; /* counts up */
    char uuid[CUDA_UUID_BYTES];
};

/* One a process: it is opened once. */
static const struct cuda_module *module;
static struct kernels kernels_cuda;

static struct cuda *cuda_of(const struct device *dev)
{
    return (struct cuda *)dev; /* the first member of its first member */
}

struct cuda_state *cuda_state_of(const struct device *dev)
{
    return cuda_of(dev)->base.state;
}

const char *cuda_uuid_of(const struct device *dev)
{
    return cuda_of(dev)->uuid;
}

const struct cuda_module *cuda_module(void)
{
    return module;
}

/* ---- memory -------------------------------------------------------------------------------------- */

static enum status cuda_alloc(struct device *dev, int64_t bytes, const char *what, void **out)
{
    const char *error = module->alloc(cuda_state_of(dev), bytes, out);

    return error ? fail(ERR_NO_MEMORY, "%s: %s", what, error) : OK;
}

static void cuda_free(struct device *dev, void *p, int64_t bytes)
{
    (void)bytes;
    module->free(cuda_state_of(dev), p);
}

static enum status cuda_alloc_host(struct device *dev, int64_t bytes, const char *what, void **out)
{
    const char *error = module->alloc_host(cuda_state_of(dev), bytes, out);

    return error ? fail(ERR_NO_MEMORY, "%s: %s", what, error) : OK;
}

static void cuda_free_host(struct device *dev, void *p)
{
    module->free_host(cuda_state_of(dev), p);
}

static struct device_memory cuda_memory(const struct device *dev)
{
    struct device_memory memory = {0};

    module->memory(cuda_state_of(dev), &memory.free_bytes, &memory.total_bytes);
    memory.available_bytes = memory.free_bytes / cuda_of(dev)->num_users;
    return memory;
}

static enum status told(const char *error)
{
    return error ? fail(ERR_INTERNAL, "the GPU: %s", error) : OK;
}

/* What the module has met that is no failure. */
static void tell_news(struct device *dev)
{
    const char *news = module->cublaslt->news ? module->cublaslt->news(cuda_state_of(dev)) : NULL;

    if (news)
        log_warn("%s", news);
}

static enum status cuda_write(struct device *dev, void *to, const void *from, int64_t bytes)
{
    return told(module->write(cuda_state_of(dev), to, from, bytes));
}

static enum status cuda_read(struct device *dev, void *to, const void *from, int64_t bytes)
{
    tell_news(dev);
    return told(module->read(cuda_state_of(dev), to, from, bytes));
}

static enum status cuda_check(struct device *dev)
{
    tell_news(dev);
    return told(module->check(cuda_state_of(dev)));
}

static enum status cuda_push(struct device *dev, void *to, const void *from, int64_t bytes)
{
    return told(module->push(cuda_state_of(dev), to, from, bytes));
}

static enum status cuda_record(struct device *dev)
{
    return told(module->record(cuda_state_of(dev)));
}

static enum status cuda_end_record(struct device *dev, struct device_recording **out)
{
    return told(module->end_record(cuda_state_of(dev), out));
}

static enum status cuda_replay(struct device *dev, struct device_recording *recording)
{
    return told(module->replay(cuda_state_of(dev), recording));
}

static void cuda_recording_free(struct device *dev, struct device_recording *recording)
{
    module->recording_free(cuda_state_of(dev), recording);
}

static enum status cuda_limit_read_gb_s(struct device *dev, double *gb_s_out)
{
    return told(module->limit_read(cuda_state_of(dev), gb_s_out));
}

/* ---- time ---------------------------------------------------------------------------------------- */

static void cuda_mark(struct device *dev, struct device_mark *mark_out)
{
    struct cuda *cuda = cuda_of(dev);
    int32_t slot = cuda->next_mark++ % MARKS;

    __atomic_store_n(&cuda->marks[slot], 0, __ATOMIC_RELAXED);
    *mark_out = (struct device_mark){.slot = slot};
    module->mark(cuda_state_of(dev), &cuda->marks[slot]);
}

static bool cuda_has_passed(const struct device *dev, const struct device_mark *mark, int64_t *ns_out)
{
    int64_t ns = __atomic_load_n(&cuda_of(dev)->marks[mark->slot], __ATOMIC_ACQUIRE);

    if (!ns)
        module->keep_time(cuda_state_of(dev));
    *ns_out = ns ? module->time_of_mark(cuda_state_of(dev), ns) : clock_now_ns() + LOOK_NS;
    return ns != 0;
}

static void cuda_begin_range(const char *name, int64_t step)
{
    if (module->ranges->begin)
        module->ranges->begin(name, step);
}

static void cuda_end_range(void)
{
    if (module->ranges->end)
        module->ranges->end();
}

/* ---- weights ------------------------------------------------------------------------------------- */

int64_t matrix_bytes_cuda(enum tensor_type type, int32_t n, int32_t k)
{
    return half_has_layout(type) ? half_matrix_bytes(n, k) : matrix_bytes_cpu(type, n, k);
}

/* Of PANEL columns. */
static int64_t panel_bytes(const struct matrix *w)
{
    return matrix_bytes_cuda(w->type, PANEL, w->k);
}

static void pack_halves(const struct matrix *w, int32_t at, int32_t n, const char *src, int64_t src_row_bytes, int64_t k0)
{
    int64_t stride = half_row_stride(w->k) * HALF_BYTES, bytes = (int64_t)w->k * HALF_BYTES;
    char *to = (char *)w->data + at * stride;

    for (int32_t i = 0; i < n; i++, to += stride) {
        memcpy(to, src + i * src_row_bytes + k0 * HALF_BYTES, (size_t)bytes);
        memset(to + bytes, 0, (size_t)(stride - bytes));
    }
}

void matrix_pack_cuda_host(struct device *host, struct matrix *w, int32_t at, int32_t n, const void *src,
                           int64_t src_row_bytes, int64_t k0)
{
    if (half_has_layout(w->type))
        pack_halves(w, at, n, src, src_row_bytes, k0);
    else
        host->kernels->matrix_pack(host, w, at, n, src, src_row_bytes, k0);
}

/* A few panels at a time, so that the host needs little memory beside the file. */
static void matrix_pack_cuda(struct device *dev, struct matrix *w, int32_t at, int32_t n, const void *src,
                             int64_t src_row_bytes, int64_t k0)
{
    enum { PIECE_BYTES = 16 << 20 };
    int32_t piece = (int32_t)MAX((int64_t)1, PIECE_BYTES / panel_bytes(w)) * PANEL;
    AUTO_MEM void *packed = mem_new_array(char, matrix_bytes_cuda(w->type, MIN(piece, n), w->k));

    ASSERT(at >= 0 && n >= 0 && at + n <= w->n, "rows %d + %d of %d", at, n, w->n);
    ASSERT(at % PANEL == 0 || n == w->n, "column %d is inside a panel", at);
    for (int32_t first = 0; first < n; first += piece) {
        struct matrix part = {.type = w->type, .n = MIN(piece, n - first), .k = w->k, .data = packed};
        enum status status;

        matrix_pack_cuda_host(cuda_of(dev)->base.host, &part, 0, part.n, (const char *)src + first * src_row_bytes,
                              src_row_bytes, k0);
        w->first_block = part.first_block;
        status = cuda_write(dev, (char *)w->data + (at + first) / PANEL * panel_bytes(w), packed,
                            matrix_bytes_cuda(w->type, part.n, w->k));
        if (status != OK) /* the next read tells it again */
            log_error("weights were not written: %s", fail_text());
    }
}

static void write_fp8(struct device *dev, const struct matrix *w, int64_t at, const void *from, int64_t bytes)
{
    if (cuda_write(dev, (char *)w->data + at, from, bytes) != OK) /* the next read tells it again */
        log_error("weights were not written: %s", fail_text());
}

/* scales: [n / 128, k / 128], rounded up. */
static void write_block_scales(struct device *dev, const struct matrix *w, int32_t at, int32_t n,
                               const float *scales)
{
    int32_t stride = fp8_block_stride(w->k), width = fp8_num_blocks(w->k), count = fp8_num_blocks(n);
    int64_t first = fp8_scales_at(w->n, w->k) + (int64_t)at / FP8_BLOCK * stride * (int64_t)sizeof *scales;
    AUTO_MEM float *padded = mem_new_array(float, (int64_t)count * stride);

    ASSERT(at % FP8_BLOCK == 0, "column %d is inside a block", at);
    for (int32_t i = 0; i < count; i++)
        memcpy(padded + (int64_t)i * stride, scales + (int64_t)i * width, (size_t)width * sizeof *padded);
    write_fp8(dev, w, first, padded, (int64_t)count * stride * (int64_t)sizeof *padded);
}

/* k codes of a column; what lies beyond in `to` stays as it is. */
static void order_codes(uint8_t *to, const uint8_t *from, int32_t k)
{
    int32_t i = 0;

    for (; i + FP8_ORDERED <= k; i += FP8_ORDERED) { /* pairs of the two halves, in turn */
        uint16_t pairs[FP8_ORDERED / 2], ordered[FP8_ORDERED / 2];

        memcpy(pairs, from + i, sizeof pairs);
        for (int t = 0; t < FP8_ORDERED / 2; t++)
            ordered[t] = pairs[t / 2 + t % 2 * (FP8_ORDERED / 4)];
        memcpy(to + i, ordered, sizeof ordered);
    }
    for (; i < k; i++)
        to[fp8_place(i)] = from[i];
}

static void fp8_pack_cuda(struct device *dev, const struct matrix *w, int32_t at, int32_t n, const uint8_t *codes,
                          int64_t row_bytes, const float *scales)
{
    enum { PIECE_BYTES = 16 << 20 };
    int64_t stride = fp8_row_stride(w->k);
    int32_t piece = (int32_t)MIN((int64_t)n, MAX((int64_t)1, PIECE_BYTES / stride));
    AUTO_MEM uint8_t *padded = mem_new_array(uint8_t, piece * stride); /* zeroed */

    ASSERT(at >= 0 && n >= 0 && at + n <= w->n, "rows %d + %d of %d", at, n, w->n);
    for (int32_t first = 0; first < n; first += piece) {
        int32_t count = MIN(piece, n - first);

        for (int32_t i = 0; i < count; i++)
            order_codes(padded + i * stride, codes + (first + i) * row_bytes, w->k);
        write_fp8(dev, w, (at + first) * stride, padded, count * stride);
    }
    if (w->fp8_has_blocks)
        write_block_scales(dev, w, at, n, scales);
    else
        write_fp8(dev, w, fp8_scales_at(w->n, w->k) + at * (int64_t)sizeof *scales, scales,
                  n * (int64_t)sizeof *scales);
}

/* ---- life ---------------------------------------------------------------------------------------- */

static enum status open_module(const char *path)
{
    const void *table;
    enum status status;

    if (module)
        return OK;
    status = module_open(path, TANDEM_CUDA, sizeof(struct cuda_module), &table);
    if (status == ERR_MISSING)
        return fail(ERR_MISSING, "--device cuda wants tandem_cuda.so beside the program, which is built where there is "
                                 "a CUDA Toolkit: %s", fail_text());
    TRY(status);
    module = table;
    kernels_cuda = module->kernels;
    kernels_cuda.matrix_bytes = matrix_bytes_cuda;
    kernels_cuda.matrix_pack = matrix_pack_cuda;
    kernels_cuda.fp8_bytes = fp8_matrix_bytes;
    kernels_cuda.fp8_pack = fp8_pack_cuda;
    return OK;
}

static void cuda_close(struct device *dev)
{
    struct cuda *cuda = cuda_of(dev);

    if (cuda->marks)
        module->free_host(cuda->base.state, cuda->marks);
    if (cuda->base.state)
        module->close(cuda->base.state);
    device_close(cuda->base.host);
    mem_free(cuda);
}

static const struct comm_way comm_ways[] = {
    {"ipc", comm_ipc_open, false},
    {"nccl", comm_nccl_open, true},
    {0},
};

static const struct device_ops cuda_ops = {
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .memory = cuda_memory,
    .write = cuda_write,
    .read = cuda_read,
    .push = cuda_push,
    .check = cuda_check,
    .alloc_host = cuda_alloc_host,
    .free_host = cuda_free_host,
    .limit_read_gb_s = cuda_limit_read_gb_s,
    .record = cuda_record,
    .end_record = cuda_end_record,
    .replay = cuda_replay,
    .recording_free = cuda_recording_free,
    .comm_ways = comm_ways,
    .mark = cuda_mark,
    .has_passed = cuda_has_passed,
    .begin_range = cuda_begin_range,
    .end_range = cuda_end_range,
};

/* Of the host's ordinals those that come to the same GPU. */
static int32_t count_users(const struct device_options *options, int32_t num_devices)
{
    int32_t count = 0;

    for (int32_t ordinal = 0; ordinal < options->num_users; ordinal++)
        count += ordinal % num_devices == options->ordinal % num_devices;
    return MAX(count, 1);
}

static enum status use_cublaslt(struct cuda *cuda, const struct device_options *options)
{
    const struct cuda_cublaslt_table *table = module->cublaslt;
    const char *error;
    int32_t version;

    if (!table->load)
        return fail(ERR_NOT_FOUND, "this tandem_cuda.so has no cuBLASLt: who built it had no cublasLt.h");
    error = table->load(options->cublaslt, &version);
    if (!error)
        error = table->use(cuda->base.state, options->cublaslt_rows);
    if (error)
        return fail(ERR_NOT_FOUND, "%s", error);
    log_info("16-bit weights%s are multiplied by cuBLASLt %d.%d.%d, from %d rows on: a row's bits may depend on "
             "its batch", table->has_fp8(cuda->base.state, false) ? " and those of FP8" : "", version / 10000,
             version / 100 % 100, version % 100, options->cublaslt_rows);
    return OK;
}

static enum status init(struct cuda *cuda, const struct device_options *options)
{
    /* It packs weights, for which ref has a layout of its own. */
    bool is_ref = options->isa && strcmp(options->isa, "ref") == 0;
    struct device_options host = {.name = "cpu", .isa = is_ref ? NULL : options->isa,
                                  .num_threads = options->num_threads, .cpus = options->cpus};
    struct cuda_properties gpu;
    enum status failure = ERR_MISSING;
    const char *error = module->open(options->ordinal, &cuda->base.state, &gpu, &failure);
    void *marks;

    if (error)
        return fail(failure, "%s", error);
    cuda->num_users = count_users(options, gpu.num_devices);
    memcpy(cuda->uuid, gpu.uuid, sizeof cuda->uuid);
    TRY(device_open(&host, &cuda->base.host));
    TRY(cuda_alloc_host(&cuda->base.device, MARKS * (int64_t)sizeof(int64_t), "times of the device", &marks));
    cuda->marks = marks;
    log_info("GPU %d is %s, compute capability %d.%d, %.1f GiB, of a driver for CUDA %d.%d", options->ordinal, gpu.name,
             gpu.major, gpu.minor, (double)gpu.memory_bytes / (1 << 30), gpu.driver_version / 1000,
             gpu.driver_version % 1000 / 10);
    return options->cublaslt_rows > 0 ? use_cublaslt(cuda, options) : OK;
}

enum status cuda_device_new(const struct device_options *options, struct device **out)
{
    struct cuda *cuda;
    enum status status;

    TRY(open_module(options->module));
    cuda = mem_new(struct cuda);
    cuda->base.device = (struct device){.ops = &cuda_ops, .kernels = &kernels_cuda};
    status = init(cuda, options);
    if (status != OK) {
        cuda_close(&cuda->base.device);
        return status;
    }
    *out = &cuda->base.device;
    return OK;
}
