/*
 * spawn: a child process that cannot outlive us.
 *
 * The child is killed by the kernel when the thread that spawned it ends, so
 * spawn from a thread that lives as long as the process. It runs in a process
 * group of its own (Ctrl-C reaches us alone, we tell it), inherits no descriptor
 * but 0, 1, 2 and those given, and starts with default signals.
 *
 * Thread: that of the owner.
 */
#ifndef PROTO_BASE_SPAWN_H
#define PROTO_BASE_SPAWN_H

#include "proto/base/status.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/types.h>

struct spawn_options {
    const char *const *argv; /* NULL at the end; argv[0] is the program's path */
    const char *const *env;  /* "NAME=value" on top of ours, NULL at the end; may be NULL. Of ours NOTIFY_SOCKET and
                                WATCHDOG_* are left out: nobody answers a supervisor in our name */
    const int *fds;          /* kept open under their numbers */
    int num_fds;
    const char *prefix;      /* of each line of its stdout and stderr, which go to our stderr;
                                NULL: it has our stdout and stderr */
    const int *stdio;        /* [3] what become its 0, 1 and 2, above 2; -1: ours; NULL: all ours. Not
                                beside a prefix. */
    const char *directory;   /* where it starts; NULL: where we are */
    const cpu_set_t *cpus;   /* where it may run; NULL: where we may */
};

struct child {
    pid_t pid;
    int pidfd;       /* readable when it has ended */
    bool has_pump;
    pthread_t pump;
    int pump_stop_fd;
    int output_fd;
    const char *prefix; /* borrowed until child_close */
};

/* ERR_IO: the program could not be started, and why. */
MUST_USE enum status spawn(const struct spawn_options *options, struct child *child_out);
/* True once it has ended; status_out as of waitpid. Waits until the deadline at most. */
bool child_wait(struct child *child, int64_t deadline_ns, int *status_out);
/* Of who sees its pidfd alone: true once a child of ours has ended. It stays there for child_wait. */
bool child_has_ended(int pidfd, pid_t *pid_out, int *status_out);
void child_signal(const struct child *child, int signal);
/* Kills it if it still runs, waits for it, passes on its last lines. */
void child_close(struct child *child);
/* "exit status 3", "signal 9 (Killed)" */
const char *child_status_text(int status, char text[static 64]);

#endif
