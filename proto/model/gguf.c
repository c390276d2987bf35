/*
 * gguf: reads GGUF 2 and 3 (github.com/ggml-org/ggml/blob/master/docs/gguf.md): a header, typed
 * metadata, a table of tensors, and their data, aligned. Everything is little-endian.
 *
 * The file is hostile until checked. Every count is compared with the bytes that are left before
 * it is used, and with a limit of ours before memory is taken for it.
 */
#include "proto/model/reader.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_VALUES = 1 << 16,
    MAX_TENSORS = 1 << 16,
    MAX_STRINGS = 1 << 24, /* in all arrays together */
    MAX_KEY_BYTES = 255,   /* of a metadata key or a tensor's name */
    MAX_ALIGNMENT = 1 << 16,
};

/* ---- value types ----------------------------------------------------------------------------- */

enum value_type {
    VALUE_UINT8, VALUE_INT8, VALUE_UINT16, VALUE_INT16, VALUE_UINT32, VALUE_INT32, VALUE_FLOAT32,
    VALUE_BOOL, VALUE_STRING, VALUE_ARRAY, VALUE_UINT64, VALUE_INT64, VALUE_FLOAT64,
    NUM_VALUE_TYPES
};

static const struct {
    const char *name;
    size_t bytes; /* of a number; 0: what follows says it */
} value_types[NUM_VALUE_TYPES] = {
    [VALUE_UINT8] = {"UINT8", 1},     [VALUE_INT8] = {"INT8", 1},
    [VALUE_UINT16] = {"UINT16", 2},   [VALUE_INT16] = {"INT16", 2},
    [VALUE_UINT32] = {"UINT32", 4},   [VALUE_INT32] = {"INT32", 4},
    [VALUE_FLOAT32] = {"FLOAT32", 4}, [VALUE_BOOL] = {"BOOL", 1},
    [VALUE_STRING] = {"STRING", 0},   [VALUE_ARRAY] = {"ARRAY", 0},
    [VALUE_UINT64] = {"UINT64", 8},   [VALUE_INT64] = {"INT64", 8},
    [VALUE_FLOAT64] = {"FLOAT64", 8},
};

/* ggml's numbers for tensor types. What has a name only is refused by it. */
static const struct {
    const char *name;
    bool readable;
    enum tensor_type type;
} ggml_types[] = {
    [0] = {"F32", true, TYPE_F32},
    [1] = {"F16", true, TYPE_F16},
    [2] = {"Q4_0", true, TYPE_Q4_0},
    [3] = {"Q4_1", true, TYPE_Q4_1},
    [6] = {"Q5_0", true, TYPE_Q5_0},
    [7] = {"Q5_1", true, TYPE_Q5_1},
    [8] = {"Q8_0", true, TYPE_Q8_0},
    [10] = {"Q2_K", true, TYPE_Q2_K},
    [11] = {"Q3_K", true, TYPE_Q3_K},
    [12] = {"Q4_K", true, TYPE_Q4_K},
    [13] = {"Q5_K", true, TYPE_Q5_K},
    [14] = {"Q6_K", true, TYPE_Q6_K},
    [30] = {"BF16", true, TYPE_BF16},
    [4] = {"Q4_2"}, [5] = {"Q4_3"}, [9] = {"Q8_1"}, [15] = {"Q8_K"},
    [16] = {"IQ2_XXS"}, [17] = {"IQ2_XS"}, [18] = {"IQ3_XXS"}, [19] = {"IQ1_S"},
    [20] = {"IQ4_NL"}, [21] = {"IQ3_S"}, [22] = {"IQ2_S"}, [23] = {"IQ4_XS"},
    [24] = {"I8"}, [25] = {"I16"}, [26] = {"I32"}, [27] = {"I64"}, [28] = {"F64"},
    [29] = {"IQ1_M"}, [31] = {"Q4_0_4_4"}, [32] = {"Q4_0_4_8"}, [33] = {"Q4_0_8_8"},
    [34] = {"TQ1_0"}, [35] = {"TQ2_0"}, [36] = {"IQ4_NL_4_4"}, [37] = {"IQ4_NL_4_8"},
    [38] = {"IQ4_NL_8_8"}, [39] = {"MXFP4"}, [40] = {"NVFP4"},
};

/* ---- the cursor ------------------------------------------------------------------------------ */

struct value {
    const char *key; /* NUL-terminated */
    enum value_type type;
    enum value_type element_type;  /* of an array */
    uint64_t count;                /* of an array; else 1 */
    const uint8_t *data;           /* of numbers: not aligned */
    struct text_view *strings;     /* [count] of a string or an array of them that is kept; else NULL */
};

struct gguf {
    struct model_file *file;
    const uint8_t *data;
    size_t size;
    size_t at;
    size_t num_strings; /* taken for arrays so far */
    struct value *values; /* [num_values] sorted by key */
    int32_t num_values;
    int32_t num_tensors;
    size_t alignment;
};

