/*
 * notify: how a process tells whoever started it how far it is, in the words of systemd's sd_notify(3).
 *
 * A supervisor (systemd, `tandem launch`) names a datagram socket in NOTIFY_SOCKET. A process sends it
 * READY=1, STATUS=words, WATCHDOG=1 (I still turn) and STOPPING=1. Nobody has to listen: telling never
 * waits and never fails the teller. The receiver gives each child a socket of its own, so whoever speaks
 * there, a wrapper or its grandchild, is known without asking the kernel who it was.
 *
 * Thread: any for notify(); a receiver belongs to its owner.
 */
#ifndef PROTO_BASE_NOTIFY_H
#define PROTO_BASE_NOTIFY_H

#include "proto/base/status.h"

#include <stdint.h>

enum { NOTICE_MAX_BYTES = 4096, NOTICE_MAX_STATUS = 255 };

/* Sends one message, at most NOTICE_MAX_BYTES; lines are parted by \n:
 * notify("READY=1\nSTATUS=%d ranks", n). false: nobody listens, or it was lost. */
bool notify(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* How often systemd wants a WATCHDOG=1 of this process: half of WATCHDOG_USEC; 0: it does not. */
int64_t notify_watchdog_ms(void);

/* ---- the other side -------------------------------------------------------------------------- */

struct notice {
    bool is_ready, is_stopping, is_watchdog;
    bool has_status;
    char status[NOTICE_MAX_STATUS + 1]; /* of STATUS=, printable; what is too long is cut */
};

/* Words from outside: what is not understood is passed over, as sd_notify(3) asks. */
void notice_parse(const char *text, size_t size, struct notice *out);

struct notify_receiver {
    int fd;     /* readable when there is a message; -1: closed */
    char *path; /* for NOTIFY_SOCKET */
};

/* `path` must not exist, and is at most 107 bytes. ERR_IO: why it can't be. */
MUST_USE enum status notify_receiver_open(const char *path, struct notify_receiver *out);
/* One message, if there is one; never waits. */
bool notify_receiver_take(struct notify_receiver *receiver, struct notice *out);
/* Removes the path. A closed or zeroed receiver that was never opened must have fd -1. */
void notify_receiver_close(struct notify_receiver *receiver);

#endif
