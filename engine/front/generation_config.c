#include "engine/front/generation_config.h"

#include "proto/model/json_field.h"

#include <limits.h>
#include <string.h>

enum { MOST_BYTES = 1 << 20 };

/* Names of sampling parameters, there and here. */
static const char *const params[] = {"repetition_penalty", "temperature", "top_k", "top_p", "min_p"};
#define LIMIT "max_new_tokens"

/* What of it is used. */
static json_t *pick(const json_t *root)
{
    json_t *picked = json_object();

    for (size_t i = 0; i < COUNT_OF(params); i++)
        if (field_find(root, params[i]))
            json_object_set(picked, params[i], json_object_get(root, params[i]));
    if (field_find(root, LIMIT))
        json_object_set(picked, LIMIT, json_object_get(root, LIMIT));
    return picked;
}

static enum status read_picked(const json_t *picked, struct generation_config *out)
{
    AUTO_CLOSE(arena) struct arena arena = {0}; /* nothing here has a text or a list */

    TRY(field_integer(picked, LIMIT, 1, INT32_MAX, &out->most_tokens));
    out->has_temperature = json_object_get(picked, "temperature") != NULL;
    return sampling_params_from_json(picked, &arena, &out->params, NULL);
}

static enum status read_root(const json_t *root, struct generation_config *out, struct bytes *told)
{
    json_t *picked;
    enum status status;

    if (!json_is_object(root))
        return fail(ERR_CORRUPT, "is no JSON object");
    picked = pick(root);
    status = read_picked(picked, out);
    if (status == OK && json_object_size(picked) > 0) {
        AUTO_MEM char *text = json_dumps(picked, JSON_REAL_PRECISION(9));

        bytes_printf(told, "%s", text);
    }
    json_decref(picked);
    return status;
}

enum status generation_config_read(struct text_view text, struct generation_config *out, struct bytes *told)
{
    struct generation_config config = {.most_tokens = -1};
    enum status status = OK;
    json_t *root;

    sampling_params_init(&config.params);
    if (text.size > 0) {
        TRY(field_parse(text.data, text.size, MOST_BYTES, 0, &root));
        status = read_root(root, &config, told);
        json_decref(root);
    }
    if (status == OK)
        *out = config;
    return status;
}
