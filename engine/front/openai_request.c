#include "engine/front/bad_words.h"
#include "engine/front/openai.h"
#include "engine/front/structured_outputs.h"
#include "engine/text/chat.h"
#include "engine/text/utf8.h"
#include "proto/config/option.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

enum { DEFAULT_COMPLETION_TOKENS = 16 };

struct reader { /* one body on its way */
    const struct openai_model *model;
    const json_t *body;
    struct generation *generation;
    const char *param; /* the field that is being read */
    bool add_special, add_generation_prompt;
};

/* ---- bytes to JSON --------------------------------------------------------------------------- */

enum status openai_decode(const char *body, size_t size, int32_t first_line, json_t **out)
{
    struct utf8_fault fault;
    json_error_t error;
    json_t *json;

    if (!utf8_is_valid(body, size, &fault))
        return fail(ERR_INVALID, "Invalid UTF-8 at line %d, column %d: byte 0x%02x.",
                    fault.line + first_line - 1, fault.column, fault.byte);
    json = json_loadb(size ? body : "", size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!json)
        return fail(ERR_INVALID, "Invalid JSON at line %d, column %d: %s.",
                    error.line + first_line - 1, error.column, error.text);
    if (!json_is_object(json)) {
        json_decref(json);
        return fail(ERR_INVALID, "Invalid JSON at line %d, column 1: an object is expected.",
                    first_line);
    }
    *out = json;
    return OK;
}

/* ---- values of fields ------------------------------------------------------------------------ */

static enum status read_bool(const char *name, const json_t *value, bool *out)
{
    if (!json_is_boolean(value))
        return fail(ERR_INVALID, "%s must be true or false.", name);
    *out = json_is_true(value);
    return OK;
}

static enum status read_model(struct reader *reader, const json_t *value)
{
    if (!json_is_string(value))
        return fail(ERR_INVALID, "model must be a string.");
    if (reader->model->name && strcmp(json_string_value(value), reader->model->name) != 0)
        return fail(ERR_NOT_FOUND, "The model `%s` does not exist; this server has `%s`.",
                    json_string_value(value), reader->model->name);
    return OK;
}

static enum status read_stream(struct reader *reader, const json_t *value)
{
    return read_bool("stream", value, &reader->generation->stream);
}

static enum status read_stream_options(struct reader *reader, const json_t *value)
{
    struct generation *generation = reader->generation;
    const char *key;
    json_t *option;

    if (!json_is_object(value))
        return fail(ERR_INVALID, "stream_options must be an object.");
    if (!json_is_true(json_object_get(reader->body, "stream")))
        return fail(ERR_INVALID, "Stream options can only be defined when `stream=True`.");
    json_object_foreach((json_t *)value, key, option) {
        bool ignored;

        if (json_is_null(option))
            continue;
        if (strcmp(key, "include_usage") == 0)
            TRY(read_bool(key, option, &generation->include_usage));
        else if (strcmp(key, "continuous_usage_stats") == 0)
            TRY(read_bool(key, option, &generation->continuous_usage));
        else if (strcmp(key, "include_obfuscation") == 0)
            TRY(read_bool(key, option, &ignored));
        else
            return fail(ERR_INVALID, "Unknown field `%.64s` in stream_options.", key);
    }
    return OK;
}

static enum status read_echo(struct reader *reader, const json_t *value)
{
    return read_bool("echo", value, &reader->generation->echo);
}

static enum status read_return_token_ids(struct reader *reader, const json_t *value)
{
    return read_bool("return_token_ids", value, &reader->generation->return_token_ids);
}

static enum status read_add_special(struct reader *reader, const json_t *value)
{
    return read_bool("add_special_tokens", value, &reader->add_special);
}

static enum status read_add_generation_prompt(struct reader *reader, const json_t *value)
{
    return read_bool("add_generation_prompt", value, &reader->add_generation_prompt);
}

