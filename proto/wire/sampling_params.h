/*
 * sampling_params: one request's knobs.
 *
 * A parameter is a row: its name in JSON, where it lies, its range and the words
 * that refuse what is outside (vLLM's), and its place on the wire. The front
 * reads them from JSON, the sampler uses them.
 *
 * Thread: a struct belongs to its request.
 */
#ifndef PROTO_WIRE_SAMPLING_PARAMS_H
#define PROTO_WIRE_SAMPLING_PARAMS_H

#include "proto/base/sampling_law.h"
#include "proto/wire/message.h"

enum {
    MAX_SEQUENCES = 16384,    /* n */
    MAX_LOGPROBS = 20,        /* unless the caller allows more */
    LOGPROBS_ALL = INT32_MAX, /* of the whole vocabulary; in JSON: -1 */
    MAX_STOP_TOKENS = 4096,
    MAX_STOP_TEXTS = 64,
    MAX_STOP_BYTES = 4096, /* of one stop text */
    MAX_LOGIT_BIAS = 4096,
    MAX_ALLOWED_TOKENS = 1 << 20,
    MAX_BAD_WORDS = 128, /* texts; and lists of tokens, of which a text may become two */
    MAX_BAD_WORDS_TOKENS = 1 << 16,
};

struct sampling_params {
    int32_t n;
    float temperature;       /* 0: greedy */
    float top_p;             /* 1: off */
    int32_t top_k;           /* 0 or -1: off */
    float min_p;             /* 0: off */
    int64_t seed;            /* -1: the engine picks one */
    int32_t max_tokens;      /* -1: as many as the model's length allows */
    int32_t min_tokens;      /* where a grammar masks the row, its masks see to that */
    const int32_t *stop_token_ids;
    int32_t num_stop_token_ids;
    const int32_t *all_stop_token_ids; /* set by the engine, not by users: the above and, unless */
    int32_t num_all_stop_token_ids;    /* ignore_eos, the model's; not sampled before min_tokens */
    bool ignore_eos;
    int32_t logprobs; /* of the k likeliest tokens beside the sampled one's; -1: none;
                         LOGPROBS_ALL */
    int32_t prompt_logprobs; /* the same of the prompt's tokens, from the second on; -1: none */
    float presence_penalty, frequency_penalty, repetition_penalty;
    const int32_t *logit_bias_ids;
    const float *logit_bias_values; /* within [-100, 100] */
    int32_t num_logit_bias;
    const int32_t *allowed_token_ids; /* nothing else is sampled; none: all are allowed */
    int32_t num_allowed_token_ids;
    /* Set by the front, which tokenises bad_words: lists of ids, one behind the other. The last of
     * a list is not sampled where those before it are the end of the answer so far. */
    const int32_t *bad_words_token_ids;
    int32_t num_bad_words_token_ids;
    const int32_t *bad_words_counts; /* ids of each list, 1 or more; they add up to all of them */
    int32_t num_bad_words_counts;

    /* the front's own; they do not travel */
    const char *const *stop;
    int32_t num_stop;
    const char *const *bad_words;
    int32_t num_bad_words;
    bool skip_special_tokens;
    bool include_stop_str_in_output;
};

/* vLLM's defaults, except max_tokens, which depends on the endpoint: -1. */
void sampling_params_init(struct sampling_params *params);
static inline bool sampling_params_is_greedy(const struct sampling_params *params)
{
    return params->temperature < GREEDY_TEMPERATURE;
}

/* Is this key of a request's JSON ours? */
bool sampling_params_has_key(const char *key);
/* The i-th key, for who offers names to a user; NULL behind the last. */
const char *sampling_params_key(size_t i);

/* Reads our keys of the object `request`, leaves others alone; null means the default. Lists and
 * texts are copied into `arena`. `logprobs` may be a number (completions), or true or false with
 * `top_logprobs` (chat). ERR_INVALID carries the words for the user, and key_out (may be NULL) the
 * key at fault. `params` must be inited. */
MUST_USE enum status sampling_params_from_json(const json_t *request, struct arena *arena,
                                               struct sampling_params *params,
                                               const char **key_out);

/* The ranges, and everything that needs to know more than one parameter. max_logprobs: -1: no
 * limit. ERR_UNSUPPORTED: bad_words that nobody has tokenised, which would come all the same. */
MUST_USE enum status sampling_params_validate(const struct sampling_params *params,
                                              int32_t vocab_size, int32_t max_model_len,
                                              int32_t max_logprobs);

/* Do the lists of bad words add up, and are their ids and the allowed ones within the vocabulary?
 * ERR_INVALID. A part of sampling_params_validate, for a rank that is told them. */
MUST_USE enum status sampling_params_check_ids(const struct sampling_params *params,
                                               int32_t vocab_size);

/* A line a parameter, for `tandem help sampling` and the docs. */
void sampling_params_help(struct bytes *out);

#endif
