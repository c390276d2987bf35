#include "worker/weights.h"

#include "proto/base/log.h"

#include <stdio.h>
#include <string.h>

/* What every function here reads. */
struct loader {
    struct weights *weights;
    struct device *dev;
    const struct model_file *file;
    const struct model_config *config;
    const struct shard *shard;
    const struct tensor_tables *tables;
    int64_t touched_bytes; /* of the slab */
};

enum { TOUCH_BYTES = 256 << 20 }; /* at once, before they are needed */

/* ---- which tensors ---------------------------------------------------------------------- */

enum { OF_MODEL = -1 }; /* in place of a layer's number */

struct tensor_name {
    char text[96];
};

static struct tensor_name name_of(const struct tensor_row *row, int32_t layer)
{
    struct tensor_name name;

    if (layer == OF_MODEL)
        snprintf(name.text, sizeof(name.text), "%s", row->name);
    else
        snprintf(name.text, sizeof(name.text), "blk.%d.%s", layer, row->name);
    return name;
}

static const struct tensor *find(const struct loader *loader, const struct tensor_row *row,
                                 int32_t layer)
{
    return model_file_tensor(loader->file, name_of(row, layer).text);
}

static int64_t dim_size(const struct model_config *config, enum dim dim)
{
    switch (dim) {
    case DIM_ONE:        return 1;
    case DIM_HIDDEN:     return config->hidden_size;
    case DIM_HEAD:       return config->head_dim;
    case DIM_HEADS:      return (int64_t)config->num_heads * config->head_dim;
    case DIM_KV_HEADS:   return (int64_t)config->num_kv_heads * config->head_dim;
    case DIM_FFN:        return config->intermediate_size;
    case DIM_VOCABULARY: return config->vocab_size;
    case DIM_ROPE_PAIRS: return config->rope_dim / 2;
    }
    ASSERT(false, "dimension %d", dim);
}

/* The items of a dimension that this rank holds. */
static void dim_range(const struct loader *loader, enum dim dim, int32_t *first, int32_t *count)
{
    const struct shard *shard = loader->shard;
    int32_t head_dim = loader->config->head_dim;

    switch (dim) {
    case DIM_HEADS:
        *first = shard->first_head * head_dim;
        *count = shard->num_heads * head_dim;
        return;
    case DIM_KV_HEADS:
        *first = shard->first_kv_head * head_dim;
        *count = shard->num_kv_heads * head_dim;
        return;
    case DIM_FFN:
        *first = shard->first_group * shard->group_columns;
        *count = shard->num_groups * shard->group_columns;
        return;
    case DIM_VOCABULARY:
        *first = shard->first_token;
        *count = shard->num_tokens;
        return;
    default:
        *first = 0;
        *count = (int32_t)dim_size(loader->config, dim);
        return;
    }
}

/* ---- checks ------------------------------------------------------------------------------- */

static enum status check_tensor(const struct loader *loader, const struct tensor_row *row,
                                int32_t layer)
{
    struct tensor_name name = name_of(row, layer);
    const struct tensor *tensor = find(loader, row, layer);
    int64_t num_rows = dim_size(loader->config, row->rows);
    int64_t num_columns = dim_size(loader->config, row->columns);

    if (!tensor)
        return row->optional ? OK
                             : fail(ERR_CORRUPT, "tensor %s (%lld x %lld) is missing", name.text,
                                    (long long)num_rows, (long long)num_columns);
    if (tensor->num_rows != num_rows || tensor->num_columns != num_columns)
        return fail(ERR_CORRUPT,
                    "tensor %s is %lld x %lld where the model's shape asks for %lld x %lld",
                    name.text, (long long)tensor->num_rows, (long long)tensor->num_columns,
                    (long long)num_rows, (long long)num_columns);
    if (row->rows != DIM_ONE &&
        device_kernels(loader->dev)->matrix_bytes(linear_type(tensor), 32, (int32_t)num_columns) < 0)
        return fail(ERR_UNSUPPORTED, "tensor %s is %s, which the %s kernels do not multiply",
                    name.text, tensor_type_info(tensor->type)->name,
                    device_kernels(loader->dev)->name);
    return OK;
}

