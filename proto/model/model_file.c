#include "proto/base/rounding.h"
#include "proto/model/hf_folder.h"
#include "proto/model/reader.h"
#include "proto/model/safetensors.h"

#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

static enum status map_whole(struct model_file *file, const char *path)
{
    enum status status = file_map_open(path, &file->map);

    if (status == ERR_UNSUPPORTED)
        return fail(status, "%s; a model is a .gguf file or a folder", fail_text());
    return status;
}

static enum status read_as_its_format(struct model_file *file, const void *user)
{
    (void)user;
    if (file->map.data[0] == '{')
        return sim_read(file);
    if (file->map.bytes < 4 || memcmp(file->map.data, "GGUF", 4) != 0) {
        if (safetensors_is_likely(file->map.data, file->map.bytes))
            return fail(ERR_UNSUPPORTED, "is a file of safetensors; a model is the folder around it");
        return fail(ERR_UNSUPPORTED, "is not a GGUF file: it does not start with \"GGUF\"");
    }
    return gguf_read(file);
}

static int compare_names(const void *a, const void *b)
{
    const struct tensor *const *left = a, *const *right = b;

    return strcmp((*left)->name, (*right)->name);
}

enum status model_file_index(struct model_file *file)
{
    file->by_name = arena_alloc(&file->arena, (size_t)file->num_tensors * sizeof *file->by_name);
    for (int32_t i = 0; i < file->num_tensors; i++)
        file->by_name[i] = &file->tensors[i];
    if (file->num_tensors)
        qsort(file->by_name, (size_t)file->num_tensors, sizeof *file->by_name, compare_names);
    for (int32_t i = 1; i < file->num_tensors; i++)
        if (strcmp(file->by_name[i - 1]->name, file->by_name[i]->name) == 0)
            return fail(ERR_CORRUPT, "tensor '%s' is there twice", file->by_name[i]->name);
    return OK;
}

/* A model that does not say its name has its file's. */
static void name_model(struct model_config *config, const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!config->name[0])
        strncpy(config->name, slash ? slash + 1 : path, sizeof config->name - 1);
}

static enum status fill(struct model_file *file, const char *path, model_reader *read, const void *user)
{
    TRY(read(file, user));
    if (!file->by_name)
        TRY(model_file_index(file));
    name_model(&file->config, path);
    return OK;
}

static enum status make(const char *path, bool is_mapped, enum model_parts parts, model_reader *read,
                        const void *user, struct model_file **out)
{
    AUTO_FREE(model_file) struct model_file *file = mem_new(struct model_file);
    enum status status = is_mapped ? map_whole(file, path) : OK;

    file->without_words = parts == MODEL_WITHOUT_WORDS;
    if (status == OK)
        status = fill(file, path, read, user);
    if (status != OK)
        return fail_in(path, status);
    *out = give(file);
    return OK;
}

enum status model_file_open_by(const char *path, enum model_parts parts, model_reader *read, const void *user,
                               struct model_file **out)
{
    return make(path, true, parts, read, user, out);
}

enum status model_file_make_by(const char *path, enum model_parts parts, model_reader *read, const void *user,
                               struct model_file **out)
{
    return make(path, false, parts, read, user, out);
}

enum status model_file_open_parts(const char *path, enum model_parts parts, struct model_file **out)
{
    struct stat stat_of;

    if (stat(path, &stat_of) == 0 && S_ISDIR(stat_of.st_mode))
        return hf_folder_open(path, parts, out);
    return model_file_open_by(path, parts, read_as_its_format, NULL, out);
}

enum status model_file_open(const char *path, struct model_file **out)
{
    return model_file_open_parts(path, MODEL_WHOLE, out);
}

enum status model_file_take_vocabulary(struct model_file *file, const char *path)
{
    AUTO_FREE(model_file) struct model_file *words = NULL;

    ASSERT(!file->words);
    TRY(model_file_open_parts(path, file->without_words ? MODEL_WITHOUT_WORDS : MODEL_WHOLE, &words));
    if (words->is_simulated)
        return fail(ERR_INVALID, "words come from a model file, not a description of a device: %s",
                    path);
    if (words->vocabulary.num_tokens > file->config.vocab_size)
        return fail(ERR_INVALID, "%s has %d tokens; there are logits for %d", path,
                    words->vocabulary.num_tokens, file->config.vocab_size);
    file->vocabulary = words->vocabulary;
    file->generation_config = words->generation_config;
    file->words = give(words);
    return OK;
}

void model_file_free(struct model_file *file)
{
    if (!file)
        return;
    model_file_free(file->words);
    file_map_close(&file->map);
    for (int32_t i = 0; i < file->num_parts; i++)
        file_map_close(&file->parts[i]);
    arena_close(&file->arena);
    mem_free(file);
}

