#include "engine/executor/linked.h"

#include "engine/executor/procedures.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/stacks.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { START_TIMEOUT_MS = 600000, STEP_TIMEOUT_MS = 300000 };
/* A rank whose wire thread turns has them sooner. */
enum { STACKS_ASK_MS = 1000 };

/* ---- starting ------------------------------------------------------------------------------- */

void linked_open(struct linked_executor *linked, struct channel *channel, uint32_t epoch,
                 const struct config *config)
{
    link_open(channel, linked->executor.info.num_ranks, epoch, &linked->link);
    linked->recorder =
        flight_recorder_new(config->flight_recorder_bytes, config->flight_recorder_seconds);
    linked->link.recorder = linked->recorder;
    linked->executor.wire = linked->recorder;
    linked->join_timeout_ms = START_TIMEOUT_MS;
    linked->max_restarts = config->max_restarts;
    linked->restart_window_ns = (int64_t)(config->restart_window * 1e9);
    linked->restarts_ns = mem_new_array(int64_t, (size_t)MAX(config->max_restarts, 1));
}

void linked_close(struct linked_executor *linked)
{
    if (linked->link.ranks)
        link_close(&linked->link);
    linked->link = (struct link){0};
    flight_recorder_free(linked->recorder);
    mem_free(linked->settings);
    mem_free(linked->spare_model);
    mem_free(linked->restarts_ns);
}

/* No rank has more; and sums of so many bytes over all ranks and blocks fit. */
static const int64_t MAX_BLOCK_BYTES = (int64_t)1 << 32, MAX_FREE_BYTES = (int64_t)1 << 50;

static enum status check_ready(int32_t rank, const struct ready *ready)
{
    if (ready->first_token < 0 || ready->num_tokens < 1 ||
        (int64_t)ready->first_token + ready->num_tokens > ready->vocab_size)
        return fail(ERR_MISMATCH, "rank %d: says that it samples %d tokens from %d on, of %d", rank,
                    ready->num_tokens, ready->first_token, ready->vocab_size);
    if (ready->weights_bytes < 0 || ready->weights_bytes > MAX_FREE_BYTES ||
        ready->step_weights_bytes < 0 || ready->step_weights_bytes > ready->weights_bytes)
        return fail(ERR_MISMATCH, "rank %d: says that a step reads %lld of %lld bytes of weights", rank,
                    (long long)ready->step_weights_bytes, (long long)ready->weights_bytes);
    if (ready->kv_block_bytes < 1 || ready->kv_block_bytes > MAX_BLOCK_BYTES ||
        ready->free_bytes < 0 || ready->free_bytes > MAX_FREE_BYTES)
        return fail(ERR_MISMATCH,
                    "rank %d: says that a KV block takes %lld bytes, and that %lld are free", rank,
                    (long long)ready->kv_block_bytes, (long long)ready->free_bytes);
    return OK;
}

static enum status check_all_ready(struct link *link)
{
    for (int32_t rank = 0; rank < link->world; rank++) {
        enum status status = check_ready(rank, &link->rendezvous.ranks[rank].ready);

        if (status == OK)
            continue;
        link->failed_rank = rank;
        return status;
    }
    return OK;
}

/* The smallest of what the ranks have for KV, and the largest of what a block costs them. */
static enum status size_kv_cache(struct linked_executor *linked,
                                 const struct executor_options *options)
{
    const struct rank_info *ranks = linked->link.rendezvous.ranks;
    struct executor_info *info = &linked->executor.info;
    int64_t block_bytes = 0, available = INT64_MAX;

    TRY(check_all_ready(&linked->link));
    snprintf(info->fingerprint, sizeof info->fingerprint, "%s", linked->link.rendezvous.fingerprint);
    for (int32_t rank = 0; rank < linked->link.world; rank++) {
        block_bytes = MAX(block_bytes, ranks[rank].ready.kv_block_bytes);
        available = MIN(available, ranks[rank].ready.free_bytes);
        info->memory.weight_bytes += ranks[rank].ready.weights_bytes;
        info->memory.step_weight_bytes += ranks[rank].ready.step_weights_bytes;
        info->memory.kv_block_bytes += ranks[rank].ready.kv_block_bytes;
    }
    /* Each rank tells of memory that it has to itself. */
    if (options->config->sim || strcmp(options->config->device, "cuda") == 0)
        available *= linked->link.world;
    TRY(executor_plan_kv(options->config, info->max_model_len, info->num_ranks, block_bytes,
                         available, &info->num_kv_blocks));
    return OK;
}

