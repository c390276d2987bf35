/*
 * plan: which processes a command line means, and where each of them runs.
 *
 * `tandem serve` and `tandem generate` are engines: one process, beside the launcher, and N ranks that are
 * `tandem worker`. Any other program is N ranks itself.
 *
 * Thread: the owner; it is not changed once it is made.
 */
#ifndef ENGINE_LAUNCH_PLAN_H
#define ENGINE_LAUNCH_PLAN_H

#include "engine/launch/options.h"

struct planned_process {
    int32_t rank; /* ENGINE_RANK: the engine */
    int32_t host; /* of plan->hosts */
    int32_t local_rank;
    const struct launch_app *app;
    const char **words; /* [num_words] */
    int32_t num_words;
};

enum { ENGINE_RANK = -1 };

struct planned_host {
    const char *name; /* borrowed from the options, or constant */
    bool is_local;
    int32_t node;        /* among the hosts that have ranks; -1: it has none */
    int32_t local_world; /* its ranks */
};

struct plan {
    struct planned_process *processes; /* [count]; the engine, if any, is the first */
    int32_t count, world;
    struct planned_host *hosts; /* [num_hosts], those that have processes */
    int32_t num_hosts;
    bool has_engine, has_remote_hosts;
    char world_text[16]; /* a word of the engine's command line: a plan is not to be copied */
};

/* The options must outlive it. ERR_INVALID: more ranks than slots, or programs that do not go together. */
MUST_USE enum status plan_make(const struct launch_options *options, struct plan *out);
/* What the words of the engine say behind this flag; NULL: there is no engine, or it is not told. */
const char *plan_engine_flag(const struct plan *plan, const char *flag);
void plan_close(struct plan *plan);

#endif
