/*
 * pacing: how many tokens of prompts a step may compute beside requests that decode.
 *
 * Whoever decodes waits for the whole step, so a chunk of a prompt is bounded by time: the step is to take
 * at most `slowdown` times what it would take without prompts, or more where more requests wait for their
 * first token than decode, in proportion. Both times are measured: of steps that only decode, and what a
 * token of a prompt adds to one, which grows with its context. Steps vary, so prompts are given less than all of that
 * time: as much less as it takes that one step in a hundred is too long.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_PACING_H
#define ENGINE_CORE_PACING_H

#include <stdint.h>

struct pacing {
    double slowdown;     /* 0: no limit */
    double decode_ns;    /* of a step of num_decoding rows; 0: not known */
    int32_t num_decoding;
    double token_ns;     /* that a token of a prompt adds; 0: not known */
    double aim;          /* share of the time that prompts may take that they are given */
    int32_t num_limited; /* steps since the last one that was kept free of prompts to measure it */
    int32_t limit;       /* the last that was set; -1: none */
    double share;        /* what it was made for: that prompts may add to a step, in steps without them */
};

void pacing_init(struct pacing *pacing, double slowdown);

/*
 * Tokens of prompts in a step beside num_decoding rows, while num_waiting requests wait for their first
 * tokens; INT32_MAX: no limit. 0 now and then: what decoding takes is not known well enough, and this step
 * is to measure it. Its effect on a request is bounded: of PACING_PERIOD such steps only few are 0.
 */
int32_t pacing_limit(struct pacing *pacing, int32_t num_decoding, int32_t num_waiting);
enum { PACING_PERIOD = 64 };

/* A step of so many decoding rows, and tokens of prompts, took so long. Steps may be scheduled before those
 * ahead of them are observed. */
void pacing_observe(struct pacing *pacing, int32_t num_decoding, int32_t num_prompt_tokens,
                    int64_t took_ns);

#endif