static enum status read_chat_template_kwargs(struct reader *reader, const json_t *value)
{
    (void)reader; /* render_messages takes them */
    return json_is_object(value) ? OK
                                 : fail(ERR_INVALID, "chat_template_kwargs must be an object.");
}

static enum status read_priority(struct reader *reader, const json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) != (int32_t)json_integer_value(value))
        return fail(ERR_INVALID, "priority must be an integer of 32 bits.");
    if (json_integer_value(value) != 0 && !reader->model->serves_by_priority)
        return fail(ERR_INVALID, "Got priority %lld but Priority scheduling is not enabled; "
                    "--scheduling-policy priority enables it.", (long long)json_integer_value(value));
    reader->generation->priority = (int32_t)json_integer_value(value);
    return OK;
}

static enum status read_cache_salt(struct reader *reader, const json_t *value)
{
    if (!json_is_string(value) || json_string_length(value) == 0)
        return fail(ERR_INVALID, "Parameter 'cache_salt' must be a non-empty string if provided.");
    reader->generation->cache_salt = arena_strndup(
        &reader->generation->arena, json_string_value(value), json_string_length(value));
    return OK;
}

static enum status read_best_of(struct reader *reader, const json_t *value)
{
    const json_t *n = json_object_get(reader->body, "n");

    if (json_integer_value(value) != (json_is_integer(n) ? json_integer_value(n) : 1))
        return fail(ERR_UNSUPPORTED, "best_of other than n is not supported yet.");
    return OK;
}

/* ---- the fields ------------------------------------------------------------------------------- */

enum { IN_COMPLETIONS = 1, IN_CHAT = 2, IN_BOTH = 3 };

/*
 * One row a field that is no sampling parameter (those are rows of proto/wire/sampling_params).
 * read: it is understood. not_yet: it is refused unless its value is one of this JSON array,
 * the values that ask for nothing. Neither: another function reads it, or it is harmless here.
 */
