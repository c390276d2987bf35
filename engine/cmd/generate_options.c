#include "engine/cmd/generate_options.h"

#include "engine/text/utf8.h"
#include "proto/wire/sampling_params.h"

#include <string.h>

static const char usage[] =
    "usage: tandem generate --model FILE (--prompt TEXT | --requests FILE) [options]\n"
    "\n"
    "Answers one prompt, streaming its text to stdout, or a file of requests, all at once in\n"
    "batches. A line of the file is a JSON object with OpenAI's field names: prompt,\n"
    "prompt_token_ids or messages, and any sampling parameter. Answers come as they are ready;\n"
    "with --json each is one line:\n"
    "  {\"index\", \"prompt_token_ids\", \"token_ids\", \"text\", \"finish_reason\", \"logprobs\":\n"
    "   [{\"token_id\", \"logprob\", \"top\": [[id, logprob], ...]}, ...]}\n"
    "and a refused request is {\"index\", \"error\": {\"code\", \"message\"}}. A request with several\n"
    "answers has a line for each, with \"sample\" behind \"index\".\n"
    "\n"
    "Exit status: 0 all are answered, 1 some are not, 2 the command line is wrong.\n";

#define ROW(member, ...) OPTION(struct generate_options, member, __VA_ARGS__)
static const struct option rows[] = {
    ROW(prompt, OPTION_TEXT, NULL, "the prompt", .group = "Generate"),
    ROW(requests, OPTION_TEXT, NULL, "a JSON object a line; - for stdin", .value = "FILE"),
    ROW(chat, OPTION_BOOL, "false", "prompts are what a user says, in the model's chat template"),
    ROW(json, OPTION_BOOL, "false", "print answers as JSON, a line each"),
    ROW(verbose, OPTION_BOOL, "false", "print phases also where stderr is no terminal"),
    ROW(help, OPTION_BOOL, "false", "print this"),

    ROW(max_tokens, OPTION_TEXT, NULL,
        "tokens at most (--prompt: 256; requests: 16, chats what fits)",
        .value = "N", .group = "Sampling, where a request does not say otherwise"),
    ROW(temperature, OPTION_TEXT, NULL,
        "0 takes the likeliest token (--prompt: 0; requests: 1)", .value = "T"),
    ROW(top_p, OPTION_TEXT, NULL, "sample among the likeliest tokens of this total", .value = "P"),
    ROW(top_k, OPTION_TEXT, NULL, "sample among this many tokens", .value = "N"),
    ROW(min_p, OPTION_TEXT, NULL, "drop tokens less likely than this part of the likeliest",
        .value = "P"),
    ROW(n, OPTION_TEXT, NULL, "answers to one prompt", .value = "N"),
    ROW(stop, OPTION_TEXT, NULL, "a text that ends the answer"),
    ROW(logprobs, OPTION_TEXT, NULL, "tell this many likeliest tokens with --json", .value = "K"),
    ROW(min_tokens, OPTION_TEXT, NULL, "no end before this many tokens", .value = "N"),
    ROW(ignore_eos, OPTION_BOOL, "false", "go on after the model's end-of-sequence token"),
    ROW(presence_penalty, OPTION_TEXT, NULL, "against tokens that were generated", .value = "X"),
    ROW(frequency_penalty, OPTION_TEXT, NULL, "the same, by how often", .value = "X"),
    ROW(repetition_penalty, OPTION_TEXT, NULL, "over 1: against tokens of prompt and answer",
        .value = "X"),
};
#undef ROW

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

static enum status gather_params(struct generate_options *options)
{
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
    sampling_params_init(&params);
    return sampling_params_from_json(options->params, &arena, &params, NULL);
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
