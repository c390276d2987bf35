#include "engine/core/request.h"

#include "engine/grammar/grammar.h"
#include "proto/base/clock.h"
#include "proto/base/rounding.h"

#include <string.h>

static void *copy_array(struct arena *arena, const void *array, int32_t count, size_t size)
{
    void *copy = arena_alloc(arena, (size_t)count * size);

    if (count > 0)
        memcpy(copy, array, (size_t)count * size);
    return copy;
}

/* What the sampler needs; the texts to stop at are the front's business and stay there. */
static void copy_params(struct request *request, const struct submission *submission)
{
    const struct sampling_params *from = submission->params;
    struct sampling_params *params = &request->params;
    struct arena *arena = &request->arena;
    int32_t num_eos = from->ignore_eos ? 0 : submission->num_eos_ids;
    int32_t num_stop = from->num_stop_token_ids, *all;

    *params = *from;
    params->stop = NULL;
    params->num_stop = 0;
    params->bad_words = NULL;
    params->num_bad_words = 0;
    params->stop_token_ids = copy_array(arena, from->stop_token_ids, num_stop, sizeof *all);
    params->logit_bias_ids =
        copy_array(arena, from->logit_bias_ids, from->num_logit_bias, sizeof(int32_t));
    params->logit_bias_values =
        copy_array(arena, from->logit_bias_values, from->num_logit_bias, sizeof(float));
    params->allowed_token_ids =
        copy_array(arena, from->allowed_token_ids, from->num_allowed_token_ids, sizeof(int32_t));
    params->bad_words_token_ids = copy_array(arena, from->bad_words_token_ids,
                                             from->num_bad_words_token_ids, sizeof(int32_t));
    params->bad_words_counts =
        copy_array(arena, from->bad_words_counts, from->num_bad_words_counts, sizeof(int32_t));

    all = arena_alloc(arena, (size_t)(num_eos + num_stop) * sizeof *all);
    if (num_eos > 0)
        memcpy(all, submission->eos_ids, (size_t)num_eos * sizeof *all);
    if (num_stop > 0)
        memcpy(all + num_eos, from->stop_token_ids, (size_t)num_stop * sizeof *all);
    params->all_stop_token_ids = all;
    params->num_all_stop_token_ids = num_eos + num_stop;
}

struct request *request_new(request_id id, const struct submission *submission,
                            int32_t max_model_len, int32_t block_size)
{
    struct request *request = mem_new(struct request);
    const struct sampling_params *params = submission->params;
    int32_t room = max_model_len - submission->num_prompt;
    const char *name = submission->name ? submission->name : "";
    const char *salt = submission->cache_salt ? submission->cache_salt : "";

    ASSERT(submission->num_prompt > 0 && room > 0);
    request->id = id;
    request->name = arena_strndup(&request->arena, name, strlen(name));
    request->cache_salt = arena_strndup(&request->arena, salt, strlen(salt));
    request->priority = submission->priority;
    request->awaits_grammar = submission->awaits_grammar;
    request->slot = -1;
    request->queued_ns = clock_now_ns();

    copy_params(request, submission);
    request->max_tokens = params->max_tokens < 1 ? room : MIN(params->max_tokens, room);

    request->num_prompt = request->num_tokens = submission->num_prompt;
    if (params->prompt_logprobs >= 0)
        request->prompt_scores = prompt_scores_new(request->num_prompt);
    request->capacity = submission->num_prompt + request->max_tokens;
    request->tokens = mem_new_array(token_id, (size_t)request->capacity);
    memcpy(request->tokens, submission->prompt, sizeof(token_id) * (size_t)request->num_prompt);

    request->max_blocks = divide_up(request->capacity, block_size);
    request->blocks = mem_new_array(block_id, (size_t)request->max_blocks);
    request->hashes = mem_new_array(struct block_hash, (size_t)request->max_blocks);
    return request;
}

void request_free(struct request *request)
{
    if (!request)
        return;
    ASSERT(request->num_blocks == 0, "request %ld still holds %d blocks", (long)request->id,
           request->num_blocks);
    mem_free(request->tokens);
    mem_free(request->blocks);
    mem_free(request->hashes);
    grammar_free(request->grammar);
    prompt_scores_free(request->prompt_scores);
    arena_close(&request->arena);
    mem_free(request);
}

enum status request_check_fits(const struct request *request, int32_t num_blocks,
                               int32_t block_size)
{
    int32_t needed = divide_up(request_max_computed(request), block_size);

    if (needed > num_blocks)
        return fail(ERR_INVALID,
                    "the request needs %d KV blocks of %d tokens for %d prompt and %d output tokens; "
                    "the KV cache has %d",
                    needed, block_size, request->num_prompt, request->max_tokens, num_blocks);
    return OK;
}

enum finish_reason request_append(struct request *request, token_id token,
                                  token_id *stop_token_out)
{
    ASSERT(request->num_tokens < request->capacity);
    request->tokens[request->num_tokens++] = token;
    *stop_token_out = -1;
    for (int32_t i = 0; i < request->params.num_all_stop_token_ids; i++)
        if (request->params.all_stop_token_ids[i] == token) {
            *stop_token_out = token;
            return FINISH_STOP;
        }
    return request_num_output(request) >= request->max_tokens ? FINISH_LENGTH : FINISH_NONE;
}

struct new_request request_describe(const struct request *request)
{
    return (struct new_request){
        .slot = request->slot,
        .id = request->name,
        .prompt_token_ids = request->tokens,
        .num_prompt_token_ids = request->num_prompt,
        .output_token_ids = request->tokens + request->num_prompt,
        .num_output_token_ids = request_num_output(request),
        .block_ids = request->blocks,
        .num_block_ids = request->num_blocks,
        .sampling_params = request->params,
    };
}
