#include "engine/launch/leash.h"

#include "proto/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10 };

static void stop_waiting(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void leash_open(struct leash *leash, int in_fd, int out_fd, bool is_agent)
{
    *leash = (struct leash){.in_fd = in_fd,
                            .out_fd = out_fd,
                            .is_agent = is_agent,
                            .heard_ns = clock_now_ns(),
                            .beat_ns = clock_now_ns()};
    stop_waiting(in_fd);
    stop_waiting(out_fd);
}

void leash_drop(struct leash *leash)
{
    if (leash->in_fd >= 0)
        close(leash->in_fd);
    if (leash->out_fd >= 0 && leash->out_fd != leash->in_fd)
        close(leash->out_fd);
    leash->in_fd = leash->out_fd = -1;
    leash->outgoing.size = leash->sent = 0;
}

void leash_close(struct leash *leash)
{
    leash_drop(leash);
    parcel_reader_close(&leash->reader);
    bytes_close(&leash->outgoing);
    *leash = (struct leash){.in_fd = -1, .out_fd = -1};
}

void leash_send(struct leash *leash, const struct parcel *parcel)
{
    if (leash->out_fd >= 0)
        parcel_write(&leash->outgoing, parcel);
}

enum status leash_flush(struct leash *leash)
{
    while (leash->sent < leash->outgoing.size) {
        ssize_t n = write(leash->out_fd, leash->outgoing.data + leash->sent,
                          leash->outgoing.size - leash->sent);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return OK;
        if (n < 0)
            return fail(ERR_CLOSED, "nobody reads any more: %m");
        leash->sent += (size_t)n;
    }
    leash->outgoing.size = leash->sent = 0;
    return OK;
}

enum status leash_fill(struct leash *leash)
{
    uint8_t bytes[READ_BYTES];
    ssize_t n = read(leash->in_fd, bytes, sizeof bytes);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return OK;
    if (n < 0)
        return fail(ERR_CLOSED, "reading failed: %m");
    if (n == 0)
        return fail(ERR_CLOSED, "the connection was closed");
    leash->heard_ns = clock_now_ns();
    parcel_reader_add(&leash->reader, bytes, (size_t)n);
    return OK;
}

enum status leash_next(struct leash *leash, struct parcel *out, bool *found_out)
{
    return parcel_reader_next(&leash->reader, !leash->is_agent, out, found_out);
}

int64_t leash_deadline_ns(const struct leash *leash)
{
    return MIN(leash->beat_ns + BEAT_MS * 1000000LL, leash->heard_ns + SILENCE_MS * 1000000LL);
}

static void forgive_absence(struct leash *leash, int64_t now_ns)
{
    int64_t away_ns = leash->looked_ns ? now_ns - leash->looked_ns : 0;

    leash->looked_ns = now_ns;
    if (away_ns >= 2 * BEAT_MS * 1000000LL) /* it is called for each beat */
        leash->heard_ns = MIN(leash->heard_ns + away_ns, now_ns);
}

enum status leash_beat(struct leash *leash)
{
    int64_t now_ns = clock_now_ns();

    forgive_absence(leash, now_ns);
    if (now_ns - leash->heard_ns >= SILENCE_MS * 1000000LL)
        return fail(ERR_TIMEOUT, "nothing was heard for %.1f s",
                    (double)(now_ns - leash->heard_ns) / 1e9);
    if (now_ns - leash->beat_ns >= BEAT_MS * 1000000LL) {
        leash_send(leash, &(struct parcel){.kind = PARCEL_BEAT});
        leash->beat_ns = now_ns;
    }
    return OK;
}
