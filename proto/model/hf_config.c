#include "proto/model/hf_config.h"

#include "proto/model/json_field.h"
#include "proto/model/shape.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_FILE_BYTES = 1 << 20 };

/* ---- the architecture ------------------------------------------------------------------------ */

/* What files may leave out, as transformers has it. */
static const struct architecture {
    const char *hf_name, *name;
    const char *activation;
    int32_t head_dim; /* 0: hidden_size / num_attention_heads */
    float rope_theta;
    float rope_theta_local;  /* 0: as rope_theta */
    int32_t sliding_pattern; /* 0: its layers have no window */
    bool is_tied;
} architectures[] = {
    {"LlamaForCausalLM", "llama", "silu", 0, 10000, 0, 0, false},
    {"Qwen2ForCausalLM", "qwen2", "silu", 0, 10000, 0, 0, false},
    {"Qwen3ForCausalLM", "qwen3", "silu", 128, 10000, 0, 0, false},
    {"Gemma3ForCausalLM", "gemma3", "gelu_pytorch_tanh", 256, 1000000, 10000, 6, true},
};

static enum status find_architecture(const json_t *root, const struct architecture **out)
{
    AUTO_CLOSE(bytes) struct bytes needed = {0};
    const json_t *names = field_find(root, "architectures");
    const char *name = json_string_value(json_array_get(names, 0));

    if (!names)
        return field_missing("architectures");
    bytes_printf(&needed, "these are supported:");
    for (size_t i = 0; i < COUNT_OF(architectures); i++) {
        *out = &architectures[i];
        if (name && strcmp((*out)->hf_name, name) == 0)
            return OK;
        bytes_printf(&needed, "%s %s", i ? "," : "", (*out)->hf_name);
    }
    return field_wrong(ERR_UNSUPPORTED, "architectures", names, bytes_text(&needed));
}

/* Of the choices that models have, those that are made in the same way for all of an architecture. */
static enum status refuse_extras(const json_t *root, const struct architecture *architecture)
{
    static const char *const activations[] = {"hidden_act", "hidden_activation"};
    static const char *const switches[] = {"attention_bias", "mlp_bias", "use_sliding_window",
                                           "use_bidirectional_attention"};
    static const char *const softcaps[] = {"attn_logit_softcapping", "final_logit_softcapping"};
    float rotated = 1;

    for (size_t i = 0; i < COUNT_OF(activations); i++) {
        const char *name = architecture->activation;

        TRY(field_text(root, activations[i], &name));
        if (strcmp(name, architecture->activation) != 0)
            return fail(ERR_UNSUPPORTED, "%s is \"%.64s\"; \"%s\" is supported", activations[i], name,
                        architecture->activation);
    }
    for (size_t i = 0; i < COUNT_OF(switches); i++) {
        bool is_on = false;

        TRY(field_bool(root, switches[i], &is_on));
        if (is_on)
            return fail(ERR_UNSUPPORTED, "%s is true; false is supported", switches[i]);
    }
    for (size_t i = 0; i < COUNT_OF(softcaps); i++)
        if (field_find(root, softcaps[i]))
            return field_wrong(ERR_UNSUPPORTED, softcaps[i], field_find(root, softcaps[i]),
                               "null is supported");
    TRY(field_float(root, "partial_rotary_factor", 0, 1, &rotated));
    return rotated == 1 ? OK
                        : fail(ERR_UNSUPPORTED, "partial_rotary_factor is %g; 1 is supported",
                               (double)rotated);
}

/* ---- numbers --------------------------------------------------------------------------------- */

#define INTEGER(key, field, required, least, most)                                                 \
    {key, offsetof(struct model_config, field), required, least, most}

/* The limits are far beyond any model, and keep the bytes of a tensor in 63 bits. */
static const struct {
    const char *key;
    size_t offset;
    bool required;
    int32_t least, most;
} integers[] = {
    INTEGER("num_hidden_layers", num_layers, true, 1, 1024),
    INTEGER("hidden_size", hidden_size, true, 32, 1 << 17),
    INTEGER("intermediate_size", intermediate_size, true, 32, 1 << 20),
    INTEGER("num_attention_heads", num_heads, true, 1, 4096),
    INTEGER("num_key_value_heads", num_kv_heads, false, 1, 4096),
    INTEGER("head_dim", head_dim, false, 1, 1 << 16),
    INTEGER("vocab_size", vocab_size, true, SHAPE_MIN_VOCAB, 1 << 20),
    INTEGER("max_position_embeddings", max_position, true, 1, 1 << 30),
};
#undef INTEGER

