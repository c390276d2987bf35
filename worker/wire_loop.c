#include "worker/wire_loop.h"

#include "proto/base/clock.h"
#include "proto/base/cpus.h"
#include "proto/base/list.h"
#include "proto/base/log.h"
#include "proto/base/notify.h"
#include "proto/base/stacks.h"
#include "proto/base/trace.h"
#include "proto/config/config.h"
#include "proto/wire/channel.h"
#include "proto/wire/rendezvous.h"
#include "worker/join.h"
#include "worker/meeting.h"
#include "worker/worker.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* From a step that was aborted to the engine's word on what follows: more than it takes to notice a rank that is
 * silent. After that it is not the rank that was lost but the way to it. */
enum { ABORTED_MAX_MS = 30000 };

/* A message that is not to be handled yet. */
struct held_frame {
    struct list_node node;
    size_t size;
    char data[];
};

struct wire {
    struct worker_main_options options;
    uint32_t epoch; /* of the last WELCOME */
    char engine[RENDEZVOUS_MAX_ENDPOINT + 1]; /* where it was found */
    struct channel *channel;
    struct arena arena; /* of the message in hand */
    struct list_node held; /* struct held_frame: a step that waits for an earlier one, and what came after it */
    int32_t num_held;
    struct config config;
    struct sim_device sim; /* with --sim */
    struct model_file *model;
    struct worker *worker;
    struct meeting meeting;
    struct worker_memory memory; /* once it is loaded */
    int64_t start_ns, loaded_ns;
    int64_t beat_at_ns;
    int64_t num_beats;
    struct worker_call open_call; /* that goes on */
    int64_t open_call_id;
    bool is_meeting; /* the other ranks, */
    int64_t meeting_call_id; /* by this call */
    int load_percent; /* that was told last; the device thread's */
    bool is_aborted; /* another rank is lost: what comes is for nobody until the next WELCOME */
    int64_t abort_ends_ns; /* when that is to have come */
    char abort_cause[256];
    bool stops;
    enum status outcome; /* when it stops */
};

static enum status tell(struct wire *wire, const struct message_type *type, int64_t step,
                        const void *body)
{
    AUTO_FREE(frame) struct frame *frame = frame_new();

    TRY(message_encode(type, wire->epoch, step, body, &frame->bytes));
    return channel_send(wire->channel, NULL, frame);
}

/* ---- answers ----------------------------------------------------------------------------- */

/*
 * Rank 0 answers every step; the others only have failures to tell. NULL: no answer is ready. A step that
 * another rank's end has aborted is no failure of ours: the engine knows, and will say what follows.
 */
static enum status tell_answer(struct wire *wire, const struct model_runner_output **output_out)
{
    int64_t step, begin_ns = trace_begin();
    enum status status = worker_collect(wire->worker, false, &step, output_out);

    if (status == ERR_ABORTED || status == ERR_CLOSED) {
        log_debug("%s", fail_text());
        if (!wire->is_aborted) {
            wire->abort_ends_ns = clock_deadline_ns(ABORTED_MAX_MS);
            snprintf(wire->abort_cause, sizeof wire->abort_cause, "%s", fail_text());
        }
        wire->is_aborted = true;
        return OK;
    }
    TRY(status);
    if (*output_out && wire->options.rank == 0) {
        TRY(tell(wire, &model_runner_output_type, step, *output_out));
        trace_end("reply", begin_ns, step);
    }
    return OK;
}

static enum status tell_answers(struct wire *wire)
{
    const struct model_runner_output *output;

    do
        TRY(tell_answer(wire, &output));
    while (output);
    return OK;
}

static enum status beat(struct wire *wire)
{
    struct heartbeat heartbeat = {
        .rank = wire->options.rank, .seq = wire->num_beats++, .step = -1, .waits_for = -1};

