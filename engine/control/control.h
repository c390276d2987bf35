/*
 * control: the socket on which an engine is operated, served by a thread of its own.
 *
 *   client  DEALER   CONTROL_REQUEST {id, command, args}
 *   here    ROUTER   CONTROL_REPLY {id, status, text}
 *
 * Commands that look are answered from this thread at once, whatever the engine does; those that act go to
 * the front by mailbox, and come back the same way. commands.c has the rows.
 *
 * Who may ask. On ipc:// the user of this process, and root: the directory has mode 0700, the socket 0600,
 * and the kernel's word about the peer (SO_PEERCRED) is asked when it connects, before it is read from. On
 * tcp:// whoever holds a key of a list (keys.h), over CURVE; others do not get past its handshake. Sizes
 * and numbers are bounded, so a peer that is let in can't make the engine grow.
 *
 * Thread: control_open, control_free, control_attach, control_detach, control_fd and control_poll: the
 * front's; control_tell: any.
 */
#ifndef ENGINE_CONTROL_CONTROL_H
#define ENGINE_CONTROL_CONTROL_H

#include "engine/control/commands.h"

enum { CONTROL_MAX_CALLS = 64 }; /* that act, at once; more are refused */

struct control_options {
    const char *endpoint;  /* ipc://PATH, tcp://HOST:PORT; NULL: ipc, in a directory of its own */
    const char *keys_path; /* tcp: who may ask */
    const char *key_path;  /* tcp: our key; NULL: a new one at each start */
    const char *run_dir;   /* where to make the directory; NULL: as run_dir_open */
    const struct option_set *settings; /* to tell; read here */
    size_t num_settings;
};

/* Listens, and starts the thread. ERR_INVALID: the address, or a line of the keys; ERR_IO. */
MUST_USE enum status control_open(const struct control_options *options, struct control **out);
/* Calls that the engine has not answered are forgotten: free the engine first. NULL is fine. */
void control_free(struct control *control);
DEFINE_AUTO_FREE(control)

/* Where it listens, with the port that it got. */
const char *control_endpoint(const struct control *control);
/* Our public key, for clients; NULL: ipc needs none. */
const char *control_public_key(const struct control *control);

/* What the engine does before it is attached: "rank 1: load 62 %". Copied. */
void control_tell(struct control *control, const char *words);
/* From now on commands reach the engine. */
void control_attach(struct control *control, struct server *server);
/* From now on they do not; waits for one that looks at it. NULL, and twice, is fine. */
void control_detach(struct control *control);

/* Readable while control_poll has something to do. */
int control_fd(const struct control *control);
/* Carries out what came. */
void control_poll(struct control *control);

#endif