static enum status meet(struct linked_executor *linked, int64_t deadline_ns)
{
    struct link *link = &linked->link;
    AUTO_MEM int32_t *hosts = mem_new_array(int32_t, (size_t)link->world); /* all on that of rank 0 */
    struct meeting_options options = {.hosts = hosts};

    if (linked->source->plan_meeting)
        TRY(linked->source->plan_meeting(linked, hosts, &options));
    return meeting_hold(link, &options, deadline_ns);
}

/* Every rank has loaded: they meet, and get their KV blocks, as many as there is room for beside what meeting took.
 * options: NULL, that is known from before. */
static enum status start_ranks(struct linked_executor *linked, const struct executor_options *options)
{
    struct link *link = &linked->link;
    int64_t deadline_ns = clock_deadline_ns(START_TIMEOUT_MS);
    char args[64];

    TRY(check_all_ready(link));
    if (linked->source && link->world > 1)
        TRY(meet(linked, deadline_ns));
    if (options)
        TRY(size_kv_cache(linked, options));
    snprintf(args, sizeof args, "{\"num_blocks\": %d}", linked->executor.info.num_kv_blocks);
    return link_call_all(link, "initialize_kv_cache", args, deadline_ns);
}

/* The settings as the ranks are to have them: what was left open is decided here, for all, but for what only they
 * know of their hosts. */
static char *settle(const struct executor_options *options, int32_t max_model_len,
                    bool is_elsewhere)
{
    struct config settled = *options->config; /* borrows the texts */

    settled.max_model_len = max_model_len;
    if (!is_elsewhere)
        settled.threads = executor_threads(options->config);
    return config_to_json(&settled);
}

enum status linked_gather(struct linked_executor *linked, const struct executor_options *options)
{
    linked->settings = settle(options, linked->executor.info.max_model_len,
                              linked->link.waits_for_others);
    TRY(link_gather(&linked->link, options->progress, options->user, linked->settings,
                    clock_deadline_ns(linked->join_timeout_ms)));
    return start_ranks(linked, options);
}

/* ---- recovery ------------------------------------------------------------------------------- */

/* One more restart: is it within what may be? num_failed: how many have failed in this recovery, which may take longer
 * than the window. */
static enum status count_restart(struct linked_executor *linked, int32_t num_failed)
{
    AUTO_MEM char *cause = mem_strdup(fail_text());
    int32_t most = linked->max_restarts;
    int64_t now_ns = clock_now_ns(), *oldest;

    if (most == 0)
        return fail(ERR_CLOSED, "%s", cause);
    if (num_failed >= most)
        return fail(ERR_EXHAUSTED,
                    "ranks were replaced %d times in a row and have not come back, which is all that "
                    "--max-restarts allows; the last cause: %s",
                    num_failed, cause);
    oldest = &linked->restarts_ns[linked->num_restarts % most];
    if (linked->num_restarts >= most && now_ns - *oldest < linked->restart_window_ns)
        return fail(ERR_EXHAUSTED,
                    "ranks were replaced %d times in %.0f s, which is all that --max-restarts and "
                    "--restart-window allow; the last cause: %s",
                    most, (double)linked->restart_window_ns / 1e9, cause);
    *oldest = now_ns;
    linked->num_restarts++;
    return OK;
}

static bool has_ended(const struct link_rank *rank)
{
    struct pollfd fd = {.fd = rank->pidfd, .events = POLLIN};

    return rank->pidfd >= 0 && poll(&fd, 1, 0) > 0;
}

/* On this host, and not behind a wall that hides processes from each other. */
static bool is_here(const struct rank_info *rank)
{
    char host[256] = "", boot_id[64], path[32], name[32] = "";
    int fd;

    gethostname(host, sizeof host - 1);
    rendezvous_read_boot_id(boot_id);
    if (strcmp(rank->host, host) != 0 || strcmp(rank->boot_id, boot_id) != 0)
        return false;
    snprintf(path, sizeof path, "/proc/%d/comm", rank->pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (read(fd, name, sizeof name - 1) < 0)
        name[0] = '\0';
    close(fd);
    return strcmp(name, "tandem-worker\n") == 0;
}

/* Of a rank elsewhere whose device hangs: the thread that hears us does not. */
static enum status ask_for_stacks(struct link *link, int32_t rank, struct bytes *out)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};
    bool is_refused;
    enum status status;
    const char *text;
    json_t *list;

    if (clock_now_ns() - link->ranks[rank].heard_ns > (int64_t)STACKS_ASK_MS * 1000000)
        return fail(ERR_TIMEOUT, "it does not answer");
    link->is_past_hope = true; /* of that it hangs we know */
    status = link_call(link, rank, rank + 1, "stacks", "{}", clock_deadline_ns(STACKS_ASK_MS),
                       &replies, &is_refused);
    link->is_past_hope = false;
    TRY(status);
    list = json_loads(bytes_text(&replies), 0, NULL);
    text = json_string_value(json_object_get(json_array_get(list, 0), "text"));
    bytes_printf(out, "%s", text ? text : "");
    json_decref(list);
    return OK;
}