static enum status truncated(const struct gguf *gguf, const char *what, uint64_t bytes)
{
    return fail(ERR_CORRUPT, "%s at byte %zu needs %llu bytes and the file ends after %zu: it is "
                "cut short or damaged", what, gguf->at, (unsigned long long)bytes,
                gguf->size - gguf->at);
}

/* The next `bytes` bytes, which are there. */
static enum status take(struct gguf *gguf, const char *what, uint64_t bytes, const uint8_t **out)
{
    if (bytes > gguf->size - gguf->at)
        return truncated(gguf, what, bytes);
    *out = gguf->data + gguf->at;
    gguf->at += bytes;
    return OK;
}

static enum status take_u32(struct gguf *gguf, const char *what, uint32_t *out)
{
    const uint8_t *p = NULL;

    TRY(take(gguf, what, sizeof *out, &p));
    memcpy(out, p, sizeof *out);
    return OK;
}

static enum status take_u64(struct gguf *gguf, const char *what, uint64_t *out)
{
    const uint8_t *p = NULL;

    TRY(take(gguf, what, sizeof *out, &p));
    memcpy(out, p, sizeof *out);
    return OK;
}

/* A count of things that take at least `bytes_each` bytes of the file. */
static enum status take_count(struct gguf *gguf, const char *what, size_t bytes_each,
                              uint64_t limit, uint64_t *out)
{
    TRY(take_u64(gguf, what, out));
    if (*out > (gguf->size - gguf->at) / bytes_each)
        return fail(ERR_CORRUPT, "%s is %llu, and the %zu bytes left hold %zu at most", what,
                    (unsigned long long)*out, gguf->size - gguf->at,
                    (gguf->size - gguf->at) / bytes_each);
    if (*out > limit)
        return fail(ERR_UNSUPPORTED, "%s is %llu, the limit is %llu", what,
                    (unsigned long long)*out, (unsigned long long)limit);
    return OK;
}

static enum status take_string(struct gguf *gguf, const char *what, struct text_view *out)
{
    const uint8_t *text = NULL;
    uint64_t size = 0;

    TRY(take_u64(gguf, what, &size));
    TRY(take(gguf, what, size, &text));
    *out = (struct text_view){(const char *)text, size};
    return OK;
}

/* A key or a tensor's name: printable ASCII, so that it can stand in any sentence. */
static enum status take_name(struct gguf *gguf, const char *what, const char **out)
{
    size_t start = gguf->at;
    struct text_view name;

    TRY(take_string(gguf, what, &name));
    if (name.size == 0 || name.size > MAX_KEY_BYTES)
        return fail(ERR_CORRUPT, "%s at byte %zu has %zu bytes, 1 to %d are possible", what, start,
                    name.size, MAX_KEY_BYTES);
    for (size_t i = 0; i < name.size; i++)
        if (name.data[i] <= ' ' || name.data[i] > '~')
            return fail(ERR_CORRUPT, "%s at byte %zu has the byte 0x%02x in it", what, start,
                        (uint8_t)name.data[i]);
    *out = arena_strndup(&gguf->file->arena, name.data, name.size);
    return OK;
}

/* ---- metadata -------------------------------------------------------------------------------- */

static enum status take_value_type(struct gguf *gguf, const char *key, enum value_type *out)
{
    uint32_t type;

    TRY(take_u32(gguf, key, &type));
    if (type >= NUM_VALUE_TYPES)
        return fail(ERR_CORRUPT, "%s has value type %u, the last known one is %d", key, type,
                    NUM_VALUE_TYPES - 1);
    *out = (enum value_type)type;
    return OK;
}

/* Arrays of them are words, all that there are. */
static enum status take_strings(struct gguf *gguf, struct value *value)
{
    bool are_kept = value->type == VALUE_STRING || !gguf->file->without_words;
    struct text_view passed;

    if (value->count > MAX_STRINGS - gguf->num_strings)
        return fail(ERR_UNSUPPORTED, "%s has %llu strings, the limit of a file is %d", value->key,
                    (unsigned long long)value->count, MAX_STRINGS);
    gguf->num_strings += value->count;
    if (are_kept)
        value->strings = arena_alloc(&gguf->file->arena, value->count * sizeof *value->strings);
    for (uint64_t i = 0; i < value->count; i++)
        TRY(take_string(gguf, value->key, are_kept ? &value->strings[i] : &passed));
    return OK;
}

static enum status take_array(struct gguf *gguf, struct value *value)
{
    TRY(take_value_type(gguf, value->key, &value->element_type));
    if (value->element_type == VALUE_ARRAY)
        return fail(ERR_UNSUPPORTED, "%s is an array of arrays", value->key);
    if (value->element_type == VALUE_STRING) {
        TRY(take_count(gguf, value->key, sizeof(uint64_t), UINT64_MAX, &value->count));
        return take_strings(gguf, value);
    }

    size_t bytes = value_types[value->element_type].bytes;

    TRY(take_count(gguf, value->key, bytes, UINT64_MAX, &value->count));
    return take(gguf, value->key, value->count * bytes, &value->data);
}

