#include "engine/cmd/generate_options.h"

#include "engine/front/structured_outputs.h"
#include "engine/text/utf8.h"
#include "proto/base/file_read.h"
#include "proto/wire/sampling_params.h"

#include <string.h>

static const char usage[] =
    "usage: tandem generate --model FILE (--prompt TEXT | --requests FILE) [options]\n"
    "\n"
    "Answers one prompt, streaming its text to stdout, or a file of requests, all at once in\n"
    "batches. A line of the file is a JSON object with OpenAI's field names: prompt,\n"
    "prompt_token_ids or messages, and any sampling parameter. Answers come as they are ready, also\n"
    "while more requests may come by a pipe; with --json each is one line:\n"
    "  {\"index\", \"prompt_token_ids\", \"token_ids\", \"text\", \"finish_reason\", \"logprobs\":\n"
    "   [{\"token_id\", \"logprob\", \"top\": [[id, logprob], ...]}, ...]}\n"
    "and a refused request is {\"index\", \"error\": {\"code\", \"message\"}}. A request with several\n"
    "answers has a line for each, with \"sample\" behind \"index\".\n"
    "\n"
    "Exit status: 0 all are answered, 1 some are not, 2 the command line is wrong, 130 and 143:\n"
    "SIGINT and SIGTERM ended it.\n";

#define ROW(member, ...) OPTION(struct generate_options, member, __VA_ARGS__)
static const struct option rows[] = {
    ROW(prompt, OPTION_TEXT, NULL, "the prompt", .group = "Generate"),
    ROW(requests, OPTION_TEXT, NULL, "a JSON object a line; - for stdin", .value = "FILE"),
    ROW(chat, OPTION_BOOL, "false", "prompts are what a user says, in the model's chat template"),
    ROW(json, OPTION_BOOL, "false", "print answers as JSON, a line each"),
    ROW(verbose, OPTION_BOOL, "false", "print phases also where stderr is no terminal"),
    ROW(help, OPTION_BOOL, "false", "print this"),

    ROW(max_tokens, OPTION_TEXT, NULL,
        "tokens at most (--prompt: 256, or what fits; requests: 16, chats what fits)",
        .value = "N", .group = "Sampling, where a request does not say otherwise"),
    ROW(temperature, OPTION_TEXT, NULL,
        "0 takes the likeliest token (what generation_config.json says; else --prompt: 0, requests: 1)",
        .value = "T"),
    ROW(top_p, OPTION_TEXT, NULL, "sample among the likeliest tokens of this total", .value = "P"),
    ROW(top_k, OPTION_TEXT, NULL, "sample among this many tokens", .value = "N"),
    ROW(min_p, OPTION_TEXT, NULL, "drop tokens less likely than this part of the likeliest",
        .value = "P"),
    ROW(n, OPTION_TEXT, NULL, "answers to one prompt", .value = "N"),
    ROW(stop, OPTION_TEXT, NULL, "a text that ends the answer"),
    ROW(logprobs, OPTION_TEXT, NULL, "tell this many likeliest tokens with --json", .value = "K"),
    ROW(prompt_logprobs, OPTION_TEXT, NULL, "the same of the prompt's tokens", .value = "K"),
    ROW(min_tokens, OPTION_TEXT, NULL, "no end before this many tokens", .value = "N"),
    ROW(ignore_eos, OPTION_BOOL, "false", "go on after the model's end-of-sequence token"),
    ROW(presence_penalty, OPTION_TEXT, NULL, "against tokens that were generated", .value = "X"),
    ROW(frequency_penalty, OPTION_TEXT, NULL, "the same, by how often", .value = "X"),
    ROW(repetition_penalty, OPTION_TEXT, NULL, "over 1: against tokens of prompt and answer",
        .value = "X"),

    ROW(json_schema, OPTION_TEXT, NULL, "a JSON schema that the answer follows",
        .value = "JSON|@FILE", .group = "The form of the answer: one of these"),
    ROW(json_object, OPTION_BOOL, "false", "the answer is any JSON object"),
    ROW(regex, OPTION_TEXT, NULL, "a regular expression that the whole answer matches",
        .value = "TEXT|@FILE"),
    ROW(choice, OPTION_TEXT, NULL, "a JSON list of texts, one of which is the answer",
        .value = "JSON|@FILE"),
    ROW(grammar, OPTION_TEXT, NULL, "GBNF (rules with ::=) or Lark", .value = "TEXT|@FILE"),
    ROW(structural_tag, OPTION_TEXT, NULL, "a structural tag, as XGrammar reads it",
        .value = "JSON|@FILE"),
};
#undef ROW

