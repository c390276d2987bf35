#include "engine/server/tokenize.h"
#include "engine/server/post.h"

#include <string.h>

struct tokenization {
    struct post post;    /* first: post_kind.bytes */
    struct bytes answer; /* JSON, made where the body was read */
};

static struct tokenization *tokenization_of(struct post *post)
{
    return CONTAINER_OF(post, struct tokenization, post);
}

/* ---- fields ---------------------------------------------------------------------------------- */

static enum status read_bool(const json_t *body, const char *name, bool otherwise, bool *out,
                             const char **param_out)
{
    const json_t *value = json_object_get(body, name);

    *out = value && !json_is_null(value) ? json_is_true(value) : otherwise;
    if (!value || json_is_null(value) || json_is_boolean(value))
        return OK;
    *param_out = name;
    return fail(ERR_INVALID, "%s must be true or false.", name);
}

static enum status check_model(const struct openai_model *model, const json_t *body,
                               const char **param_out)
{
    const json_t *value = json_object_get(body, "model");

    if (!value || json_is_null(value))
        return OK;
    *param_out = "model";
    if (!json_is_string(value))
        return fail(ERR_INVALID, "model must be a string.");
    if (model->name && strcmp(json_string_value(value), model->name) != 0)
        return fail(ERR_NOT_FOUND, "The model `%s` does not exist; this server has `%s`.",
                    json_string_value(value), model->name);
    *param_out = NULL;
    return OK;
}

/* `known`: names, ended by NULL. */
static enum status check_fields(json_t *body, const char *const *known, const char **param_out)
{
    const char *name;
    json_t *value;

    json_object_foreach(body, name, value)
    {
        const char *const *row = known;
        while (*row && strcmp(*row, name) != 0)
            row++;
        if (!*row) {
            *param_out = name;
            return fail(ERR_INVALID, "Unknown field `%.60s`.", name);
        }
    }
    return OK;
}

static void put_json(struct tokenization *tokenization, json_t *json)
{
    AUTO_MEM char *text = json_dumps(json, JSON_COMPACT);

    ASSERT(text, "an answer is no JSON");
    bytes_append(&tokenization->answer, text, strlen(text));
    json_decref(json);
}

/* ---- text to tokens -------------------------------------------------------------------------- */

static enum status encode_prompt(const struct openai_model *model, json_t *body,
                                 struct token_list *tokens, const char **param_out)
{
    static const char *const known[] = {"model", "prompt", "add_special_tokens",
                                        "return_token_strs", NULL};
    const json_t *prompt = json_object_get(body, "prompt");
    bool add_special;

    TRY(check_fields(body, known, param_out));
    TRY(check_model(model, body, param_out));
    TRY(read_bool(body, "add_special_tokens", true, &add_special, param_out));
    *param_out = "prompt";
    if (!json_is_string(prompt))
        return fail(ERR_INVALID, "prompt must be a string (or give messages).");
    return tokenizer_encode(model->tokenizer, json_string_value(prompt), json_string_length(prompt),
                            true, add_special, tokens);
}

/* A chat's prompt is what /v1/chat/completions would make of it, if it took any length: who counts tokens wants to
 * know by how many they are too many. */
static enum status encode_messages(const struct openai_model *model, json_t *body,
                                   struct token_list *tokens, const char **param_out)
{
    AUTO_FREE(generation) struct generation *generation = NULL;
    struct openai_model of_any_length = *model;

    of_any_length.max_model_len = INT32_MAX;
    json_object_del(body, "return_token_strs");
    TRY(openai_read(&of_any_length, OPENAI_CHAT, body, &generation, param_out));
    *tokens = generation->prompts[0].tokens;
    generation->prompts[0].tokens = (struct token_list){0};
    return OK;
}