static const struct request_field {
    const char *name;
    int endpoints;
    enum status (*read)(struct reader *reader, const json_t *value);
    const char *not_yet;
} request_fields[] = {
    {"model", IN_BOTH, read_model},
    {"prompt", IN_COMPLETIONS},
    {"prompt_token_ids", IN_COMPLETIONS},
    {"add_special_tokens", IN_BOTH, read_add_special},
    {"messages", IN_CHAT},
    {"add_generation_prompt", IN_CHAT, read_add_generation_prompt},
    {"chat_template_kwargs", IN_CHAT, read_chat_template_kwargs},
    {"stream", IN_BOTH, read_stream},
    {"stream_options", IN_BOTH, read_stream_options},
    {"echo", IN_COMPLETIONS, read_echo},
    {"return_token_ids", IN_BOTH, read_return_token_ids},
    {"priority", IN_BOTH, read_priority},
    {"cache_salt", IN_BOTH, read_cache_salt},
    {"best_of", IN_BOTH, read_best_of},
    {"response_format", IN_BOTH}, /* with those below: structured_outputs_read */
    {"structured_outputs", IN_BOTH},
    {"guided_json", IN_BOTH},
    {"guided_regex", IN_BOTH},
    {"guided_choice", IN_BOTH},
    {"guided_grammar", IN_BOTH},
    {"guided_whitespace_pattern", IN_BOTH},
    {"guided_decoding_backend", IN_BOTH},
    /* harmless: they ask for nothing that shows in the answer */
    {"user", IN_BOTH},
    {"metadata", IN_BOTH},
    {"store", IN_BOTH},
    {"service_tier", IN_BOTH},
    {"parallel_tool_calls", IN_BOTH},
    {"safety_identifier", IN_BOTH},
    {"prompt_cache_key", IN_BOTH},
    {"prompt_cache_retention", IN_BOTH},
    {"include_reasoning", IN_BOTH},
    {"session_id", IN_BOTH},
    {"return_token_offsets", IN_BOTH},
    {"return_mm_kwargs", IN_BOTH},
    /* known, without their function here */
    {"suffix", IN_COMPLETIONS, .not_yet = "[\"\"]"},
    {"prompt_embeds", IN_COMPLETIONS, .not_yet = "[]"},
    {"tools", IN_CHAT, .not_yet = "[[]]"},
    {"tool_choice", IN_CHAT, .not_yet = "[\"none\", \"auto\"]"},
    {"functions", IN_CHAT, .not_yet = "[[]]"},
    {"function_call", IN_CHAT, .not_yet = "[\"none\", \"auto\"]"},
    {"modalities", IN_CHAT, .not_yet = "[[\"text\"]]"},
    {"audio", IN_CHAT, .not_yet = "[]"},
    {"prediction", IN_CHAT, .not_yet = "[]"},
    {"web_search_options", IN_CHAT, .not_yet = "[]"},
    {"reasoning_effort", IN_CHAT, .not_yet = "[\"none\"]"},
    {"verbosity", IN_CHAT, .not_yet = "[\"medium\"]"},
    {"documents", IN_CHAT, .not_yet = "[[]]"},
    {"chat_template", IN_CHAT, .not_yet = "[]"},
    {"continue_final_message", IN_CHAT, .not_yet = "[false]"},
    {"truncate_prompt_tokens", IN_BOTH, .not_yet = "[]"},
    {"truncation_side", IN_BOTH, .not_yet = "[]"},
    {"use_beam_search", IN_BOTH, .not_yet = "[false]"},
    {"length_penalty", IN_BOTH, .not_yet = "[1, 1.0]"},
    {"early_stopping", IN_BOTH, .not_yet = "[false]"},
    {"spaces_between_special_tokens", IN_BOTH, .not_yet = "[true]"},
    {"return_tokens_as_token_ids", IN_BOTH, .not_yet = "[false]"},
    {"return_prompt_text", IN_CHAT, .not_yet = "[false]"},
    {"logprob_token_ids", IN_BOTH, .not_yet = "[]"},
    {"request_id", IN_BOTH, .not_yet = "[]"},
    {"stream_interval", IN_BOTH, .not_yet = "[1]"},
    {"thinking_token_budget", IN_BOTH, .not_yet = "[-1]"},
    {"repetition_detection", IN_BOTH, .not_yet = "[]"},
    {"watermarking", IN_BOTH, .not_yet = "[false]"},
    {"routed_experts_prompt_start", IN_BOTH, .not_yet = "[0]"},
    {"media_io_kwargs", IN_CHAT, .not_yet = "[{}]"},
    {"mm_processor_kwargs", IN_BOTH, .not_yet = "[]"},
    {"logits_processors", IN_BOTH, .not_yet = "[[]]"},
    {"kv_transfer_params", IN_BOTH, .not_yet = "[]"},
    {"ec_transfer_params", IN_BOTH, .not_yet = "[]"},
    {"vllm_xargs", IN_BOTH, .not_yet = "[{}]"},
};

static const struct request_field *field_of(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(request_fields); i++)
        if (strcmp(request_fields[i].name, name) == 0)
            return &request_fields[i];
    return NULL;
}

/* The name of a field that `unknown` may have been meant to be, or NULL. */
static const char *nearest_field(const char *unknown)
{
    enum { MOST_PARAMS = 64 };
    const char *names[COUNT_OF(request_fields) + MOST_PARAMS + 1], *key;
    size_t n = 0;

    for (size_t i = 0; i < COUNT_OF(request_fields); i++)
        names[n++] = request_fields[i].name;
    for (size_t i = 0; i < MOST_PARAMS && (key = sampling_params_key(i)); i++)
        names[n++] = key;
    names[n] = NULL;
    return nearest_word(unknown, names);
}

static enum status refuse_unknown(const char *name)
{
    const char *nearest = nearest_field(name);

    if (nearest)
        return fail(ERR_INVALID, "Unknown field `%.64s`; did you mean `%s`?", name, nearest);
    return fail(ERR_INVALID, "Unknown field `%.64s`.", name);
}