/* ---- the view -------------------------------------------------------------------------------- */

/* Those of [*first, *end), which become what is left, counted from the end of this map. */
static void drop_from_map(const struct file_map *map, int64_t *first, int64_t *end)
{
    int64_t bytes = (int64_t)map->bytes;

    if (*first < bytes && *end > 0)
        file_map_drop_pages(map, (size_t)MAX(*first, (int64_t)0), (size_t)MIN(*end, bytes));
    *first -= bytes;
    *end -= bytes;
}

void model_file_drop_pages(const struct model_file *file, int64_t first, int64_t end)
{
    drop_from_map(&file->map, &first, &end);
    for (int32_t i = 0; i < file->num_parts; i++)
        drop_from_map(&file->parts[i], &first, &end);
}

bool model_file_is_simulated(const struct model_file *file)
{
    return file->is_simulated;
}

const struct model_config *model_file_config(const struct model_file *file)
{
    return &file->config;
}

const struct vocabulary *model_file_vocabulary(const struct model_file *file)
{
    return &file->vocabulary;
}

struct text_view model_file_generation_config(const struct model_file *file)
{
    return file->generation_config;
}

static int compare_name_to_tensor(const void *name, const void *tensor)
{
    return strcmp(name, (*(const struct tensor *const *)tensor)->name);
}

const struct tensor *model_file_tensor(const struct model_file *file, const char *name)
{
    const struct tensor **found = bsearch(name, file->by_name, (size_t)file->num_tensors,
                                          sizeof *file->by_name, compare_name_to_tensor);

    return found ? *found : NULL;
}

int32_t model_file_num_tensors(const struct model_file *file)
{
    return file->num_tensors;
}

const struct tensor *model_file_tensor_at(const struct model_file *file, int32_t i)
{
    ASSERT(i >= 0 && i < file->num_tensors, "tensor %d of %d", i, file->num_tensors);
    return &file->tensors[i];
}

const float *tensor_row_scales(const struct tensor *tensor, int64_t row)
{
    const struct tensor_scales *scales = &tensor->scales;
    int64_t width = divide_up_64(tensor->num_columns, scales->columns);

    return scales->values + row / scales->rows * width;
}

void tensor_to_bf16(const struct tensor *tensor, int64_t row, int64_t first, int64_t n, uint16_t *out)
{
    const struct tensor_scales *scales = &tensor->scales;
    const float *of_row = tensor_row_scales(tensor, row);
    const uint8_t *codes = (const uint8_t *)tensor->data + row * tensor->num_columns;

    ASSERT(tensor->type == TYPE_F8_E4M3 && first + n <= tensor->num_columns && row < tensor->num_rows);
    for (int64_t at = first, end; at < first + n; at = end) {
        int64_t block = at / scales->columns;

        end = MIN((block + 1) * scales->columns, first + n);
        fp8_to_bf16(codes + at, end - at, of_row[block], out + at - first);
    }
}

int64_t model_file_bytes(const struct model_file *file)
{
    size_t bytes = file->map.bytes;

    for (int32_t i = 0; i < file->num_parts; i++)
        bytes += file->parts[i].bytes;
    return (int64_t)bytes;
}

static void hash_tensor(XXH3_state_t *hash, const struct tensor *tensor)
{
    const uint8_t *data = tensor->data;
    int64_t row_bytes = tensor_row_bytes(tensor->type, tensor->num_columns);
    size_t bytes = (size_t)(row_bytes * tensor->num_rows), end_bytes = MIN(bytes, (size_t)4096);
    int64_t shape[] = {tensor->type, tensor->num_dims, tensor->num_columns, tensor->num_rows};

    XXH3_64bits_update(hash, tensor->name, strlen(tensor->name) + 1);
    XXH3_64bits_update(hash, shape, sizeof shape);
    XXH3_64bits_update(hash, data, end_bytes);
    XXH3_64bits_update(hash, data + bytes - end_bytes, end_bytes);
}

uint64_t model_file_fingerprint(const struct model_file *file)
{
    XXH3_state_t *hash = XXH3_createState();
    struct model_config config;
    uint64_t fingerprint;

    ASSERT(hash != NULL);
    /* A copy of one model under another file name is the same model. memcpy keeps the zeroed
     * padding, which an assignment need not. */
    memcpy(&config, &file->config, sizeof config);
    memset(config.name, 0, sizeof config.name);
    XXH3_64bits_reset(hash);
    XXH3_64bits_update(hash, &config, sizeof config);
    for (int32_t i = 0; i < file->num_tensors; i++)
        hash_tensor(hash, &file->tensors[i]);
    fingerprint = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return fingerprint;
}
