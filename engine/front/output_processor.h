/*
 * output_processor: what the engine says about one sequence, made into what its reader gets:
 * text, token ids, logprobs, why it ended, counts and times.
 *
 * Stop strings are found here, where the text is: the engine knows tokens only, so the caller
 * aborts the request when one is complete. A stop token (EOS or stop_token_ids) is one of
 * `tokens`, and not in `text` unless include_stop. Where a grammar was to be followed, an output that a
 * stop string or one of the stop_token_ids has cut short has not come to its end: it ends with
 * FINISH_LENGTH, and "stop" says that it is whole.
 *
 * Thread: front only.
 */
#ifndef ENGINE_FRONT_OUTPUT_PROCESSOR_H
#define ENGINE_FRONT_OUTPUT_PROCESSOR_H

#include "engine/engine.h"
#include "engine/text/detokenizer.h"

struct output_options {
    const struct tokenizer *tokenizer; /* borrowed */
    struct detokenizer_options text;   /* stop strings, include_stop, show_special */
    bool has_grammar;
    bool is_mute; /* what is generated is not told: only the prompt's logprobs are wanted */
    bool ignore_eos;                   /* an EOS that stops is then one of the stop_token_ids */
    int32_t num_prompt_tokens;
};

struct output_processor {
    /* ---- what came so far; grows with every push ---- */
    struct bytes text;               /* UTF-8, certain: nothing of it is ever taken back */
    token_id *tokens;                /* [num_tokens] */
    struct token_logprobs *logprobs; /* [num_tokens]; NULL when not asked for */
    int32_t num_tokens;
    struct token_logprobs *prompt_logprobs; /* [num_prompt_tokens - 1] from the second token on; NULL: not
                                               asked for, or not there yet */
    int32_t num_prompt_tokens;
    int32_t num_cached_tokens; /* of the prompt, found in the prefix cache */

    /* ---- how it ended ---- */
    enum finish_reason finish; /* FINISH_NONE: it goes on */
    const char *stop_string;   /* the stop string that ended it, or NULL */
    token_id stop_token;       /* the one of stop_token_ids that ended it; -1: none, or EOS */
    enum status error;         /* FINISH_ERROR: why, */
    char *error_text;          /* and its sentence */

    /* ---- when: CLOCK_MONOTONIC, 0 while it has not happened ---- */
    int64_t queued_ns, scheduled_ns, first_token_ns;
    int64_t latest_token_ns;
    int64_t previous_ns; /* latest_token_ns before the latest event with tokens */
    int64_t latest_ns;   /* the latest event */

    /* ---- where a stream's reader is; openai_stream_delta moves them ---- */
    size_t text_sent;
    int32_t tokens_sent;
    int64_t characters_sent; /* of the tokens' own texts: completions' text_offset */
    bool prompt_sent; /* what is told of it once: its echo, its token ids */
    bool finish_sent;

    /* ---- private ---- */
    const struct tokenizer *tokenizer;
    struct detokenizer *detokenizer;
    char **stop; /* copies */
    int32_t num_stop;
    bool include_stop, ignore_eos, has_grammar, is_mute;
    int32_t capacity;
    struct arena arena; /* the tops */
};

/* `options` may go away afterwards, the tokenizer may not. */
void output_processor_init(struct output_processor *output, const struct output_options *options);
void output_processor_close(struct output_processor *output); /* zeroed is fine */

/*
 * Takes one event. True: a stop string is complete, the sequence is finished and the caller ends
 * the request with engine_abort. Tokens behind the stop and all later events are ignored.
 */
MUST_USE bool output_processor_push(struct output_processor *output,
                                    const struct engine_event *event);

#endif
