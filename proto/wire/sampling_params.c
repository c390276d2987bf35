#include "proto/wire/messages.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct parameter;
typedef enum status parse_function(const struct parameter *row, const json_t *value,
                                   struct arena *arena, struct sampling_params *params);
static parse_function parse_temperature, parse_seed, parse_stop, parse_stop_token_ids,
    parse_logprobs, parse_top_logprobs, parse_prompt_logprobs, parse_logit_bias, parse_allowed_token_ids, parse_bad_words;

/*
 * One row a parameter. `field` comes first, so that the table is the message's too;
 * its name is the JSON key unless `key` is "" (not for users).
 */
struct parameter {
    struct field field;
    const char *key;      /* NULL: field.name */
    double least, most;   /* of a number; both inclusive unless over_least */
    bool over_least;      /* `least` itself is refused */
    const char *rule;     /* what is said when it is not kept: "must be in (0, 1]" */
    parse_function *parse; /* of what is not a plain number or boolean */
    const char *help;
};

#define P struct sampling_params
/* The order is the order on the wire. */
static const struct parameter parameters[] = {
    {FIELD(P, n, FIELD_I32), .least = 1, .most = MAX_SEQUENCES, .rule = "must be at least 1",
     .help = "answers to one prompt"},
    {FIELD(P, temperature, FIELD_F32), .least = 0, .most = 2, .rule = "must be in [0, 2]",
     .parse = parse_temperature, .help = "0 takes the likeliest token; 1 samples as trained"},
    {FIELD(P, top_p, FIELD_F32), .least = 0, .most = 1, .over_least = true,
     .rule = "must be in (0, 1]", .help = "sample among the likeliest tokens of this total"},
    {FIELD(P, top_k, FIELD_I32), .least = -1, .most = INT32_MAX,
     .rule = "must be 0 (disable), or at least 1", .help = "sample among this many tokens"},
    {FIELD(P, min_p, FIELD_F32), .least = 0, .most = 1, .rule = "must be in [0, 1]",
     .help = "drop tokens less likely than this part of the likeliest"},
    {FIELD(P, seed, FIELD_I64), .parse = parse_seed, .help = "the same seed, the same answer"},
    {FIELD(P, max_tokens, FIELD_I32), .least = 1, .most = INT32_MAX, .rule = "must be at least 1",
     .help = "tokens to generate at most"},
    {FIELD(P, min_tokens, FIELD_I32), .least = 0, .most = INT32_MAX,
     .rule = "must be greater than or equal to 0", .help = "no end before this many tokens"},
    {FIELD_LIST(P, stop_token_ids, num_stop_token_ids, FIELD_I32S, MAX_STOP_TOKENS),
     .parse = parse_stop_token_ids, .help = "tokens that end the answer"},
    {FIELD_LIST(P, all_stop_token_ids, num_all_stop_token_ids, FIELD_I32S, 2 * MAX_STOP_TOKENS),
     .key = ""},
    {FIELD(P, ignore_eos, FIELD_BOOL), .help = "go on after the model's end-of-sequence token"},
    {FIELD(P, logprobs, FIELD_I32), .parse = parse_logprobs,
     .help = "tell this many likeliest tokens with their log probabilities"},
    {FIELD(P, prompt_logprobs, FIELD_I32), .parse = parse_prompt_logprobs,
     .help = "the same of the prompt's tokens"},
    {FIELD(P, presence_penalty, FIELD_F32), .least = -2, .most = 2, .rule = "must be in [-2, 2]",
     .help = "against tokens that were generated before"},
    {FIELD(P, frequency_penalty, FIELD_F32), .least = -2, .most = 2, .rule = "must be in [-2, 2]",
     .help = "against tokens, by how often they were generated"},
    {FIELD(P, repetition_penalty, FIELD_F32), .least = 0, .most = 3e38, .over_least = true,
     .rule = "must be greater than zero",
     .help = "over 1: against tokens of the prompt and the answer"},
    {FIELD_LIST(P, logit_bias_ids, num_logit_bias, FIELD_I32S, MAX_LOGIT_BIAS),
     .key = "logit_bias", .parse = parse_logit_bias, .help = "{token id: added to its logit}"},
    {FIELD_COLUMN(P, logit_bias_values, num_logit_bias, FIELD_F32S), .key = ""},
    {FIELD_LIST(P, allowed_token_ids, num_allowed_token_ids, FIELD_I32S, MAX_ALLOWED_TOKENS),
     .parse = parse_allowed_token_ids, .help = "no other tokens are sampled"},
    {FIELD_LIST(P, bad_words_token_ids, num_bad_words_token_ids, FIELD_I32S, MAX_BAD_WORDS_TOKENS),
     .key = ""},
    {FIELD_LIST(P, bad_words_counts, num_bad_words_counts, FIELD_I32S, MAX_BAD_WORDS), .key = ""},
    /* from here on: not on the wire */
    {{.name = "stop"}, .parse = parse_stop,
     .help = "a text or a list of texts that end the answer"},
    {{.name = "bad_words"}, .parse = parse_bad_words, .help = "a list of texts that do not come"},
    {FIELD(P, skip_special_tokens, FIELD_BOOL), .help = "no control tokens in the text"},
    {FIELD(P, include_stop_str_in_output, FIELD_BOOL), .help = "keep the text that ended it"},
    /* other names: after the rows that they refer to */
    {FIELD(P, max_tokens, FIELD_I32), .key = "max_completion_tokens", .least = 1,
     .most = INT32_MAX, .rule = "must be at least 1", .help = "chat's name for max_tokens"},
    {{.name = "top_logprobs"}, .parse = parse_top_logprobs,
     .help = "chat: how many, where logprobs is true"},
};
#undef P