static enum status take_value(struct gguf *gguf, struct value *value)
{
    *value = (struct value){.count = 1};
    TRY(take_name(gguf, "a metadata key", &value->key));
    TRY(take_value_type(gguf, value->key, &value->type));
    if (value->type == VALUE_STRING)
        return take_strings(gguf, value);
    if (value->type == VALUE_ARRAY)
        return take_array(gguf, value);
    return take(gguf, value->key, value_types[value->type].bytes, &value->data);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const struct value *)a)->key, ((const struct value *)b)->key);
}

static enum status read_metadata(struct gguf *gguf)
{
    size_t bytes = (size_t)gguf->num_values * sizeof *gguf->values;

    gguf->values = arena_alloc(&gguf->file->arena, bytes);
    for (int32_t i = 0; i < gguf->num_values; i++)
        TRY(take_value(gguf, &gguf->values[i]));
    if (gguf->num_values)
        qsort(gguf->values, (size_t)gguf->num_values, sizeof *gguf->values, compare_keys);
    for (int32_t i = 1; i < gguf->num_values; i++)
        if (compare_keys(&gguf->values[i - 1], &gguf->values[i]) == 0)
            return fail(ERR_CORRUPT, "%s is there twice", gguf->values[i].key);
    return OK;
}

/* ---- typed access: the wrong type fails, an absent value leaves *out alone ------------------- */

static const struct value *find(const struct gguf *gguf, const char *key)
{
    struct value wanted = {.key = key};

    return bsearch(&wanted, gguf->values, (size_t)gguf->num_values, sizeof wanted, compare_keys);
}

static enum status missing(const char *key)
{
    return fail(ERR_CORRUPT, "the metadata lacks %s", key);
}

static enum status wrong_type(const struct value *value, const char *wanted)
{
    if (value->type == VALUE_ARRAY)
        return fail(ERR_CORRUPT, "%s is an array of %s, %s is needed", value->key,
                    value_types[value->element_type].name, wanted);
    return fail(ERR_CORRUPT, "%s is %s, %s is needed", value->key, value_types[value->type].name,
                wanted);
}

/* false: it is no integer. A UINT64 above INT64_MAX is INT64_MAX, over any limit of ours. */
static bool value_integer(const struct value *value, int64_t *out)
{
    uint64_t bits = 0;

    if (value->data && value->type != VALUE_ARRAY)
        memcpy(&bits, value->data, value_types[value->type].bytes);
    switch (value->type) {
    case VALUE_UINT8:
    case VALUE_UINT16:
    case VALUE_UINT32:
    case VALUE_UINT64:
        *out = (int64_t)MIN(bits, (uint64_t)INT64_MAX);
        return true;
    case VALUE_INT8:
        *out = (int8_t)bits;
        return true;
    case VALUE_INT16:
        *out = (int16_t)bits;
        return true;
    case VALUE_INT32:
        *out = (int32_t)bits;
        return true;
    case VALUE_INT64:
        *out = (int64_t)bits;
        return true;
    default:
        return false;
    }
}

static enum status get_integer(const struct gguf *gguf, const char *key, int64_t min, int64_t max,
                               int32_t *out)
{
    const struct value *value = find(gguf, key);
    int64_t integer;

    if (!value)
        return OK;
    if (!value_integer(value, &integer))
        return wrong_type(value, "an integer");
    if (integer < min || integer > max)
        return fail(ERR_CORRUPT, "%s is %lld, %lld to %lld is possible", key, (long long)integer,
                    (long long)min, (long long)max);
    *out = (int32_t)integer;
    return OK;
}

static enum status get_float(const struct gguf *gguf, const char *key, double min, double max,
                             float *out)
{
    const struct value *value = find(gguf, key);
    double number;

    if (!value)
        return OK;
    if (value->type == VALUE_FLOAT32) {
        float single;

        memcpy(&single, value->data, sizeof single);
        number = (double)single;
    } else if (value->type == VALUE_FLOAT64) {
        memcpy(&number, value->data, sizeof number);
    } else {
        return wrong_type(value, "a float");
    }
    if (!(number >= min && number <= max)) /* NaN too */
        return fail(ERR_CORRUPT, "%s is %g, %g to %g is possible", key, number, min, max);
    *out = (float)number;
    return OK;
}

static enum status get_bool(const struct gguf *gguf, const char *key, bool *out)
{
    const struct value *value = find(gguf, key);

    if (!value)
        return OK;
    if (value->type != VALUE_BOOL)
        return wrong_type(value, "a BOOL");
    if (*value->data > 1)
        return fail(ERR_CORRUPT, "%s is the byte %d, a BOOL is 0 or 1", key, *value->data);
    *out = *value->data == 1;
    return OK;
}

static enum status get_string(const struct gguf *gguf, const char *key, struct text_view *out)
{
    const struct value *value = find(gguf, key);

    if (!value)
        return OK;
    if (value->type != VALUE_STRING)
        return wrong_type(value, "a STRING");
    *out = value->strings[0];
    return OK;
}

