/*
 * step_log: a failed step, printed in full.
 *
 * The SchedulerOutput with every id and token count, the cause, and the engine's configuration, in the
 * log. Prompts are people's: their tokens are counted, not shown.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_STEP_LOG_H
#define ENGINE_CORE_STEP_LOG_H

#include "engine/core/scheduler.h"
#include "proto/config/config.h"

void step_log_failure(const struct config *config, const struct scheduler *scheduler, int64_t step,
                      const struct scheduler_output *plan, enum status status, const char *cause);

#endif