enum { NUM_WIRE_PARAMETERS = 21 };

const struct message_type sampling_params_type = {
    .name = "sampling_params",
    .size = sizeof(struct sampling_params),
    .fields = &parameters[0].field,
    .stride = sizeof(struct parameter),
    .num_fields = NUM_WIRE_PARAMETERS,
};

void sampling_params_init(struct sampling_params *params)
{
    *params = (struct sampling_params){
        .n = 1,
        .temperature = 1,
        .top_p = 1,
        .seed = -1,
        .max_tokens = -1,
        .logprobs = -1,
        .prompt_logprobs = -1,
        .repetition_penalty = 1,
        .skip_special_tokens = true,
    };
}

static const char *key_of(const struct parameter *row)
{
    return row->key ? row->key : row->field.name;
}

bool sampling_params_has_key(const char *key)
{
    for (size_t i = 0; i < COUNT_OF(parameters); i++)
        if (*key && strcmp(key_of(&parameters[i]), key) == 0)
            return true;
    return false;
}

const char *sampling_params_key(size_t i)
{
    for (size_t row = 0; row < COUNT_OF(parameters); row++)
        if (*key_of(&parameters[row]) && i-- == 0)
            return key_of(&parameters[row]);
    return NULL;
}

/* ---- plain numbers and booleans -------------------------------------------------------------- */

static enum status check_range(const struct parameter *row, double value, const char *shown)
{
    if (isfinite(value) && value <= row->most &&
        (row->over_least ? value > row->least : value >= row->least))
        return OK;
    if (isfinite(value) && value > row->most && strncmp(row->rule, "must be in", 10) != 0)
        return fail(ERR_INVALID, "%s must be at most %.10g, got %s.", key_of(row), row->most, shown);
    return fail(ERR_INVALID, "%s %s, got %s.", key_of(row), row->rule, shown);
}

static enum status parse_number(const struct parameter *row, const json_t *value,
                                struct arena *arena, struct sampling_params *params)
{
    (void)arena;
    void *place = (char *)params + row->field.offset;
    AUTO_MEM char *shown = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));

    if (row->field.kind == FIELD_BOOL) {
        if (!json_is_boolean(value))
            return fail(ERR_INVALID, "%s must be true or false.", key_of(row));
        *(bool *)place = json_is_true(value);
    } else if (row->field.kind == FIELD_I32) {
        if (!json_is_integer(value))
            return fail(ERR_INVALID, "%s must be an integer.", key_of(row));
        TRY(check_range(row, (double)json_integer_value(value), shown));
        *(int32_t *)place = (int32_t)json_integer_value(value);
    } else {
        if (!json_is_number(value))
            return fail(ERR_INVALID, "%s must be a number.", key_of(row));
        TRY(check_range(row, json_number_value(value), shown));
        *(float *)place = (float)json_number_value(value);
        /* A double just above an exclusive bound may round onto it. */
        TRY(check_range(row, (double)*(float *)place, shown));
    }
    return OK;
}

