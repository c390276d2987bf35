/*
 * join: how a rank finds its engine, which may start minutes later, elsewhere, or anew.
 *
 * It looks again and again until the engine is there: a file that is to hold the address, a name that is not
 * known yet, a port where nobody listens. Every 10 s it says what it waits for. What waiting does not mend ends
 * it at once: other keys, another build, a rank that the engine has not.
 *
 * Thread: the one that owns the channel.
 */
#ifndef WORKER_JOIN_H
#define WORKER_JOIN_H

#include "proto/wire/rendezvous.h"

struct join_options {
    const char *engine;        /* ipc://PATH, tcp://HOST:PORT, or file:PATH, read anew each time */
    const struct token *token; /* for tcp; NULL: there is none */
    int64_t timeout_ms;
    int32_t rank, world;
};

struct joined {
    struct channel *channel; /* the caller's */
    char endpoint[RENDEZVOUS_MAX_ENDPOINT + 1]; /* where the engine was */
    const struct welcome *welcome;              /* in the arena */
    uint32_t epoch;
};

/* ERR_TIMEOUT: no engine was there; the sentence tells the last reason. ERR_MISMATCH: it has another token, or
 * refuses the rank, in its words. ERR_INVALID, ERR_UNSUPPORTED, ERR_CORRUPT: the address. */
MUST_USE enum status join_engine(const struct join_options *options, struct arena *arena,
                                 struct joined *out);

#endif
