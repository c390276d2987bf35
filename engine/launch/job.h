/*
 * job: what becomes of the processes of one `tandem launch`, from start to exit code.
 *
 * It hears what agents tell and what time it is, and decides: who is started again, who is signalled, when
 * the job is ready and when it is over. It waits for nothing itself; the loop is in cmd/launch.c.
 *
 *     connecting -> running -> stopping (the engine, then its ranks; then SIGKILL) -> over
 *
 * Thread: the launcher's main one.
 */
#ifndef ENGINE_LAUNCH_JOB_H
#define ENGINE_LAUNCH_JOB_H

#include "engine/launch/output.h"
#include "engine/launch/plan.h"
#include "engine/launch/remote.h"

struct job;

struct job_options {
    const struct launch_options *settings;
    const struct plan *plan;
    struct output *output;
    struct text token;  /* of the engine and its ranks; "" without an engine */
    const char *listen; /* TANDEM_LISTEN of the engine; NULL: its own affair */
    bool whole_lines;
};

/* Starts the agents. Borrows all of the options until job_free. ERR_IO. */
MUST_USE enum status job_new(const struct job_options *options, struct job **out);
void job_free(struct job *job);
DEFINE_AUTO_FREE(job)

bool job_is_over(const struct job *job);
int job_exit_code(const struct job *job);
/* What failed first in each process, oldest first: the last words of the launcher. */
void job_report(const struct job *job);

/* ---- the loop --------------------------------------------------------------------------------- */

size_t job_num_fds(const struct job *job);
void job_poll(const struct job *job, struct pollfd *fds);
void job_turn(struct job *job, const struct pollfd *fds);
/* At the end of a turn, when what could be written of the output is written: agents that wait for room are
 * told of it here, and of nothing when there is none yet. */
void job_send(struct job *job);
/* When job_tick has something to do. */
int64_t job_deadline_ns(const struct job *job);
void job_tick(struct job *job);

/* ---- orders ----------------------------------------------------------------------------------- */

/* The first ends the job as it likes to end, the second at once. `signal` is passed on. */
void job_stop(struct job *job, int signal);
/* The same without a long grace: nobody is there any more for whom it would run. */
void job_stop_soon(struct job *job, const char *why);
/* All processes get it. */
void job_signal(struct job *job, int signal);
/* Around a stop of the launcher itself: agents expect to hear nothing. */
void job_pause(struct job *job);
void job_resume(struct job *job);
/* The ranks are restarted one after the other. */
void job_roll(struct job *job);
/* Does anybody want standard input now? */
bool job_wants_input(const struct job *job);
void job_input(struct job *job, struct text text); /* "": its end */

#endif
