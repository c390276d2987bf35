/*
 * admission: is there room for one more request, and if not, when will there be?
 *
 * It counts what is inside, and how fast that has left of late. Clients that are refused at one time are told
 * times one behind the other, as places come free: told the same, they would all come back for one place.
 *
 * Thread: one, that of the front; num_rejections: any.
 */
#ifndef ENGINE_ADMISSION_H
#define ENGINE_ADMISSION_H

#include "engine/engine.h"

#include <stdatomic.h>

/* Requests, or tokens of prompts. */
struct admission_queue {
    int64_t most;   /* 0: no limit */
    int64_t inside;
    int64_t since_ns;    /* of what is inside, the time since then is not in seconds[] yet */
    double left[2];      /* of late, in two stretches of time, this one and the one before, */
    double seconds[2];   /* and how long they were, without the time when nothing was inside */
    int64_t promised_ns; /* when the last that was refused may come again */
};

/* Zeroed: no limits. */
struct admission {
    struct admission_queue queues[NUM_ADMISSION_LIMITS];
    _Atomic int64_t num_rejections[NUM_ADMISSION_LIMITS];
    int32_t retry_after_s; /* what the last that was refused is to be told; 0: none was */
};

/* Room for n more sequences of one request? ERR_INVALID: never; ERR_FULL: not now. */
MUST_USE enum status admission_check(struct admission *admission, int32_t n);
/* Would admission_check(1) be OK? Nothing is counted. */
bool admission_has_room(const struct admission *admission);

void admission_enter(struct admission *admission, int32_t num_prompt_tokens);
/* What came out is queued no more: `amount` requests, or tokens of prompts whose requests have begun to answer. */
void admission_leave(struct admission *admission, enum admission_limit limit, int32_t amount);

#endif
