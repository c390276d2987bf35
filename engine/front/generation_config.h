/*
 * generation_config: how a model is to be sampled where nobody says otherwise: the generation_config.json of a
 * folder of Hugging Face's.
 *
 * As vLLM has it: repetition_penalty, temperature, top_k, top_p and min_p are defaults of requests, and
 * max_new_tokens is a limit of every answer. Other keys ask for nothing here, do_sample neither; eos_token_id is
 * the vocabulary's (proto/model/hf_tokenizer.h).
 *
 * Thread: any; frozen once read.
 */
#ifndef ENGINE_FRONT_GENERATION_CONFIG_H
#define ENGINE_FRONT_GENERATION_CONFIG_H

#include "proto/model/model_file.h"
#include "proto/wire/sampling_params.h"

struct generation_config {
    struct sampling_params params; /* what is not in the file is as sampling_params_init has it */
    bool has_temperature;
    int32_t most_tokens; /* of an answer; -1: no limit */
};

/* `text` is the file's; size 0: there is none. What of it is used is appended to `told` as JSON, if any is.
 * ERR_INVALID, ERR_CORRUPT: the sentence has the key, its value and what is possible. */
MUST_USE enum status generation_config_read(struct text_view text, struct generation_config *out,
                                            struct bytes *told);

#endif
