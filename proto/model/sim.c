#include "proto/model/sim.h"

#include "proto/base/memory.h"
#include "proto/model/shape.h"

#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_FILE_BYTES = 64 << 10, MAX_TP = 256 };

/* What the file may say of each number. */
struct sim_key {
    const char *name;
    double scale; /* from the file's unit to ours */
    double least, most;
    size_t offset;
};

#define KEY(member, name, scale, least, most)                                                      \
    {                                                                                              \
        name, scale, least, most, offsetof(struct sim_device, member)                              \
    }
static const struct sim_key device_keys[] = {
    KEY(memory_bytes, "memory_gb", 1e9, 0.001, 1e6),
    KEY(memory_bytes_per_s, "memory_gb_per_s", 1e9, 0, 1e9),
    KEY(flops_per_s, "tflops", 1e12, 0, 1e9),
    KEY(kernel_overhead_ns, "kernel_overhead_us", 1e3, 0, 1e6),
    KEY(link_latency_ns, "link_latency_us", 1e3, 0, 1e6),
    KEY(link_bytes_per_s, "link_gb_per_s", 1e9, 0, 1e9),
};
#undef KEY

/* A model's numbers; whole ones. */
struct sim_shape {
    double num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim;
    double vocab_size, max_position;
};

#define KEY(member, least, most)                                                                   \
    {                                                                                              \
#member, 1, least, most, offsetof(struct sim_shape, member)                                \
    }
static const struct sim_key shape_keys[] = {
    KEY(num_layers, 1, 1024),
    KEY(hidden_size, 32, 1 << 17),
    KEY(intermediate_size, 32, 1 << 18),
    KEY(num_heads, 1, 1024),
    KEY(num_kv_heads, 1, 1024),
    KEY(head_dim, 16, 256),
    KEY(vocab_size, SHAPE_MIN_VOCAB, 1 << 20),
    KEY(max_position, 16, 1 << 20),
};
#undef KEY

/* ---- JSON ------------------------------------------------------------------------------------ */

static bool is_known(const char *key, const struct sim_key *keys, size_t num_keys,
                     const char *const *texts)
{
    for (size_t i = 0; i < num_keys; i++)
        if (strcmp(keys[i].name, key) == 0)
            return true;
    for (; *texts; texts++)
        if (strcmp(*texts, key) == 0)
            return true;
    return false;
}

static enum status check_texts(const json_t *object, const char *part, const char *const *texts)
{
    for (; *texts; texts++) {
        const json_t *text = json_object_get(object, *texts);

        if (text && !json_is_string(text))
            return fail(ERR_CORRUPT, "%s.%s is no text", part, *texts);
    }
    return OK;
}

/* Every key must be there, and no other but those of `texts`, which may be. */
static enum status read_numbers(const json_t *root, const char *part, const struct sim_key *keys,
                                size_t num_keys, const char *const *texts, void *out)
{
    const json_t *object = json_object_get(root, part);
    const char *key;
    json_t *value;

    if (!json_is_object(object))
        return fail(ERR_CORRUPT, "\"%s\" is missing, or is no object", part);
    json_object_foreach ((json_t *)object, key, value)
        if (!is_known(key, keys, num_keys, texts))
            return fail(ERR_CORRUPT, "%s.%s is not known", part, key);
    TRY(check_texts(object, part, texts));
    for (size_t i = 0; i < num_keys; i++) {
        const json_t *number = json_object_get(object, keys[i].name);
        double x = json_number_value(number);

        if (!json_is_number(number))
            return fail(ERR_CORRUPT, "%s.%s is missing, or is no number", part, keys[i].name);
        if (!(x >= keys[i].least && x <= keys[i].most))
            return fail(ERR_CORRUPT, "%s.%s is %g; it must be %g to %g", part, keys[i].name, x,
                        keys[i].least, keys[i].most);
        *(double *)((char *)out + keys[i].offset) = x * keys[i].scale;
    }
    return OK;
}

static enum status read_whole_numbers(const json_t *root, const char *part,
                                      const struct sim_key *keys, size_t num_keys,
                                      const char *const *texts, void *out)
{
    TRY(read_numbers(root, part, keys, num_keys, texts, out));
    for (size_t i = 0; i < num_keys; i++) {
        double x = *(const double *)((const char *)out + keys[i].offset);

        if (x != floor(x))
            return fail(ERR_CORRUPT, "%s.%s is %g; it must be a whole number", part, keys[i].name,
                        x);
    }
    return OK;
}

static const char *const device_texts[] = {"name", "sources", NULL};
static const char *const model_texts[] = {"name", "weight_type", NULL};

