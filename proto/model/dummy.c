#include "proto/model/dummy.h"

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

/* ---- the piece of random blocks -------------------------------------------------------------- */

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

/* Whole pages of whole blocks: where one copy of the piece ends and the next begins, blocks go on. */
static size_t pool_bytes(enum tensor_type type)
{
    size_t unit = common_multiple(PAGE_BYTES, block_bytes(type));

    return POOL_BYTES / unit * unit;
}

static enum status fill_pool(int fd, size_t bytes, enum tensor_type type, float deviation,
                             uint64_t *state)
{
    void *pool;

    /* What is not there is told here, and does not end the process when it is written to. */
    if (fallocate(fd, 0, 0, (off_t)bytes) < 0)
        return fail(errno == ENOSPC ? ERR_NO_MEMORY : ERR_IO, "no memory for %zu bytes of random weights: %m",
                    bytes);
    pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (pool == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "%zu bytes of random weights can't be mapped: %m", bytes);
    random_weights_fill(state, type, deviation, pool, bytes);
    munmap(pool, bytes);
    return OK;
}

/* Copies of the piece, one behind the other: a whole number of them that is `bytes` at least. */
static enum status map_copies(int fd, size_t pool, size_t bytes, struct file_map *out)
{
    struct file_map map = {.bytes = (bytes + pool - 1) / pool * pool};
    char *data = mmap(NULL, map.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (data == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "%zu bytes of addresses can't be had: %m", map.bytes);
    map.data = (uint8_t *)data;
    for (size_t at = 0; at < map.bytes; at += pool)
        if (mmap(data + at, pool, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
            enum status status = fail(ERR_NO_MEMORY, "random weights can't be mapped at byte %zu: %m", at);

            munmap(data, map.bytes);
            return status;
        }
    *out = map;
    return OK;
}

static enum status make_copies(size_t pool, size_t bytes, enum tensor_type type, float deviation,
                               uint64_t *state, struct file_map *out)
{
    int fd = memfd_create("tandem-dummy-weights", MFD_CLOEXEC);
    enum status status;

    if (fd < 0)
        return fail(ERR_IO, "no file in memory for random weights: %m");
    status = fill_pool(fd, pool, type, deviation, state);
    if (status == OK)
        status = map_copies(fd, pool, bytes, out);
    close(fd);
    return status;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static bool is_vector(const struct tensor *tensor)
{
    return tensor->num_rows == 1;
}

static enum status find_largest(const struct model_file *file, size_t *matrix_bytes_out,
                                size_t *vector_floats_out)
{
    *matrix_bytes_out = *vector_floats_out = 0;
    for (int32_t i = 0; i < file->num_tensors; i++) {
        const struct tensor *tensor = &file->tensors[i];
        size_t bytes = shape_tensor_bytes(tensor);

        if (bytes > MAX_TENSOR_BYTES)
            return fail(ERR_UNSUPPORTED, "%s has %zu bytes; %zu is the limit", tensor->name, bytes,
                        MAX_TENSOR_BYTES);
        if (is_vector(tensor))
            *vector_floats_out = MAX(*vector_floats_out, (size_t)tensor->num_columns);
        else
            *matrix_bytes_out = MAX(*matrix_bytes_out, bytes);
    }
    return OK;
}

/* Near `centre`, with room for the largest of them from anywhere in the first half. */
static const float *make_vectors(struct arena *arena, size_t largest, float centre, uint64_t *state)
{
    float *vectors = arena_alloc(arena, 2 * largest * sizeof *vectors);

    for (size_t i = 0; i < 2 * largest; i++)
        vectors[i] = centre + random_weights_float(state) / 4;
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

static enum status fill_tensors(struct model_file *file, const struct hf_config *config,
                                const struct dummy_options *options)
{
    size_t pool = pool_bytes(options->type), step = common_multiple(ALIGNMENT, block_bytes(options->type));
    size_t matrix_bytes, vector_floats;
    uint64_t state = options->seed;
    const float *norms, *biases = NULL;

    TRY(find_largest(file, &matrix_bytes, &vector_floats));
    file_map_close(&file->map);
    TRY(make_copies(pool, pool + matrix_bytes, options->type,
                    1 / sqrtf((float)config->model.hidden_size), &state, &file->map));
    norms = make_vectors(&file->arena, vector_floats, 1, &state);
    if (has_biases(file))
        biases = make_vectors(&file->arena, vector_floats, 0, &state);
    for (int32_t i = 0; i < file->num_tensors; i++) {
        struct tensor *tensor = &file->tensors[i];

        if (!is_vector(tensor))
            tensor->data = file->map.data + random_place(&state, step, pool);
        else if (strcmp(tensor->name, "rope_freqs.weight") == 0)
            tensor->data = make_rope_factors(file, config);
        else
            tensor->data = (is_bias(tensor) ? biases : norms) + random_place(&state, 1, vector_floats);
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

    TRY(hf_config_read(file->map.data, file->map.bytes, &config));
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