/* The tokens as the vocabulary has them; what is no UTF-8 becomes U+FFFD. */
static json_t *token_strings(const struct openai_model *model, const struct token_list *tokens)
{
    json_t *strings = json_array();

    for (int32_t i = 0; i < tokens->count; i++) {
        AUTO_CLOSE(bytes) struct bytes piece = {0};
        tokenizer_decode(model->tokenizer, &tokens->ids[i], 1, true, &piece);
        json_array_append_new(strings, json_stringn(bytes_text(&piece), piece.size));
    }
    return strings;
}

static enum status read_tokenize(struct post *post, const json_t *json, const char **param_out)
{
    const struct openai_model *model = front_model(post->server->front);
    json_t *body = json_copy((json_t *)json);
    AUTO_CLOSE(token_list) struct token_list tokens = {0};
    bool with_strings;

    enum status status = read_bool(body, "return_token_strs", false, &with_strings, param_out);
    if (status == OK)
        status = json_object_get(body, "messages")
                     ? encode_messages(model, body, &tokens, param_out)
                     : encode_prompt(model, body, &tokens, param_out);
    json_decref(body);
    TRY(status);

    json_t *ids = json_array();
    for (int32_t i = 0; i < tokens.count; i++)
        json_array_append_new(ids, json_integer(tokens.ids[i]));
    put_json(tokenization_of(post),
             json_pack("{s:i, s:i, s:o, s:o}", "count", (int)tokens.count, "max_model_len",
                       (int)model->max_model_len, "tokens", ids, "token_strs",
                       with_strings ? token_strings(model, &tokens) : json_null()));
    return OK;
}

/* ---- tokens to text -------------------------------------------------------------------------- */

static enum status read_tokens(const struct openai_model *model, const json_t *list,
                               struct token_list *out)
{
    int32_t vocab_size = tokenizer_vocab_size(model->tokenizer);
    const json_t *value;
    size_t i;

    if (!json_is_array(list))
        return fail(ERR_INVALID, "tokens must be a list of token ids.");
    json_array_foreach(list, i, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= vocab_size)
            return fail(ERR_INVALID, "tokens[%zu] must be a token id from 0 to %d.", i,
                        vocab_size - 1);
        token_list_add(out, (token_id)id);
    }
    return OK;
}

static enum status read_detokenize(struct post *post, const json_t *json, const char **param_out)
{
    static const char *const known[] = {"model", "tokens", NULL};
    const struct openai_model *model = front_model(post->server->front);
    AUTO_CLOSE(token_list) struct token_list tokens = {0};
    AUTO_CLOSE(bytes) struct bytes text = {0};

    TRY(check_fields((json_t *)json, known, param_out));
    TRY(check_model(model, json, param_out));
    *param_out = "tokens";
    TRY(read_tokens(model, json_object_get(json, "tokens"), &tokens));
    tokenizer_decode(model->tokenizer, tokens.ids, tokens.count, true, &text);
    put_json(tokenization_of(post),
             json_pack("{s:o}", "prompt", json_stringn(bytes_text(&text), text.size)));
    return OK;
}

/* ---- both ------------------------------------------------------------------------------------ */

static void answer_tokenization(struct post *post)
{
    server_reply(post->server, give(post->exchange), 200, "application/json",
                 &tokenization_of(post)->answer);
    post_free(post);
}

static void close_tokenization(struct post *post)
{
    bytes_close(&tokenization_of(post)->answer);
}

static const struct post_kind tokenize_kind = {
    sizeof(struct tokenization), read_tokenize, answer_tokenization, NULL, close_tokenization,
};
static const struct post_kind detokenize_kind = {
    sizeof(struct tokenization), read_detokenize, answer_tokenization, NULL, close_tokenization,
};

void tokenize_post(struct server *server, struct http_exchange *exchange)
{
    post_start(server, exchange, &tokenize_kind);
}

void detokenize_post(struct server *server, struct http_exchange *exchange)
{
    post_start(server, exchange, &detokenize_kind);
}