static bool asks_for_nothing(const struct request_field *field, const json_t *value)
{
    json_t *nothings = json_loads(field->not_yet, 0, NULL);
    bool found = false;

    for (size_t i = 0; i < json_array_size(nothings); i++)
        found |= json_equal(json_array_get(nothings, i), value);
    json_decref(nothings);
    return found;
}

static enum status read_field(struct reader *reader, const char *name, const json_t *value)
{
    bool chat = reader->generation->endpoint == OPENAI_CHAT;
    const struct request_field *field = field_of(name);

    if (sampling_params_has_key(name) || json_is_null(value))
        return field || sampling_params_has_key(name) ? OK : refuse_unknown(name);
    if (!field)
        return refuse_unknown(name);
    if (field->not_yet)
        return asks_for_nothing(field, value)
                   ? OK
                   : fail(ERR_UNSUPPORTED, "`%s` is not supported yet.", name);
    if (!(field->endpoints & (chat ? IN_CHAT : IN_COMPLETIONS)) && !json_is_false(value)) /* false asks for nothing */
        return fail(ERR_INVALID, "`%s` is a field of %s.", name,
                    chat ? "completions, not of chat completions"
                         : "chat completions, not of completions");
    return field->read ? field->read(reader, value) : OK;
}

static enum status read_fields(struct reader *reader)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)reader->body, name, value) {
        reader->param = name;
        TRY(read_field(reader, name, value));
    }
    reader->param = NULL;
    return OK;
}

/* ---- sampling parameters ---------------------------------------------------------------------- */

/* A double holds it, so that a client in JavaScript can give it back. */
#define MAX_RANDOM_SEED ((INT64_C(1) << 53) - 1)

