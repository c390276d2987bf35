/*
 * request: one sequence on its way through the engine.
 *
 *   WAITING --schedule--> RUNNING --stop, length, abort, error--> FINISHED
 *      ^                    |
 *      +----preempt---------+   its blocks are dropped, its tokens kept: recomputed later
 *
 * num_computed runs ahead of the workers: it counts the tokens whose KV is computed once every
 * step in flight has run. A request may leave RUNNING while a step in flight still has a row for
 * it; it keeps its slot until that step is back, for the workers still use it.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_REQUEST_H
#define ENGINE_CORE_REQUEST_H

#include "engine/core/block_pool.h"
#include "engine/core/prompt_scores.h"
#include "proto/base/list.h"
#include "proto/wire/messages.h"

enum request_state { REQUEST_WAITING, REQUEST_RUNNING, REQUEST_FINISHED };

/* What every step reads of every request comes first: it shares two cache lines. */
struct request {
    struct list_node link; /* among the running, the deferred or the leaving */
    request_id id;
    enum request_state state;
    int32_t slot; /* its number on the wire while workers know it, else -1 */

    int32_t num_prompt;
    int32_t num_tokens;
    int32_t max_tokens;       /* of output, what fits the model's length included */
    int32_t num_computed;     /* tokens scheduled since it was last admitted */
    int32_t num_placeholders; /* tokens that steps in flight will sample: they count as tokens
                                 to compute, and nobody here knows them yet */
    int32_t num_in_flight;    /* steps in flight that have a row for it */
    int32_t num_blocks;
    int32_t num_known_blocks; /* of blocks: the prefix cache knows them, or holds their double */
    int32_t num_cached;       /* of the prompt, found in the prefix cache at the first admission */
    int32_t capacity;         /* of tokens */
    struct grammar *grammar;  /* which tokens may come next; owned; NULL: any */

    token_id *tokens;           /* prompt, then output */
    block_id *blocks;           /* at least ceil(num_computed / block_size) */
    struct block_hash *hashes;  /* [max_blocks] of its full blocks, as far as they are needed */
    int64_t queued_ns;
    int64_t scheduled_ns; /* first scheduled; 0: not yet */

    int32_t num_hashes;
    bool drops_in_flight; /* tokens of the steps in flight are not wanted */
    bool is_resuming;     /* its ranks were lost, and it has not come as far again */
    int32_t max_blocks;
    int32_t wait_place;    /* in the wait queue's heap */
    int32_t num_preempted; /* how often */
    int32_t priority;
    bool awaits_grammar; /* not to be scheduled before it is there */
    bool awaits_mask;    /* set aside: not to be scheduled before its next mask is there */
    struct prompt_scores *prompt_scores; /* NULL: nobody wants its logprobs, or they have been told */
    struct arena arena; /* holds params' arrays and the texts */
    struct sampling_params params;
    char *name;       /* the client's, or "" */
    char *cache_salt; /* "" for none */
};

/* Copies the submission, but for its grammar. max_model_len bounds max_tokens; block_size: tokens of a KV block. */
struct request *request_new(request_id id, const struct submission *submission,
                            int32_t max_model_len, int32_t block_size);
void request_free(struct request *request); /* NULL is fine; its blocks must have been dropped */
DEFINE_AUTO_FREE(request)

/* ERR_INVALID: a KV cache of so many blocks could not hold it even alone. Any thread. */
MUST_USE enum status request_check_fits(const struct request *request, int32_t num_blocks,
                                        int32_t block_size);

/* Tokens that will be computed at most: the last one that is generated never is. */
static inline int32_t request_max_computed(const struct request *request)
{
    return request->capacity - 1;
}

/* Tokens there will be once every step in flight is back. */
static inline int32_t request_num_expected(const struct request *request)
{
    return request->num_tokens + request->num_placeholders;
}

static inline int32_t request_num_output(const struct request *request)
{
    return request->num_tokens - request->num_prompt;
}

/* Its last token is all that is to be computed: the client has been told of those before, and waits for the next. */
static inline bool request_decodes(const struct request *request)
{
    return request->num_computed >= request->num_prompt &&
           request_num_expected(request) - request->num_computed == 1;
}

/* Its prompt's logprobs are wanted, and not all told: every token of it has to be computed. */
static inline bool request_wants_scores(const struct request *request)
{
    return request->prompt_scores && !prompt_scores_are_complete(request->prompt_scores);
}

/* Appends a generated token and says whether it ends the request; stop_token_out: the id, if a
 * stop token did, else -1. Order of checks as in vLLM: EOS, stop_token_ids, length. */
enum finish_reason request_append(struct request *request, token_id token,
                                  token_id *stop_token_out);

/* As it is told to workers that do not know it; pointers are to what the request owns. */
struct new_request request_describe(const struct request *request);

#endif
