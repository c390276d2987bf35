#include "proto/base/mailbox.h"

#include "proto/base/clock.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum status mailbox_open(struct mailbox *mailbox, int32_t capacity)
{
    ASSERT(capacity > 0);
    *mailbox = (struct mailbox){.capacity = capacity, .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    mailbox->last = &mailbox->first;
    if (mailbox->fd < 0)
        return fail(ERR_IO, "no descriptor for a mailbox: %m");
    pthread_mutex_init(&mailbox->lock, NULL);
    return OK;
}

void mailbox_close(struct mailbox *mailbox)
{
    if (mailbox->capacity == 0)
        return; /* zeroed: it was never opened */
    ASSERT(mailbox->num_mails == 0, "%d mails would be lost", mailbox->num_mails);
    close(mailbox->fd);
    pthread_mutex_destroy(&mailbox->lock);
}

int mailbox_fd(const struct mailbox *mailbox)
{
    return mailbox->fd;
}

/* Both are called with the lock held, so the descriptor always tells what the list says. */
static void raise_fd(struct mailbox *mailbox)
{
    eventfd_write(mailbox->fd, 1);
}

static void lower_fd(struct mailbox *mailbox)
{
    eventfd_t unused;

    if (!mailbox->is_shut)
        eventfd_read(mailbox->fd, &unused);
}

enum status mailbox_push(struct mailbox *mailbox, struct mail *mail)
{
    enum status status = OK;

    pthread_mutex_lock(&mailbox->lock);
    if (mailbox->is_shut)
        status = fail(ERR_CLOSED, "the mailbox is shut");
    else if (mailbox->num_mails == mailbox->capacity)
        status = fail(ERR_FULL, "the mailbox has %d mails, which is its limit", mailbox->capacity);
    if (status == OK) {
        mail->next = NULL;
        *mailbox->last = mail;
        mailbox->last = &mail->next;
        if (mailbox->num_mails++ == 0)
            raise_fd(mailbox);
    }
    pthread_mutex_unlock(&mailbox->lock);
    return status;
}

void mailbox_shut(struct mailbox *mailbox)
{
    pthread_mutex_lock(&mailbox->lock);
    mailbox->is_shut = true;
    raise_fd(mailbox);
    pthread_mutex_unlock(&mailbox->lock);
}

bool mailbox_is_shut(struct mailbox *mailbox)
{
    pthread_mutex_lock(&mailbox->lock);
    bool is_shut = mailbox->is_shut;
    pthread_mutex_unlock(&mailbox->lock);
    return is_shut;
}

struct mail *mailbox_pop(struct mailbox *mailbox)
{
    pthread_mutex_lock(&mailbox->lock);
    struct mail *mail = mailbox->first;
    if (mail) {
        mailbox->first = mail->next;
        if (!mailbox->first)
            mailbox->last = &mailbox->first;
        if (--mailbox->num_mails == 0)
            lower_fd(mailbox);
        mail->next = NULL;
    }
    pthread_mutex_unlock(&mailbox->lock);
    return mail;
}

struct mail *mailbox_wait(struct mailbox *mailbox, int64_t deadline_ns)
{
    for (;;) {
        struct pollfd readable = {.fd = mailbox->fd, .events = POLLIN};
        struct mail *mail = mailbox_pop(mailbox);
        struct timespec room;

        if (mail || clock_now_ns() >= deadline_ns || mailbox_is_shut(mailbox))
            return mail;
        ppoll(&readable, 1, clock_left(deadline_ns, &room), NULL);
    }
}