static enum status parse_temperature(const struct parameter *row, const json_t *value,
                                     struct arena *arena, struct sampling_params *params)
{
    TRY(parse_number(row, value, arena, params));
    if (!sampling_params_is_greedy(params) && params->temperature < LEAST_TEMPERATURE)
        params->temperature = LEAST_TEMPERATURE;
    return OK;
}

static enum status parse_seed(const struct parameter *row, const json_t *value,
                              struct arena *arena, struct sampling_params *params)
{
    (void)row;
    (void)arena;
    if (!json_is_integer(value))
        return fail(ERR_INVALID, "seed must be an integer of at most 64 bits.");
    params->seed = json_integer_value(value);
    return OK;
}

/* ---- logprobs -------------------------------------------------------------------------------- */

static enum status parse_logprobs(const struct parameter *row, const json_t *value,
                                  struct arena *arena, struct sampling_params *params)
{
    (void)row;
    (void)arena;
    if (json_is_boolean(value)) {
        params->logprobs = json_is_true(value) ? 0 : -1;
        return OK;
    }
    if (!json_is_integer(value))
        return fail(ERR_INVALID, "logprobs must be an integer, or true or false.");
    if (json_integer_value(value) < -1 || json_integer_value(value) > INT32_MAX)
        return fail(ERR_INVALID, "logprobs must be non-negative or -1, got %lld.",
                    (long long)json_integer_value(value));
    params->logprobs =
        json_integer_value(value) == -1 ? LOGPROBS_ALL : (int32_t)json_integer_value(value);
    return OK;
}

static enum status parse_top_logprobs(const struct parameter *row, const json_t *value,
                                      struct arena *arena, struct sampling_params *params)
{
    (void)row;
    (void)arena;
    if (!json_is_integer(value) || json_integer_value(value) < -1 ||
        json_integer_value(value) > INT32_MAX)
        return fail(ERR_INVALID, "top_logprobs must be a non-negative integer or -1.");
    if (json_integer_value(value) != 0 && params->logprobs < 0)
        return fail(ERR_INVALID, "when using `top_logprobs`, `logprobs` must be set to true.");
    if (params->logprobs >= 0)
        params->logprobs =
            json_integer_value(value) == -1 ? LOGPROBS_ALL : (int32_t)json_integer_value(value);
    return OK;
}

/* ---- lists ----------------------------------------------------------------------------------- */

static enum status parse_prompt_logprobs(const struct parameter *row, const json_t *value,
                                         struct arena *arena, struct sampling_params *params)
{
    (void)row;
    (void)arena;
    if (!json_is_integer(value))
        return fail(ERR_INVALID, "prompt_logprobs must be an integer.");
    if (json_integer_value(value) < -1 || json_integer_value(value) > INT32_MAX)
        return fail(ERR_INVALID, "`prompt_logprobs` must be a positive value or -1.");
    params->prompt_logprobs =
        json_integer_value(value) == -1 ? LOGPROBS_ALL : (int32_t)json_integer_value(value);
    return OK;
}

static bool holds(const int32_t *ids, int32_t count, int32_t id)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* A list of token ids. */
static enum status parse_ids(const char *key, const json_t *value, int32_t max_count,
                             struct arena *arena, int32_t **ids_out)
{
    size_t count = json_array_size(value);

    if (!json_is_array(value) || count > (size_t)max_count)
        return fail(ERR_INVALID, "%s must be a list of at most %d integers.", key, max_count);
    *ids_out = arena_alloc(arena, count * sizeof **ids_out);
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(value, i);

        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > INT32_MAX)
            return fail(ERR_INVALID, "%s must contain only token ids; element %zu is none.", key,
                        i);
        (*ids_out)[i] = (int32_t)json_integer_value(id);
    }
    return OK;
}

static enum status parse_stop_token_ids(const struct parameter *row, const json_t *value,
                                        struct arena *arena, struct sampling_params *params)
{
    int32_t *ids, num_ids = 0;

    TRY(parse_ids(key_of(row), value, MAX_STOP_TOKENS, arena, &ids));
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!holds(ids, num_ids, ids[i]))
            ids[num_ids++] = ids[i];
    params->stop_token_ids = ids;
    params->num_stop_token_ids = num_ids;
    return OK;
}

static enum status parse_allowed_token_ids(const struct parameter *row, const json_t *value,
                                           struct arena *arena, struct sampling_params *params)
{
    int32_t *ids;