/* Where a rank that hangs stands; one that has ended stands nowhere. */
static void tell_stacks(struct linked_executor *linked, int32_t rank)
{
    struct link *link = &linked->link;
    const struct rank_info *info = &link->rendezvous.ranks[rank];
    AUTO_CLOSE(bytes) struct bytes text = {0};
    enum status status;
    const char *line;

    if (!info->is_joined || has_ended(&link->ranks[rank]))
        return;
    status = is_here(info) ? stacks_of_process(info->pid, &text) : ask_for_stacks(link, rank, &text);
    if (status != OK)
        log_warn("rank %d: no stacks: %s", rank, fail_text());
    for (char *rest = (char *)bytes_text(&text); (line = strsep(&rest, "\n"));)
        if (*line)
            log_warn("rank %d: %s", rank, line);
}

/* Which have to be replaced: all, if it is no rank's fault alone. */
static bool is_to_be_replaced(const struct link *link, int32_t rank, int32_t failed_rank,
                              int32_t wanted_rank)
{
    return rank == failed_rank || rank == wanted_rank || has_ended(&link->ranks[rank]) ||
           (failed_rank == -1 && wanted_rank < 0);
}

static enum status replace_ranks(struct linked_executor *linked, int32_t wanted_rank)
{
    struct link *link = &linked->link;
    int32_t failed_rank = link->failed_rank;
    bool any_has_ended = false;
    char peer[CHANNEL_MAX_NAME + 1];

    for (int32_t rank = 0; rank < link->world; rank++)
        any_has_ended |= has_ended(&link->ranks[rank]);
    if (failed_rank == -1 && any_has_ended)
        failed_rank = LINK_NO_RANK; /* besides those */
    if (failed_rank >= 0)
        tell_stacks(linked, failed_rank);
    for (int32_t rank = 0; rank < link->world; rank++)
        link->ranks[rank].is_to_be_replaced |=
            linked->lacks_weights || is_to_be_replaced(link, rank, failed_rank, wanted_rank);
    linked->lacks_weights = false; /* nobody comes back asleep */
    for (int32_t rank = 0; rank < link->world; rank++) {
        if (!link->ranks[rank].is_to_be_replaced)
            continue;
        snprintf(peer, sizeof peer, "%s", link->rendezvous.ranks[rank].peer);
        link_lose(link, rank);
        link->ranks[rank].restarts++;
        TRY(linked->source->replace(linked, rank, peer));
        link->ranks[rank].is_to_be_replaced = false;
    }
    return OK;
}

static enum status rebuild(struct linked_executor *linked, int32_t wanted_rank)
{
    struct link *link = &linked->link;

    TRY(replace_ranks(linked, wanted_rank));
    link_begin(link, link->epoch + 1);
    TRY(link_welcome(link, linked->settings));
    TRY(link_gather(link, NULL, NULL, linked->settings,
                    clock_deadline_ns(linked->join_timeout_ms)));
    return start_ranks(linked, NULL);
}

enum status linked_recover(struct executor *executor, int32_t rank)
{
    struct linked_executor *linked = linked_of(executor);
    struct link *link = &linked->link;
    int64_t start_ns = clock_now_ns();
    int32_t num_failed = 0;
    enum status status;

    link->is_given_up = executor->is_given_up;
    link->user = executor->user;
    do {
        if (rank < 0)
            TRY(count_restart(linked, num_failed));
        status = rebuild(linked, rank);
        if (status != OK && executor->is_given_up && executor->is_given_up(executor->user))
            return fail(ERR_ABORTED, "the engine stops");
        if (link->is_late)
            return status;
        if (status != OK)
            log_error("%s", fail_text());
        num_failed += rank < 0;
        rank = -1;
    } while (status != OK);
    log_warn("the ranks are whole again after %.2f s, in epoch %u",
             clock_ms(clock_now_ns() - start_ns) / 1e3, link->epoch);
    return OK;
}