static enum status check_table(const struct loader *loader, const struct tensor_row *table,
                               int32_t layer)
{
    for (const struct tensor_row *row = table; row->name; row++)
        TRY(check_tensor(loader, row, layer));
    return OK;
}

/* What follows "blk.N." of a layer's tensor, NULL for another. */
static const char *name_within_layer(const char *name)
{
    if (strncmp(name, "blk.", 4) != 0)
        return NULL;
    name += 4 + strspn(name + 4, "0123456789");
    return *name == '.' ? name + 1 : NULL;
}

static bool is_used(const struct loader *loader, const char *name)
{
    const char *within_layer = name_within_layer(name);
    const struct tensor_row *row =
        within_layer ? loader->tables->of_layer : loader->tables->of_model;

    for (; row->name; row++)
        if (strcmp(row->name, within_layer ? within_layer : name) == 0)
            return true;
    return false;
}

/* Tensors we don't know are left alone, but a bias that nobody adds would change every answer in
 * silence. */
static enum status check_unused(const struct loader *loader)
{
    const char *first_unused = NULL;
    int32_t num_unused = 0;

    for (int32_t i = 0; i < model_file_num_tensors(loader->file); i++) {
        const char *name = model_file_tensor_at(loader->file, i)->name;
        size_t size = strlen(name);

        if (is_used(loader, name))
            continue;
        if (size > 5 && strcmp(name + size - 5, ".bias") == 0)
            return fail(ERR_UNSUPPORTED, "tensor %s: %s models have no such bias here", name,
                        loader->config->architecture);
        if (num_unused++ == 0)
            first_unused = name;
    }
    if (num_unused > 0)
        log_debug("%d tensors are not used by %s models, the first is %s", num_unused,
                  loader->config->architecture, first_unused);
    return OK;
}

static enum status check_all(const struct loader *loader)
{
    TRY(check_table(loader, loader->tables->of_model, OF_MODEL));
    for (int32_t i = 0; i < loader->config->num_layers; i++)
        TRY(check_table(loader, loader->tables->of_layer, i));
    return check_unused(loader);
}

/* ---- reading ------------------------------------------------------------------------------ */

static struct linear_part part_of(const struct loader *loader, const struct tensor_row *row,
                                  const struct tensor *tensor)
{
    struct linear_part part = {.tensor = tensor};

    dim_range(loader, row->rows, &part.first_row, &part.num_rows);
    dim_range(loader, row->columns, &part.first_column, &part.num_columns);
    return part;
}

static enum status load_vector(struct loader *loader, const struct linear_part *parts, int32_t num_parts,
                               const float **out)
{
    int32_t n = 0, at = 0;
    float *place;

    for (int32_t i = 0; i < num_parts; i++)
        n += parts[i].num_columns;
    *out = place = slab_take_array(&loader->weights->slab, float, n);
    if (slab_is_measuring(&loader->weights->slab))
        return OK;

    AUTO_MEM float *vector = mem_new_array(float, n);

    for (int32_t i = 0; i < num_parts; i++) {
        const struct tensor *tensor = parts[i].tensor;

        tensor_dequantize(tensor->type, tensor->data, parts[i].first_column, parts[i].num_columns, vector + at);
        at += parts[i].num_columns;
    }
    return device_write(loader->dev, place, vector, n * (int64_t)sizeof *vector);
}

/* What is packed next has its memory by then: the system clears pages one by one, for whoever touches them first, and
 * where that is somebody's panel the others wait for him at its matrix's end. */