static enum status check_heads(const struct model_config *config)
{
    if (config->num_heads % config->num_kv_heads != 0)
        return fail(ERR_CORRUPT, "num_key_value_heads is %d, which does not divide num_attention_heads, %d",
                    config->num_kv_heads, config->num_heads);
    if (config->head_dim % 16 != 0 || config->head_dim > 256 || config->head_dim == 0)
        return fail(ERR_UNSUPPORTED, "head_dim is %d; 16 to 256 in steps of 16 are supported",
                    config->head_dim);
    return OK;
}

static enum status read_numbers(const json_t *root, struct model_config *config)
{
    for (size_t i = 0; i < COUNT_OF(integers); i++) {
        if (integers[i].required && !field_find(root, integers[i].key))
            return field_missing(integers[i].key);
        TRY(field_integer(root, integers[i].key, integers[i].least, integers[i].most,
                          (int32_t *)((char *)config + integers[i].offset)));
    }
    if (!config->num_kv_heads)
        config->num_kv_heads = config->num_heads;
    if (!config->head_dim && config->hidden_size % config->num_heads != 0)
        return fail(ERR_CORRUPT, "hidden_size is %d, which does not divide into %d heads, and "
                    "head_dim is missing", config->hidden_size, config->num_heads);
    if (!config->head_dim)
        config->head_dim = config->hidden_size / config->num_heads;
    config->rope_dim = config->head_dim;
    TRY(field_float(root, "rms_norm_eps", 1e-12, 0.1, &config->rms_norm_eps));
    return check_heads(config);
}

/* ---- RoPE ------------------------------------------------------------------------------------ */

static enum status read_llama3(const json_t *rope, struct hf_config *config)
{
    const struct {
        const char *key;
        float *out;
        double most;
    } rows[] = {
        {"factor", &config->llama3.factor, 1e6},
        {"low_freq_factor", &config->llama3.low_freq_factor, 1e6},
        {"high_freq_factor", &config->llama3.high_freq_factor, 1e6},
        {"original_max_position_embeddings", &config->llama3.original_max_position, 1 << 30},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (!field_find(rope, rows[i].key))
            return field_missing(rows[i].key);
        TRY(field_float(rope, rows[i].key, 1e-3, rows[i].most, rows[i].out));
    }
    if (config->llama3.low_freq_factor >= config->llama3.high_freq_factor)
        return fail(ERR_CORRUPT, "low_freq_factor is %g; less than high_freq_factor, %g, is possible",
                    (double)config->llama3.low_freq_factor, (double)config->llama3.high_freq_factor);
    config->model.rope_scaling = ROPE_SCALING_LLAMA3;
    return OK;
}

static enum status read_linear(const json_t *rope, struct hf_config *config)
{
    if (!field_find(rope, "factor"))
        return field_missing("factor");
    config->model.rope_scaling = ROPE_SCALING_LINEAR;
    return field_float(rope, "factor", 1e-3, 1e6, &config->model.rope_scaling_factor);
}

static enum status read_scaling(const json_t *rope, struct hf_config *config)
{
    const char *kind = "default";

    TRY(field_text(rope, "type", &kind)); /* of old files */
    TRY(field_text(rope, "rope_type", &kind));
    if (strcmp(kind, "llama3") == 0)
        return read_llama3(rope, config);
    if (strcmp(kind, "linear") == 0)
        return read_linear(rope, config);
    if (strcmp(kind, "default") == 0)
        return OK;
    return fail(ERR_UNSUPPORTED, "rope_type is \"%.64s\"; these are supported: default, linear, llama3",
                kind);
}

static enum status get_theta(const json_t *object, const char *key, float *out)
{
    return field_float(object, key, 1, 1e12, out);
}

/* rope_scaling stands beside rope_theta in files of transformers 4; both are in rope_parameters in those of 5, and
 * there once for each kind of layer where there are two. */
static enum status read_rope(const json_t *root, struct hf_config *config)
{
    const json_t *parameters = field_find(root, "rope_parameters");
    const json_t *of_global = field_find(parameters, "full_attention");
    const json_t *rope = of_global ? of_global : parameters ? parameters : field_find(root, "rope_scaling");
    struct model_config *model = &config->model;

    TRY(get_theta(root, "rope_theta", &model->rope_theta));
    TRY(get_theta(root, "rope_local_base_freq", &model->rope_theta_local));
    if (rope && !json_is_object(rope))
        return field_wrong(ERR_CORRUPT, parameters ? "rope_parameters" : "rope_scaling", rope,
                           "an object is needed");
    if (parameters)
        TRY(get_theta(rope, "rope_theta", &model->rope_theta));
    TRY(get_theta(field_find(parameters, "sliding_attention"), "rope_theta", &model->rope_theta_local));
    if (!model->rope_theta_local)
        model->rope_theta_local = model->rope_theta;
    return read_scaling(rope, config);
}

