#include "proto/model/dummy.h"

#include "proto/base/rounding.h"
#include "proto/model/hf_config.h"
#include "proto/model/random_weights.h"
#include "proto/model/shape.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    POOL_BYTES = 64 << 20, /* the piece of random blocks is not larger */
    PAGE_BYTES = 64 << 10, /* a multiple of any machine's, so that the piece is the same on all */
    ALIGNMENT = 64,        /* of a tensor */
};
static const size_t MAX_TENSOR_BYTES = (size_t)64 << 30; /* mapped 1000 times; a process has 65530 maps */

/* ---- pieces of random blocks ------------------------------------------------------------------- */

/* Of one type: a piece, and copies of it, one behind the other, for the largest tensor from anywhere in the first. */
struct pool {
    enum tensor_type type;
    size_t piece_bytes, bytes; /* of one, of all */
    uint8_t *data;
};

static size_t common_multiple(size_t a, size_t b)
{
    size_t x = a, y = b;

    while (y) {
        size_t rest = x % y;

        x = y;
        y = rest;
    }
    return a / x * b;
}

static size_t block_bytes(enum tensor_type type)
{
    return (size_t)tensor_type_info(type)->block_bytes;
}

/* A piece is whole pages of whole blocks: where one copy ends and the next begins, blocks go on. */
static struct pool size_pool(enum tensor_type type, size_t largest)
{
    size_t unit = common_multiple(PAGE_BYTES, block_bytes(type)), piece = POOL_BYTES / unit * unit;

    return (struct pool){
        .type = type,
        .piece_bytes = piece,
        .bytes = round_up(piece + largest, piece),
    };
}

static enum status fill_piece(int fd, const struct pool *pool, float deviation, uint64_t *state)
{
    void *piece;