    if (wire->worker) {
        struct worker_progress progress = worker_progress(wire->worker);

        heartbeat.step = progress.step;
        heartbeat.ms_in_step = progress.ns_in_step / 1000000;
        heartbeat.progress = progress.num_done;
        heartbeat.waits_for = progress.waits_for;
        heartbeat.memory = worker_memory_held(wire->worker);
        heartbeat.passes = progress.passes;
    }
    wire->beat_at_ns = clock_deadline_ns(HEARTBEAT_INTERVAL_MS);
    notify("WATCHDOG=1");
    return tell(wire, &heartbeat_type, heartbeat.step, &heartbeat);
}

static enum status tell_ready(struct wire *wire)
{
    const struct model_config *config = model_file_config(wire->model);
    const struct worker_memory *memory = &wire->memory;
    struct worker_weights weights = worker_weights(wire->worker);

    return tell(wire, &ready_type, -1,
                &(struct ready){
                    .rank = wire->options.rank,
                    .fingerprint = weights.fingerprint,
                    .weights_bytes = memory->weight_bytes,
                    .step_weights_bytes = memory->step_weight_bytes,
                    .free_bytes = memory->available_bytes,
                    .kv_block_bytes = memory->kv_block_bytes,
                    .first_token = memory->first_token,
                    .num_tokens = memory->num_tokens,
                    .max_num_blocks = memory->available_bytes / memory->kv_block_bytes,
                    .max_position = config->max_position,
                    .vocab_size = config->vocab_size,
                    .load_ms = clock_ms(wire->loaded_ns - wire->start_ns),
                });
}

/* Behind a heartbeat: what was called may have changed what the rank holds. */
static enum status tell_reply(struct wire *wire, int64_t id, enum status status,
                              struct bytes *reply)
{
    AUTO_MEM char *text = mem_strdup(status != OK ? fail_text() : reply->size > 0 ? bytes_text(reply) : "");

    TRY(beat(wire));
    return tell(wire, &reply_type, -1,
                &(struct reply){.id = id,
                                .rank = wire->options.rank,
                                .status = (int32_t)status,
                                .text = text});
}

static enum status tell_meeting_end(struct wire *wire)
{
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    bool is_over;
    enum status status;

    if (!wire->is_meeting)
        return OK;
    status = worker_connect_end(wire->worker, false, &is_over);
    if (!is_over)
        return OK;
    meeting_end(&wire->meeting);
    wire->is_meeting = false;
    if (status == OK)
        bytes_printf(&reply, "{\"free_bytes\": %" PRId64 "}", worker_available_bytes(wire->worker));
    return tell_reply(wire, wire->meeting_call_id, status, &reply);
}

/* Of the call that goes on, if it has come to its end. */
static enum status tell_call_end(struct wire *wire)
{
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    bool is_over = false;
    enum status status;

    TRY(tell_meeting_end(wire));
    if (!wire->open_call.procedure)
        return OK;
    status = worker_call_end(wire->worker, &wire->open_call, false, &reply, &is_over);
    return is_over ? tell_reply(wire, wire->open_call_id, status, &reply) : OK;
}

/* ---- what the engine says ------------------------------------------------------------------- */

static enum status on_prepare_inputs(struct wire *wire, const struct message *message)
{
    return worker_prepare_inputs(wire->worker, message->header.step, message->body);
}

static enum status on_execute_model(struct wire *wire, const struct message *message)
{
    return worker_execute_model(wire->worker, message->header.step);
}

static enum status on_sample(struct wire *wire, const struct message *message)
{
    return worker_sample(wire->worker, message->header.step, message->body);
}

static enum status call_initialize_kv_cache(struct wire *wire, const json_t *args,
                                            struct bytes *reply)
{
    json_int_t num_blocks = json_integer_value(json_object_get(args, "num_blocks"));

    if (num_blocks < 1 || num_blocks > INT32_MAX)
        return fail(ERR_MISMATCH, "%lld KV blocks", (long long)num_blocks);
    (void)reply;
    return worker_initialize_kv_cache(wire->worker, (int32_t)num_blocks);
}

static enum status call_create_shared(struct wire *wire, const json_t *args, struct bytes *reply)
{
    return meeting_create_shared(&wire->meeting, wire->worker, args, reply);
}

