/*
 * step_replay: a step that failed, run again on fresh ranks.
 *
 * The ranks first learn what those of the dump knew: steps that compute the same tokens into the
 * same KV blocks, and sample nothing. Then come the steps that were in flight, as they were.
 *
 * Thread: that of the owner, who also owns the executor.
 */
#ifndef ENGINE_CORE_STEP_REPLAY_H
#define ENGINE_CORE_STEP_REPLAY_H

#include "engine/core/step_dump.h"
#include "engine/executor/executor.h"

struct step_replay_options {
    const struct step_dump *dump;
    const struct config *config; /* of the dump */
    struct executor *executor;   /* fresh, of that configuration */
    int32_t vocab_size;
    /* Called before each step; may be NULL. */
    void (*progress)(void *user, int64_t step, const struct scheduler_output *plan,
                     bool is_warm_up);
    void *user;
};

enum replay_outcome { REPLAY_SAME, REPLAY_OTHER, REPLAY_NO_FAILURE };

struct step_replay_result {
    enum replay_outcome outcome;
    enum status status; /* of what failed now; OK: nothing */
    char cause[1024];
    int64_t shift; /* added to the numbers of steps: the dump's left no room for the warm-up */
};

/* A status other than OK: it can't be run again: the dump's plans do not hold together. */
MUST_USE enum status step_replay_run(const struct step_replay_options *options,
                                     struct step_replay_result *out);

/* Are they one failure, by status and cause? Numbers of processes and durations may differ, and executors. */
bool same_failure(enum status a_status, const char *a, enum status b_status, const char *b);

#endif
