/*
 * jobs: a few threads for what would hold up the event loop: reading JSON, templates, tokenizing.
 *
 * A job runs on one of them and then, on the loop's thread, is done. In between it belongs to the
 * threads: who no longer wants its result says so to itself and waits for done.
 *
 * Thread: the loop's, except for job.run.
 */
#ifndef ENGINE_SERVER_JOBS_H
#define ENGINE_SERVER_JOBS_H

#include "proto/base/mailbox.h"

struct jobs;

struct job {                       /* embedded in what it is about */
    void (*run)(struct job *job);  /* on a jobs thread */
    void (*done)(struct job *job); /* on the loop's thread; may free it */
    struct mail mail;              /* private: of the queue that it is in */
};

MUST_USE enum status jobs_new(int num_threads, struct jobs **out);
/* Waits for the jobs that run; every job not done yet, run or not, is done before it returns. */
void jobs_free(struct jobs *jobs); /* NULL is fine */
DEFINE_AUTO_FREE(jobs)

void jobs_add(struct jobs *jobs, struct job *job);
/* Readable while jobs_poll has something to do. */
int jobs_fd(const struct jobs *jobs);
/* Calls `done` of every job that has run. */
void jobs_poll(struct jobs *jobs);

#endif
