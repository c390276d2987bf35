#include "engine/simulation/cluster.h"

#include "proto/base/build_id.h"

#include <stdio.h>
#include <string.h>

enum { MAX_BLOCKS_HERE = 1 << 20 };

struct member {
    struct toy_rank *rank;
    bool is_welcome;
    int64_t num_beats;
};

struct cluster {
    struct cluster_options options;
    struct network *network;
    struct random random;
    struct member members[NETWORK_MAX_RANKS];
    bool runs;          /* a step is on the device */
    int64_t step_ns;    /* that it takes */
    struct arena arena; /* of the message in hand */
};

static void happen_after(struct cluster *cluster, int64_t ns, int32_t rank,
                         void (*happen)(void *cluster, const struct event *event))
{
    agenda_add(cluster->options.agenda,
               &(struct event){.at_ns = cluster->options.agenda->now_ns + ns,
                               .happen = happen,
                               .owner = cluster,
                               .who = rank});
}

/* ---- joining -------------------------------------------------------------------------------- */

static void say_hello(struct cluster *cluster, int32_t rank)
{
    network_tell(cluster->network, rank, &hello_type, -1,
                 &(struct hello){.rank = rank,
                                 .world = cluster->options.world,
                                 .pid = 1000 + rank,
                                 .host = "toy",
                                 .boot_id = "toy",
                                 .build_id = build_id_text()});
}

static void beat(void *user, const struct event *event)
{
    struct cluster *cluster = user;
    int32_t rank = event->who;

    if (!network_is_up(cluster->network, rank))
        return;
    network_tell(
        cluster->network, rank, &heartbeat_type, -1,
        &(struct heartbeat){.rank = rank, .seq = cluster->members[rank].num_beats++, .step = -1});
    happen_after(cluster, (int64_t)HEARTBEAT_INTERVAL_MS * 1000000, rank, beat);
}

static enum status on_welcome(struct cluster *cluster, int32_t rank, const struct message *message)
{
    const struct welcome *welcome = message->body;
    struct toy_rank_limits limits = cluster->options.limits;
    int32_t first_token, num_tokens;

    limits.rank = rank;
    toy_rank_slice(&limits, &first_token, &num_tokens);
    if (cluster->members[rank].is_welcome)
        return fail(ERR_MISMATCH, "rank %d is welcomed twice", rank);
    if (*welcome->refusal)
        return fail(ERR_MISMATCH, "refused: %s", welcome->refusal);
    cluster->members[rank].is_welcome = true;
    network_tell(cluster->network, rank, &ready_type, -1,
                 &(struct ready){.rank = rank,
                                 .fingerprint = "toy",
                                 .free_bytes = 1 << 30,
                                 .kv_block_bytes = 1,
                                 .vocab_size = limits.vocab_size,
                                 .first_token = first_token,
                                 .num_tokens = num_tokens});
    beat(cluster, &(struct event){.who = rank});
    return OK;
}

static enum status run_call(struct toy_rank *rank, const struct call *call)
{
    int32_t num_blocks = 0;

    if (strcmp(call->name, "initialize_kv_cache") != 0 ||
        sscanf(call->args, "{\"num_blocks\": %d}", &num_blocks) != 1)
        return fail(ERR_NOT_FOUND, "no call is %.64s(%.64s)", call->name, call->args);
    if (num_blocks > MAX_BLOCKS_HERE)
        return fail(ERR_NO_MEMORY, "no memory for %d KV blocks", num_blocks);
    return toy_rank_initialize_kv_cache(rank, num_blocks);
}

static enum status on_call(struct cluster *cluster, int32_t rank, const struct message *message)
{
    const struct call *call = message->body;
    enum status status = run_call(cluster->members[rank].rank, call);

    network_tell(cluster->network, rank, &reply_type, -1,
                 &(struct reply){.id = call->id,
                                 .rank = rank,
                                 .status = (int32_t)status,
                                 .text = status == OK ? "" : fail_text()});
    return OK;
}

/* ---- the device of all ranks ---------------------------------------------------------------- */

/* An all-reduce of what each rank has computed. The rank that differs, or fails, is named. */
static enum status run_together(struct cluster *cluster, int32_t *rank_out)
{
    const uint64_t *first = NULL, *contexts;
    int32_t num_first = 0, n;

    for (*rank_out = 0; *rank_out < cluster->options.world; ++*rank_out) {
        TRY(toy_rank_run(cluster->members[*rank_out].rank, &contexts, &n));
        if (*rank_out == 0) {
            first = contexts;
            num_first = n;
        } else if (n != num_first || memcmp(contexts, first, sizeof *first * (size_t)n) != 0) {
            return fail(ERR_INTERNAL, "its KV differs from that of rank 0");
        }
    }
    return OK;
}

static bool all_are_up(const struct cluster *cluster)
{
    for (int32_t rank = 0; rank < cluster->options.world; rank++)
        if (!network_is_up(cluster->network, rank))
            return false;
    return true;
}