/* The same into a C string that holds it whole. */
static enum status get_word(const struct gguf *gguf, const char *key, char *out, size_t capacity)
{
    struct text_view text = {0};

    TRY(get_string(gguf, key, &text));
    if (text.size >= capacity || (text.size && memchr(text.data, '\0', text.size)))
        return fail(ERR_UNSUPPORTED, "%s is no word of at most %zu bytes", key, capacity - 1);
    if (text.size)
        memcpy(out, text.data, text.size);
    return OK;
}

/* ---- the model's shape ----------------------------------------------------------------------- */

static const struct architecture {
    const char *name;
    float rope_theta;
    float rope_theta_local; /* 0: as rope_theta */
    int32_t sliding_pattern; /* used when the file has a window; 0: no layer is left without one */
    bool rope_is_adjacent;   /* as llama.cpp's converter orders q and k */
} architectures[] = {
    {"llama", 10000, 0, 0, true},
    {"qwen2", 10000, 0, 0, false},
    {"qwen3", 10000, 0, 0, false},
    {"gemma3", 1000000, 10000, 6, false},
};

static enum status find_architecture(const char *name, const struct architecture **out)
{
    AUTO_CLOSE(bytes) struct bytes supported = {0};

    for (size_t i = 0; i < COUNT_OF(architectures); i++) {
        *out = &architectures[i];
        if (strcmp((*out)->name, name) == 0)
            return OK;
        bytes_printf(&supported, "%s%s", i ? ", " : "", (*out)->name);
    }
    return fail(ERR_UNSUPPORTED, "architecture '%s' is not supported; these are: %s", name,
                bytes_text(&supported));
}

#define INTEGER(key, field, required, min, max)                                                    \
    {key, offsetof(struct model_config, field), required, min, max}

/* Keys stand behind "ARCHITECTURE."; the limits are far beyond any model, and keep products of
 * two in 63 bits. */
static const struct {
    const char *key;
    size_t offset;
    bool required;
    int32_t min, max;
} integers[] = {
    INTEGER("block_count", num_layers, true, 1, 1024),
    INTEGER("embedding_length", hidden_size, true, 1, 1 << 20),
    INTEGER("feed_forward_length", intermediate_size, true, 1, 1 << 20),
    INTEGER("attention.head_count", num_heads, true, 1, 4096),
    INTEGER("attention.head_count_kv", num_kv_heads, false, 1, 4096),
    INTEGER("attention.key_length", head_dim, false, 1, 1 << 16),
    INTEGER("context_length", max_position, true, 1, 1 << 30),
    INTEGER("rope.dimension_count", rope_dim, false, 1, 1 << 16),
    INTEGER("attention.sliding_window", sliding_window, false, 0, 1 << 30),
    INTEGER("attention.sliding_window_pattern", sliding_pattern, false, 0, 1024),
    INTEGER("vocab_size", vocab_size, false, 1, MAX_STRINGS),
};

#define FLOAT(key, field, required, min, max)                                                      \
    {key, offsetof(struct model_config, field), required, min, max}

static const struct {
    const char *key;
    size_t offset;
    bool required;
    double min, max;
} floats[] = {
    FLOAT("attention.layer_norm_rms_epsilon", rms_norm_eps, true, 1e-12, 0.1),
    FLOAT("rope.freq_base", rope_theta, false, 1, 1e12),
    FLOAT("rope.freq_base_swa", rope_theta_local, false, 1, 1e12),
    FLOAT("rope.scaling.factor", rope_scaling_factor, false, 1e-3, 1e6),
};

enum { KEY_BYTES = 96 };

static const char *key_of(const struct model_config *config, const char *name, char *key)
{
    snprintf(key, KEY_BYTES, "%s.%s", config->architecture, name);
    return key;
}

static enum status read_numbers(const struct gguf *gguf, struct model_config *config)
{
    char key[KEY_BYTES];

    for (size_t i = 0; i < COUNT_OF(integers); i++) {
        key_of(config, integers[i].key, key);
        if (integers[i].required && !find(gguf, key))
            return missing(key);
        TRY(get_integer(gguf, key, integers[i].min, integers[i].max,
                        (int32_t *)((char *)config + integers[i].offset)));
    }
    for (size_t i = 0; i < COUNT_OF(floats); i++) {
        key_of(config, floats[i].key, key);
        if (floats[i].required && !find(gguf, key))
            return missing(key);
        TRY(get_float(gguf, key, floats[i].min, floats[i].max,
                      (float *)((char *)config + floats[i].offset)));
    }
    return OK;
}

static enum status read_rope_scaling(const struct gguf *gguf, struct model_config *config)
{
    char key[KEY_BYTES], kind[32] = "none";

    TRY(get_word(gguf, key_of(config, "rope.scaling.type", key), kind, sizeof kind));
    if (strcmp(kind, "linear") == 0)
        config->rope_scaling = ROPE_SCALING_LINEAR;
    else if (strcmp(kind, "none") != 0)
        return fail(ERR_UNSUPPORTED, "%s '%s' is not supported; these are: none, linear", key,
                    kind);
    else
        config->rope_scaling_factor = 1;
    return OK;
}

