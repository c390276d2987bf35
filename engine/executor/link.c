#include "engine/executor/link.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/spawn.h"
#include "proto/base/stacks.h"

#include <inttypes.h>
#include <poll.h>
#include <string.h>

/* A worker beats (HEARTBEAT_INTERVAL_MS) by a thread that does nothing long. Silence means that its process hangs or is
 * stopped; before it has joined, that it does not come. A process of ours that would run if it were let, or waits for
 * a disk, has more time: its machine, or one core of it, stands still, as happens to virtual ones. */
static const int64_t SILENCE_MAX_NS = 3500000000, STARVED_MAX_NS = 30000000000, JOIN_MAX_NS = 30000000000;

/*
 * A device that works gets ahead many times in a step. One that has not for this long, and for as long as two such
 * steps take on top, hangs. The first step, whose pages may yet have to be read, has more time.
 */
static const int64_t STUCK_MIN_NS = 3500000000, FIRST_STEP_NS = 30000000000;
/* From so many tokens on, a step's time is that of its tokens. */
enum { BULK_TOKENS = 64 };

/* A process that has lost its connection is about to end. */
enum { EXPLAIN_MS = 100 };
/* From a process that has ended to its last message. */
enum { LAST_WORDS_MS = 50 };
/* From the end of a connection until a send to that peer is sure to say so. */
enum { NOTICE_MS = 20, NUM_NOTICES = 5 };
/* How often we look whether somebody is missing. */
enum { LOOK_MS = 250 };
/* Who has not looked for so much longer was stopped, or starved, and so may others have been. A rank that was not
 * heard for so long on top of a beat was. */
enum { AWAY_MS = 500 };
/* When it is told who is missing, and how to join, while ranks are awaited that others start; and how often then. */
enum { FIRST_TELL_MS = 3000, TELL_MS = 10000 };

/* What is polled: the channel's own, this, then each rank's process. */
enum { FD_EXTRA = CHANNEL_NUM_FDS, FD_RANKS };

static void start_watching(struct link_rank *rank)
{
    rank->pidfd = -1;
    rank->heard_ns = rank->moved_ns = clock_now_ns();
    rank->heartbeat = (struct heartbeat){.step = -1, .waits_for = -1};
    rank->replied = 0;
}

void link_open(struct channel *channel, int32_t world, uint32_t epoch, struct link *out)
{
    *out = (struct link){.channel = channel,
                         .world = world,
                         .epoch = epoch,
                         .failed_rank = -1,
                         .looked_ns = clock_now_ns()};
    rendezvous_init(&out->rendezvous, world, epoch);
    pthread_mutex_init(&out->lock, NULL);
    out->ranks = mem_new_array(struct link_rank, (size_t)world);
    out->poll_fds = mem_new_array(struct pollfd, FD_RANKS + (size_t)world);
    for (int32_t rank = 0; rank < world; rank++)
        start_watching(&out->ranks[rank]);
}

void link_close(struct link *link)
{
    for (int32_t rank = 0; rank < link->world; rank++)
        frame_drop(link->ranks[rank].hello);
    rendezvous_close(&link->rendezvous);
    channel_free(link->channel);
    mem_free(link->ranks);
    mem_free(link->poll_fds);
    arena_close(&link->arena);
    arena_close(&link->output);
    arena_close(&link->masks);
    pthread_mutex_destroy(&link->lock);
}

/* ---- who is there --------------------------------------------------------------------------- */

void link_begin(struct link *link, uint32_t epoch)
{
    pthread_mutex_lock(&link->lock);
    link->epoch = epoch;
    link->failed_rank = -1;
    link->step_tokens[0] = link->step_tokens[1] = 0;
    rendezvous_begin(&link->rendezvous, epoch);
    for (int32_t rank = 0; rank < link->world; rank++) {
        int pidfd = link->ranks[rank].pidfd;

        start_watching(&link->ranks[rank]);
        link->ranks[rank].pidfd = pidfd;
    }
    pthread_mutex_unlock(&link->lock);
}