static enum status read_root(const json_t *root, struct sim_device *device_out, int32_t *tp_out)
{
    json_int_t tp = json_integer_value(json_object_get(root, "tp"));
    const char *key;
    json_t *value;

    if (!json_is_object(root))
        return fail(ERR_CORRUPT, "is no JSON object");
    json_object_foreach ((json_t *)root, key, value)
        if (strcmp(key, "device") != 0 && strcmp(key, "model") != 0 && strcmp(key, "tp") != 0)
            return fail(ERR_CORRUPT, "\"%s\" is not known", key);
    TRY(read_numbers(root, "device", device_keys, COUNT_OF(device_keys), device_texts, device_out));
    if (tp < 1 || tp > MAX_TP)
        return fail(ERR_CORRUPT, "\"tp\" is missing, or is no number of ranks from 1 to %d",
                    MAX_TP);
    *tp_out = (int32_t)tp;
    return OK;
}

static enum status parse(const void *data, size_t size, json_t **out)
{
    json_error_t error;

    if (size > MAX_FILE_BYTES)
        return fail(ERR_CORRUPT, "has %zu bytes; a device's description has at most %d", size,
                    MAX_FILE_BYTES);
    *out = json_loadb(data, size, JSON_REJECT_DUPLICATES, &error);
    if (!*out)
        return fail(ERR_CORRUPT, "line %d, column %d: %s", error.line, error.column, error.text);
    return OK;
}

enum status sim_file_read(const char *path, struct sim_device *device_out, int32_t *tp_out)
{
    AUTO_CLOSE(file_map) struct file_map map = {0};
    json_t *root = NULL;
    enum status status = file_map_open(path, &map);

    if (status == OK)
        status = parse(map.data, map.bytes, &root);
    if (status == OK)
        status = read_root(root, device_out, tp_out);
    json_decref(root);
    return fail_in(path, status);
}

/* ---- the model ------------------------------------------------------------------------------- */

static enum status find_weight_type(const json_t *model, enum tensor_type *out)
{
    const char *name = json_string_value(json_object_get(model, "weight_type"));

    if (name && tensor_type_find(name, out) && *out != TYPE_F8_E4M3) /* which has no scales here */
        return OK;
    return fail(ERR_CORRUPT, "model.weight_type is %s%s%s; it must be a type like BF16 or Q8_0",
                name ? "\"" : "", name ? name : "missing", name ? "\"" : "");
}

static void fill_config(const json_t *model, const struct sim_shape *shape,
                        struct model_config *config)
{
    const char *name = json_string_value(json_object_get(model, "name"));

    *config = (struct model_config){
        .architecture = "llama",
        .num_layers = (int32_t)shape->num_layers,
        .hidden_size = (int32_t)shape->hidden_size,
        .intermediate_size = (int32_t)shape->intermediate_size,
        .num_heads = (int32_t)shape->num_heads,
        .num_kv_heads = (int32_t)shape->num_kv_heads,
        .head_dim = (int32_t)shape->head_dim,
        .vocab_size = (int32_t)shape->vocab_size,
        .max_position = (int32_t)shape->max_position,
        .rms_norm_eps = 1e-5f,
        .rope_theta = 10000,
        .rope_theta_local = 10000,
        .rope_dim = (int32_t)shape->head_dim,
    };
    snprintf(config->name, sizeof config->name, "%s", name ? name : "sim");
}

/* Zeros without memory behind them: all tensors are the beginning of one mapping. */
static enum status map_zeros(struct model_file *file)
{
    size_t most = 0;

    for (int32_t i = 0; i < file->num_tensors; i++)
        most = MAX(most, shape_tensor_bytes(&file->tensors[i]));

    void *zeros = mmap(NULL, most, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (zeros == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "the largest tensor, %zu bytes, can't be mapped: %m", most);
    file_map_close(&file->map);
    file->map = (struct file_map){.data = zeros, .bytes = most};
    for (int32_t i = 0; i < file->num_tensors; i++)
        file->tensors[i].data = zeros;
    return OK;
}

static enum status read_model(struct model_file *file, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    struct sim_device device;
    struct sim_shape shape;
    enum tensor_type type;
    int32_t tp;

    TRY(read_root(root, &device, &tp));
    TRY(read_whole_numbers(root, "model", shape_keys, COUNT_OF(shape_keys), model_texts, &shape));
    TRY(find_weight_type(model, &type));
    fill_config(model, &shape, &file->config);
    shape_fill_vocabulary(file);
    TRY(shape_add_tensors(file, type, false));
    return map_zeros(file);
}

enum status sim_read(struct model_file *file)
{
    json_t *root;
    enum status status;

    TRY(parse(file->map.data, file->map.bytes, &root));
    file->is_simulated = true;
    status = read_model(file, root);
    json_decref(root);
    return status;
}
