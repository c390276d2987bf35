/*
 * remote: the launcher's end of one agent, here or elsewhere.
 *
 * The one of this machine is a fork of the launcher; others are `CMD HOST tandem launch-agent`, run by a
 * shell, with the launcher's own path to tandem.
 *
 * Thread: the launcher's main one.
 */
#ifndef ENGINE_LAUNCH_REMOTE_H
#define ENGINE_LAUNCH_REMOTE_H

#include "engine/launch/leash.h"
#include "proto/base/spawn.h"

#include <poll.h>

enum remote_state {
    REMOTE_CONNECTING, /* has not said HELLO */
    REMOTE_UP,
    REMOTE_QUITTING, /* its end is expected */
    REMOTE_GONE,
};

enum { REMOTE_NUM_FDS = 3, REMOTE_MAX_LINE = 255 };

struct remote {
    const char *name;
    bool is_local;
    enum remote_state state;
    struct leash leash;
    struct child child; /* the command, or the agent itself; pid 0: it has ended */
    int error_fd;       /* what the command says on stderr; -1 */
    char line[REMOTE_MAX_LINE + 1]; /* the last of it */
    size_t line_size;
    size_t num_owed; /* bytes of its OUTPUT that have not been told as TAKEN */
};

/* ERR_IO: it can't be started. `name` is borrowed. */
MUST_USE enum status remote_open_local(const char *name, struct remote *out);
MUST_USE enum status remote_open(const char *name, const char *command, struct remote *out);
/* Kills what is left of it here. */
void remote_close(struct remote *remote);

/* Does silence mean that it is lost? A fork of ours can only end. */
static inline bool remote_beats(const struct remote *remote)
{
    return !remote->is_local && remote->state == REMOTE_UP;
}

/* fds: [REMOTE_NUM_FDS] */
void remote_poll(const struct remote *remote, struct pollfd *fds);
/* Reads what its command says on stderr, printable; true: `line` is a whole line of it, and there may be more. */
bool remote_read_errors(struct remote *remote);

#endif