void link_lose(struct link *link, int32_t rank)
{
    pthread_mutex_lock(&link->lock);
    rendezvous_lose(&link->rendezvous, rank);
    start_watching(&link->ranks[rank]);
    link->ranks[rank].is_lost = true;
    pthread_mutex_unlock(&link->lock);
}

int32_t link_workers(struct link *link, struct engine_worker *out, int32_t capacity)
{
    int64_t now_ns = clock_now_ns();

    pthread_mutex_lock(&link->lock);
    for (int32_t rank = 0; rank < MIN(link->world, capacity); rank++) {
        const struct rank_info *info = &link->rendezvous.ranks[rank];
        const struct link_rank *r = &link->ranks[rank];

        out[rank] = (struct engine_worker){
            .rank = rank,
            .pid = info->pid,
            .state = info->is_ready    ? WORKER_READY
                     : info->is_joined ? WORKER_LOADING
                     : r->is_lost      ? WORKER_LOST
                                       : WORKER_STARTING,
            .epoch = link->epoch,
            .restarts = r->restarts,
            .step = r->heartbeat.step,
            .ms_in_step = r->heartbeat.ms_in_step,
            .memory = r->heartbeat.memory,
            .ms_since_heard = (now_ns - r->heard_ns) / 1000000,
            .passes = r->heartbeat.passes,
        };
        snprintf(out[rank].host, sizeof out[rank].host, "%s", info->host ? info->host : "");
    }
    pthread_mutex_unlock(&link->lock);
    return link->world;
}

/* ---- hearing -------------------------------------------------------------------------------- */

/* A status as a rank sent it. */
static enum status status_of(int32_t code)
{
    return code > OK && code < NUM_STATUS ? (enum status)code : ERR_INTERNAL;
}

/* A failure that this rank has caused. */
#define fail_rank(link, rank, code, ...)                                                           \
    ({                                                                                             \
        (link)->failed_rank = (rank);                                                              \
        fail(code, __VA_ARGS__);                                                                   \
    })

static void note_heartbeat(struct link_rank *rank, const struct heartbeat *heartbeat)
{
    if (heartbeat->step < 0 || heartbeat->step != rank->heartbeat.step ||
        heartbeat->progress != rank->heartbeat.progress)
        rank->moved_ns = clock_now_ns();
    rank->heartbeat = *heartbeat;
}

/* Nobody got ahead while a rank was not there, nor did those who wait for it. */
static void forgive_standing(struct link *link, int64_t away_ns, int64_t now_ns)
{
    for (int32_t rank = 0; rank < link->world; rank++)
        link->ranks[rank].moved_ns = MIN(link->ranks[rank].moved_ns + away_ns, now_ns);
}

static bool is_silent(const struct link *link, int32_t rank, int64_t now_ns)
{
    return link->rendezvous.ranks[rank].is_joined &&
           now_ns - link->ranks[rank].heard_ns >= (int64_t)(HEARTBEAT_INTERVAL_MS + AWAY_MS) * 1000000;
}

static void note_heard(struct link *link, int32_t rank)
{
    int64_t now_ns = clock_now_ns();

    if (is_silent(link, rank, now_ns))
        forgive_standing(link, now_ns - link->ranks[rank].heard_ns, now_ns);
    link->ranks[rank].heard_ns = now_ns;
}

static enum status refuse(struct link *link, const char *peer, const char *refusal)
{
    return rendezvous_welcome(&link->rendezvous, link->channel, peer, NULL, refusal);
}

/* One that does not fit. Where ranks are started elsewhere another may yet come that does. */
static enum status turn_away(struct link *link, const char *peer, int32_t rank, enum status status)
{
    AUTO_MEM char *refusal = mem_strdup(fail_text());

    if (refuse(link, peer, refusal) != OK)
        log_warn("%s", fail_text());
    if (link->waits_for_others) {
        log_warn("%s is refused: %s", peer, refusal);
        return OK;
    }
    return fail_rank(link, rank, status, "%s", refusal);
}