/* Features that would change the answer and are not computed. */
static enum status refuse_extras(const struct gguf *gguf, const struct model_config *config)
{
    char key[KEY_BYTES];
    int32_t parts = 1, experts = 0, value_length = config->head_dim;
    float softcap = 0;

    TRY(get_integer(gguf, "split.count", 0, UINT16_MAX, &parts));
    if (parts > 1)
        return fail(ERR_UNSUPPORTED, "is one of %d parts of a model; merge them first", parts);
    TRY(get_integer(gguf, key_of(config, "expert_count", key), 0, UINT16_MAX, &experts));
    if (experts)
        return fail(ERR_UNSUPPORTED, "%s is %d; experts are not supported", key, experts);
    TRY(get_integer(gguf, key_of(config, "attention.value_length", key), 1, 1 << 16,
                    &value_length));
    if (value_length != config->head_dim)
        return fail(ERR_UNSUPPORTED, "%s is %d and keys have %d; they must be equal", key,
                    value_length, config->head_dim);
    TRY(get_float(gguf, key_of(config, "final_logit_softcapping", key), 0, 1e6, &softcap));
    if (softcap != 0)
        return fail(ERR_UNSUPPORTED, "%s is %g; a softcap is not supported", key, (double)softcap);
    return OK;
}

static enum status check_config(const struct model_config *config)
{
    if (config->num_heads % config->num_kv_heads != 0)
        return fail(ERR_CORRUPT, "%d heads cannot share %d KV heads evenly", config->num_heads,
                    config->num_kv_heads);
    if (config->head_dim % 16 != 0 || config->head_dim > 256 || config->head_dim == 0)
        return fail(ERR_UNSUPPORTED, "a head has %d dimensions; 16 to 256 in steps of 16 are "
                    "supported", config->head_dim);
    if (config->rope_dim % 2 != 0 || config->rope_dim > config->head_dim)
        return fail(ERR_CORRUPT, "%d of the %d dimensions of a head are to be rotated; an even "
                    "number of them is needed", config->rope_dim, config->head_dim);
    return OK;
}

/* What the metadata did not say follows from the rest. */
static enum status complete_config(struct model_config *config)
{
    if (!config->num_kv_heads)
        config->num_kv_heads = config->num_heads;
    if (!config->head_dim) {
        if (config->hidden_size % config->num_heads != 0)
            return fail(ERR_CORRUPT, "a width of %d does not divide into %d heads",
                        config->hidden_size, config->num_heads);
        config->head_dim = config->hidden_size / config->num_heads;
    }
    if (!config->rope_dim)
        config->rope_dim = config->head_dim;
    if (!config->rope_theta_local)
        config->rope_theta_local = config->rope_theta;
    if (!config->sliding_window) {
        config->sliding_pattern = 0;
    } else if (!config->sliding_pattern) {
        /* Every layer has the window (Mistral 7B v0.1). Inside it all attention is global. */
        config->max_position = MIN(config->max_position, config->sliding_window);
        config->sliding_window = 0;
    }
    return OK;
}

/* Cut where a character begins. */
static enum status read_name(const struct gguf *gguf, struct model_config *config)
{
    struct text_view name = {0};
    size_t size;

    TRY(get_string(gguf, "general.name", &name));
    size = name.size;
    if (size >= sizeof config->name)
        for (size = sizeof config->name - 1; size > 0 && (name.data[size] & 0xc0) == 0x80; size--)
            continue;
    if (size)
        memcpy(config->name, name.data, size);
    return OK;
}

static enum status read_config(const struct gguf *gguf, struct model_config *config)
{
    const struct architecture *architecture;

    if (!find(gguf, "general.architecture"))
        return missing("general.architecture");
    TRY(get_word(gguf, "general.architecture", config->architecture, sizeof config->architecture));
    TRY(find_architecture(config->architecture, &architecture));
    config->rope_theta = architecture->rope_theta;
    config->rope_theta_local = architecture->rope_theta_local;
    config->sliding_pattern = architecture->sliding_pattern;
    config->rope_is_adjacent = architecture->rope_is_adjacent;
    config->rope_scaling_factor = 1;

