/*
 * mailbox: from any thread to one thread, in order, bounded.
 *
 * What is posted has a `struct mail` member, so posting allocates nothing. The
 * descriptor is readable exactly while something waits (or the box is shut), so
 * a mailbox can be polled beside sockets.
 *
 * Thread: push and shut by any; the rest by the owner.
 */
#ifndef PROTO_BASE_MAILBOX_H
#define PROTO_BASE_MAILBOX_H

#include "proto/base/memory.h"

#include <pthread.h>

struct mail {
    struct mail *next;
};

struct mailbox {
    pthread_mutex_t lock;
    struct mail *first, **last;
    int32_t num_mails, capacity;
    bool is_shut;
    int fd;
};

MUST_USE enum status mailbox_open(struct mailbox *mailbox, int32_t capacity);
/* The mails that are left are the caller's: pop them first. A zeroed mailbox is fine. */
void mailbox_close(struct mailbox *mailbox);
int mailbox_fd(const struct mailbox *mailbox);

/* ERR_FULL: the mail is still the caller's, and so it is after ERR_CLOSED. */
MUST_USE enum status mailbox_push(struct mailbox *mailbox, struct mail *mail);
/* From now on pushes are refused with ERR_CLOSED; what is inside can be popped. */
void mailbox_shut(struct mailbox *mailbox);
bool mailbox_is_shut(struct mailbox *mailbox);

/* The oldest mail, or NULL. */
struct mail *mailbox_pop(struct mailbox *mailbox);
/* Parks until there is one, the deadline (clock_deadline_ns) passes or the box is shut: NULL. */
struct mail *mailbox_wait(struct mailbox *mailbox, int64_t deadline_ns);

#define MAIL_ITEM(mail, type, member) CONTAINER_OF(mail, type, member)

#endif