static bool is_connected(struct link *link, int32_t rank)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();
    static const struct heartbeat beat = {.step = -1, .waits_for = -1};

    if (message_encode(&heartbeat_type, link->epoch, -1, &beat, &frame->bytes) != OK)
        ASSERT(false, "%s", fail_text());
    return channel_send(link->channel, link->rendezvous.ranks[rank].peer, frame) != ERR_CLOSED;
}

static void tell_peer(struct link *link, const char *peer, const struct message_type *type,
                      const void *body)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();

    if (message_encode(type, link->epoch, -1, body, &frame->bytes) != OK ||
        channel_send(link->channel, peer, frame) != OK)
        log_debug("%s to %s: %s", type->name, peer, fail_text());
}

void link_dismiss(struct link *link, const char *peer)
{
    tell_peer(link, peer, &shutdown_type, NULL);
}

void link_give_up(struct link *link, const char *peer)
{
    tell_peer(link, peer, &call_type,
              &(struct call){.id = ++link->num_calls, .name = "restart", .args = "{}"});
}

int32_t link_num_connected(struct link *link)
{
    int32_t n = 0;

    for (int32_t rank = 0; rank < link->world; rank++)
        n += link->rendezvous.ranks[rank].is_joined && is_connected(link, rank);
    return n;
}

/* For when there is room for him, and somebody who lets him in. */
static void let_wait(struct link *link, const struct received *received, int32_t rank)
{
    struct link_rank *r = &link->ranks[rank];

    frame_drop(r->hello);
    r->hello = frame_new();
    bytes_append(&r->hello->bytes, received->data, received->size);
    snprintf(r->waiting, sizeof r->waiting, "%s", received->peer);
}

/* Somebody who has not joined. His HELLO is link_gather's where there is room for him, else it may be that the
 * rank whose place he wants has just ended: then he has to wait until that has been dealt with. */
static enum status take_stranger(struct link *link, const struct received *received,
                                 struct message *message, int32_t *rank_out)
{
    const struct hello *hello = message->body;

    if (message->type != &hello_type || !rendezvous_name_fits(received->peer, hello->rank)) {
        log_warn("%s from '%s', which is none of %d ranks in epoch %u, is dropped",
                 message->type->name, received->peer, link->world, link->epoch);
        message->type = NULL;
        return OK;
    }
    if (hello->rank < 0 || hello->rank >= link->world) {
        AUTO_MEM char *refusal = mem_printf("rank %d, started as one of %d, is not one of the %d ranks of this engine",
                                            hello->rank, hello->world, link->world);

        message->type = NULL;
        return turn_away(link, received->peer, -1, fail(ERR_MISMATCH, "%s", refusal));
    }
    *rank_out = hello->rank;
    if (!link->rendezvous.ranks[hello->rank].is_joined) {
        if (!link->is_gathering) {
            let_wait(link, received, hello->rank);
            message->type = NULL;
        }
        return OK;
    }
    if (is_connected(link, hello->rank)) {
        log_warn("rank %d comes twice: process %d on %s, and process %d on %.64s", hello->rank,
                 link->rendezvous.ranks[hello->rank].pid,
                 link->rendezvous.ranks[hello->rank].host, hello->pid, hello->host);
        if (rendezvous_hello(&link->rendezvous, received->peer, message) == OK)
            ASSERT(false, "rank %d joined twice", hello->rank);
        if (refuse(link, received->peer, fail_text()) != OK)
            log_debug("%s", fail_text());
        message->type = NULL;
        return OK;
    }
    message->type = NULL;
    let_wait(link, received, hello->rank);
    return fail_rank(link, hello->rank, ERR_CLOSED, "rank %d (process %d) is gone", hello->rank,
                     link->rendezvous.ranks[hello->rank].pid);
}

/* The message in hand, if it is one for the caller: type NULL if it was dealt with here. */
static enum status take(struct link *link, const struct received *received,
                        struct message *message_out, int32_t *rank_out)
{
    int32_t rank = rendezvous_find(&link->rendezvous, received->peer);

