/*
 * hit_rate: how much of the prompts of late the prefix cache held.
 *
 * Tokens asked for and tokens found, of the last HIT_RATE_REQUESTS requests: what an operator wants
 * to know of a cache that has been filling for days.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_HIT_RATE_H
#define ENGINE_CORE_HIT_RATE_H

#include <stdint.h>

enum { HIT_RATE_REQUESTS = 1000 };

/* Zeroed: no request yet. */
struct hit_rate {
    struct {
        int32_t queries, hits;
    } requests[HIT_RATE_REQUESTS]; /* a ring */
    int32_t next;
    int64_t queries, hits; /* tokens, of all in the ring */
};

void hit_rate_observe(struct hit_rate *rate, int32_t queries, int32_t hits);
/* Nothing is known any more, as after a reset of the cache. */
void hit_rate_clear(struct hit_rate *rate);

#endif
