#include "proto/model/hf_folder.h"

#include "proto/model/hf_config.h"
#include "proto/model/hf_quantization.h"
#include "proto/model/hf_tokenizer.h"
#include "proto/model/json_field.h"
#include "proto/model/reader.h"
#include "proto/model/safetensors.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum {
    MAX_SHARDS = 1024,
    MAX_INDEX_BYTES = 32 << 20,
    MAX_FILE_NAME = 255,
};
#define WEIGHTS "model.safetensors"
#define INDEX   "model.safetensors.index.json"

struct shard_file {
    const char *name;
    struct tensor *tensors; /* by their names in the file */
    int32_t num_tensors;
};

struct folder {
    const char *path; /* without slashes at the end */
    struct model_file *file;
    struct hf_config config;
    struct hf_quantization quantization;
    bool is_gemma3;
    json_t *weight_map; /* of the index: those that no shard had yet; NULL: there is no index */
    struct shard_file *shards; /* [file->num_parts] */
};

/* ---- files ----------------------------------------------------------------------------------- */

static enum status map_file(const struct folder *folder, const char *name, struct file_map *out)
{
    AUTO_MEM char *path = mem_printf("%s/%s", folder->path, name);

    return fail_in(name, file_map_open(path, out));
}

/* One that need not be there. */
static enum status map_optional(const struct folder *folder, const char *name, struct file_map *out)
{
    enum status status = map_file(folder, name, out);

    return status == ERR_NOT_FOUND ? OK : status;
}

/* ---- names ----------------------------------------------------------------------------------- */

struct name_row {
    const char *hf, *ours;
    const char *of_gemma3; /* where it differs there */
    bool is_norm;
};

static const struct name_row of_model[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm", .is_norm = true},
    {"lm_head", "output"},
    {NULL},
};

static const struct name_row of_layer[] = {
    {"input_layernorm", "attn_norm", .is_norm = true},
    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},
    {"self_attn.v_proj", "attn_v"},
    {"self_attn.q_norm", "attn_q_norm", .is_norm = true},
    {"self_attn.k_norm", "attn_k_norm", .is_norm = true},
    {"self_attn.o_proj", "attn_output"},
    {"post_attention_layernorm", "ffn_norm", "post_attention_norm", .is_norm = true},
    {"pre_feedforward_layernorm", "ffn_norm", .is_norm = true},
    {"mlp.gate_proj", "ffn_gate"},
    {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
    {"post_feedforward_layernorm", "post_ffw_norm", .is_norm = true},
    {NULL},
};

static const struct name_row *find_row(const struct name_row *rows, const char *name, size_t size)
{
    for (const struct name_row *row = rows; row->hf; row++)
        if (strlen(row->hf) == size && memcmp(row->hf, name, size) == 0)
            return row;
    return NULL;
}