    *rank_out = rank;
    arena_reset(&link->arena);
    if (message_decode(received->data, received->size, &link->arena, message_out) != OK) {
        message_out->type = NULL;
        if (rank >= 0)
            return fail_rank(link, rank, ERR_MISMATCH, "rank %d: %s", rank, fail_text());
        log_warn("a message from '%s', which is no rank, is dropped: %s", received->peer,
                 fail_text());
        return OK;
    }
    snprintf(link->peer, sizeof link->peer, "%s", received->peer);
    if (rank < 0)
        return take_stranger(link, received, message_out, rank_out);
    flight_recorder_add(link->recorder, false, rank, received->data, received->size);
    if (message_out->header.epoch < link->epoch) {
        message_out->type = NULL; /* said before it has heard of this epoch */
        return OK;
    }
    if (message_check_place(message_out, link->epoch) != OK ||
        (message_out->type == &heartbeat_type && heartbeat_check(message_out->body) != OK)) {
        message_out->type = NULL;
        return fail_rank(link, rank, ERR_MISMATCH, "rank %d: %s", rank, fail_text());
    }
    pthread_mutex_lock(&link->lock);
    note_heard(link, rank);
    if (message_out->type == &heartbeat_type)
        note_heartbeat(&link->ranks[rank], message_out->body);
    pthread_mutex_unlock(&link->lock);
    if (message_out->type == &heartbeat_type) {
        message_out->type = NULL;
    } else if (message_out->type == &fault_type) {
        const struct fault *fault = message_out->body;

        message_out->type = NULL;
        return fail_rank(link, rank, status_of(fault->code), "rank %d: %s", rank, fault->text);
    }
    return OK;
}

/* ---- who is missing ------------------------------------------------------------------------- */

static enum status fail_silence(struct link *link, int32_t rank, int64_t silent_ns)
{
    int64_t step = link->ranks[rank].heartbeat.step;
    AUTO_MEM char *where = step < 0 ? mem_strdup("between two steps") : mem_printf("in step %" PRId64, step);

    return fail_rank(link, rank, ERR_TIMEOUT,
                     "rank %d (process %d) has been silent for %.1f s, last heard %s", rank,
                     link->rendezvous.ranks[rank].pid, clock_ms(silent_ns) / 1e3, where);
}

static int64_t silence_max_ns(const struct link *link, int32_t rank)
{
    char state = link->ranks[rank].pidfd < 0 ? 0 : stacks_state_of_process(link->rendezvous.ranks[rank].pid);

    return state == 'R' || state == 'D' ? STARVED_MAX_NS : SILENCE_MAX_NS;
}

static enum status check_silence(struct link *link)
{
    int64_t now_ns = clock_now_ns();

    for (int32_t rank = 0; rank < link->world; rank++) {
        const struct link_rank *r = &link->ranks[rank];
        int64_t silent_ns = now_ns - r->heard_ns;

        if (link->rendezvous.ranks[rank].is_joined && silent_ns > SILENCE_MAX_NS &&
            silent_ns > silence_max_ns(link, rank))
            return fail_silence(link, rank, silent_ns);
        if (!link->rendezvous.ranks[rank].is_joined && r->pidfd >= 0 && silent_ns > JOIN_MAX_NS)
            return fail_rank(link, rank, ERR_TIMEOUT, "rank %d has not joined in %.0f s", rank,
                             clock_ms(silent_ns) / 1e3);
    }
    return OK;
}

void link_note_step(struct link *link, int64_t step, int32_t num_tokens)
{
    link->step_tokens[step & 1] = num_tokens;
}

/* The longest of late counts: one that was held up by others is forgotten after some hundred steps. */
static double longest(double now, double before)
{
    return MAX(now, before * (1 - 1.0 / 64));
}

static void note_answer(struct link *link, int64_t step, const struct model_runner_output *output)
{
    double ns = (double)(output->execute_ns + output->sample_ns);
    int32_t num_tokens = link->step_tokens[step & 1];

    link->step_tokens[step & 1] = 0;
    if (num_tokens < BULK_TOKENS)
        link->small_step_ns = longest(ns, link->small_step_ns);
    else
        link->bulk_token_ns = longest(ns / num_tokens, link->bulk_token_ns);
}

