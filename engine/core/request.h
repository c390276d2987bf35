/*
 * request: one sequence on its way through the engine.
 *
 *   WAITING --schedule--> RUNNING --stop, length, abort, error--> FINISHED
 *      ^                    |
 *      +----preempt---------+   its blocks are dropped, its tokens kept: recomputed later
 *
 * num_computed runs ahead of the worker: it counts the tokens whose KV is computed once every
 * step that was scheduled has run.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_REQUEST_H
#define ENGINE_CORE_REQUEST_H

#include "engine/core/block_pool.h"
#include "engine/engine.h"
#include "proto/base/list.h"

enum request_state { REQUEST_WAITING, REQUEST_RUNNING, REQUEST_FINISHED };

struct request {
    struct list_node link; /* in the wait queue or among the running */
    enum request_state state;
    request_id id;
    char *name; /* the client's, or "" */
    int32_t priority;
    int32_t slot; /* its number on the wire while workers know it, else -1 */

    struct arena arena; /* holds params' arrays and name */
    struct sampling_params params;
    int32_t max_tokens;            /* of output, what fits the model's length included */

    token_id *tokens; /* prompt, then output */
    int32_t num_prompt;
    int32_t num_tokens;
    int32_t capacity;

    int32_t num_computed;  /* tokens scheduled so far in this life */
    int32_t num_cached;    /* of the prompt, found in the prefix cache at the first admission */
    int32_t num_preempted; /* how often */
    bool in_flight;        /* part of a step whose output has not come back */
    bool abort_wanted;

    block_id *blocks; /* at least ceil(num_computed / block_size) */
    int32_t num_blocks;
    int32_t max_blocks;

    int64_t queued_ns;
    int64_t scheduled_ns; /* first scheduled; 0: not yet */
};

/* Copies the submission. max_model_len bounds max_tokens; block_size: tokens of a KV block. */
struct request *request_new(request_id id, const struct submission *submission,
                            int32_t max_model_len, int32_t block_size);
void request_free(struct request *request); /* NULL is fine; its blocks must have been dropped */
DEFINE_AUTO_FREE(request)

static inline int32_t request_num_output(const struct request *request)
{
    return request->num_tokens - request->num_prompt;
}

/* Appends a generated token and says whether it ends the request; stop_token_out: the id, if a
 * stop token did, else -1. Order of checks as in vLLM: EOS, stop_token_ids, length. */
enum finish_reason request_append(struct request *request, token_id token,
                                  token_id *stop_token_out);

#endif
