/*
 * ranks: runs the steps of a script on a model's ranks, each a thread of this process with a device
 * of its own, and shows what rank 0 answers.
 *
 * Thread: the test's; rank 0's callbacks run on another while ranks_play waits.
 */
#ifndef TESTS_SUPPORT_RANKS_H
#define TESTS_SUPPORT_RANKS_H

#include "worker/models/model.h"

/* Rows [from, to) of a request's tokens, part of one step. */
struct ranks_chunk {
    int32_t request;
    int32_t from, to;
    int32_t num_logits; /* of so many last rows */
};

struct ranks_step {
    int32_t num_chunks;
    struct ranks_chunk chunks[8];
};

struct ranks_request {
    const int32_t *ids;
    int32_t num_ids;
};

struct ranks_script {
    const struct model_file *file;
    const char *isa; /* NULL: the best */
    enum kv_type kv_type;
    int32_t world;
    int32_t num_threads; /* of each rank; 0: one */
    bool are_apart;      /* as on hosts of their own: their comm is a comm_net */
    const struct ranks_request *requests;
    int32_t num_requests;
    const struct ranks_step *steps; /* one without rows is passed over */
    int32_t num_steps;
    /* Rank 0 only; may be NULL. logits: [rows wanted, vocab_size] */
    void (*on_logits)(void *user, int32_t step, const float *logits);
    model_observer *observer;
    void *user;
};

/* The first rank's failure, all ranks stopped. */
MUST_USE enum status ranks_play(const struct ranks_script *script);

#endif
