#include "engine/executor/link.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"

#include <inttypes.h>
#include <poll.h>
#include <string.h>

/* A worker beats every 500 ms. Silence this long means that its process hangs or is stopped. */
static const int64_t SILENCE_MAX_NS = (int64_t)10 * 1000000000;

/* A process that has lost its connection is about to end. */
enum { EXPLAIN_MS = 100 };
/* From a process that has ended to its last message. */
enum { LAST_WORDS_MS = 50 };

/* What is polled: the channel's own, this, then each rank's process. */
enum { FD_EXTRA = CHANNEL_NUM_FDS, FD_RANKS };

void link_open(struct channel *channel, int32_t world, uint32_t epoch, struct link *out)
{
    *out = (struct link){.channel = channel, .world = world, .epoch = epoch};
    rendezvous_init(&out->rendezvous, world, epoch);
    out->ranks = mem_new_array(struct link_rank, (size_t)world);
    out->poll_fds = mem_new_array(struct pollfd, FD_RANKS + (size_t)world);
    for (int32_t rank = 0; rank < world; rank++) {
        out->ranks[rank].pidfd = -1;
        out->ranks[rank].heard_ns = clock_now_ns();
        out->ranks[rank].heartbeat.step = -1;
    }
}

void link_close(struct link *link)
{
    rendezvous_close(&link->rendezvous);
    channel_free(link->channel);
    mem_free(link->ranks);
    mem_free(link->poll_fds);
    arena_close(&link->arena);
    arena_close(&link->output);
    arena_close(&link->masks);
}

/* ---- hearing -------------------------------------------------------------------------------- */

/* A status as a rank sent it. */
static enum status status_of(int32_t code)
{
    return code > OK && code < NUM_STATUS ? (enum status)code : ERR_INTERNAL;
}

static int32_t rank_of(const struct link *link, const char *peer)
{
    for (int32_t rank = 0; rank < link->world; rank++) {
        char name[CHANNEL_MAX_NAME + 1];

        rendezvous_name(rank, link->epoch, name);
        if (strcmp(name, peer) == 0)
            return rank;
    }
    return -1;
}

/* The message in hand, if it is one for the caller: type NULL if it was dealt with here. */
static enum status take(struct link *link, const struct received *received,
                        struct message *message_out, int32_t *rank_out)
{
    int32_t rank = rank_of(link, received->peer);

    *rank_out = rank;
    if (rank < 0) {
        log_warn("a message from '%s', which is none of %d ranks in epoch %u, is dropped",
                 received->peer, link->world, link->epoch);
        return OK;
    }
    flight_recorder_add(link->recorder, false, rank, received->data, received->size);
    arena_reset(&link->arena);
    if (message_decode(received->data, received->size, &link->arena, message_out) != OK ||
        message_check_place(message_out, link->epoch) != OK) {
        message_out->type = NULL;
        return fail(ERR_MISMATCH, "rank %d: %s", rank, fail_text());
    }
    link->ranks[rank].heard_ns = clock_now_ns();
    if (message_out->type == &heartbeat_type) {
        link->ranks[rank].heartbeat = *(const struct heartbeat *)message_out->body;
        message_out->type = NULL;
    } else if (message_out->type == &fault_type) {
        const struct fault *fault = message_out->body;

        message_out->type = NULL;
        return fail(status_of(fault->code), "rank %d: %s", rank, fault->text);
    }
    return OK;
}

static enum status check_silence(const struct link *link)
{
    int64_t now_ns = clock_now_ns();

    for (int32_t rank = 0; rank < link->world; rank++) {
        const struct link_rank *r = &link->ranks[rank];

        if (now_ns - r->heard_ns > SILENCE_MAX_NS)
            return fail(ERR_TIMEOUT,
                        "rank %d has been silent for %.1f s, last heard in step %" PRId64, rank,
                        clock_ms(now_ns - r->heard_ns) / 1e3, r->heartbeat.step);
    }
    return OK;
}

