#include "engine/front/output_processor.h"

#include "engine/token_logprobs.h"

void output_processor_init(struct output_processor *output, const struct output_options *options)
{
    const struct detokenizer_options *text = &options->text;

    *output = (struct output_processor){
        .num_prompt_tokens = options->num_prompt_tokens,
        .stop_token = -1,
        .tokenizer = options->tokenizer,
        .detokenizer = detokenizer_new(options->tokenizer, text),
        .num_stop = text->num_stop,
        .include_stop = text->include_stop,
        .ignore_eos = options->ignore_eos,
        .has_grammar = options->has_grammar,
        .is_mute = options->is_mute,
    };
    output->stop = mem_new_array(char *, text->num_stop);
    for (int32_t i = 0; i < text->num_stop; i++)
        output->stop[i] = mem_strdup(text->stop[i]);
}

void output_processor_close(struct output_processor *output)
{
    bytes_close(&output->text);
    mem_free(output->tokens);
    mem_free(output->logprobs);
    mem_free(output->prompt_logprobs);
    mem_free(output->error_text);
    for (int32_t i = 0; i < output->num_stop; i++)
        mem_free(output->stop[i]);
    mem_free(output->stop);
    detokenizer_free(output->detokenizer);
    arena_close(&output->arena);
    *output = (struct output_processor){0};
}

static void keep_prompt_logprobs(struct output_processor *output,
                                 const struct token_logprobs *prompt_logprobs)
{
    int32_t n = output->num_prompt_tokens - 1;

    mem_free(output->prompt_logprobs);
    /* One more than there are: a prompt of one token has none, and that is told too. */
    output->prompt_logprobs = mem_new_array(struct token_logprobs, (size_t)n + 1);
    for (int32_t i = 0; i < n; i++)
        output->prompt_logprobs[i] = token_logprobs_copy(&prompt_logprobs[i], &output->arena);
}

static void append_token(struct output_processor *output, token_id token,
                         const struct token_logprobs *of_token)
{
    if (output->num_tokens == output->capacity) {
        output->capacity = MAX(16, 2 * output->capacity);
        output->tokens = mem_resize(output->tokens,
                                    (size_t)output->capacity * sizeof *output->tokens);
        if (of_token)
            output->logprobs = mem_resize(output->logprobs,
                                          (size_t)output->capacity * sizeof *output->logprobs);
    }
    output->tokens[output->num_tokens] = token;
    if (of_token)
        output->logprobs[output->num_tokens] = token_logprobs_copy(of_token, &output->arena);
    output->num_tokens++;
}

static void note_times(struct output_processor *output, const struct engine_event *event)
{
    output->queued_ns = event->queued_ns;
    output->scheduled_ns = event->scheduled_ns;
    output->num_cached_tokens = event->num_cached_tokens;
    if (event->num_tokens > 0) {
        output->previous_ns = output->first_token_ns ? output->latest_token_ns : 0;
        output->latest_token_ns = event->now_ns;
        if (!output->first_token_ns)
            output->first_token_ns = event->now_ns;
    }
    output->latest_ns = event->now_ns;
}

static bool is_eos(const struct output_processor *output, token_id token)
{
    int32_t count;
    const token_id *ids = tokenizer_stop_ids(output->tokenizer, &count);

    for (int32_t i = 0; i < count; i++)
        if (ids[i] == token)
            return !output->ignore_eos;
    return false;
}

static void finish(struct output_processor *output, const struct engine_event *event)
{
    detokenizer_finish(output->detokenizer, &output->text);
    output->finish = event->finish;
    if (event->finish == FINISH_STOP && output->is_mute) {
        output->finish = FINISH_LENGTH; /* of no tokens */
    } else if (event->finish == FINISH_STOP && !event->grammar_is_complete) {
        if (event->stop_token >= 0 && !is_eos(output, event->stop_token))
            output->stop_token = event->stop_token;
        if (output->has_grammar)
            output->finish = FINISH_LENGTH;
    }
    if (event->finish == FINISH_ERROR) {
        output->error = event->error;
        output->error_text = mem_strdup(event->error_text ? event->error_text : "");
    }
}

bool output_processor_push(struct output_processor *output, const struct engine_event *event)
{
    bool stopped = event->finish == FINISH_STOP && event->stop_token >= 0;

    if (output->finish != FINISH_NONE)
        return false;
    note_times(output, event);
    if (event->prompt_logprobs)
        keep_prompt_logprobs(output, event->prompt_logprobs);
    for (int32_t i = 0; i < event->num_tokens && !output->is_mute; i++) {
        int32_t stop;

        append_token(output, event->tokens[i], event->logprobs ? &event->logprobs[i] : NULL);
        if (stopped && i == event->num_tokens - 1 && !output->include_stop)
            break; /* a stop token is no text */
        stop = detokenizer_push(output->detokenizer, event->tokens[i], &output->text);
        if (stop >= 0) {
            output->finish = output->has_grammar ? FINISH_LENGTH : FINISH_STOP;
            output->stop_string = output->stop[stop];
            return event->finish == FINISH_NONE;
        }
    }
    if (event->finish != FINISH_NONE)
        finish(output, event);
    return false;
}