    TRY(read_name(gguf, config));
    TRY(read_numbers(gguf, config));
    TRY(read_rope_scaling(gguf, config));
    TRY(complete_config(config));
    TRY(check_config(config));
    return refuse_extras(gguf, config);
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

static enum status get_strings(const struct gguf *gguf, const char *key,
                               const struct text_view **strings_out, int32_t *count_out)
{
    const struct value *value = find(gguf, key);

    if (!value)
        return OK;
    if (value->type != VALUE_ARRAY || value->element_type != VALUE_STRING)
        return wrong_type(value, "an array of STRING");
    *strings_out = value->strings;
    *count_out = (int32_t)value->count; /* at most MAX_STRINGS */
    return OK;
}

/* An array of one 4-byte value for each token, copied, since the file does not align it. */
static enum status get_per_token(const struct gguf *gguf, const char *key, enum value_type type,
                                 int32_t num_tokens, const void **out)
{
    const struct value *value = find(gguf, key);
    void *copy;

    if (!value)
        return OK;
    if (value->type != VALUE_ARRAY || value->element_type != type)
        return wrong_type(value, type == VALUE_FLOAT32 ? "an array of FLOAT32"
                                                       : "an array of INT32");
    if (value->count != (uint64_t)num_tokens)
        return fail(ERR_CORRUPT, "%s has %llu values for %d tokens", key,
                    (unsigned long long)value->count, num_tokens);
    copy = arena_alloc(&gguf->file->arena, value->count * 4);
    memcpy(copy, value->data, value->count * 4);
    *out = copy;
    return OK;
}

static enum status check_tokens(const struct vocabulary *vocabulary)
{
    for (int32_t i = 0; vocabulary->scores && i < vocabulary->num_tokens; i++)
        if (isnan(vocabulary->scores[i]))
            return fail(ERR_CORRUPT, "the score of token %d is not a number", i);
    for (int32_t i = 0; vocabulary->types && i < vocabulary->num_tokens; i++)
        if (vocabulary->types[i] < TOKEN_NORMAL || vocabulary->types[i] > TOKEN_BYTE)
            return fail(ERR_CORRUPT, "token %d has type %d, %d to %d are possible", i,
                        vocabulary->types[i], TOKEN_NORMAL, TOKEN_BYTE);
    return OK;
}

static enum status get_tokens(const struct gguf *gguf, struct vocabulary *vocabulary)
{
    TRY(get_strings(gguf, "tokenizer.ggml.tokens", &vocabulary->tokens, &vocabulary->num_tokens));
    return vocabulary->num_tokens == 0 ? missing("tokenizer.ggml.tokens") : OK;
}

static enum status read_tokens(const struct gguf *gguf, struct vocabulary *vocabulary)
{
    const void *scores = NULL, *types = NULL;
    int32_t n;

    TRY(get_tokens(gguf, vocabulary));
    n = vocabulary->num_tokens;
    TRY(get_strings(gguf, "tokenizer.ggml.merges", &vocabulary->merges, &vocabulary->num_merges));
    TRY(get_per_token(gguf, "tokenizer.ggml.scores", VALUE_FLOAT32, n, &scores));
    TRY(get_per_token(gguf, "tokenizer.ggml.token_type", VALUE_INT32, n, &types));
    vocabulary->scores = scores;
    vocabulary->types = types;
    return check_tokens(vocabulary);
}

/* What older files leave to the kind of tokeniser (llama.cpp, llama-vocab.cpp). */
static void default_specials(struct vocabulary *vocabulary)
{
    bool sentencepiece = strcmp(vocabulary->model, "llama") == 0 && vocabulary->num_tokens > 2;

    vocabulary->bos_id = sentencepiece ? 1 : -1;
    vocabulary->eos_id = sentencepiece ? 2 : -1;
    vocabulary->unknown_id = sentencepiece ? 0 : -1;
    vocabulary->eot_id = vocabulary->padding_id = -1;
    vocabulary->add_bos = sentencepiece || strcmp(vocabulary->pre, "llama-bpe") == 0;
    vocabulary->add_space_prefix = sentencepiece;
}

static enum status read_specials(const struct gguf *gguf, struct vocabulary *vocabulary)
{
    const struct {
        const char *key;
        int32_t *id;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", &vocabulary->bos_id},
        {"tokenizer.ggml.eos_token_id", &vocabulary->eos_id},
        {"tokenizer.ggml.eot_token_id", &vocabulary->eot_id},
        {"tokenizer.ggml.unknown_token_id", &vocabulary->unknown_id},
        {"tokenizer.ggml.padding_token_id", &vocabulary->padding_id},
    };

    default_specials(vocabulary);
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        TRY(get_integer(gguf, ids[i].key, 0, vocabulary->num_tokens - 1, ids[i].id));
    TRY(get_bool(gguf, "tokenizer.ggml.add_bos_token", &vocabulary->add_bos));
    TRY(get_bool(gguf, "tokenizer.ggml.add_eos_token", &vocabulary->add_eos));
    TRY(get_bool(gguf, "tokenizer.ggml.add_space_prefix", &vocabulary->add_space_prefix));
    if (vocabulary->bos_id < 0)
        vocabulary->add_bos = false;
    if (vocabulary->eos_id < 0)
        vocabulary->add_eos = false;
    return OK;
}

static enum status read_vocabulary(const struct gguf *gguf, struct vocabulary *vocabulary)
{
    if (gguf->file->without_words)
        return get_tokens(gguf, vocabulary);
    if (!find(gguf, "tokenizer.ggml.model"))
        return missing("tokenizer.ggml.model");
    TRY(get_word(gguf, "tokenizer.ggml.model", vocabulary->model, sizeof vocabulary->model));
    TRY(get_word(gguf, "tokenizer.ggml.pre", vocabulary->pre, sizeof vocabulary->pre));
    TRY(get_string(gguf, "tokenizer.chat_template", &vocabulary->chat_template));
    TRY(read_tokens(gguf, vocabulary));
    return read_specials(gguf, vocabulary);
}

static enum status reconcile_vocab_size(struct model_file *file)
{
    int32_t num_tokens = file->vocabulary.num_tokens;