/* The kinds of structured_outputs. */
static const struct {
    size_t offset;
    const char *flag, *field;
    bool is_json;
} forms[] = {
    {offsetof(struct generate_options, json_schema), "--json-schema", "json", true},
    {offsetof(struct generate_options, regex), "--regex", "regex", false},
    {offsetof(struct generate_options, choice), "--choice", "choice", true},
    {offsetof(struct generate_options, grammar), "--grammar", "grammar", false},
    {offsetof(struct generate_options, structural_tag), "--structural-tag", "structural_tag", true},
};

static struct option_set option_set_of(struct generate_options *options)
{
    return (struct option_set){rows, COUNT_OF(rows), options};
}

/* A number where it is one; everything else is text, and refused where a number is due. */
static json_t *value_of(const struct option *row, const char *text)
{
    json_t *value =
        strcmp(row->key, "stop") == 0 ? NULL : json_loads(text, JSON_DECODE_ANY, NULL);

    return value ? value : json_string(text);
}

/* The text itself, or that of @FILE. */
static enum status read_form(const char *flag, const char *value, struct bytes *out)
{
    enum { MOST = 16 << 20 };

    if (*value != '@') {
        bytes_append(out, value, strlen(value));
        return OK;
    }
    return file_read(value + 1, MOST, out) == OK ? OK
                                                 : fail(ERR_INVALID, "%s @%s", flag, fail_text());
}

static enum status gather_form(size_t i, const char *value, json_t *outputs)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    json_error_t error;
    json_t *json;

    TRY(read_form(forms[i].flag, value, &text));
    json = forms[i].is_json
               ? json_loadb(bytes_text(&text), text.size,
                            JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error)
               : json_stringn(bytes_text(&text), text.size);
    if (!json && forms[i].is_json)
        return fail(ERR_INVALID, "%s is no JSON at line %d, column %d: %s", forms[i].flag,
                    error.line, error.column, error.text);
    if (!json)
        return fail(ERR_INVALID, "%s is not UTF-8", forms[i].flag);
    json_object_set_new(outputs, forms[i].field, json);
    return OK;
}

static enum status gather_forms(struct generate_options *options)
{
    json_t *outputs = json_object();
    enum status status = OK;

    for (size_t i = 0; i < COUNT_OF(forms) && status == OK; i++) {
        const char *value = *(char **)((char *)options + forms[i].offset);

        if (value)
            status = gather_form(i, value, outputs);
    }
    if (options->json_object)
        json_object_set_new(outputs, "json_object", json_true());
    if (json_object_size(outputs) > 0)
        json_object_set(options->params, "structured_outputs", outputs);
    json_decref(outputs);
    return status;
}

static enum status gather_params(struct generate_options *options)
{
    const struct grammar_spec *spec = NULL;
    const char *param;
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    options->params = json_object();
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const char *text = rows[i].kind == OPTION_TEXT && sampling_params_has_key(rows[i].key)
                               ? *(char **)((char *)options + rows[i].offset)
                               : NULL;

        if (text && json_object_set_new(options->params, rows[i].key, value_of(&rows[i], text)))
            return fail(ERR_INVALID, "--%s is not UTF-8", rows[i].key);
    }
    if (options->ignore_eos)
        json_object_set_new(options->params, "ignore_eos", json_true());
    TRY(gather_forms(options));
    sampling_params_init(&params);
    TRY(sampling_params_from_json(options->params, &arena, &params, NULL));
    return structured_outputs_read(options->params, &arena, &spec, &param);
}

static enum status check(const struct config *config, const struct generate_options *options)
{
    if (!config_model_path(config))
        return fail(ERR_INVALID, "--model FILE is missing");
    if (!options->prompt && !options->requests)
        return fail(ERR_INVALID, "--prompt TEXT or --requests FILE is missing");
    if (options->prompt && options->requests)
        return fail(ERR_INVALID, "--prompt and --requests cannot both be given");
    if (options->prompt && utf8_valid_bytes(options->prompt, strlen(options->prompt)) <
                               strlen(options->prompt))
        return fail(ERR_INVALID, "--prompt is not UTF-8 at byte %zu",
                    utf8_valid_bytes(options->prompt, strlen(options->prompt)));
    return OK;
}

enum status generate_options_parse(int argc, char *const *argv, struct config *config,
                                   struct generate_options *options)
{
    struct option_set own = option_set_of(options);

    *options = (struct generate_options){0};
    TRY(config_parse(config, &own, argc, argv));
    if (options->help)
        return OK;
    TRY(check(config, options));
    return gather_params(options);
}

void generate_options_close(struct generate_options *options)
{
    struct option_set own = option_set_of(options);

    options_close(&own);
    json_decref(options->params);
    options->params = NULL;
}

void generate_options_help(struct bytes *out)
{
    struct option_set own = option_set_of(NULL);

    bytes_printf(out, "%s", usage);
    config_help(&own, out);
}