static void fail_rank(struct cluster *cluster, int32_t rank, enum status status)
{
    AUTO_MEM char *sentence = mem_strdup(fail_text());

    network_fail_rank(cluster->network, rank, status, sentence);
}

static void begin_step(struct cluster *cluster);

static void end_step(void *user, const struct event *event)
{
    struct cluster *cluster = user;
    struct member *members = cluster->members;
    int64_t step = toy_rank_due_step(members[0].rank);
    struct model_runner_output answer;
    enum status status;
    int32_t rank;

    (void)event;
    cluster->runs = false;
    if (!all_are_up(cluster))
        return; /* the others wait for it forever */
    status = run_together(cluster, &rank);
    if (status != OK) {
        fail_rank(cluster, rank, status);
        return;
    }
    toy_rank_draw(members[0].rank, &answer);
    answer.execute_ns = cluster->step_ns;
    for (rank = 0; rank < cluster->options.world; rank++)
        if (toy_rank_take_tokens(members[rank].rank, &answer) != OK) {
            fail_rank(cluster, rank, ERR_INTERNAL);
            return;
        }
    network_tell(cluster->network, 0, &model_runner_output_type, step, &answer);
    begin_step(cluster);
}

/* The next step runs once every rank has been told all of it. */
static void begin_step(struct cluster *cluster)
{
    if (cluster->runs)
        return;
    for (int32_t rank = 0; rank < cluster->options.world; rank++)
        if (toy_rank_due_step(cluster->members[rank].rank) < 0)
            return;
    cluster->runs = true;
    cluster->step_ns = random_between(&cluster->random, 1000, cluster->options.step_max_ns);
    happen_after(cluster, cluster->step_ns, 0, end_step);
}

/* ---- what the engine says ------------------------------------------------------------------- */

static enum status on_prepare_inputs(struct cluster *cluster, int32_t rank,
                                     const struct message *message)
{
    return toy_rank_prepare_inputs(cluster->members[rank].rank, message->header.step,
                                   message->body);
}

static enum status on_execute_model(struct cluster *cluster, int32_t rank,
                                    const struct message *message)
{
    return toy_rank_execute_model(cluster->members[rank].rank, message->header.step);
}

static enum status on_sample(struct cluster *cluster, int32_t rank, const struct message *message)
{
    TRY(toy_rank_sample(cluster->members[rank].rank, message->header.step, message->body));
    begin_step(cluster);
    return OK;
}

static const struct {
    enum message_id id;
    enum status (*handle)(struct cluster *cluster, int32_t rank, const struct message *message);
} handlers[] = {
    {MESSAGE_PREPARE_INPUTS, on_prepare_inputs},
    {MESSAGE_EXECUTE_MODEL, on_execute_model},
    {MESSAGE_SAMPLE, on_sample},
    {MESSAGE_WELCOME, on_welcome},
    {MESSAGE_CALL, on_call},
};

static enum status handle(struct cluster *cluster, int32_t rank, const struct frame *frame)
{
    struct message message;

    arena_reset(&cluster->arena);
    TRY(message_decode(frame->bytes.data, frame->bytes.size, &cluster->arena, &message));
    TRY(message_check_place(&message, cluster->options.epoch));
    for (size_t i = 0; i < COUNT_OF(handlers); i++)
        if ((int32_t)handlers[i].id == message.header.type)
            return handlers[i].handle(cluster, rank, &message);
    return fail(ERR_MISMATCH, "message %s is not for a rank", message.type->name);
}

static void hear(void *user, int32_t rank, const struct frame *frame)
{
    struct cluster *cluster = user;
    enum status status = handle(cluster, rank, frame);

    if (status != OK)
        fail_rank(cluster, rank, status);
}

/* ---- the whole ------------------------------------------------------------------------------ */

struct cluster *cluster_new(const struct cluster_options *options)
{
    struct cluster *cluster = mem_new(struct cluster);

    cluster->options = *options;
    cluster->random.state = options->seed;
    cluster->network = network_new(&(struct network_options){
        .agenda = options->agenda,
        .faults = options->faults,
        .seed = random_next(&cluster->random),
        .epoch = options->epoch,
        .world = options->world,
        .latency_max_ns = options->latency_max_ns,
        .hear = hear,
        .user = cluster,
    });
    for (int32_t rank = 0; rank < options->world; rank++) {
        struct toy_rank_limits limits = options->limits;

        limits.rank = rank;
        cluster->members[rank].rank = toy_rank_new(&limits);
        say_hello(cluster, rank);
    }
    return cluster;
}

void cluster_free(struct cluster *cluster)
{
    if (!cluster)
        return;
    agenda_forget(cluster->options.agenda, cluster);
    network_free(cluster->network);
    for (int32_t rank = 0; rank < cluster->options.world; rank++)
        toy_rank_free(cluster->members[rank].rank);
    arena_close(&cluster->arena);
    mem_free(cluster);
}

struct network *cluster_network(struct cluster *cluster)
{
    return cluster->network;
}