/* How long a device may stay where it is. A layer is much less than a step, so this is ample. */
static int64_t stuck_max_ns(const struct link *link)
{
    double token_ns = link->bulk_token_ns > 0 ? link->bulk_token_ns : link->small_step_ns;
    int32_t num_tokens = MAX(link->step_tokens[0], link->step_tokens[1]);

    if (token_ns == 0)
        return FIRST_STEP_NS;
    return STUCK_MIN_NS + 2 * (int64_t)(link->small_step_ns + num_tokens * token_ns);
}

/* The one that stands still is the one that others wait for, in the end. */
static int32_t find_guilty(const struct link *link, int32_t rank)
{
    for (int32_t hops = 0; hops < link->world; hops++) {
        int32_t next = link->ranks[rank].heartbeat.waits_for;

        if (next < 0 || next >= link->world)
            break;
        rank = next;
    }
    return rank;
}

static enum status check_progress(struct link *link)
{
    int64_t now_ns = clock_now_ns(), max_ns = stuck_max_ns(link);
    int32_t stuck = 0, guilty;
    int64_t step;

    while (stuck < link->world && (link->ranks[stuck].heartbeat.step < 0 ||
                                   now_ns - link->ranks[stuck].moved_ns <= max_ns))
        stuck++;
    if (stuck == link->world)
        return OK;
    guilty = find_guilty(link, stuck);
    if (is_silent(link, guilty, now_ns))
        return OK; /* then its silence tells */
    step = link->ranks[guilty].heartbeat.step;
    if (step < 0)
        step = link->ranks[stuck].heartbeat.step; /* which it has not begun */
    return fail_rank(link, guilty, ERR_TIMEOUT,
                     "rank %d (process %d) hangs in step %" PRId64 ": its device has stood still for %.1f s",
                     guilty, link->rendezvous.ranks[guilty].pid, step,
                     clock_ms(now_ns - link->ranks[stuck].moved_ns) / 1e3);
}

/* A connection has ended, and ZeroMQ does not tell whose: a send finds it. Processes of ours tell
 * themselves. */
static enum status check_connections(struct link *link)
{
    for (int32_t rank = 0; rank < link->world; rank++)
        if (link->ranks[rank].pidfd < 0 && link->rendezvous.ranks[rank].is_joined &&
            !is_connected(link, rank))
            return fail_rank(link, rank, ERR_CLOSED, "rank %d (process %d on %s) is gone", rank,
                             link->rendezvous.ranks[rank].pid, link->rendezvous.ranks[rank].host);
    return OK;
}

/* Time in which we were not there to hear anybody is no silence of theirs. */
static void forgive_absence(struct link *link)
{
    int64_t now_ns = clock_now_ns(), away_ns = now_ns - link->looked_ns;

    link->looked_ns = now_ns;
    if (away_ns < (int64_t)(LOOK_MS + AWAY_MS) * 1000000)
        return;
    pthread_mutex_lock(&link->lock);
    for (int32_t rank = 0; rank < link->world; rank++)
        link->ranks[rank].heard_ns = MIN(link->ranks[rank].heard_ns + away_ns, now_ns);
    forgive_standing(link, away_ns, now_ns);
    pthread_mutex_unlock(&link->lock);
}

static enum status check_ranks(struct link *link)
{
    forgive_absence(link);
    if (link->is_past_hope)
        return OK;
    TRY(check_silence(link));
    TRY(check_progress(link));
    if (link->num_notices == 0)
        return OK;
    link->num_notices--;
    return check_connections(link);
}