    if (file->config.vocab_size && file->config.vocab_size != num_tokens)
        return fail(ERR_CORRUPT, "%s.vocab_size is %d, and there are %d tokens",
                    file->config.architecture, file->config.vocab_size, num_tokens);
    file->config.vocab_size = num_tokens;
    return OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

struct extent { /* of a tensor's data, from the start of the data section */
    uint64_t offset, bytes;
    const char *name;
};

static enum status unreadable_type(const char *name, uint32_t type)
{
    AUTO_CLOSE(bytes) struct bytes readable = {0};

    for (int i = 0; i < NUM_TENSOR_TYPES; i++)
        bytes_printf(&readable, "%s%s", i ? ", " : "", tensor_type_info((enum tensor_type)i)->name);
    if (type < COUNT_OF(ggml_types) && ggml_types[type].name)
        return fail(ERR_UNSUPPORTED, "tensor '%s' has type %s, which is not supported; these are: "
                    "%s", name, ggml_types[type].name, bytes_text(&readable));
    return fail(ERR_UNSUPPORTED, "tensor '%s' has type number %u, which is unknown; supported are: "
                "%s", name, type, bytes_text(&readable));
}

static enum status take_shape(struct gguf *gguf, struct tensor *tensor)
{
    uint32_t num_dims;

    TRY(take_u32(gguf, tensor->name, &num_dims));
    if (num_dims < 1 || num_dims > 4)
        return fail(ERR_CORRUPT, "tensor '%s' has %u dimensions, 1 to 4 are possible", tensor->name,
                    num_dims);
    tensor->num_dims = (int32_t)num_dims;
    tensor->num_rows = 1;
    for (uint32_t i = 0; i < num_dims; i++) {
        uint64_t n;

        TRY(take_u64(gguf, tensor->name, &n));
        if (n < 1 || n > INT32_MAX)
            return fail(ERR_CORRUPT, "dimension %u of tensor '%s' is %llu, 1 to %d are possible", i,
                        tensor->name, (unsigned long long)n, INT32_MAX);
        if (i == 0)
            tensor->num_columns = (int64_t)n;
        else if (mul_overflows(tensor->num_rows, (int64_t)n, &tensor->num_rows))
            return fail(ERR_CORRUPT, "tensor '%s' has more rows than 63 bits count", tensor->name);
    }
    return OK;
}

static enum status take_type(struct gguf *gguf, struct tensor *tensor)
{
    const struct tensor_type_info *info;
    uint32_t type;

    TRY(take_u32(gguf, tensor->name, &type));
    if (type >= COUNT_OF(ggml_types) || !ggml_types[type].readable)
        return unreadable_type(tensor->name, type);
    tensor->type = ggml_types[type].type;
    info = tensor_type_info(tensor->type);
    if (tensor->num_columns % info->block_elements != 0)
        return fail(ERR_CORRUPT, "tensor '%s' has %lld columns, which blocks of %d (%s) do not "
                    "fill", tensor->name, (long long)tensor->num_columns, info->block_elements,
                    info->name);
    return OK;
}

static enum status take_tensor(struct gguf *gguf, struct tensor *tensor, struct extent *extent)
{
    *tensor = (struct tensor){0};
    TRY(take_name(gguf, "a tensor's name", &tensor->name));
    TRY(take_shape(gguf, tensor));
    TRY(take_type(gguf, tensor));
    TRY(take_u64(gguf, tensor->name, &extent->offset));
    extent->name = tensor->name;
    if (mul_overflows((uint64_t)tensor_row_bytes(tensor->type, tensor->num_columns),
                      (uint64_t)tensor->num_rows, &extent->bytes))
        return fail(ERR_CORRUPT, "tensor '%s' has more bytes than 64 bits count", tensor->name);
    return OK;
}

/* Gives each tensor its place in the data section, which starts at `start`. */
static enum status place_tensors(struct gguf *gguf, size_t start, const struct extent *extents)
{
    uint64_t data_bytes = gguf->size - start;

    for (int32_t i = 0; i < gguf->num_tensors; i++) {
        const struct extent *extent = &extents[i];

        if (extent->offset % gguf->alignment != 0)
            return fail(ERR_CORRUPT, "tensor '%s' is at offset %llu, no multiple of %zu",
                        extent->name, (unsigned long long)extent->offset, gguf->alignment);
        if (extent->offset > data_bytes || extent->bytes > data_bytes - extent->offset)
            return fail(ERR_CORRUPT, "tensor '%s' needs %llu bytes from offset %llu, and the data "
                        "section has %llu: the file is cut short or damaged", extent->name,
                        (unsigned long long)extent->bytes, (unsigned long long)extent->offset,
                        (unsigned long long)data_bytes);
        gguf->file->tensors[i].data = gguf->data + start + extent->offset;
    }
    return OK;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct extent *left = a, *right = b;