    if (json_is_array(value) && json_array_size(value) == 0)
        return fail(ERR_INVALID, "allowed_token_ids is not None and empty!");
    TRY(parse_ids(key_of(row), value, MAX_ALLOWED_TOKENS, arena, &ids));
    params->allowed_token_ids = ids;
    params->num_allowed_token_ids = (int32_t)json_array_size(value);
    return OK;
}

/* A list of texts, or one. */
static enum status parse_texts(const char *key, const json_t *value, int32_t max_count,
                               struct arena *arena, const char *const **texts_out,
                               int32_t *count_out)
{
    size_t count = json_is_string(value) ? 1 : json_array_size(value);

    if ((!json_is_string(value) && !json_is_array(value)) || count > (size_t)max_count)
        return fail(ERR_INVALID, "%s must be a text or a list of at most %d texts.", key,
                    max_count);

    const char **texts = arena_alloc(arena, count * sizeof *texts);

    for (size_t i = 0; i < count; i++) {
        const json_t *text = json_is_string(value) ? value : json_array_get(value, i);

        if (!json_is_string(text))
            return fail(ERR_INVALID, "%s must be a text or a list of texts.", key);
        if (json_string_length(text) == 0)
            return fail(ERR_INVALID, "%s cannot contain an empty string.", key);
        if (json_string_length(text) > MAX_STOP_BYTES ||
            strlen(json_string_value(text)) != json_string_length(text))
            return fail(ERR_INVALID, "%s can contain texts of at most %d bytes without NUL.", key,
                        MAX_STOP_BYTES);
        texts[i] = arena_strndup(arena, json_string_value(text), json_string_length(text));
    }
    *texts_out = texts;
    *count_out = (int32_t)count;
    return OK;
}

static enum status parse_stop(const struct parameter *row, const json_t *value,
                              struct arena *arena, struct sampling_params *params)
{
    return parse_texts(key_of(row), value, MAX_STOP_TEXTS, arena, &params->stop, &params->num_stop);
}

static enum status parse_bad_words(const struct parameter *row, const json_t *value,
                                   struct arena *arena, struct sampling_params *params)
{
    if (!json_is_array(value))
        return fail(ERR_INVALID, "bad_words must be a list of at most %d texts.", MAX_BAD_WORDS);
    return parse_texts(key_of(row), value, MAX_BAD_WORDS, arena, &params->bad_words,
                       &params->num_bad_words);
}

static enum status parse_bias_key(const char *key, int32_t *id_out)
{
    char *end;

    errno = 0;
    long long id = strtoll(key, &end, 10);
    if (errno || end == key || *end || id < 0 || id > INT32_MAX)
        return fail(ERR_INVALID, "logit_bias has the key '%.32s', which is no token id.", key);
    *id_out = (int32_t)id;
    return OK;
}

static enum status parse_logit_bias(const struct parameter *row, const json_t *value,
                                    struct arena *arena, struct sampling_params *params)
{
    (void)row;
    size_t count = json_object_size(value);
    const char *key;
    json_t *bias;
    int32_t i = 0;

    if (!json_is_object(value) || count > MAX_LOGIT_BIAS)
        return fail(ERR_INVALID, "logit_bias must be an object of at most %d token ids.",
                    MAX_LOGIT_BIAS);

    int32_t *ids = arena_alloc(arena, count * sizeof *ids);
    float *values = arena_alloc(arena, count * sizeof *values);

    json_object_foreach((json_t *)value, key, bias) {
        TRY(parse_bias_key(key, &ids[i]));
        if (!json_is_number(bias))
            return fail(ERR_INVALID, "logit_bias of token %d must be a number.", ids[i]);
        if (holds(ids, i, ids[i]))
            return fail(ERR_INVALID, "logit_bias names token %d twice.", ids[i]);
        values[i++] = (float)MAX(-100.0, MIN(100.0, json_number_value(bias)));
    }
    params->logit_bias_ids = ids;
    params->logit_bias_values = values;
    params->num_logit_bias = i;
    return OK;
}

/* ---- the whole ------------------------------------------------------------------------------- */

enum status sampling_params_from_json(const json_t *request, struct arena *arena,
                                      struct sampling_params *params, const char **key_out)
{
    struct sampling_params read = *params;

    for (size_t i = 0; i < COUNT_OF(parameters); i++) {
        const struct parameter *row = &parameters[i];
        const json_t *value = *key_of(row) ? json_object_get(request, key_of(row)) : NULL;

        if (!value || json_is_null(value))
            continue;
        enum status status = (row->parse ? row->parse : parse_number)(row, value, arena, &read);
        if (status != OK && key_out)
            *key_out = key_of(row);
        TRY(status);
    }
    *params = read;
    return OK;
}

