/*
 * generate_options: what `tandem generate` takes beside the engine's settings.
 *
 * Sampling flags are sampling parameters in JSON: they are defaults of every request that does
 * not say otherwise, and are read, and refused, as in a request.
 *
 * Thread: main.
 */
#ifndef ENGINE_CMD_GENERATE_OPTIONS_H
#define ENGINE_CMD_GENERATE_OPTIONS_H

#include "proto/config/config.h"

struct generate_options {
    char *prompt;
    char *requests; /* a file of JSON lines; "-": stdin */
    bool chat, json, verbose, help;

    /* sampling parameters as JSON; NULL: not given */
    char *max_tokens, *min_tokens, *temperature, *top_p, *top_k, *min_p, *n, *stop, *logprobs;
    char *prompt_logprobs;
    char *presence_penalty, *frequency_penalty, *repetition_penalty;
    bool ignore_eos;

    /* one of structured_outputs' kinds: its text, or @FILE; NULL: not given */
    char *json_schema, *regex, *choice, *grammar, *structural_tag;
    bool json_object;

    json_t *params; /* {"max_tokens": 64, …}: what was given */
};

/* ERR_INVALID: the command line is wrong, in one sentence. Both structs are inited here, and are
 * the caller's to close also on failure. */
MUST_USE enum status generate_options_parse(int argc, char *const *argv, struct config *config,
                                            struct generate_options *options);
void generate_options_close(struct generate_options *options);
/* What --help prints. */
void generate_options_help(struct bytes *out);

#endif