static int64_t random_seed(void)
{
    int64_t seed;

    while (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        continue;
    return seed & MAX_RANDOM_SEED;
}

/* vLLM: nothing is generated for an echo with max_tokens 0. It is one token here, and not told. */
static json_t *body_of_params(struct reader *reader)
{
    const json_t *max_tokens = json_object_get(reader->body, "max_tokens");
    json_t *body;

    reader->generation->is_mute = reader->generation->echo && json_is_integer(max_tokens) &&
                                  json_integer_value(max_tokens) == 0;
    if (!reader->generation->is_mute)
        return json_incref((json_t *)reader->body);
    body = json_copy((json_t *)reader->body);
    json_object_set_new(body, "max_tokens", json_integer(1));
    return body;
}

static enum status check_prompt_logprobs(struct reader *reader)
{
    struct generation *generation = reader->generation;
    struct sampling_params *params = &generation->params;

    generation->tells_prompt_logprobs = params->prompt_logprobs >= 0;
    if (generation->stream && params->prompt_logprobs > 0) {
        reader->param = "prompt_logprobs";
        return fail(ERR_INVALID, "`prompt_logprobs` are not available when `stream=True`.");
    }
    if (generation->echo && params->prompt_logprobs < 0)
        params->prompt_logprobs = params->logprobs;
    return OK;
}

static enum status read_params(struct reader *reader)
{
    struct generation *generation = reader->generation;
    struct sampling_params *params = &generation->params;
    json_t *body = body_of_params(reader);
    enum status status;

    if (reader->model->generation_config)
        *params = reader->model->generation_config->params;
    else
        sampling_params_init(params);
    status = sampling_params_from_json(body, &generation->arena, params, &reader->param);
    json_decref(body);
    TRY(status);
    TRY(check_prompt_logprobs(reader));
    reader->param = "bad_words";
    TRY(bad_words_tokenize(reader->model->tokenizer, &generation->arena, params));
    reader->param = NULL;
    TRY(sampling_params_validate(params, tokenizer_vocab_size(reader->model->tokenizer),
                                 reader->model->max_model_len, reader->model->max_logprobs));
    if (params->seed == -1)
        params->seed = reader->model->seed == -1 ? random_seed() : reader->model->seed;
    return OK;
}

/* ---- prompts ----------------------------------------------------------------------------------- */

static struct openai_prompt *add_prompt(struct reader *reader)
{
    return &reader->generation->prompts[reader->generation->num_prompts++];
}

static enum status add_text_prompt(struct reader *reader, const char *text, size_t size)
{
    struct openai_prompt *prompt = add_prompt(reader);

    prompt->text = mem_alloc(size + 1);
    memcpy(prompt->text, text, size);
    prompt->text_size = size;
    return tokenizer_encode(reader->model->tokenizer, text, size, true, reader->add_special,
                            &prompt->tokens);
}

static enum status add_token_prompt(struct reader *reader, const json_t *ids)
{
    struct openai_prompt *prompt = add_prompt(reader);
    int32_t vocab_size = tokenizer_vocab_size(reader->model->tokenizer);
    json_t *id;
    size_t i;

    json_array_foreach(ids, i, id) {
        if (!json_is_integer(id))
            return fail(ERR_INVALID, "%s[%zu] must be a token id.", reader->param, i);
        if (json_integer_value(id) < 0 || json_integer_value(id) >= vocab_size)
            return fail(ERR_INVALID, "Token id %lld is out of vocabulary (size %d).",
                        (long long)json_integer_value(id), vocab_size);
        token_list_add(&prompt->tokens, (token_id)json_integer_value(id));
    }
    return OK;
}

static enum status room_for_prompts(struct reader *reader, size_t count)
{
    int32_t n = reader->generation->params.n;

    if (count > (size_t)(MAX_SEQUENCES / n))
        return fail(ERR_INVALID, "%zu prompts with n = %d make more than %d answers.", count, n,
                    MAX_SEQUENCES);
    reader->generation->prompts = mem_new_array(struct openai_prompt, count);
    return OK;
}

/* A string, token ids, or an array of either. */
static enum status read_prompt(struct reader *reader, const json_t *prompt)
{
    const json_t *first = json_array_get(prompt, 0);
    json_t *element;
    size_t i;

    if (json_is_string(prompt) || json_is_integer(first)) {
        TRY(room_for_prompts(reader, 1));
        return json_is_string(prompt)
                   ? add_text_prompt(reader, json_string_value(prompt), json_string_length(prompt))
                   : add_token_prompt(reader, prompt);
    }
    if (!json_is_array(prompt))
        return fail(ERR_INVALID, "%s must be a string, an array of strings, an array of token ids "
                    "or an array of arrays of token ids.", reader->param);
    if (json_array_size(prompt) == 0)
        return fail(ERR_INVALID, "The decoder prompt cannot be empty");
    TRY(room_for_prompts(reader, json_array_size(prompt)));
    json_array_foreach(prompt, i, element) {
        if (json_typeof(element) != json_typeof(first) ||
            (!json_is_string(element) && !json_is_array(element)))
            return fail(ERR_INVALID, "%s must hold strings only or arrays of token ids only; "
                        "element %zu does not fit.", reader->param, i);
        TRY(json_is_string(element) ? add_text_prompt(reader, json_string_value(element),
                                                      json_string_length(element))
                                    : add_token_prompt(reader, element));
    }
    return OK;
}

static enum status read_completion_prompts(struct reader *reader)
{
    const json_t *text = json_object_get(reader->body, "prompt");
    const json_t *ids = json_object_get(reader->body, "prompt_token_ids");

    reader->param = ids && !json_is_null(ids) ? "prompt_token_ids" : "prompt";
    if (text && !json_is_null(text) && ids && !json_is_null(ids))
        return fail(ERR_INVALID, "prompt and prompt_token_ids cannot both be given.");
    if (ids && !json_is_null(ids)) {
        if (!json_is_array(ids))
            return fail(ERR_INVALID, "prompt_token_ids must be an array of token ids.");
        return read_prompt(reader, ids);
    }
    if (!text || json_is_null(text))
        return fail(ERR_INVALID, "The field `prompt` is required.");
    return read_prompt(reader, text);
}

/* ---- messages ----------------------------------------------------------------------------------- */

/* The stored text of a control token as a C string; "" where there is none. */
static char *token_text(const struct tokenizer *tokenizer, token_id id)
{
    size_t size = 0;
    const char *text = id < 0 ? NULL : tokenizer_token_text(tokenizer, id, &size);

    return mem_strndup(text ? text : "", size);
}

static enum status render_messages(struct reader *reader, struct bytes *out)
{
    const struct tokenizer *tokenizer = reader->model->tokenizer;
    AUTO_MEM char *bos = token_text(tokenizer, tokenizer_bos(tokenizer));
    AUTO_MEM char *eos = token_text(tokenizer, tokenizer_eos(tokenizer));

    return chat_render(reader->model->chat_template,
                       &(struct chat){
                           .messages = json_object_get(reader->body, "messages"),
                           .extra = json_object_get(reader->body, "chat_template_kwargs"),
                           .bos_token = bos,
                           .eos_token = eos,
                           .add_generation_prompt = reader->add_generation_prompt,
                       },
                       out);
}

static enum status read_messages(struct reader *reader)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    reader->param = "messages";
    TRY(room_for_prompts(reader, 1));
    TRY(render_messages(reader, &text));
    return tokenizer_encode(reader->model->tokenizer, bytes_text(&text), text.size, true,
                            reader->add_special, &add_prompt(reader)->tokens);
}