/* Parks; says which rank's process has ended (-1: none), and whether `fd` is readable. */
static bool park(struct link *link, int fd, int64_t deadline_ns, int32_t *ended_out)
{
    struct pollfd *fds = link->poll_fds;
    int64_t look_ns = clock_deadline_ns(link->num_notices > 0 ? NOTICE_MS : LOOK_MS);

    fds[FD_EXTRA] = (struct pollfd){.fd = fd, .events = POLLIN};
    for (int32_t rank = 0; rank < link->world; rank++)
        fds[FD_RANKS + rank] = (struct pollfd){.fd = link->ranks[rank].pidfd, .events = POLLIN};

    *ended_out = -1;
    channel_poll(link->channel, fds, FD_RANKS + (size_t)link->world, MIN(deadline_ns, look_ns));
    for (int32_t rank = 0; rank < link->world; rank++)
        if (fds[FD_RANKS + rank].revents)
            *ended_out = rank;
    if (fds[CHANNEL_FD_ENDS].revents && channel_num_disconnects(link->channel) > link->num_disconnects) {
        link->num_disconnects = channel_num_disconnects(link->channel);
        link->num_notices = NUM_NOTICES;
    }
    return fds[FD_EXTRA].revents != 0;
}

/* Before it has joined it has told us no process, but we have started it. */
static enum status fail_died(struct link *link, int32_t rank)
{
    pid_t pid = link->rendezvous.ranks[rank].pid;
    char text[64];
    int status;
    bool is_known = child_has_ended(link->ranks[rank].pidfd, &pid, &status);

    return fail_rank(link, rank, ERR_CLOSED, "rank %d (process %d) has died%s%s", rank, pid, is_known ? ": " : "",
                     is_known ? child_status_text(status, text) : "");
}

enum status link_hear(struct link *link, int fd, int64_t deadline_ns, struct message *message_out,
                      int32_t *rank_out)
{
    int32_t ended = -1;

    link->failed_rank = -1;
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
            return fail_died(link, ended);
        if (is_readable)
            return OK;
        TRY(check_ranks(link));
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
    if (link->failed_rank >= 0)
        return heard;
    return fail_rank(link, rank, status, "rank %d: %s", rank, sentence);
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

enum status link_welcome(struct link *link, const char *settings)
{
    for (int32_t rank = 0; rank < link->world; rank++) {
        const struct rank_info *info = &link->rendezvous.ranks[rank];

        if (info->is_joined && rendezvous_welcome(&link->rendezvous, link->channel, info->peer,
                                                  settings, NULL) != OK)
            return fail_rank(link, rank, ERR_CLOSED, "rank %d: %s", rank, fail_text());
    }
    return OK;
}

static enum status on_hello(struct link *link, const struct message *message, const char *peer,
                            int32_t rank, const char *settings)
{
    enum status status;

    pthread_mutex_lock(&link->lock);
    status = rendezvous_hello(&link->rendezvous, peer, message);
    if (status == OK) {
        link->ranks[rank].heard_ns = clock_now_ns();
        link->ranks[rank].is_lost = false;
    }
    pthread_mutex_unlock(&link->lock);
    if (status != OK)
        return turn_away(link, peer, rank, status);
    status = rendezvous_welcome(&link->rendezvous, link->channel, peer, settings, NULL);
    return status == OK ? OK : fail_rank(link, rank, status, "rank %d: %s", rank, fail_text());
}

/* Those that were here before there was room for them. */
static enum status hear_waiting(struct link *link, const char *settings)
{
    for (int32_t rank = 0; rank < link->world; rank++) {
        struct link_rank *r = &link->ranks[rank];
        AUTO_FREE(frame) struct frame *hello = give(r->hello);
        struct message message;

        if (!hello)
            continue;
        arena_reset(&link->arena);
        TRY(message_decode(hello->bytes.data, hello->bytes.size, &link->arena, &message));
        TRY(on_hello(link, &message, r->waiting, rank, settings));
    }
    return OK;
}

static enum status on_ready(struct link *link, const struct message *message, int32_t rank)
{
    enum status status;

    pthread_mutex_lock(&link->lock);
    status = rendezvous_ready(&link->rendezvous, link->peer, message);
    pthread_mutex_unlock(&link->lock);
    return status == OK ? OK : fail_rank(link, rank, status, "%s", fail_text());
}

static enum status gather_one(struct link *link, const char *settings, int64_t deadline_ns)
{
    struct message message;
    int32_t rank;
    enum status status;

    link->is_gathering = true;
    status = link_hear(link, -1, deadline_ns, &message, &rank);
    link->is_gathering = false;
    TRY(status);
    if (message.type == &hello_type)
        return on_hello(link, &message, link->peer, rank, settings);
    if (message.type == &ready_type)
        return on_ready(link, &message, rank);
    return fail_rank(link, rank, ERR_MISMATCH, "rank %d: %s before it was ready", rank,
                     message.type->name);
}

/* "rank 1 has not joined", "ranks 1, 2 and 5 have not joined" */
static char *name_missing(const struct link *link)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    int32_t n = 0, left = link->world - link->rendezvous.num_joined;

    bytes_printf(&text, left == 1 ? "rank " : "ranks ");
    for (int32_t rank = 0; rank < link->world; rank++)
        if (!link->rendezvous.ranks[rank].is_joined)
            bytes_printf(&text, "%s%d", n++ == 0 ? "" : n == left ? " and " : ", ", rank);
    bytes_printf(&text, " %s not joined", left == 1 ? "has" : "have");
    return mem_printf("%.*s", (int)text.size, (const char *)text.data);
}

