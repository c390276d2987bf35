/*
 * bad_words: texts that are not to come, as lists of tokens that are not to come.
 *
 * As in vLLM a text is forbidden where an answer begins and where a word does: tokenised as it is,
 * and behind a space. The second only where that is another token in the first's place: a space that
 * is a token of its own changes nothing.
 *
 * Thread: any.
 */
#ifndef ENGINE_FRONT_BAD_WORDS_H
#define ENGINE_FRONT_BAD_WORDS_H

#include "engine/text/tokenizer.h"
#include "proto/wire/sampling_params.h"

/* params->bad_words into its bad_words_token_ids and bad_words_counts, in the arena. ERR_INVALID: a
 * text is nothing but space, or there are more than MAX_BAD_WORDS lists of tokens; one sentence for
 * the client. */
MUST_USE enum status bad_words_tokenize(const struct tokenizer *tokenizer, struct arena *arena,
                                        struct sampling_params *params);

#endif