static enum status check_length(struct reader *reader, const struct openai_prompt *prompt)
{
    int32_t length = prompt->tokens.count, most = reader->model->max_model_len;
    int32_t wanted = reader->generation->params.max_tokens;

    if (length == 0)
        return fail(ERR_INVALID, "The decoder prompt cannot be empty");
    if (length >= most)
        return fail(ERR_INVALID, "The decoder prompt (length %d) %s the maximum model length of "
                    "%d.", length,
                    length > most ? "is longer than" : "leaves no room for an answer within", most);
    if (wanted > most - length) {
        reader->param = "max_tokens";
        return fail(ERR_INVALID, "'max_tokens' or 'max_completion_tokens' is too large: %d. This "
                    "model's maximum context length is %d tokens and your request has %d input "
                    "tokens (%d > %d - %d).", wanted, most, length, wanted, most, length);
    }
    return OK;
}

/* vLLM: whoever asks for more than the model gives has less, and is not refused. */
static void limit_answer(struct reader *reader)
{
    const struct generation_config *config = reader->model->generation_config;
    int32_t *max_tokens = &reader->generation->params.max_tokens;

    if (config && config->most_tokens > 0 && (*max_tokens < 0 || *max_tokens > config->most_tokens))
        *max_tokens = config->most_tokens;
}

static enum status read_prompts(struct reader *reader)
{
    struct generation *generation = reader->generation;
    bool chat = generation->endpoint == OPENAI_CHAT;

    TRY(chat ? read_messages(reader) : read_completion_prompts(reader));
    for (int32_t i = 0; i < generation->num_prompts; i++)
        TRY(check_length(reader, &generation->prompts[i]));
    if (generation->params.max_tokens < 0 && reader->model->default_tokens)
        generation->params.max_tokens = reader->model->default_tokens;
    else if (generation->params.max_tokens < 0 && !chat)
        generation->params.max_tokens = DEFAULT_COMPLETION_TOKENS;
    limit_answer(reader);
    return OK;
}

/* ---- the whole ---------------------------------------------------------------------------------- */

static void name_generation(struct generation *generation, const struct openai_model *model)
{
    uint64_t number[2];

    while (getrandom(number, sizeof number, 0) != sizeof number)
        continue;
    snprintf(generation->id, sizeof generation->id, "%s-%016llx%016llx",
             generation->endpoint == OPENAI_CHAT ? "chatcmpl" : "cmpl",
             (unsigned long long)number[0], (unsigned long long)number[1]);
    generation->created = time(NULL);
    generation->model = mem_strdup(model->name ? model->name : "");
}