/* false: nobody is missing. */
static bool tell_missing(const struct link *link, bool is_first)
{
    AUTO_MEM char *missing =
        link->rendezvous.num_joined < link->world ? name_missing(link) : NULL;

    if (missing && is_first) /* whoever starts them may have got it wrong */
        log_warn("waiting: %s; to join: tandem worker %s", missing, link->way_in);
    else if (missing)
        log_info("waiting: %s", missing);
    return missing != NULL;
}

static enum status be_late(struct link *link)
{
    const struct rendezvous *rendezvous = &link->rendezvous;

    link->is_late = true;
    if (rendezvous->num_joined < link->world) {
        AUTO_MEM char *missing = name_missing(link);

        return fail(ERR_TIMEOUT, "%s", missing);
    }
    return fail(ERR_TIMEOUT, "%d of %d ranks have loaded the model", rendezvous->num_ready,
                link->world);
}

enum status link_gather(struct link *link, executor_progress_fn *progress, void *user,
                        const char *settings, int64_t deadline_ns)
{
    struct rendezvous *rendezvous = &link->rendezvous;
    int64_t tell_ns = clock_deadline_ns(FIRST_TELL_MS);
    bool is_first = true;

    while (!rendezvous_is_complete(rendezvous)) {
        int64_t look_ns = clock_deadline_ns(LOOK_MS);
        enum status status;

        if (progress) {
            AUTO_MEM char *missing = rendezvous->num_joined < link->world ? name_missing(link) : NULL;
            AUTO_MEM char *words =
                mem_printf("%d of %d ranks joined, %d loaded%s%s", rendezvous->num_joined,
                           link->world, rendezvous->num_ready, missing ? "; " : "",
                           missing ? missing : "");

            progress(user, words,
                     (rendezvous->num_joined + rendezvous->num_ready) / (2.0 * link->world));
        }
        status = hear_waiting(link, settings);
        if (status == OK && !rendezvous_is_complete(rendezvous))
            status = gather_one(link, settings, MIN(deadline_ns, look_ns));
        if (link->waits_for_others && clock_now_ns() >= tell_ns) {
            is_first = !tell_missing(link, is_first) && is_first;
            tell_ns = clock_deadline_ns(TELL_MS);
        }
        if (status == ERR_TIMEOUT && link->failed_rank < 0) {
            if (link->is_given_up && link->is_given_up(link->user))
                return fail(ERR_ABORTED, "the engine stops");
            status = clock_now_ns() < deadline_ns ? OK : be_late(link);
        } else if (status != OK && link->waits_for_others && link->failed_rank >= 0) {
            log_warn("%s; another may come in its place", fail_text());
            link_lose(link, link->failed_rank);
            status = OK;
        }
        TRY(status);
    }
    return OK;
}

/* ---- calls and steps ------------------------------------------------------------------------ */