float hf_config_llama3_factor(const struct hf_config *config, int32_t pair)
{
    double base = (double)config->model.rope_theta, factor = (double)config->llama3.factor;
    double low = (double)config->llama3.low_freq_factor, high = (double)config->llama3.high_freq_factor;
    double length = 2 * M_PI * pow(base, 2.0 * pair / config->model.rope_dim);
    double turns = (double)config->llama3.original_max_position / length;
    double share = (turns - low) / (high - low); /* of what is left as it is */

    if (turns > high)
        return 1;
    if (turns < low)
        return (float)factor;
    return (float)(1 / ((1 - share) / factor + share));
}

/* ---- windows --------------------------------------------------------------------------------- */

static enum status check_layer_types(const json_t *types, const struct model_config *config)
{
    if (!types)
        return OK;
    if (!json_is_array(types) || json_array_size(types) != (size_t)config->num_layers)
        return field_wrong(ERR_CORRUPT, "layer_types", types, "one text for each layer is needed");
    for (int32_t i = 0; i < config->num_layers; i++) {
        const json_t *type = json_array_get(types, (size_t)i);
        const char *name = json_string_value(type);
        const char *wanted = model_config_is_global(config, i) ? "full_attention" : "sliding_attention";

        if (!name || strcmp(name, wanted) != 0)
            return fail(ERR_UNSUPPORTED, "layer_types has \"%.64s\" at %d; \"%s\" is supported",
                        name ? name : "", i, wanted);
    }
    return OK;
}

static enum status read_windows(const json_t *root, const struct architecture *architecture,
                                struct model_config *config)
{
    const json_t *types = field_find(root, "layer_types");

    if (!architecture->sliding_pattern)
        return check_layer_types(types, config);
    config->sliding_pattern = architecture->sliding_pattern;
    if (!field_find(root, "sliding_window"))
        return field_missing("sliding_window");
    TRY(field_integer(root, "sliding_window", 1, 1 << 30, &config->sliding_window));
    TRY(field_integer(root, "_sliding_window_pattern", 1, 1024, &config->sliding_pattern));
    TRY(field_integer(root, "sliding_window_pattern", 1, 1024, &config->sliding_pattern));
    return check_layer_types(types, config);
}

/* Whether it is what worker/models/gemma3.c makes of the shape. */
static enum status check_scale(const json_t *root, const struct model_config *config)
{
    int32_t wanted = config->num_layers == 62 ? config->hidden_size / config->num_heads : config->head_dim;
    float scalar = (float)wanted;

    if (strcmp(config->architecture, "gemma3") != 0)
        return OK;
    TRY(field_float(root, "query_pre_attn_scalar", 1, 1 << 20, &scalar));
    return scalar == (float)wanted ? OK
                                   : fail(ERR_UNSUPPORTED, "query_pre_attn_scalar is %g; %d is supported",
                                          (double)scalar, wanted);
}

/* ---- the file -------------------------------------------------------------------------------- */

static enum status read_root(const json_t *root, struct hf_config *config)
{
    const struct architecture *architecture;
    struct model_config *model = &config->model;

    if (!json_is_object(root))
        return fail(ERR_CORRUPT, "is no JSON object");
    TRY(find_architecture(root, &architecture));
    snprintf(model->architecture, sizeof model->architecture, "%s", architecture->name);
    model->head_dim = architecture->head_dim;
    model->rms_norm_eps = 1e-6f;
    model->rope_theta = architecture->rope_theta;
    model->rope_theta_local = architecture->rope_theta_local;
    model->rope_scaling_factor = 1;
    config->is_tied = architecture->is_tied;

    TRY(refuse_extras(root, architecture));
    TRY(read_numbers(root, model));
    TRY(read_rope(root, config));
    TRY(read_windows(root, architecture, model));
    TRY(check_scale(root, model));
    return field_bool(root, "tie_word_embeddings", &config->is_tied);
}

enum status hf_config_parse(const void *data, size_t size, json_t **out)
{
    return field_parse(data, size, MAX_FILE_BYTES, 0, out);
}

enum status hf_config_read(const json_t *root, struct hf_config *out)
{
    struct hf_config config = {0};

    TRY(read_root(root, &config));
    *out = config;
    return OK;
}
