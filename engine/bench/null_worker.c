/*
 * bench null-worker: a rank without a model. It does all that the wire asks of a rank, and computes
 * nothing. What bench rpc starts.
 */
#include "engine/bench/bench.h"
#include "engine/bench/decode_load.h"
#include "proto/base/clock.h"
#include "proto/wire/rendezvous.h"

#include <inttypes.h>
#include <poll.h>

enum { EPOCH = 1, JOIN_TIMEOUT_MS = 10000 };

struct null_worker_settings {
    char *engine;
    int32_t rank, world;
};

struct null_worker {
    struct null_worker_settings settings;
    struct channel *channel;
    struct arena arena;      /* of the message in hand */
    struct arena plan_arena; /* of the step that is prepared, and of its answer */
    int64_t plan_step;
    const struct scheduler_output *plan;
    int64_t num_tokens;
    int64_t num_beats, beat_at_ns;
    bool stops;
};

static void null_worker_close(struct null_worker *worker)
{
    channel_free(worker->channel);
    arena_close(&worker->arena);
    arena_close(&worker->plan_arena);
}

static enum status tell(struct null_worker *worker, const struct message_type *type, int64_t step,
                        const void *body)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();

    TRY(message_encode(type, EPOCH, step, body, &frame->bytes));
    return channel_send(worker->channel, NULL, frame);
}

static enum status on_prepare_inputs(struct null_worker *worker, const struct message *message)
{
    /* The plan outlives the messages that come after it. */
    struct arena spare = worker->plan_arena;

    worker->plan_arena = worker->arena;
    worker->arena = spare;
    worker->plan = message->body;
    worker->plan_step = message->header.step;
    return OK;
}

static enum status on_execute_model(struct null_worker *worker, const struct message *message)
{
    if (!worker->plan || worker->plan_step != message->header.step)
        return fail(ERR_MISMATCH, "step %" PRId64 " was not prepared", message->header.step);
    return OK;
}

/* Rank 0 answers for all, as real ranks do. */
static enum status on_sample(struct null_worker *worker, const struct message *message)
{
    struct model_runner_output answer;

    TRY(on_execute_model(worker, message));
    if (worker->settings.rank > 0)
        return OK;
    make_up_answer(worker->plan, &worker->plan_arena, &worker->num_tokens, &answer);
    return tell(worker, &model_runner_output_type, worker->plan_step, &answer);
}

static enum status on_shutdown(struct null_worker *worker, const struct message *message)
{
    (void)message;
    worker->stops = true;
    return OK;
}

static const struct {
    enum message_id id;
    enum status (*handle)(struct null_worker *worker, const struct message *message);
} handlers[] = {
    {MESSAGE_PREPARE_INPUTS, on_prepare_inputs},
    {MESSAGE_EXECUTE_MODEL, on_execute_model},
    {MESSAGE_SAMPLE, on_sample},
    {MESSAGE_SHUTDOWN, on_shutdown},
};

static enum status handle(struct null_worker *worker, const struct received *received)
{
    struct message message;

    arena_reset(&worker->arena);
    TRY(message_decode(received->data, received->size, &worker->arena, &message));
    TRY(message_check_place(&message, EPOCH));
    for (size_t i = 0; i < COUNT_OF(handlers); i++)
        if ((int32_t)handlers[i].id == message.header.type)
            return handlers[i].handle(worker, &message);
    return fail(ERR_MISMATCH, "message %s is not for a null worker", message.type->name);
}

static enum status join(struct null_worker *worker)
{
    const struct null_worker_settings *settings = &worker->settings;
    char name[CHANNEL_MAX_NAME + 1];
    const struct welcome *welcome;
    uint32_t epoch;

    rendezvous_name(settings->rank, EPOCH, name);
    TRY(channel_connect(settings->engine, name, NULL, &worker->channel));
    TRY(rendezvous_join(worker->channel, settings->rank, settings->world,
                        clock_deadline_ns(JOIN_TIMEOUT_MS), &worker->arena, &welcome, &epoch));
    return tell(worker, &ready_type, -1,
                &(struct ready){.rank = settings->rank, .fingerprint = "no model"}); /* nor masks */
}

static enum status beat(struct null_worker *worker)
{
    worker->beat_at_ns = clock_deadline_ns(HEARTBEAT_INTERVAL_MS);
    return tell(worker, &heartbeat_type, -1,
                &(struct heartbeat){
                    .rank = worker->settings.rank,
                    .seq = worker->num_beats++,
                    .step = -1,
                    .waits_for = -1});
}

static void park(const struct null_worker *worker)
{
    struct pollfd fds[CHANNEL_NUM_FDS];

    channel_poll(worker->channel, fds, COUNT_OF(fds), worker->beat_at_ns);
}

static enum status run(const void *settings, double *figures_out)
{
    AUTO_CLOSE(null_worker) struct null_worker worker = {
        .settings = *(const struct null_worker_settings *)settings};
    struct received received;

    (void)figures_out; /* the one who started it measures */
    if (!worker.settings.engine)
        return fail(ERR_INVALID, "--engine is missing: bench rpc starts null workers");
    TRY(join(&worker));
    while (!worker.stops) {
        if (clock_now_ns() >= worker.beat_at_ns)
            TRY(beat(&worker));
        if (channel_recv(worker.channel, &received))
            TRY(handle(&worker, &received));
        else if (channel_num_disconnects(worker.channel) > 0)
            return fail(ERR_CLOSED, "the engine is gone");
        else
            park(&worker);
    }
    return OK;
}

#define ROW(member, ...) OPTION(struct null_worker_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(engine, OPTION_TEXT, NULL, "whom to join", .value = "ENDPOINT"),
    ROW(rank, OPTION_I32, "0", "which rank this is", .most = BENCH_MAX_RANKS - 1),
    ROW(world, OPTION_I32, "1", "how many there are", .least = 1, .most = BENCH_MAX_RANKS),
};
#undef ROW

const struct bench bench_null_worker = {
    .name = "null-worker",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct null_worker_settings),
    .run = run,
};