/* Parks; says which rank's process has ended (-1: none), and whether `fd` is readable. */
static bool park(const struct link *link, int fd, int64_t deadline_ns, int32_t *ended_out)
{
    struct pollfd *fds = link->poll_fds;
    int64_t check_ns = clock_deadline_ns(1000);

    fds[FD_EXTRA] = (struct pollfd){.fd = fd, .events = POLLIN};
    for (int32_t rank = 0; rank < link->world; rank++)
        fds[FD_RANKS + rank] = (struct pollfd){.fd = link->ranks[rank].pidfd, .events = POLLIN};

    *ended_out = -1;
    channel_poll(link->channel, fds, FD_RANKS + (size_t)link->world, MIN(deadline_ns, check_ns));
    for (int32_t rank = 0; rank < link->world; rank++)
        if (fds[FD_RANKS + rank].revents)
            *ended_out = rank;
    return fds[FD_EXTRA].revents != 0;
}

enum status link_hear(struct link *link, int fd, int64_t deadline_ns, struct message *message_out,
                      int32_t *rank_out)
{
    int32_t ended = -1;

    for (bool is_readable = false;;) {
        struct received received;

        *message_out = (struct message){0};
        if (channel_recv(link->channel, &received)) {
            TRY(take(link, &received, message_out, rank_out));
            if (message_out->type)
                return OK;
            continue;
        }
        /* Only now: a rank that failed says why before it ends, and its words may still be on their
         * way. */
        if (ended >= 0 &&
            channel_wait(link->channel, clock_deadline_ns(LAST_WORDS_MS), &received)) {
            TRY(take(link, &received, message_out, rank_out));
            if (message_out->type)
                return OK;
            continue;
        }
        if (ended >= 0)
            return fail(ERR_CLOSED, "rank %d (process %d) has died", ended,
                        link->rendezvous.ranks[ended].pid);
        if (is_readable)
            return OK;
        TRY(check_silence(link));
        if (clock_now_ns() >= deadline_ns)
            return fail(ERR_TIMEOUT, "the ranks did not answer in time");
        is_readable = park(link, fd, deadline_ns, &ended);
    }
}

/* ---- sending -------------------------------------------------------------------------------- */

/* Why a rank can't be sent to: what it, or its end, has to say; else the failure of the send. */
static enum status explain(struct link *link, int32_t rank, enum status status)
{
    AUTO_MEM char *sentence = mem_strdup(fail_text());
    struct message message;
    int32_t ignored;
    enum status heard;

    do
        heard = link_hear(link, -1, clock_deadline_ns(EXPLAIN_MS), &message, &ignored);
    while (heard == OK);
    return heard == ERR_TIMEOUT ? fail(status, "rank %d: %s", rank, sentence) : heard;
}

/* To the ranks from first_rank up to end_rank. */
static enum status send_to(struct link *link, int32_t first_rank, int32_t end_rank,
                           const struct message_type *type, int64_t step, const void *body)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();
    int32_t failed_rank = -1;
    enum status status = OK;

    TRY(message_encode(type, link->epoch, step, body, &frame->bytes));
    flight_recorder_add(link->recorder, true,
                        end_rank - first_rank == 1 ? first_rank : FLIGHT_ALL_RANKS,
                        frame->bytes.data, frame->bytes.size);
    for (int32_t rank = first_rank; rank < end_rank; rank++) {
        enum status sent = channel_send(link->channel, link->rendezvous.ranks[rank].peer, frame);

        if (sent != OK && status == OK) {
            status = sent;
            failed_rank = rank;
        }
    }
    return status == OK ? OK : explain(link, failed_rank, status);
}

enum status link_send_all(struct link *link, const struct message_type *type, int64_t step,
                          const void *body)
{
    return send_to(link, 0, link->world, type, step, body);
}

enum status link_sample(struct link *link, int64_t step, const struct grammar_output *grammar)
{
    static const struct grammar_output no_masks;