static void touch_ahead(struct loader *loader)
{
    const struct slab *slab = &loader->weights->slab;
    int64_t bytes = MIN(slab->bytes - loader->touched_bytes, (int64_t)TOUCH_BYTES);

    if (slab_is_measuring(slab) || bytes == 0 || slab->used + TOUCH_BYTES / 2 < loader->touched_bytes)
        return;
    device_touch(loader->dev, slab->base + loader->touched_bytes, bytes);
    loader->touched_bytes += bytes;
}

static enum status load_table(struct loader *loader, const struct tensor_row *table, int32_t layer,
                              void *places)
{
    touch_ahead(loader);
    for (const struct tensor_row *row = table, *next; row->name; row = next) {
        struct linear_part parts[LINEAR_MAX_PARTS];
        int32_t num_parts = 0;
        const struct tensor *tensor = find(loader, row, layer);
        void *place = (char *)places + row->place;

        next = row + 1;
        if (!tensor)
            continue;
        parts[num_parts++] = part_of(loader, row, tensor);
        for (; next->name && next->place == row->place; next++) {
            ASSERT(num_parts < LINEAR_MAX_PARTS && !next->optional);
            parts[num_parts++] = part_of(loader, next, find(loader, next, layer));
        }
        if (row->rows == DIM_ONE)
            TRY(load_vector(loader, parts, num_parts, place));
        else
            linear_load(place, &loader->weights->slab, loader->dev, parts, num_parts);
    }
    return OK;
}

static enum status load_all(struct loader *loader, const struct model_options *options)
{
    struct weights *weights = loader->weights;
    int32_t num_layers = loader->config->num_layers;

    TRY(load_table(loader, loader->tables->of_model, OF_MODEL, weights));
    for (int32_t i = 0; i < num_layers; i++) {
        if (options->is_given_up &&
            atomic_load_explicit(options->is_given_up, memory_order_relaxed))
            return fail(ERR_ABORTED, "loading was given up at layer %d of %d", i, num_layers);
        TRY(load_table(loader, loader->tables->of_layer, i, &weights->layers[i]));
        work_count_add(options->work);
        if (options->progress && !slab_is_measuring(&weights->slab))
            options->progress(options->user, (i + 1.0) / num_layers);
    }
    return OK;
}

/* Each matrix of the layer is read after *last, which moves on. */
static void chain_linear(struct linear *linear, struct matrix **last)
{
    for (int32_t i = 0; i < linear->num_matrices; i++) {
        (*last)->next = &linear->matrices[i];
        *last = &linear->matrices[i];
    }
}

/* Tells every matrix which one a step reads after it. The first layer comes after the logits. */
static void chain_matrices(struct weights *weights, int32_t num_layers)
{
    struct linear *output = weights->output.num_matrices ? &weights->output : &weights->embedding;
    struct matrix *last = &output->matrices[output->num_matrices - 1];

    for (int32_t i = 0; i < num_layers; i++) {
        struct layer *layer = &weights->layers[i];

        chain_linear(&layer->qkv, &last);
        chain_linear(&layer->attention_output, &last);
        chain_linear(&layer->gate_up, &last);
        chain_linear(&layer->down, &last);
    }
    chain_linear(output, &last);
}

enum status weights_load(struct weights *weights, struct device *dev, const struct model_file *file,
                         const struct shard *shard, const struct tensor_tables *tables,
                         const struct model_options *options)
{
    struct loader loader = {weights, dev, file, model_file_config(file), shard, tables};

    TRY(check_all(&loader));
    *weights = (struct weights){.layers = mem_new_array(struct layer, loader.config->num_layers)};
    TRY(load_all(&loader, options)); /* measures */
    TRY(slab_open(&weights->slab, dev, "the weights"));
    device_expect_full(dev, weights->slab.base, weights->slab.bytes);
    TRY(load_all(&loader, options));
    chain_matrices(weights, loader.config->num_layers);
    return OK;
}

void weights_close(struct weights *weights)
{
    slab_close(&weights->slab);
    mem_free(weights->layers);
    *weights = (struct weights){0};
}