static enum status check_ids(const char *name, const int32_t *ids, int32_t count,
                             int32_t vocab_size)
{
    for (int32_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return fail(ERR_INVALID, "token_id %d in %s contains out-of-vocab token ids. "
                        "Vocabulary size: %d", ids[i], name, vocab_size);
    return OK;
}

enum status sampling_params_check_ids(const struct sampling_params *params, int32_t vocab_size)
{
    int64_t total = 0;

    for (int32_t i = 0; i < params->num_allowed_token_ids; i++)
        if (params->allowed_token_ids[i] < 0 || params->allowed_token_ids[i] >= vocab_size)
            return fail(ERR_INVALID, "allowed_token_ids contains out-of-vocab token id!");
    for (int32_t i = 0; i < params->num_bad_words_counts; i++) {
        if (params->bad_words_counts[i] < 1)
            return fail(ERR_INVALID, "bad_words: list %d has %d tokens", i,
                        params->bad_words_counts[i]);
        total += params->bad_words_counts[i];
    }
    if (total != params->num_bad_words_token_ids)
        return fail(ERR_INVALID, "bad_words: lists of %lld tokens in all, and there are %d",
                    (long long)total, params->num_bad_words_token_ids);
    return check_ids("bad_words", params->bad_words_token_ids, params->num_bad_words_token_ids,
                     vocab_size);
}

static double number_of(const struct parameter *row, const struct sampling_params *params)
{
    const void *place = (const char *)params + row->field.offset;

    return row->field.kind == FIELD_I32 ? *(const int32_t *)place : (double)*(const float *)place;
}

/* The ranges once more, for parameters that did not come from JSON. A default is always right. */
static enum status check_ranges(const struct sampling_params *params)
{
    struct sampling_params defaults;

    sampling_params_init(&defaults);
    for (size_t i = 0; i < COUNT_OF(parameters); i++) {
        const struct parameter *row = &parameters[i];
        char shown[32];

        if (!row->rule || number_of(row, params) == number_of(row, &defaults))
            continue;
        snprintf(shown, sizeof shown, "%.9g", number_of(row, params));
        TRY(check_range(row, number_of(row, params), shown));
    }
    return OK;
}

static enum status check_logprobs(const char *whose, int32_t count, int32_t vocab_size,
                                  int32_t max_logprobs)
{
    if (max_logprobs >= 0 && MIN(count, vocab_size) > max_logprobs)
        return fail(ERR_INVALID,
                    "Requested %s logprobs of %d, which is greater than max allowed: %d", whose,
                    MIN(count, vocab_size), max_logprobs);
    return OK;
}

enum status sampling_params_validate(const struct sampling_params *params, int32_t vocab_size,
                                     int32_t max_model_len, int32_t max_logprobs)
{
    TRY(check_ranges(params));
    if (sampling_params_is_greedy(params) && params->n > 1)
        return fail(ERR_INVALID, "n must be 1 when using greedy sampling, got %d.", params->n);
    if (params->max_tokens >= 0 && params->min_tokens > params->max_tokens)
        return fail(ERR_INVALID, "min_tokens must be less than or equal to max_tokens=%d, got %d.",
                    params->max_tokens, params->min_tokens);
    if (params->min_tokens >= max_model_len)
        return fail(ERR_INVALID, "min_tokens is %d, which is not less than the maximum model "
                    "length of %d.", params->min_tokens, max_model_len);
    TRY(check_logprobs("sample", params->logprobs, vocab_size, max_logprobs));
    TRY(check_logprobs("prompt", params->prompt_logprobs, vocab_size, max_logprobs));
    TRY(sampling_params_check_ids(params, vocab_size));
    if (params->num_bad_words > 0 && params->num_bad_words_counts == 0)
        return fail(ERR_UNSUPPORTED, "`bad_words` is not supported yet.");
    TRY(check_ids("stop_token_ids", params->stop_token_ids, params->num_stop_token_ids,
                  vocab_size));
    return check_ids("logit_bias", params->logit_bias_ids, params->num_logit_bias, vocab_size);
}

void sampling_params_help(struct bytes *out)
{
    for (size_t i = 0; i < COUNT_OF(parameters); i++)
        if (*key_of(&parameters[i]))
            bytes_printf(out, "  %-28s %s\n", key_of(&parameters[i]), parameters[i].help);
}