static enum status call_open_shared(struct wire *wire, const json_t *args, struct bytes *reply)
{
    (void)reply;
    return meeting_open_shared(&wire->meeting, &wire->options, args);
}

static enum status call_listen(struct wire *wire, const json_t *args, struct bytes *reply)
{
    (void)args;
    return meeting_listen(&wire->meeting, &wire->options, wire->engine, reply);
}

static enum status call_connect(struct wire *wire, const json_t *args, struct bytes *reply)
{
    (void)reply;
    TRY(meeting_begin(&wire->meeting, &wire->options, wire->worker, (int32_t)wire->epoch, args));
    wire->is_meeting = true;
    return OK;
}

/* Whoever started this process is to start another in its place. */
static enum status call_restart(struct wire *wire, const json_t *args, struct bytes *reply)
{
    (void)args;
    (void)reply;
    wire->stops = true;
    wire->outcome = fail(ERR_ABORTED, "the engine wants another process in this rank's place");
    return OK;
}

/* Our part of the trace file at `path`. */
static enum status write_trace(const struct wire *wire, const char *path)
{
    AUTO_MEM char *part = mem_printf("%s.worker.%d", path, wire->options.rank);
    AUTO_MEM char *name = mem_printf("worker.%d", wire->options.rank);

    return trace_write(part, name);
}

/* {"action": "start" | "stop" | "write", "path"}: into PATH.worker.RANK. */
static enum status call_trace(struct wire *wire, const json_t *args, struct bytes *reply)
{
    const char *action = json_string_value(json_object_get(args, "action"));
    const char *path = json_string_value(json_object_get(args, "path"));

    (void)reply;
    if (action && strcmp(action, "start") == 0)
        return trace_is_on() ? OK : trace_start(TRACE_SPANS);
    if (action && strcmp(action, "write") == 0 && path)
        return write_trace(wire, path);
    if (!action || strcmp(action, "stop") != 0)
        return fail(ERR_MISMATCH, "trace: '%.16s' is no action", action ? action : "");
    trace_stop();
    return OK;
}

static const struct own_call {
    const char *name;
    enum status (*run)(struct wire *wire, const json_t *args, struct bytes *reply); /* JSON, or nothing */
} calls[] = {
    {"create_shared", call_create_shared},
    {"open_shared", call_open_shared},
    {"listen", call_listen},
    {"connect", call_connect},
    {"initialize_kv_cache", call_initialize_kv_cache},
    {"restart", call_restart},
    {"trace", call_trace},
};

/* NULL: the worker's own, if there is such a call. */
static const struct own_call *find_call(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(calls); i++)
        if (strcmp(calls[i].name, name) == 0)
            return &calls[i];
    return NULL;
}

/* The others' are the worker's own. One may go on while steps are, and its reply comes when it is over. */
static enum status run_procedure(struct wire *wire, const struct call *call, struct bytes *reply,
                                 bool *is_over_out)
{
    struct worker_call begun = {0};

    if (wire->open_call.procedure && strcmp(call->name, "stacks") != 0)
        return fail(ERR_MISMATCH, "call %s comes while another goes on", call->name);
    TRY(worker_call_begin(wire->worker, call->name, call->args, &begun));
    TRY(worker_call_end(wire->worker, &begun, false, reply, is_over_out));
    if (!*is_over_out) {
        wire->open_call = begun;
        wire->open_call_id = call->id;
    }
    return OK;
}

static enum status run_call(struct wire *wire, const struct call *call, struct bytes *reply,
                            bool *is_over_out)
{
    const struct own_call *own = find_call(call->name);
    bool was_meeting = wire->is_meeting;
    enum status status;
    json_t *args;

    if (!own)
        return run_procedure(wire, call, reply, is_over_out);
    args = json_loads(call->args, 0, NULL); /* NULL has no members either */
    status = own->run(wire, args, reply);
    json_decref(args);
    *is_over_out = was_meeting || !wire->is_meeting;
    if (!*is_over_out)
        wire->meeting_call_id = call->id;
    return status;
}