int32_t linked_workers(struct executor *executor, struct engine_worker *out, int32_t capacity)
{
    return link_workers(&linked_of(executor)->link, out, capacity);
}

/* ---- steps ---------------------------------------------------------------------------------- */

enum status linked_prepare_inputs(struct executor *executor, int64_t step,
                                  const struct scheduler_output *plan)
{
    link_note_step(&linked_of(executor)->link, step, plan->total_num_scheduled_tokens);
    return link_send_all(&linked_of(executor)->link, &scheduler_output_type, step, plan);
}

enum status linked_execute_model(struct executor *executor, int64_t step)
{
    return link_send_all(&linked_of(executor)->link, &execute_model_type, step, NULL);
}

enum status linked_sample(struct executor *executor, int64_t step,
                          const struct grammar_output *grammar)
{
    return link_sample(&linked_of(executor)->link, step, grammar);
}

enum status linked_collect(struct executor *executor, int64_t step,
                           const struct model_runner_output **output_out)
{
    return link_collect(&linked_of(executor)->link, step, clock_deadline_ns(STEP_TIMEOUT_MS),
                        output_out);
}

enum status linked_wait(struct executor *executor, int fd)
{
    struct message message;
    int32_t rank;

    TRY(link_hear(&linked_of(executor)->link, fd, clock_deadline_ns(-1), &message, &rank));
    if (message.type)
        return fail(ERR_MISMATCH, "rank %d: %s while nothing was asked", rank, message.type->name);
    return OK;
}

static enum status call_all(struct linked_executor *linked, const char *name, const char *args,
                            struct bytes *replies_out, bool *refused_out)
{
    return link_call(&linked->link, 0, linked->link.world, name, args,
                     clock_deadline_ns(START_TIMEOUT_MS), replies_out, refused_out);
}

/* Weights are exchanged by all ranks or by none: nothing comes between this and the exchange, but a rank's end. */
static enum status check_spares(struct linked_executor *linked, const char *wanted,
                                bool *refused_out)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};

    TRY(call_all(linked, "reload_weights", "{\"phase\": \"status\"}", &replies, refused_out));
    *refused_out = true;
    return procedure_check_spares(bytes_text(&replies), wanted);
}

/* A rank that is replaced from now on loads what the others have. */
static void exchange_models(struct linked_executor *linked)
{
    json_t *settings = json_loads(linked->settings, 0, NULL);
    char *text;

    ASSERT(settings && linked->spare_model);
    char *before = mem_strdup(json_string_value(json_object_get(settings, "model")));

    json_object_set_new(settings, "model", json_string(linked->spare_model));
    mem_free(linked->spare_model);
    linked->spare_model = before;
    text = json_dumps(settings, 0);
    mem_free(linked->settings);
    linked->settings = mem_strdup(text);
    free(text);
    json_decref(settings);
    rendezvous_forget_model(&linked->link.rendezvous);
}

/* What all ranks have done, or, of sleep, some may have. */
static void note_sleep(struct linked_executor *linked, const struct procedure *procedure)
{
    if (procedure->effect == PROCEDURE_SLEEP)
        linked->lacks_weights |= procedure->drops_weights;
    else if (procedure->effect == PROCEDURE_WAKE_UP)
        linked->lacks_weights = false;
}

enum status linked_call(struct executor *executor, const char *name, const char *args,
                        struct bytes *replies_out, bool *refused_out)
{
    struct linked_executor *linked = linked_of(executor);
    struct procedure procedure;
    enum status status;

    *refused_out = false;
    procedure_read(name, args, &procedure);
    if (procedure.effect == PROCEDURE_EXCHANGE)
        TRY(check_spares(linked, procedure.wants_spare, refused_out));
    status = call_all(linked, name, args, replies_out, refused_out);
    if (status == OK || procedure.effect == PROCEDURE_SLEEP)
        note_sleep(linked, &procedure);
    TRY(status);
    if (procedure.effect == PROCEDURE_LOAD) {
        mem_free(linked->spare_model);
        linked->spare_model = mem_strdup(procedure.path);
    } else if (procedure.effect == PROCEDURE_EXCHANGE) {
        exchange_models(linked);
    }
    return OK;
}