    if (!grammar || grammar->num_rows == 0)
        return link_send_all(link, &grammar_output_type, step, &no_masks);
    for (int32_t rank = 0; rank < link->world; rank++) {
        const struct ready *ready = &link->rendezvous.ranks[rank].ready;
        struct grammar_output slice;

        arena_reset(&link->masks);
        TRY(grammar_output_slice(grammar, ready->first_token, ready->num_tokens, &link->masks,
                                 &slice));
        TRY(send_to(link, rank, rank + 1, &grammar_output_type, step, &slice));
    }
    return OK;
}

/* ---- joining -------------------------------------------------------------------------------- */

static enum status on_hello(struct link *link, const struct message *message, int32_t rank,
                            const char *settings)
{
    char name[CHANNEL_MAX_NAME + 1];
    enum status status;

    rendezvous_name(rank, link->epoch, name);
    status = rendezvous_hello(&link->rendezvous, name, message);
    if (status == OK) {
        status = rendezvous_welcome(&link->rendezvous, link->channel, name, settings, NULL);
        return status == OK ? OK : fail(status, "rank %d: %s", rank, fail_text());
    }

    AUTO_MEM char *refusal = mem_strdup(fail_text());

    if (rendezvous_welcome(&link->rendezvous, link->channel, name, NULL, refusal) != OK)
        log_warn("%s", fail_text());
    return fail(status, "rank %d: %s", rank, refusal);
}

enum status link_gather(struct link *link, const struct executor_options *options,
                        const char *settings, int64_t deadline_ns)
{
    struct rendezvous *rendezvous = &link->rendezvous;

    while (!rendezvous_is_complete(rendezvous)) {
        struct message message;
        char name[CHANNEL_MAX_NAME + 1];
        int32_t rank;

        if (options->progress) {
            AUTO_MEM char *words =
                mem_printf("%d of %d ranks joined, %d loaded", rendezvous->num_joined, link->world,
                           rendezvous->num_ready);

            options->progress(options->user, words,
                              (rendezvous->num_joined + rendezvous->num_ready) /
                                  (2.0 * link->world));
        }
        TRY(link_hear(link, -1, deadline_ns, &message, &rank));
        if (message.type == &hello_type) {
            TRY(on_hello(link, &message, rank, settings));
        } else if (message.type == &ready_type) {
            rendezvous_name(rank, link->epoch, name);
            TRY(rendezvous_ready(rendezvous, name, &message));
        } else {
            return fail(ERR_MISMATCH, "rank %d: %s before it was ready", rank, message.type->name);
        }
    }
    return OK;
}

/* ---- calls and steps ------------------------------------------------------------------------ */

enum status link_call_all(struct link *link, const char *name, const char *args,
                          int64_t deadline_ns)
{
    int64_t id = ++link->num_calls;

    TRY(link_send_all(link, &call_type, -1, &(struct call){.id = id, .name = name, .args = args}));
    for (int32_t num_replies = 0; num_replies < link->world; num_replies++) {
        struct message message;
        int32_t rank;

        TRY(link_hear(link, -1, deadline_ns, &message, &rank));

        const struct reply *reply = message.body;

        if (message.type != &reply_type || reply->id != id)
            return fail(ERR_MISMATCH, "rank %d: %s instead of the reply to %s", rank,
                        message.type->name, name);
        if (reply->status != OK)
            return fail(status_of(reply->status), "rank %d: %s: %s", rank, name, reply->text);
        if (link->ranks[rank].replied == id)
            return fail(ERR_MISMATCH, "rank %d replies to %s twice", rank, name);
        link->ranks[rank].replied = id;
    }
    return OK;
}

enum status link_collect(struct link *link, int64_t step, int64_t deadline_ns,
                         const struct model_runner_output **output_out)
{
    struct message message;
    int32_t rank;

    TRY(link_hear(link, -1, deadline_ns, &message, &rank));
    if (message.type != &model_runner_output_type || rank != 0 || message.header.step != step)
        return fail(ERR_MISMATCH,
                    "rank %d: %s of step %" PRId64 " instead of rank 0's answer to step %" PRId64,
                    rank, message.type->name, message.header.step, step);

    /* The answer outlives the messages that come after it. */
    struct arena spare = link->output;

    link->output = link->arena;
    link->arena = spare;
    *output_out = message.body;
    return OK;
}
