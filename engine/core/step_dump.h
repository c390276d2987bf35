/*
 * step_dump: a failed step, as a file that `tandem replay` can run again.
 *
 * All that a fresh engine needs to get there: the configuration, what the ranks knew before the
 * steps that were in flight, those steps in full, and why they failed; beside that the statistics,
 * and the last messages between the engine and its ranks. Prompts are in it, so it is its owner's
 * alone to read.
 *
 * Thread: that of the owner.
 */
#ifndef ENGINE_CORE_STEP_DUMP_H
#define ENGINE_CORE_STEP_DUMP_H

#include "engine/core/scheduler.h"
#include "engine/executor/flight_recorder.h"
#include "proto/config/config.h"

enum { DUMP_MAX_STEPS = 2 };

/* A step that was in flight. */
struct dumped_step {
    int64_t id;
    struct scheduler_output plan;
    struct grammar_output masks; /* of the rows that need one, as far as they were made */
};

struct step_dump {
    char *config; /* JSON, as config_to_json writes it */
    char *build_id;
    char *fingerprint; /* of the model */
    enum status status;
    char *cause; /* the sentence of the failure */
    char *verb;  /* "collect": what the engine did when it learnt of it */
    int64_t failed_step;
    int32_t failed_rank; /* -1: the cause names none */

    /* Every request of the steps below that is not new in them: its row schedules the tokens whose
     * KV is there before the first of them. More tokens than fit in a step, usually. */
    struct scheduler_output before;
    struct dumped_step steps[DUMP_MAX_STEPS]; /* oldest first */
    int32_t num_steps;
    struct arena arena; /* holds what plans and masks point to, but for what is borrowed */
};

void step_dump_close(struct step_dump *dump);
/* Of the slots that the steps give back only those that fresh ranks know: requests that had ended before are in none
 * of the rows that describe what was known. */
void step_dump_forget_strangers(struct step_dump *dump);

/*
 * Writes it into `folder`, readable by its owner alone, under a name that no other dump has: on a thread of its own,
 * for the messages take half a second and streams wait for what comes next. How it went is logged there.
 * wire: NULL, or messages to put beside it. Nothing is borrowed once it has returned.
 */
struct dump_writer *dump_writer_start(const struct step_dump *dump,
                                      const struct scheduler_stats *stats,
                                      const struct flight_recorder *wire, const char *folder);
/* Still at it? */
bool dump_writer_is_busy(const struct dump_writer *writer);
/* Waits until it is written. NULL is fine. */
void dump_writer_free(struct dump_writer *writer);

/* ERR_NOT_FOUND, ERR_IO; ERR_CORRUPT names the path and the key that is missing or does not fit. */
MUST_USE enum status step_dump_read(const char *path, struct step_dump *out);

/* "rank 3: ..." -> 3; -1: the sentence names none. */
int32_t rank_in_sentence(const char *sentence);

#endif