static enum status send_call(struct link *link, int32_t first_rank, int32_t end_rank,
                             const struct call *call)
{
    return send_to(link, first_rank, end_rank, &call_type, -1, call);
}

/* The next reply to this call; any other message is a failure. It lives until the next message. */
static enum status hear_reply(struct link *link, const struct call *call, int64_t deadline_ns,
                              int32_t *rank_out, const struct reply **reply_out)
{
    struct message message;
    const struct reply *reply;

    TRY(link_hear(link, -1, deadline_ns, &message, rank_out));
    reply = message.body;
    if (message.type != &reply_type || reply->id != call->id)
        return fail_rank(link, *rank_out, ERR_MISMATCH, "rank %d: %s instead of the reply to %s",
                         *rank_out, message.type->name, call->name);
    if (link->ranks[*rank_out].replied == call->id)
        return fail_rank(link, *rank_out, ERR_MISMATCH, "rank %d replies to %s twice", *rank_out,
                         call->name);
    link->ranks[*rank_out].replied = call->id;
    *reply_out = reply;
    return OK;
}

/* [first, ...]; a rank that had nothing to say is null. */
static void write_replies(char *const *texts, int32_t n, struct bytes *out)
{
    bytes_printf(out, "[");
    for (int32_t i = 0; i < n; i++)
        bytes_printf(out, "%s%s", i > 0 ? ", " : "", *texts[i] ? texts[i] : "null");
    bytes_printf(out, "]");
}

enum status link_call(struct link *link, int32_t first_rank, int32_t end_rank, const char *name,
                      const char *args, int64_t deadline_ns, struct bytes *replies_out,
                      bool *refused_out)
{
    struct call call = {.id = ++link->num_calls, .name = name, .args = args};
    int32_t n = end_rank - first_rank;
    char **texts = mem_new_array(char *, (size_t)n);
    AUTO_MEM char *refusal = NULL;
    enum status refused_with = OK, status = send_call(link, first_rank, end_rank, &call);

    for (int32_t i = 0; i < n && status == OK; i++) {
        const struct reply *reply;
        int32_t rank;

        status = hear_reply(link, &call, deadline_ns, &rank, &reply);
        if (status == OK && (rank < first_rank || rank >= end_rank))
            status = fail_rank(link, rank, ERR_MISMATCH, "rank %d replies to %s unasked", rank, name);
        if (status != OK)
            break;
        texts[rank - first_rank] = mem_strdup(reply->text);
        if (reply->status != OK && !refusal) {
            refused_with = status_of(reply->status);
            refusal = mem_printf("rank %d: %s: %s", rank, name, reply->text);
        }
    }
    if (status == OK && replies_out && !refusal)
        write_replies(texts, n, replies_out);
    for (int32_t i = 0; i < n; i++)
        mem_free(texts[i]);
    mem_free(texts);
    *refused_out = status == OK && refusal;
    if (*refused_out)
        link->failed_rank = LINK_NO_RANK;
    return *refused_out ? fail(refused_with, "%s", refusal) : status;
}

enum status link_call_all(struct link *link, const char *name, const char *args,
                          int64_t deadline_ns)
{
    bool is_refused;

    return link_call(link, 0, link->world, name, args, deadline_ns, NULL, &is_refused);
}

enum status link_collect(struct link *link, int64_t step, int64_t deadline_ns,
                         const struct model_runner_output **output_out)
{
    struct message message;
    int32_t rank;

    TRY(link_hear(link, -1, deadline_ns, &message, &rank));
    if (message.type != &model_runner_output_type || rank != 0 || message.header.step != step)
        return fail_rank(link, rank, ERR_MISMATCH,
                    "rank %d: %s of step %" PRId64 " instead of rank 0's answer to step %" PRId64,
                    rank, message.type->name, message.header.step, step);

    /* The answer outlives the messages that come after it. */
    struct arena spare = link->output;

    link->output = link->arena;
    link->arena = spare;
    *output_out = message.body;
    note_answer(link, step, message.body);
    return OK;
}
