/*
 * job_internal: what job.c, which decides, and job_agents.c, which hears the agents, share.
 */
#ifndef ENGINE_LAUNCH_JOB_INTERNAL_H
#define ENGINE_LAUNCH_JOB_INTERNAL_H

#include "engine/launch/job.h"

#include "proto/base/notify.h"

enum { MAX_LAST_LINE = 255, MAX_CAUSE = 320 };

enum process_state {
    PROCESS_WAITING, /* to be started, at start_ns */
    PROCESS_STARTING,
    PROCESS_RUNNING,
    PROCESS_ENDED,
};

struct process {
    const struct planned_process *plan;
    char tag[24], name[24 + MAX_HOST_NAME + 16]; /* "rank 3", "rank 3 on node2" */
    enum process_state state;
    struct output_files files;

    int64_t start_ns;   /* while waiting; INT64_MAX: when the agents are there */
    int64_t started_ns; /* the last time */
    int64_t ended_ns;
    bool is_ready, is_stopping;
    char status[NOTICE_MAX_STATUS + 1];
    int64_t late_ns;     /* when it is next told that it is late; INT64_MAX: never */
    int64_t watchdog_ns; /* the last WATCHDOG=1; 0: none yet */
    int64_t watchdog_gap_ns; /* the longest between two of them; 0: there were no two */
    bool is_hung;        /* we killed it for its silence */
    bool ended_well;     /* and waits to be started again */

    int32_t num_restarts;
    int64_t *restarts_ns; /* [max_restarts]: when, the oldest overwritten */

    char last_line[MAX_LAST_LINE + 1]; /* of its stderr */
    char failure[MAX_CAUSE];           /* its first; "": none */
    int64_t failure_ns;
    char failure_line[MAX_LAST_LINE + 1];
};

struct job {
    struct job_options options;
    struct process *processes; /* [plan->count] */
    struct remote *remotes;    /* [plan->num_hosts] */
    int64_t began_ns;
    int32_t max_restarts;
    int64_t grace_ms;

    bool is_running; /* all agents have come */
    bool is_stopping, is_killed;
    int64_t stop_ns, deadline_ns; /* of a stop: when it began, when patience ends */
    bool speaks_notify;           /* somebody does, so silence means something */
    bool is_ready;                /* READY has been told upward */

    int32_t rolling; /* which process is being restarted; -1: none */
    bool rolling_has_ended;
    int64_t rolling_began_ns, rolling_kill_ns;
    int32_t num_rolled;

    int cause_code;  /* of what ended the job; 0: nothing did */
    int engine_code; /* 0: it ended well, or has not */
    int stop_code;   /* of the first process that did not end well when it was told to */

    int32_t reader;        /* the process that reads our input; -1: none */
    bool input_on_its_way; /* not yet taken */
    bool input_has_ended;
};

static inline bool is_engine(const struct process *process)
{
    return process->plan->rank == ENGINE_RANK;
}

static inline bool is_alive(const struct process *process)
{
    return process->state == PROCESS_STARTING || process->state == PROCESS_RUNNING;
}

static inline struct process *engine_of(struct job *job)
{
    return job->options.plan->has_engine ? &job->processes[0] : NULL;
}

static inline struct remote *remote_of(struct job *job, const struct process *process)
{
    return &job->remotes[process->plan->host];
}

/* ---- job.c ----------------------------------------------------------------------------------- */

/* Has its agent start it; what is known of an earlier life is forgotten. */
void job_start(struct job *job, struct process *process);
/* Keeps the first of a process. */
void job_record_failure(struct process *process, const char *what);
/* Something went wrong that cannot be mended: the first such thing is the job's exit code. */
void job_fall(struct job *job, int code);

/* What its agent tells of a process that is alive. */
void job_process_started(struct job *job, struct process *process, struct text bound);
void job_process_refused(struct job *job, struct process *process, int code, struct text why);
void job_process_output(struct job *job, struct process *process, int stream, struct text text);
void job_process_notice(struct job *job, struct process *process, int64_t flags,
                        struct text status);
void job_process_ended(struct job *job, struct process *process, int wait_status);

/* ---- job_agents.c ---------------------------------------------------------------------------- */

/* Its processes are gone as far as we can know; without them the job is over. Not so for one that quits. */
void job_lose(struct job *job, struct remote *remote, const char *why, int code);
/* The same of one that has closed the connection. */
void job_lose_closed(struct job *job, struct remote *remote);
/* Reads and obeys what is there. */
void job_take_parcels(struct job *job, struct remote *remote);

#endif