    /* What is not there is told here, and does not end the process when it is written to. */
    if (fallocate(fd, 0, 0, (off_t)pool->piece_bytes) < 0)
        return fail(errno == ENOSPC ? ERR_NO_MEMORY : ERR_IO, "no memory for %zu bytes of random weights: %m",
                    pool->piece_bytes);
    piece = mmap(NULL, pool->piece_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (piece == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "%zu bytes of random weights can't be mapped: %m", pool->piece_bytes);
    random_weights_fill(state, pool->type, deviation, piece, pool->piece_bytes);
    munmap(piece, pool->piece_bytes);
    return OK;
}

static enum status map_copies(int fd, const struct pool *pool)
{
    for (size_t at = 0; at < pool->bytes; at += pool->piece_bytes)
        if (mmap(pool->data + at, pool->piece_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
            return fail(ERR_NO_MEMORY, "random weights can't be mapped at byte %zu: %m", at);
    return OK;
}

static enum status make_copies(const struct pool *pool, float deviation, uint64_t *state)
{
    int fd = memfd_create("tandem-dummy-weights", MFD_CLOEXEC);
    enum status status;

    if (fd < 0)
        return fail(ERR_IO, "no file in memory for random weights: %m");
    status = fill_piece(fd, pool, deviation, state);
    if (status == OK)
        status = map_copies(fd, pool);
    close(fd);
    return status;
}

/* Addresses for all pools, side by side. */
static enum status place_pools(struct pool *pools, int num_pools, struct file_map *out)
{
    size_t bytes = 0;
    void *data;

    for (int i = 0; i < num_pools; i++)
        bytes += pools[i].bytes;
    data = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "%zu bytes of addresses can't be had: %m", bytes);
    *out = (struct file_map){.data = data, .bytes = bytes};
    bytes = 0;
    for (int i = 0; i < num_pools; i++) {
        pools[i].data = (uint8_t *)data + bytes;
        bytes += pools[i].bytes;
    }
    return OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static bool is_vector(const struct tensor *tensor)
{
    return tensor->num_rows == 1;
}

/* What the largest tensors of a model want. */
struct largest {
    size_t matrix_bytes, table_bytes; /* of the type that was asked for, and of another */
    size_t vector_floats, rows;       /* rows: of a matrix */
};

static enum status find_largest(const struct model_file *file, enum tensor_type type, struct largest *out)
{
    *out = (struct largest){0};
    for (int32_t i = 0; i < file->num_tensors; i++) {
        const struct tensor *tensor = &file->tensors[i];
        size_t bytes = shape_tensor_bytes(tensor), *most = tensor->type == type ? &out->matrix_bytes : &out->table_bytes;

        if (bytes > MAX_TENSOR_BYTES)
            return fail(ERR_UNSUPPORTED, "%s has %zu bytes; %zu is the limit", tensor->name, bytes,
                        MAX_TENSOR_BYTES);
        if (is_vector(tensor)) {
            out->vector_floats = MAX(out->vector_floats, (size_t)tensor->num_columns);
            continue;
        }
        *most = MAX(*most, bytes);
        out->rows = MAX(out->rows, (size_t)tensor->num_rows);
    }
    return OK;
}

/* Between centre - width and centre + width, with room for the largest of them from anywhere in the first half. */
static const float *make_vectors(struct arena *arena, size_t largest, float centre, float width, uint64_t *state)
{
    float *vectors = arena_alloc(arena, 2 * largest * sizeof *vectors);

    for (size_t i = 0; i < 2 * largest; i++)
        vectors[i] = centre + random_weights_float(state) * width;
    return vectors;
}

static bool is_bias(const struct tensor *tensor)
{
    size_t size = strlen(tensor->name);

    return size > 5 && strcmp(tensor->name + size - 5, ".bias") == 0;
}

static bool has_biases(const struct model_file *file)
{
    for (int32_t i = 0; i < file->num_tensors; i++)
        if (is_bias(&file->tensors[i]))
            return true;
    return false;
}

static const float *make_rope_factors(struct model_file *file, const struct hf_config *config)
{
    int32_t n = config->model.rope_dim / 2;
    float *factors = arena_alloc(&file->arena, (size_t)n * sizeof *factors);

    for (int32_t i = 0; i < n; i++)
        factors[i] = hf_config_llama3_factor(config, i);
    return factors;
}

/* A multiple of `step` below `end`. */
static size_t random_place(uint64_t *state, size_t step, size_t end)
{
    return (size_t)(random_weights_bits(state) % (end / step)) * step;
}

static const void *place_in(const struct pool *pool, uint64_t *state)
{
    return pool->data + random_place(state, common_multiple(ALIGNMENT, block_bytes(pool->type)), pool->piece_bytes);
}

/* Matrices of the type that was asked for come first, tables of another behind them. */
static enum status make_pools(struct model_file *file, const struct largest *largest, enum tensor_type type,
                              uint64_t *state, struct pool pools[2])
{
    int num_pools = largest->table_bytes > 0 ? 2 : 1;

    pools[0] = size_pool(type, largest->matrix_bytes);
    pools[1] = size_pool(TYPE_BF16, largest->table_bytes);
    file_map_close(&file->map);
    TRY(place_pools(pools, num_pools, &file->map));
    for (int i = 0; i < num_pools; i++)
        TRY(make_copies(&pools[i], 1 / sqrtf((float)file->config.hidden_size), state));
    return OK;
}

static enum status fill_tensors(struct model_file *file, const struct hf_config *config,
                                const struct dummy_options *options)
{
    const float *norms, *biases = NULL, *scales = NULL;
    uint64_t state = options->seed;
    struct largest largest;
    struct pool pools[2];

    TRY(find_largest(file, options->type, &largest));
    TRY(make_pools(file, &largest, options->type, &state, pools));
    norms = make_vectors(&file->arena, largest.vector_floats, 1, 0.25f, &state);
    if (has_biases(file))
        biases = make_vectors(&file->arena, largest.vector_floats, 0, 0.25f, &state);
    if (options->type == TYPE_F8_E4M3) {
        float scale = 1 / sqrtf((float)config->model.hidden_size) / RANDOM_F8_DEVIATION;

        scales = make_vectors(&file->arena, largest.rows, scale, scale / 4, &state);
    }
    for (int32_t i = 0; i < file->num_tensors; i++) {
        struct tensor *tensor = &file->tensors[i];

        if (!is_vector(tensor))
            tensor->data = place_in(&pools[tensor->type != options->type], &state);
        else if (strcmp(tensor->name, "rope_freqs.weight") == 0)
            tensor->data = make_rope_factors(file, config);
        else
            tensor->data = (is_bias(tensor) ? biases : norms) + random_place(&state, 1, largest.vector_floats);
        if (tensor->type == TYPE_F8_E4M3)
            tensor->scales = (struct tensor_scales){scales + random_place(&state, 1, largest.rows), 1, tensor->num_columns};
    }
    return OK;
}

/* ---- the model ------------------------------------------------------------------------------- */

struct dummy {
    struct dummy_options options;
    char *path; /* as it was given, without slashes at the end */
};

static enum status read_dummy(struct model_file *file, const void *user)
{
    const struct dummy *dummy = user;
    const char *slash = strrchr(dummy->path, '/');
    struct hf_config config;
    json_auto_t *root = NULL;

    TRY(hf_config_parse(file->map.data, file->map.bytes, &root));
    TRY(hf_config_read(root, &config));
    file->config = config.model;
    strncpy(file->config.name, slash ? slash + 1 : dummy->path, sizeof file->config.name - 1);
    TRY(shape_add_tensors(file, dummy->options.type, config.is_tied));
    TRY(fill_tensors(file, &config, &dummy->options));
    shape_fill_vocabulary(file);
    return OK;
}

enum status dummy_open(const char *path, const struct dummy_options *options, enum model_parts parts,
                       struct model_file **out)
{
    size_t size = strlen(path);
    struct stat stat_of;

    while (size > 1 && path[size - 1] == '/')
        size--;

    AUTO_MEM char *trimmed = mem_strndup(path, size);
    bool is_folder = stat(trimmed, &stat_of) == 0 && S_ISDIR(stat_of.st_mode);
    AUTO_MEM char *file = mem_printf("%s%s", trimmed, is_folder ? "/config.json" : "");

    return model_file_open_by(file, parts, read_dummy, &(struct dummy){*options, trimmed}, out);
}
