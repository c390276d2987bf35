/*
 * stats_log: now and then a line about what the engine does, while it does something.
 * Thread: front.
 */
#ifndef ENGINE_SERVER_STATS_LOG_H
#define ENGINE_SERVER_STATS_LOG_H

#include "engine/engine.h"

struct stats_log { /* zeroed: nothing was logged yet */
    int64_t logged_ns;
    int64_t prompt_tokens, generation_tokens; /* by then */
    bool was_busy;
};

/* Logs a line, ten seconds after the last one at the soonest; the first of an idle engine is its last. */
void stats_log_tick(struct stats_log *log, const struct engine_stats *stats, int64_t now_ns);
/* The line alone: rates of so many seconds. */
void stats_log_print(const struct stats_log *log, const struct engine_stats *stats, double seconds,
                     struct bytes *out);

#endif