static void prepare_outputs(struct generation *generation, const struct tokenizer *tokenizer)
{
    const struct sampling_params *params = &generation->params;

    generation->num_sequences = generation->num_prompts * params->n;
    generation->outputs = mem_new_array(struct output_processor, generation->num_sequences);
    generation->routes = mem_new_array(struct sequence_route, generation->num_sequences);
    generation->event_ends = mem_new_array(struct event_ends, generation->num_sequences);
    for (int32_t i = 0; i < generation->num_sequences; i++)
        output_processor_init(
            &generation->outputs[i],
            &(struct output_options){
                .tokenizer = tokenizer,
                .text = {.stop = params->stop,
                         .num_stop = params->num_stop,
                         .include_stop = params->include_stop_str_in_output,
                         .min_tokens = params->min_tokens,
                         .show_special = !params->skip_special_tokens},
                .has_grammar = generation->grammar != NULL,
                .is_mute = generation->is_mute,
                .ignore_eos = params->ignore_eos,
                .num_prompt_tokens = generation->prompts[i / params->n].tokens.count,
            });
}

static enum status read_all(struct reader *reader)
{
    TRY(read_fields(reader));
    TRY(read_params(reader));
    TRY(structured_outputs_read(reader->body, &reader->generation->arena,
                                &reader->generation->grammar, &reader->param));
    return read_prompts(reader);
}

enum status openai_read(const struct openai_model *model, enum openai_endpoint endpoint,
                        const json_t *body, struct generation **out, const char **param_out)
{
    AUTO_FREE(generation) struct generation *generation = mem_new(struct generation);
    struct reader reader = {
        .model = model,
        .body = body,
        .generation = generation,
        .add_generation_prompt = true,
    };
    enum status status;

    if (endpoint == OPENAI_EITHER)
        endpoint = json_object_get(body, "messages") ? OPENAI_CHAT : OPENAI_COMPLETIONS;
    generation->endpoint = endpoint;
    reader.add_special = endpoint == OPENAI_COMPLETIONS; /* a chat template writes its own */
    status = read_all(&reader);
    *param_out = status == OK ? NULL : reader.param;
    TRY(status);
    name_generation(generation, model);
    prepare_outputs(generation, model->tokenizer);
    *out = give(generation);
    return OK;
}

void generation_free(struct generation *generation)
{
    if (!generation)
        return;
    for (int32_t i = 0; i < generation->num_sequences; i++) {
        output_processor_close(&generation->outputs[i]);
        mem_free(generation->event_ends[i].text);
    }
    for (int32_t i = 0; i < generation->num_prompts; i++) {
        token_list_close(&generation->prompts[i].tokens);
        mem_free(generation->prompts[i].text);
    }
    mem_free(generation->outputs);
    mem_free(generation->prompts);
    mem_free(generation->routes);
    mem_free(generation->event_ends);
    mem_free(generation->model);
    arena_close(&generation->arena);
    mem_free(generation);
}

void generation_submission(const struct generation *generation, int32_t sequence,
                           const struct tokenizer *tokenizer, struct submission *submission_out,
                           struct sampling_params *params_out)
{
    const struct token_list *prompt =
        &generation->prompts[sequence / generation->params.n].tokens;
    int32_t num_eos_ids;
    const token_id *eos_ids = tokenizer_stop_ids(tokenizer, &num_eos_ids);

    *params_out = generation->params;
    params_out->n = 1;
    if (sequence % generation->params.n > 0) /* once a prompt */
        params_out->prompt_logprobs = -1;
    params_out->seed = (int64_t)((uint64_t)generation->params.seed +
                                 (uint64_t)(sequence % generation->params.n));
    if (params_out->seed == -1) /* the engine would pick another */
        params_out->seed = INT64_MIN;
    *submission_out = (struct submission){
        .name = generation->id,
        .prompt = prompt->ids,
        .num_prompt = prompt->count,
        .params = params_out,
        .priority = generation->priority,
        .cache_salt = generation->cache_salt,
        .eos_ids = eos_ids,
        .num_eos_ids = num_eos_ids,
    };
}