static enum status on_call(struct wire *wire, const struct message *message)
{
    const struct call *call = message->body;
    AUTO_CLOSE(bytes) struct bytes reply = {0};
    bool is_over = true;
    enum status status = run_call(wire, call, &reply, &is_over);

    /* Who is to go has nobody to reply to. */
    return is_over && !wire->stops ? tell_reply(wire, call->id, status, &reply) : OK;
}

static enum status on_shutdown(struct wire *wire, const struct message *message)
{
    (void)message;
    wire->stops = true;
    return OK;
}

/* ---- what has to wait ---------------------------------------------------------------------- */

static enum status hold(struct wire *wire, const void *data, size_t size)
{
    struct held_frame *frame;

    if (wire->num_held == CHANNEL_MAX_QUEUE)
        return fail(ERR_FULL, "%d messages came while a step was not over", wire->num_held);
    frame = mem_alloc(sizeof *frame + size);
    frame->node = (struct list_node){0};
    frame->size = size;
    memcpy(frame->data, data, size);
    list_push_back(&wire->held, &frame->node);
    wire->num_held++;
    return OK;
}

static struct held_frame *take_held(struct wire *wire)
{
    struct held_frame *frame = LIST_FIRST(&wire->held, struct held_frame, node);

    if (frame)
        list_remove(&frame->node);
    return frame;
}

static void drop_held(struct wire *wire)
{
    for (struct held_frame *frame; (frame = take_held(wire));)
        mem_free(frame);
    wire->num_held = 0;
}

/*
 * The engine knows from rank 0 that a step is over: the one before the last when it prepares another, also the last
 * when that gives a slot of it away, and all before it calls a procedure. Here their ends may be a moment away, or
 * never come, since another rank is lost. So this thread does not wait for them: it has heartbeats to send, and the
 * engine's word to hear.
 */
static bool prepare_waits(const struct wire *wire, const struct message *message)
{
    return wire->num_held > 0 || worker_awaits_collect(wire->worker, message->header.step, message->body);
}

/* The rest of a step follows its prepare_inputs. */
static bool step_waits(const struct wire *wire, const struct message *message)
{
    (void)message;
    return wire->num_held > 0;
}

/* Our own are for the moment at which they come. A rank's stacks are asked for when it hangs. */
static bool call_waits(const struct wire *wire, const struct message *message)
{
    const struct call *call = message->body;

    return !find_call(call->name) && strcmp(call->name, "stacks") != 0 &&
           (wire->num_held > 0 || worker_has_steps(wire->worker));
}

/* ---- messages ------------------------------------------------------------------------------- */

/* The set of ranks is another one. The settings are not: they came with the first WELCOME. */
static enum status on_welcome(struct wire *wire, const struct message *message)
{
    if (message->header.epoch <= wire->epoch)
        return fail(ERR_MISMATCH, "welcome to epoch %u comes in epoch %u", message->header.epoch,
                    wire->epoch);
    wire->epoch = message->header.epoch;
    wire->is_aborted = false;
    wire->open_call.procedure = NULL; /* nobody waits for its reply any more */
    wire->is_meeting = false;
    drop_held(wire);
    if (!worker_is_loaded(wire->worker))
        return OK; /* READY follows the load */
    TRY(worker_reset(wire->worker));
    return tell_ready(wire);
}

/* That it could be sent to us is all that it says. */
static enum status on_heartbeat(struct wire *wire, const struct message *message)
{
    (void)wire;
    (void)message;
    return OK;
}

static const struct {
    enum message_id id;
    bool is_of_step; /* not for ranks whose step was aborted */
    bool (*waits)(const struct wire *wire, const struct message *message); /* NULL: never */
    enum status (*handle)(struct wire *wire, const struct message *message);
} handlers[] = {
    {MESSAGE_PREPARE_INPUTS, true, prepare_waits, on_prepare_inputs},
    {MESSAGE_EXECUTE_MODEL, true, step_waits, on_execute_model},
    {MESSAGE_SAMPLE, true, step_waits, on_sample},
    {MESSAGE_CALL, false, call_waits, on_call},
    {MESSAGE_WELCOME, false, NULL, on_welcome},
    {MESSAGE_HEARTBEAT, false, NULL, on_heartbeat},
    {MESSAGE_SHUTDOWN, false, NULL, on_shutdown},
};