    return (left->offset > right->offset) - (left->offset < right->offset);
}

/* Two tensors in one place are no model, but what a flipped bit leaves. Sorts the extents. */
static enum status check_overlaps(struct extent *extents, int32_t n)
{
    if (n)
        qsort(extents, (size_t)n, sizeof *extents, compare_offsets);
    for (int32_t i = 1; i < n; i++)
        if (extents[i].offset - extents[i - 1].offset < extents[i - 1].bytes)
            return fail(ERR_CORRUPT, "tensors '%s' and '%s' overlap at offset %llu",
                        extents[i - 1].name, extents[i].name,
                        (unsigned long long)extents[i].offset);
    return OK;
}

static enum status read_alignment(struct gguf *gguf)
{
    int32_t alignment = 32;

    TRY(get_integer(gguf, "general.alignment", 8, MAX_ALIGNMENT, &alignment));
    if (alignment & (alignment - 1))
        return fail(ERR_CORRUPT, "general.alignment is %d, no power of two", alignment);
    gguf->alignment = (size_t)alignment;
    return OK;
}

static enum status read_tensors(struct gguf *gguf)
{
    struct model_file *file = gguf->file;
    size_t n = (size_t)gguf->num_tensors;
    struct extent *extents = arena_alloc(&file->arena, n * sizeof *extents);
    size_t start;

    file->tensors = arena_alloc(&file->arena, n * sizeof *file->tensors);
    for (size_t i = 0; i < n; i++)
        TRY(take_tensor(gguf, &file->tensors[i], &extents[i]));
    file->num_tensors = gguf->num_tensors;

    /* The padding may be cut off where no tensor follows. */
    start = (gguf->at + gguf->alignment - 1) & ~(gguf->alignment - 1);
    TRY(place_tensors(gguf, MIN(start, gguf->size), extents));
    return check_overlaps(extents, gguf->num_tensors);
}

/* Llama 3.1 and later: the file has the factor of each frequency as a tensor. */
static enum status read_rope_factors(struct model_file *file)
{
    for (int32_t i = 0; i < file->num_tensors; i++) {
        const struct tensor *tensor = &file->tensors[i];

        if (strcmp(tensor->name, "rope_freqs.weight") != 0)
            continue;
        if (tensor->type != TYPE_F32 || tensor->num_rows != 1 ||
            tensor->num_columns != file->config.rope_dim / 2)
            return fail(ERR_CORRUPT, "tensor '%s' has %lld x %lld values of %s, %d of F32 are "
                        "needed", tensor->name, (long long)tensor->num_rows,
                        (long long)tensor->num_columns, tensor_type_info(tensor->type)->name,
                        file->config.rope_dim / 2);
        if (file->config.rope_scaling != ROPE_SCALING_NONE)
            return fail(ERR_UNSUPPORTED, "has both rope.scaling.type and tensor '%s'",
                        tensor->name);
        file->config.rope_scaling = ROPE_SCALING_LLAMA3;
    }
    return OK;
}

/* ---- the file -------------------------------------------------------------------------------- */

static enum status read_header(struct gguf *gguf)
{
    enum { MIN_VALUE_BYTES = 8 + 1 + 4 + 1, MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };
    uint64_t num_tensors, num_values;
    uint32_t version;

    gguf->at = 4; /* "GGUF", seen by whoever chose this reader */
    TRY(take_u32(gguf, "the version", &version));
    if (version != 0 && (version & 0xffff) == 0)
        return fail(ERR_UNSUPPORTED, "is a big-endian GGUF (its version reads as 0x%08x); convert "
                    "it to little-endian", version);
    if (version != 2 && version != 3)
        return fail(ERR_UNSUPPORTED, "is GGUF version %u; 2 and 3 are supported", version);
    TRY(take_count(gguf, "the number of tensors", MIN_TENSOR_BYTES, MAX_TENSORS, &num_tensors));
    TRY(take_count(gguf, "the number of metadata values", MIN_VALUE_BYTES, MAX_VALUES,
                   &num_values));
    gguf->num_tensors = (int32_t)num_tensors;
    gguf->num_values = (int32_t)num_values;
    return OK;
}

enum status gguf_read(struct model_file *file)
{
    struct gguf gguf = {.file = file, .data = file->map.data, .size = file->map.bytes};

    TRY(read_header(&gguf));
    TRY(read_metadata(&gguf));
    TRY(read_alignment(&gguf));
    TRY(read_config(&gguf, &file->config));
    TRY(read_vocabulary(&gguf, &file->vocabulary));
    TRY(reconcile_vocab_size(file));
    TRY(read_tensors(&gguf));
    return read_rope_factors(file);
}