/* "model.layers.3.mlp.up_proj.weight" becomes "blk.3.ffn_up.weight"; what we don't know stays as it is. */
static void translate(const struct folder *folder, struct tensor *tensor, const struct name_row **row_out)
{
    static const char layers[] = "model.layers.";
    const char *name = tensor->name, *dot = strrchr(name, '.'), *within = name;
    const struct name_row *row;
    size_t digits = 0;
    char text[96];

    *row_out = NULL;
    if (!dot)
        return;
    if (strncmp(name, layers, strlen(layers)) == 0) {
        within = name + strlen(layers);
        digits = strspn(within, "0123456789");
        if (digits == 0 || digits > 4 || within + digits >= dot)
            return;
        row = find_row(of_layer, within + digits + 1, (size_t)(dot - within) - digits - 1);
    } else {
        row = find_row(of_model, name, (size_t)(dot - name));
    }
    if (!row || strlen(dot) > 24)
        return;
    snprintf(text, sizeof text, "%s%.*s%s%s%s", digits ? "blk." : "", (int)digits, within, digits ? "." : "",
             folder->is_gemma3 && row->of_gemma3 ? row->of_gemma3 : row->ours, dot);
    tensor->name = arena_strndup(&folder->file->arena, text, strlen(text));
    *row_out = row;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static float *take_floats(struct arena *arena, struct tensor *tensor)
{
    float *floats = arena_alloc(arena, (size_t)tensor->num_columns * sizeof *floats);

    tensor->type = TYPE_F32;
    tensor->data = floats;
    return floats;
}

/* gemma3 multiplies by 1 + weight. */
static void add_one(struct arena *arena, struct tensor *tensor)
{
    const struct tensor in_file = *tensor;
    float *floats = take_floats(arena, tensor);

    tensor_dequantize(in_file.type, in_file.data, 0, in_file.num_columns, floats);
    for (int64_t i = 0; i < in_file.num_columns; i++)
        floats[i] += 1;
}

static void add_rope_factors(const struct folder *folder)
{
    struct model_file *file = folder->file;
    struct tensor *tensor = &file->tensors[file->num_tensors++];
    float *factors;

    *tensor = (struct tensor){.name = "rope_freqs.weight",
                              .num_dims = 1,
                              .num_rows = 1,
                              .num_columns = folder->config.model.rope_dim / 2};
    factors = take_floats(&file->arena, tensor);
    for (int32_t i = 0; i < tensor->num_columns; i++)
        factors[i] = hf_config_llama3_factor(&folder->config, i);
}

/* Is it that of the index? */
static bool take_from_index(const struct folder *folder, const struct shard_file *shard, const char *name)
{
    const char *place = json_string_value(json_object_get(folder->weight_map, name));

    if (!folder->weight_map)
        return true;
    if (!place || strcmp(place, shard->name) != 0)
        return false;
    json_object_del(folder->weight_map, name);
    return true;
}

static void add_tensor(const struct folder *folder, const struct tensor *found)
{
    struct model_file *file = folder->file;
    struct tensor *tensor = &file->tensors[file->num_tensors];
    const struct name_row *row;

    *tensor = *found;
    translate(folder, tensor, &row);
    /* Tied, the embedding is what is multiplied with, whatever lies beside it. */
    if (folder->config.is_tied && strcmp(tensor->name, "output.weight") == 0)
        return;
    if (folder->is_gemma3 && row && row->is_norm && tensor->num_rows == 1 && tensor->type != TYPE_F8_E4M3)
        add_one(&file->arena, tensor);
    file->num_tensors++;
}

static bool has_tensor(const struct model_file *file, const char *name)
{
    for (int32_t i = 0; i < file->num_tensors; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return true;
    return false;
}

static enum status collect_tensors(const struct folder *folder)
{
    struct model_file *file = folder->file;
    size_t most = 1; /* the factors of RoPE */
    const char *name;
    json_t *place;

    for (int32_t i = 0; i < file->num_parts; i++)
        most += (size_t)folder->shards[i].num_tensors;
    file->tensors = arena_alloc(&file->arena, most * sizeof *file->tensors);
    for (int32_t i = 0; i < file->num_parts; i++) {
        const struct shard_file *shard = &folder->shards[i];

        for (int32_t k = 0; k < shard->num_tensors; k++)
            if (take_from_index(folder, shard, shard->tensors[k].name))
                add_tensor(folder, &shard->tensors[k]);
    }
    json_object_foreach(folder->weight_map, name, place)
        return fail(ERR_CORRUPT, INDEX ": tensor '%.255s' is not in %s", name, json_string_value(place));
    if (!folder->config.is_tied && !has_tensor(file, "output.weight"))
        return fail(ERR_CORRUPT, "lm_head.weight is missing, and tie_word_embeddings is false");
    if (file->config.rope_scaling == ROPE_SCALING_LLAMA3)
        add_rope_factors(folder);
    TRY(model_file_index(file));
    return hf_quantization_take_scales(&folder->quantization, file);
}

/* ---- shards ---------------------------------------------------------------------------------- */

/* A file of the folder itself, and nothing that is hidden there. */
static enum status check_file_name(const char *tensor, const json_t *value)
{
    const char *name = json_string_value(value);

    if (!name || !name[0] || strlen(name) > MAX_FILE_NAME || name[0] == '.' || strchr(name, '/'))
        return field_wrong(ERR_CORRUPT, tensor, value, "the name of a file beside this one is needed");
    return OK;
}

static bool has_shard(const struct folder *folder, const char *name)
{
    /* The last one first: a file's tensors follow each other. */
    for (int32_t i = folder->file->num_parts; i-- > 0;)
        if (strcmp(folder->shards[i].name, name) == 0)
            return true;
    return false;
}

/* Room is there. */
static void add_shard(struct folder *folder, const char *name)
{
    struct model_file *file = folder->file;

    folder->shards[file->num_parts] = (struct shard_file){.name = arena_strndup(&file->arena, name, strlen(name))};
    file->parts[file->num_parts++] = (struct file_map){0};
}

static void make_room(struct folder *folder, size_t num_shards)
{
    folder->shards = arena_alloc(&folder->file->arena, num_shards * sizeof *folder->shards);
    folder->file->parts = arena_alloc(&folder->file->arena, num_shards * sizeof *folder->file->parts);
}

static enum status read_weight_map(struct folder *folder, json_t *root)
{
    const char *tensor;
    json_t *name;

    folder->weight_map = json_incref(json_object_get(root, "weight_map"));
    if (!json_is_object(folder->weight_map) || json_object_size(folder->weight_map) == 0)
        return fail(ERR_CORRUPT, "weight_map, the file of each tensor, is missing");
    make_room(folder, MAX_SHARDS);
    json_object_foreach(folder->weight_map, tensor, name) {
        TRY(check_file_name(tensor, name));
        if (has_shard(folder, json_string_value(name)))
            continue;
        if (folder->file->num_parts == MAX_SHARDS)
            return fail(ERR_UNSUPPORTED, "names more than %d files", MAX_SHARDS);
        add_shard(folder, json_string_value(name));
    }
    return OK;
}

static enum status read_index(struct folder *folder, const struct file_map *map)
{
    enum status status;
    json_t *root;

    TRY(field_parse(map->data, map->bytes, MAX_INDEX_BYTES, 0, &root));
    status = read_weight_map(folder, root);
    json_decref(root);
    return status;
}

/* One file, which is open then, or what the index names. */
static enum status list_shards(struct folder *folder)
{
    AUTO_CLOSE(file_map) struct file_map index = {0};
    struct file_map weights = {0};

    TRY(map_optional(folder, WEIGHTS, &weights));
    if (weights.data) {
        make_room(folder, 1);
        add_shard(folder, WEIGHTS);
        folder->file->parts[0] = weights;
        return OK;
    }
    TRY(map_optional(folder, INDEX, &index));
    if (!index.data)
        return fail(ERR_NOT_FOUND, "has no " WEIGHTS " and no " INDEX);
    return fail_in(INDEX, read_index(folder, &index));
}

static enum status read_weights(struct folder *folder)
{
    struct model_file *file = folder->file;

    TRY(list_shards(folder));
    for (int32_t i = 0; i < file->num_parts; i++) {
        struct shard_file *shard = &folder->shards[i];

        if (!file->parts[i].data)
            TRY(map_file(folder, shard->name, &file->parts[i]));
        TRY(fail_in(shard->name, safetensors_read(file->parts[i].data, file->parts[i].bytes, &file->arena,
                                                  &shard->tensors, &shard->num_tensors)));
    }
    return collect_tensors(folder);
}

/* ---- the model ------------------------------------------------------------------------------- */

static enum status read_config(struct folder *folder)
{
    struct model_file *file = folder->file;
    const char *slash = strrchr(folder->path, '/');
    AUTO_CLOSE(file_map) struct file_map map = {0};
    json_auto_t *root = NULL;

    TRY(map_file(folder, "config.json", &map));
    TRY(fail_in("config.json", hf_config_parse(map.data, map.bytes, &root)));
    TRY(fail_in("config.json", hf_config_read(root, &folder->config)));
    TRY(fail_in("config.json", hf_quantization_read(root, &folder->quantization)));
    file->config = folder->config.model;
    snprintf(file->config.name, sizeof file->config.name, "%s", slash ? slash + 1 : folder->path);
    folder->is_gemma3 = strcmp(file->config.architecture, "gemma3") == 0;
    return OK;
}

static struct text_view view_of(const struct file_map *map)
{
    return (struct text_view){(const char *)map->data, map->bytes};
}

static enum status read_words(struct folder *folder)
{
    AUTO_CLOSE(file_map) struct file_map tokenizer = {0}, config = {0}, generation = {0}, template = {0};
    struct model_file *file = folder->file;

    file->vocabulary.num_tokens = file->config.vocab_size; /* padding too, where there is some */
    if (file->without_words)
        return OK;
    TRY(map_file(folder, "tokenizer.json", &tokenizer));
    TRY(map_optional(folder, "tokenizer_config.json", &config));
    TRY(map_optional(folder, "generation_config.json", &generation));
    TRY(map_optional(folder, "chat_template.jinja", &template));
    if (generation.data)
        file->generation_config = (struct text_view){
            arena_strndup(&file->arena, (const char *)generation.data, generation.bytes), generation.bytes};
    return hf_tokenizer_read(&(struct hf_tokenizer_files){.tokenizer = view_of(&tokenizer),
                                                          .config = view_of(&config),
                                                          .generation = view_of(&generation),
                                                          .chat_template = view_of(&template)},
                             file->config.vocab_size, &file->arena, &file->vocabulary);
}

static enum status read_folder(struct model_file *file, const void *path)
{
    struct folder folder = {.path = path, .file = file};
    enum status status = read_config(&folder);

    if (status == OK)
        status = read_weights(&folder);
    json_decref(folder.weight_map);
    TRY(status);
    return read_words(&folder);
}

enum status hf_folder_open(const char *path, enum model_parts parts, struct model_file **out)
{
    size_t size = strlen(path);
    struct stat stat_of;

    if (stat(path, &stat_of) == 0 && !S_ISDIR(stat_of.st_mode))
        return fail(ERR_UNSUPPORTED, "%s: is no folder", path);
    while (size > 1 && path[size - 1] == '/')
        size--;

    AUTO_MEM char *trimmed = mem_strndup(path, size);

    return model_file_make_by(trimmed, parts, read_folder, trimmed, out);
}