static enum status handle(struct wire *wire, const void *data, size_t size)
{
    int64_t begin_ns = trace_begin();
    struct message message;

    arena_reset(&wire->arena);
    TRY(message_decode(data, size, &wire->arena, &message));
    TRY(message_check_place(&message, message.type == &welcome_type ? message.header.epoch
                                                                    : wire->epoch));
    trace_end("decode", begin_ns, message.header.step);
    for (size_t i = 0; i < COUNT_OF(handlers); i++) {
        if ((int32_t)handlers[i].id != message.header.type)
            continue;
        if (wire->is_aborted && handlers[i].is_of_step)
            return OK;
        return handlers[i].waits && handlers[i].waits(wire, &message) ? hold(wire, data, size)
                                                                      : handlers[i].handle(wire, &message);
    }
    return fail(ERR_MISMATCH, "message %s is not for a worker", message.type->name);
}

/* A step is over: what waited for it goes on, or waits again, in the order in which it came. */
static enum status handle_held(struct wire *wire)
{
    enum status status = OK;
    int32_t num_due = wire->num_held;

    wire->num_held = 0;
    for (int32_t i = 0; i < num_due && status == OK; i++) {
        struct held_frame *frame = take_held(wire);

        status = handle(wire, frame->data, frame->size);
        mem_free(frame);
    }
    return status;
}

/* ---- what the device says ------------------------------------------------------------------- */

static enum status on_loaded(struct wire *wire)
{
    TRY(worker_wait_loaded(wire->worker, &wire->memory));
    wire->loaded_ns = clock_now_ns();
    notify("READY=1\nSTATUS=ready");
    return tell_ready(wire);
}

/* Where every rank says no more than that it was told to stop, no step would come to an end. */
static enum status check_abort(const struct wire *wire)
{
    if (!wire->is_aborted || clock_now_ns() < wire->abort_ends_ns)
        return OK;
    return fail(ERR_TIMEOUT, "a step was given up %.0f s ago, and all ranks are there: %s",
                ABORTED_MAX_MS / 1e3, wire->abort_cause);
}

/* ---- the loop ------------------------------------------------------------------------------- */

static enum status join(struct wire *wire)
{
    const struct worker_main_options *options = &wire->options;
    struct joined joined;

    TRY(join_engine(&(struct join_options){.engine = options->engine,
                                           .token = options->token,
                                           .timeout_ms = options->join_timeout_ms,
                                           .rank = options->rank,
                                           .world = options->world},
                    &wire->arena, &joined));
    wire->channel = joined.channel;
    wire->epoch = joined.epoch;
    memcpy(wire->engine, joined.endpoint, sizeof wire->engine);
    return config_from_json(joined.welcome->config, &wire->config);
}

/* For whoever started us; on the device's thread. */
static void tell_load(void *user, double fraction)
{
    int percent = (int)(fraction * 100), *told = user;

    if (percent >= *told + 5)
        notify("STATUS=load %d %%", *told = percent);
}

/* The engine knows the cores of its own host alone. */
static int32_t num_threads(const struct wire *wire)
{
    AUTO_FREE(cpus) struct cpus *cpus = NULL;

    if (wire->config.threads > 0)
        return wire->config.threads;
    if (cpus_open(NULL, &cpus) == OK)
        return MAX(cpus_num_cores(cpus) / wire->options.local_world, 1);
    log_warn("%s; the device has one thread", fail_text());
    return 1;
}

static enum status start(struct wire *wire)
{
    const struct worker_main_options *options = &wire->options;
    const struct config *config = &wire->config;
    struct worker_options worker_options;
    enum log_level level;

    TRY(log_parse_level(config->log_level, &level));
    log_set_level(level);
    if (config->trace)
        TRY(trace_start(TRACE_SPANS));
    trace_name_thread("wire");
    notify("STATUS=open the model");
    TRY(config_open_model(config, MODEL_WITHOUT_WORDS, &wire->model));
    TRY(worker_options_read(config, &wire->sim, &worker_options));
    worker_options.rank = options->rank;
    worker_options.world = options->world;
    worker_options.local_rank = options->local_rank;
    worker_options.local_world = options->local_world;
    worker_options.num_threads = num_threads(wire);
    worker_options.over_mpi = strcmp(config->comm, "mpi") == 0;
    worker_options.progress = tell_load;
    worker_options.user = &wire->load_percent;
    return worker_new(&worker_options, wire->model, &wire->worker);
}

/* Parks until the engine, the device or the clock has something to say. */
static void park(const struct wire *wire)
{
    struct pollfd fds[CHANNEL_NUM_FDS + 1];

    fds[CHANNEL_NUM_FDS] =
        (struct pollfd){.fd = worker_output_fd(wire->worker), .events = POLLIN};
    channel_poll(wire->channel, fds, COUNT_OF(fds), wire->beat_at_ns);
}

static enum status serve(struct wire *wire)
{
    while (!wire->stops) {
        struct pollfd output = {.fd = worker_output_fd(wire->worker), .events = POLLIN};
        struct received received;

        if (clock_now_ns() >= wire->beat_at_ns)
            TRY(beat(wire));
        TRY(check_abort(wire));
        if (poll(&output, 1, 0) > 0) {
            TRY(worker_is_loaded(wire->worker) ? tell_answers(wire) : on_loaded(wire));
            TRY(tell_call_end(wire));
            TRY(handle_held(wire));
        }
        if (channel_recv(wire->channel, &received)) {
            TRY(handle(wire, received.data, received.size));
            continue;
        }
        /* A look that costs a system call, so only when nothing has come. */
        if (channel_num_disconnects(wire->channel) > 0)
            return fail(ERR_CLOSED, "the engine is gone");
        park(wire);
    }
    return wire->outcome;
}

static enum status join_and_serve(struct wire *wire)
{
    TRY(join(wire));
    TRY(start(wire));
    return serve(wire);
}

/* The engine says it in its log, with the step, of those that are its own. */
static void tell_failure(struct wire *wire, enum status status)
{
    AUTO_MEM char *cause = mem_strdup(fail_text());

    if (wire->epoch == 0 || tell(wire, &fault_type, -1,
                                 &(struct fault){.rank = wire->options.rank,
                                                 .code = (int32_t)status,
                                                 .text = cause}) != OK)
        log_error("%s", cause);
    (void)fail(status, "%s", cause);
}

static void close_wire(struct wire *wire)
{
    if (wire->worker)
        worker_abort(wire->worker); /* at once: its device, or another's, may wait for a rank that is gone */
    channel_free(give(wire->channel));
    if (wire->worker && !worker_stop(wire->worker)) {
        log_warn("the device does not come back: the process ends without it");
        return; /* what it may use stays */
    }
    worker_free(wire->worker);
    meeting_close(&wire->meeting);
    model_file_free(wire->model);
    config_close(&wire->config);
    drop_held(wire);
    arena_close(&wire->arena);
    mem_free(wire);
}

enum status worker_main(const struct worker_main_options *options)
{
    struct wire *wire = mem_new(struct wire);
    enum status status;

    wire->options = *options;
    wire->start_ns = clock_now_ns();
    wire->meeting.shared_fd = -1;
    list_init(&wire->held);
    log_set_role("worker", options->rank);
    stacks_allow(getppid()); /* who started us may ask where we are, if we hang */
    config_init(&wire->config);
    status = join_and_serve(wire);
    if (status != OK && status != ERR_CLOSED && !wire->stops)
        tell_failure(wire, status);
    if (wire->config.trace && write_trace(wire, wire->config.trace) != OK)
        log_warn("%s", fail_text());
    close_wire(wire);
    return status;
}
