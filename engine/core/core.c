#include "engine/core/core.h"

#include "engine/core/step_dump.h"
#include "engine/core/step_log.h"
#include "engine/core/vocabulary_check.h"
#include "engine/executor/procedures.h"
#include "engine/grammar/grammar.h"
#include "proto/base/build_id.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/mailbox.h"
#include "proto/base/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* Files of failed steps that one process leaves: they have some megabytes each. */
enum { MAX_DUMPS = 16 };

/* Orders that may wait for a step to end: more than any front has requests open. */
enum { MAX_ORDERS = 1 << 20 };

enum order_kind {
    ORDER_ADD,
    ORDER_SET_GRAMMAR,
    ORDER_ABORT,
    ORDER_PAUSE,
    ORDER_RESUME,
    ORDER_RESET_PREFIX_CACHE,
    ORDER_RETUNE,
    ORDER_CALL_WORKERS,
    ORDER_RELOAD_WEIGHTS,
    ORDER_RESTART_WORKER
};

/* From the front. */
struct order {
    struct mail mail;
    enum order_kind kind;
    struct request *request;
    request_id id;
    struct grammar *grammar; /* ORDER_SET_GRAMMAR, with the next two */
    enum status status;
    char *text; /* owned; of ORDER_RELOAD_WEIGHTS the path, of ORDER_CALL_WORKERS the name, with */
    char *args; /* owned: what the ranks are told */
    int32_t rank; /* ORDER_RESTART_WORKER */
    struct vocabulary_check *words; /* ORDER_RELOAD_WEIGHTS: they are compared; then */
    bool has_begun;                 /* the ranks load */

    /* Those that are answered: */
    engine_listener *listener;
    void *user;
    enum pause_mode mode;
    bool clear_cache, reset_running;
    struct scheduler_tuning tuning;
    struct list_node link; /* in core->pauses, or core->calls */
};

/* One step on its way through the verbs. */
struct step {
    int64_t id;
    struct arena arena; /* the plan's */
    struct scheduler_output plan;
    struct grammar_output masks;
    const struct model_runner_output *output; /* once collected */
};

struct core {
    struct core_options options;
    struct executor *executor;
    struct scheduler *scheduler;
    struct mailbox orders; /* shut: core is to stop */
    pthread_t thread;
    bool has_thread; /* else whoever calls core_turn is core's thread */
    bool has_failed;
    int wake_fd; /* readable for an order, or for a mask: an epoll */
    struct step steps[2]; /* by id & 1 */
    int64_t next_step;
    struct step *in_flight; /* async: launched and not collected; NULL: none */
    struct step *current;   /* whose verb runs: the one to print when it fails */
    const char *verb;       /* the verb */
    int64_t masks_end_ns;   /* of the last masks in the trace */
    struct output_builder events;
    struct list_node pauses; /* orders that are not answered yet */
    struct dump_writer *dump_writer; /* of the last step that failed; NULL: none did */
    int32_t num_dumps;
    struct list_node calls;  /* orders for the ranks: until they are carried out no step begins */
    struct order *reload;    /* that waits until the ranks have loaded; NULL: none does */
    int look_fd;             /* readable when it is time to ask them; -1: nobody waited yet */

    pthread_mutex_t stats_lock;
    struct engine_stats stats; /* as of the last step */
};

/* ---- out ------------------------------------------------------------------------------------ */

static void count_events(struct engine_stats *stats, const struct output_node *node)
{
    for (int32_t i = 0; node && i < node->output.num_events; i++) {
        const struct engine_event *event = &node->output.events[i];

        stats->generation_tokens += event->num_tokens;
        if (event->finish != FINISH_NONE)
            stats->finished[event->finish]++;
    }
}

static void count_step(struct engine_stats *stats, int32_t num_tokens)
{
    int32_t i = 0;

    while (i < NUM_STEP_SIZES - 1 && num_tokens > step_size_bound(i))
        i++;
    stats->steps_by_size[i]++;
    stats->num_steps++;
    stats->iteration_tokens_sum += num_tokens;
}

static void publish(struct core *core, const struct scheduler_output *plan)
{
    struct output_node *node = output_builder_take(&core->events);
    struct engine_stats *stats = &core->stats;
    struct scheduler_stats now;

    scheduler_get_stats(core->scheduler, &now);
    pthread_mutex_lock(&core->stats_lock);
    count_events(stats, node);
    if (plan || stats->num_running == 0 || stats->is_paused || stats->is_asleep)
        stats->progress_ns = clock_now_ns();
    stats->num_running = now.num_running;
    stats->num_waiting = now.num_waiting + now.num_deferred;
    stats->num_waiting_by_reason[WAITING_CAPACITY] = now.num_waiting;
    stats->num_waiting_by_reason[WAITING_DEFERRED] = now.num_deferred;
    stats->is_paused = scheduler_pause(core->scheduler) != UNPAUSED;
    stats->num_preemptions = now.num_preemptions;
    stats->num_late_masks = now.num_late_masks;
    stats->prompt_limit = now.prompt_limit;
    stats->decode_ns = now.decode_ns;
    stats->num_kv_blocks_used = stats->num_kv_blocks - now.num_free_blocks;
    stats->prompt_tokens = now.num_prompt_tokens;
    stats->prefix_cache_queries = now.at_first.queries;
    stats->prefix_cache_hits = now.at_first.hits;
    stats->recent_prefix_cache_queries = now.recent_queries;
    stats->recent_prefix_cache_hits = now.recent_hits;
    if (plan)
        count_step(stats, plan->total_num_scheduled_tokens);
    pthread_mutex_unlock(&core->stats_lock);

    if (node && mailbox_push(core->options.outputs, &node->mail) != OK)
        engine_output_free(&node->output); /* nobody listens any more */
}

/* Behind the events that have come before it. */
static void answer(struct core *core, const struct order *order, enum status status,
                   const char *text)
{
    struct output_node *node;

    publish(core, NULL);
    if (!order->listener)
        return;
    node = output_node_answer(order->listener, order->user, status, text);
    if (mailbox_push(core->options.outputs, &node->mail) != OK)
        engine_output_free(&node->output); /* nobody listens any more */
}

/* ---- the verbs ------------------------------------------------------------------------------ */

static struct step *begin_step(struct core *core)
{
    struct step *step = &core->steps[core->next_step & 1];

    arena_reset(&step->arena);
    step->id = core->next_step;
    step->masks = (struct grammar_output){0};
    return step;
}

/* false: no row. A plan without rows is no step. */
static bool schedule(struct core *core, struct step *step)
{
    int64_t begin_ns = trace_begin();

    scheduler_schedule(core->scheduler, &step->arena, &step->plan);
    trace_end("schedule", begin_ns, step->id);
    if (step->plan.num_rows == 0)
        return false;
    core->next_step++;
    return true;
}

static enum status prepare_inputs(struct core *core, struct step *step)
{
    int64_t begin_ns = trace_begin();

    core->current = step;
    core->verb = "prepare_inputs";
    TRY(executor_prepare_inputs(core->executor, step->id, &step->plan));
    trace_end("prepare_inputs", begin_ns, step->id);
    return OK;
}

static enum status execute_model(struct core *core, struct step *step)
{
    core->current = step;
    core->verb = "execute_model";
    return executor_execute_model(core->executor, step->id);
}

/* Forgets what the descriptor has said: whoever waits for a mask asks first. */
static void hear_grammars(struct core *core)
{
    uint64_t count;

    if (core->options.grammar_fd >= 0 && read(core->options.grammar_fd, &count, sizeof count) < 0)
        ASSERT(errno == EAGAIN);
}

/* Parks until the masks are filled, for a moment at most: those that come later are left out. */
static void wait_for_masks(struct core *core, const struct step *step)
{
    int64_t deadline_ns = clock_deadline_ns(core->options.mask_patience_ms);
    struct pollfd fd = {.fd = core->options.grammar_fd, .events = POLLIN};

    int left_ms;

    while (!scheduler_masks_are_ready(core->scheduler, &step->plan) && fd.fd >= 0 &&
           (left_ms = clock_left_ms(deadline_ns)) > 0)
        if (poll(&fd, 1, left_ms) > 0)
            hear_grammars(core);
}

/* Grammar processes have no row in the trace; their work has, as far as this step waited for it. */
static void trace_masks(struct core *core, const struct step *step)
{
    int64_t begin_ns, end_ns;

    scheduler_fill_times(core->scheduler, &step->plan, &begin_ns, &end_ns);
    begin_ns = MAX(begin_ns, core->masks_end_ns); /* one that was late has been told before */
    if (end_ns > begin_ns) {
        trace_add_to("masks", "fill_masks", begin_ns, end_ns, step->id);
        core->masks_end_ns = end_ns;
    }
}

/* The masks of a step's rows, all of whose tokens are known by now. */
static void grammar_bitmask(struct core *core, struct step *step)
{
    int64_t begin_ns = trace_begin();

    wait_for_masks(core, step);
    scheduler_grammar_bitmask(core->scheduler, &step->plan, &step->arena, &step->masks,
                              &core->events);
    if (begin_ns)
        trace_masks(core, step);
    trace_end("grammar_bitmask", begin_ns, step->id);
}

static enum status sample(struct core *core, struct step *step)
{
    int64_t begin_ns = trace_begin();

    core->current = step;
    core->verb = "sample";
    TRY(executor_sample(core->executor, step->id, step->masks.num_rows > 0 ? &step->masks : NULL));
    trace_end("sample", begin_ns, step->id);
    return OK;
}

static enum status collect(struct core *core, struct step *step)
{
    int64_t begin_ns = trace_begin();

    core->current = step;
    core->verb = "collect";
    TRY(executor_collect(core->executor, step->id, &step->output));
    trace_end("collect", begin_ns, step->id);
    return OK;
}

static enum status update_from_output(struct core *core, struct step *step)
{
    int64_t begin_ns = trace_begin();

    core->current = step;
    core->verb = "update_from_output";
    /* By the device's clock: what comes between steps is no matter of how long they are. */
    scheduler_observe(core->scheduler, step->output->execute_ns + step->output->sample_ns);
    if (scheduler_update_from_output(core->scheduler, &step->plan, step->output, &core->events) !=
        OK)
        return fail(ERR_MISMATCH, "rank 0: %s", fail_text());
    trace_end("update_from_output", begin_ns, step->id);
    publish(core, &step->plan);
    return OK;
}

static enum status core_step(struct core *core)
{
    struct step *step = begin_step(core);

    if (!schedule(core, step))
        return OK;
    TRY(prepare_inputs(core, step));
    TRY(execute_model(core, step));
    if (scheduler_num_masks(&step->plan) > 0)
        grammar_bitmask(core, step); /* while the model runs */
    TRY(sample(core, step));
    TRY(collect(core, step));
    return update_from_output(core, step);
}

/*
 * One step stays in flight: the ranks have step N + 1, and its "go", before they answer step N.
 * Masks of step N + 1 depend on the tokens of step N, so its forward pass starts without them, and
 * they are filled, and sent, while it runs. A step without masks may sample as soon as it has run.
 */
static enum status core_step_async(struct core *core)
{
    struct step *next = begin_step(core), *last = core->in_flight;
    bool has_next = list_is_empty(&core->calls) && schedule(core, next);
    bool has_masks = has_next && scheduler_num_masks(&next->plan) > 0;

    if (has_next) {
        TRY(prepare_inputs(core, next));
        TRY(execute_model(core, next));
        if (!has_masks)
            TRY(sample(core, next));
    }
    if (last) {
        TRY(collect(core, last));
        TRY(update_from_output(core, last));
    }
    core->in_flight = has_next ? next : NULL;
    if (!has_masks)
        return OK;
    grammar_bitmask(core, next);
    return sample(core, next);
}

/* ---- orders that are answered ---------------------------------------------------------------- */

static void free_order(struct order *order)
{
    if (order->words && vocabulary_check_end(order->words) != OK)
        log_debug("nobody waits for it: %s", fail_text());
    mem_free(order->text);
    mem_free(order->args);
    mem_free(order);
}

/* Its answer waits until the steps in flight are back, and what it lets end has ended. */
static void pause_scheduler(struct core *core, struct order *order)
{
    if (order->mode == PAUSE_ABORT)
        scheduler_end_all(core->scheduler, ERR_ABORTED, "", &core->events);
    scheduler_set_pause(core->scheduler, order->mode == PAUSE_KEEP ? PAUSED_ALL : PAUSED_NEW);
    list_push_back(&core->pauses, &order->link);
}

static void end_order(struct core *core, struct order *order, enum status status,
                      const char *text)
{
    list_remove(&order->link);
    answer(core, order, status, text);
    free_order(order);
}

static void end_pauses(struct core *core, enum status status, const char *text)
{
    struct order *order;

    LIST_FOR_EACH (order, &core->pauses, link)
        end_order(core, order, status, text);
}

/* The pauses that are complete. */
static void settle_pauses(struct core *core)
{
    struct order *order;

    if (core->in_flight)
        return;
    LIST_FOR_EACH (order, &core->pauses, link) {
        if (order->mode == PAUSE_WAIT && !scheduler_is_drained(core->scheduler))
            continue;
        if (order->clear_cache && order->mode != PAUSE_KEEP)
            ASSERT(scheduler_reset_prefix_cache(core->scheduler, false));
        end_order(core, order, OK, "");
    }
}

static void resume_scheduler(struct core *core, const struct order *order)
{
    scheduler_set_pause(core->scheduler, UNPAUSED);
    end_pauses(core, ERR_ABORTED, "the engine was resumed before it had paused");
    answer(core, order, OK, "");
}

static void reset_prefix_cache(struct core *core, const struct order *order)
{
    char text[96];

    if (scheduler_reset_prefix_cache(core->scheduler, order->reset_running)) {
        answer(core, order, OK, "");
        return;
    }
    snprintf(text, sizeof text, "the prefix cache is in use: %d requests run",
             scheduler_num_running(core->scheduler));
    answer(core, order, ERR_FULL, text);
}

static void end_calls(struct core *core, enum status status, const char *text)
{
    struct order *order;

    if (core->reload)
        list_push_back(&core->calls, &give(core->reload)->link);
    LIST_FOR_EACH (order, &core->calls, link)
        end_order(core, order, status, text);
}

/* ---- failure -------------------------------------------------------------------------------- */

static void set_phase(struct core *core, enum engine_phase phase, enum status status,
                      const char *cause)
{
    pthread_mutex_lock(&core->stats_lock);
    core->stats.phase = phase;
    core->stats.failure_status = status;
    snprintf(core->stats.failure, sizeof core->stats.failure, "%s", cause);
    pthread_mutex_unlock(&core->stats_lock);
}

/* Every request gets its error, those to come are refused. */
static void fail_engine(struct core *core, enum status status)
{
    AUTO_MEM char *cause = mem_strdup(fail_text());

    core->has_failed = true;
    set_phase(core, PHASE_FAILED, status, cause);
    core->in_flight = NULL;
    scheduler_forget_in_flight(core->scheduler);
    scheduler_end_all(core->scheduler, status, cause, &core->events);
    publish(core, NULL);
    end_pauses(core, status, cause);
    end_calls(core, status, cause);
}

/* Nothing that the ranks know of requests is left; of steps in flight nothing is heard any more. */
static void start_over(struct core *core)
{
    core->in_flight = NULL;
    scheduler_start_over(core->scheduler);
    publish(core, NULL);
}

/* rank: to be replaced besides those that failed; -1: none. */
static enum status recover(struct core *core, int32_t rank, const char *cause)
{
    int64_t begin_ns = clock_now_ns(), trace_ns = trace_begin();
    enum status status;

    start_over(core);
    set_phase(core, PHASE_RECOVERING, OK, cause);
    (void)fail(OK, "%s", cause); /* what an executor that gives up adds to */
    status = core->executor->ops->recover(core->executor, rank);
    if (status != OK)
        return status;
    trace_end("recover", trace_ns, core->next_step);
    pthread_mutex_lock(&core->stats_lock);
    core->stats.phase = PHASE_READY;
    core->stats.progress_ns = clock_now_ns();
    core->stats.is_asleep = false; /* nobody comes back asleep */
    core->stats.num_recoveries++;
    core->stats.recovery_ns = clock_now_ns() - begin_ns;
    core->stats.recovery_sum_ns += core->stats.recovery_ns;
    pthread_mutex_unlock(&core->stats_lock);
    return OK;
}

/* The ranks have failed, with this status and the last sentence. */
static void recover_or_fail(struct core *core, enum status status)
{
    if (core->executor->ops->recover && core->options.config->max_restarts > 0) {
        AUTO_MEM char *cause = mem_strdup(fail_text());

        status = recover(core, -1, cause);
        if (status == OK)
            return;
        log_error("%s", fail_text());
    }
    fail_engine(core, status);
}

/* ---- orders for the ranks -------------------------------------------------------------------- */

static void restart_worker(struct core *core, struct order *order)
{
    enum status status = recover(core, order->rank, "an operator asked for it");

    if (status == OK) {
        end_order(core, order, OK, "");
        return;
    }
    log_error("%s", fail_text());
    fail_engine(core, status); /* the order has its answer too */
}

/* What a call that all ranks have carried out leaves behind here. */
static void note_call(struct core *core, const char *name, const char *args, const char *replies)
{
    struct procedure procedure;

    procedure_read(name, args, &procedure);
    if (procedure.effect == PROCEDURE_SLEEP || procedure.effect == PROCEDURE_EXCHANGE)
        start_over(core);
    pthread_mutex_lock(&core->stats_lock);
    if (procedure.effect == PROCEDURE_SLEEP || procedure.effect == PROCEDURE_WAKE_UP)
        core->stats.is_asleep = procedure.effect == PROCEDURE_SLEEP;
    if (procedure.effect == PROCEDURE_EXCHANGE) {
        core->stats.weights_version++;
        procedure_read_fingerprint(replies, core->stats.fingerprint);
    }
    pthread_mutex_unlock(&core->stats_lock);
}

static enum status call_ranks(struct core *core, const char *name, const char *args,
                              struct bytes *replies, bool *refused_out)
{
    *refused_out = false;
    TRY(core->executor->ops->call(core->executor, name, args, replies, refused_out));
    note_call(core, name, args, bytes_text(replies));
    return OK;
}

/* The order has come to its end; a failure that was no refusal is one of the ranks. */
static void end_call(struct core *core, struct order *order, enum status status, bool is_refused,
                     const char *text)
{
    AUTO_MEM char *cause = mem_strdup(text);

    end_order(core, order, status, cause);
    if (status == OK || is_refused)
        return;
    log_error("%s", cause);
    (void)fail(status, "%s", cause);
    recover_or_fail(core, status);
}

static void call_workers(struct core *core, struct order *order)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};
    bool is_refused;
    enum status status = call_ranks(core, order->text, order->args, &replies, &is_refused);

    end_call(core, order, status, is_refused, status == OK ? bytes_text(&replies) : fail_text());
}

/* ---- other weights --------------------------------------------------------------------------- */

enum { LOOK_MS = 100 };

static enum status call_weights(struct core *core, const char *args, struct bytes *replies,
                                bool *refused_out)
{
    replies->size = 0;
    return call_ranks(core, "reload_weights", args, replies, refused_out);
}

/* Wakes core in a while. */
static enum status look_later(struct core *core)
{
    struct itimerspec when = {.it_value.tv_nsec = LOOK_MS * 1000000L};
    struct epoll_event event = {.events = EPOLLIN};

    if (core->look_fd < 0) {
        core->look_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        if (core->look_fd < 0 ||
            epoll_ctl(core->wake_fd, EPOLL_CTL_ADD, core->look_fd, &event) != 0)
            return fail(ERR_IO, "the core can't wait for its ranks to load: %m");
    }
    timerfd_settime(core->look_fd, 0, &when, NULL);
    return OK;
}

/* Before the ranks load: a refusal costs little then. */
static enum status compare_words(struct core *core, struct order *order, bool *is_over_out)
{
    const struct vocabulary *running = core->options.vocabulary;

    *is_over_out = true;
    if (!running)
        return OK;
    if (!order->words)
        TRY(vocabulary_check_start(running, order->text, &order->words));
    *is_over_out = vocabulary_check_is_over(order->words);
    return *is_over_out ? vocabulary_check_end(give(order->words)) : look_later(core);
}

/* Weights that an earlier reload has left are given up first. */
static enum status begin_reload(struct core *core, const struct order *order, bool *refused_out)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};

    TRY(call_weights(core, "{\"phase\": \"drop\"}", &replies, refused_out));
    return call_weights(core, order->args, &replies, refused_out);
}

/* Nothing to be seen is left of a load that came to nothing. The failure stays as it was. */
static enum status drop_loaded(struct core *core, enum status status)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};
    AUTO_MEM char *cause = mem_strdup(fail_text());
    bool is_refused;

    if (call_weights(core, "{\"phase\": \"drop\"}", &replies, &is_refused) != OK)
        log_warn("weights that were loaded are not dropped: %s", fail_text());
    return fail(status, "%s", cause);
}

/* Not over: the ranks are still loading. */
static enum status end_reload(struct core *core, bool *is_over_out, bool *refused_out)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};
    enum status status;

    *is_over_out = true;
    TRY(call_weights(core, "{\"phase\": \"status\"}", &replies, refused_out));
    *refused_out = true;
    status = procedure_check_loads(bytes_text(&replies), is_over_out);
    if (status != OK)
        return drop_loaded(core, status);
    if (!*is_over_out)
        return look_later(core);
    return call_weights(core, "{\"phase\": \"swap\"}", &replies, refused_out);
}

static enum status go_on_to_load(struct core *core, struct order *order, bool *is_over_out, bool *refused_out)
{
    bool may_load;

    *is_over_out = false;
    *refused_out = true;
    TRY(compare_words(core, order, &may_load));
    if (!may_load)
        return OK;
    order->has_begun = true;
    TRY(begin_reload(core, order, refused_out));
    return look_later(core);
}

static void reload_weights(struct core *core, struct order *order)
{
    bool is_refused = true, is_over = true;
    enum status status;

    if (order->has_begun)
        status = end_reload(core, &is_over, &is_refused);
    else if (core->reload)
        status = fail(ERR_FULL, "other weights are being loaded");
    else
        status = go_on_to_load(core, order, &is_over, &is_refused);
    if (status != OK || is_over) {
        AUTO_MEM char *text = mem_printf("{\"fingerprint\": \"%s\", \"version\": %" PRId64 "}",
                                         core->stats.fingerprint, core->stats.weights_version);

        end_call(core, order, status, is_refused, status == OK ? text : fail_text());
        return;
    }
    list_remove(&order->link);
    core->reload = order;
}

/* The clock says when, steps or none. Before other orders: another reload is to see that this one goes on. */
static void look_at_reload(struct core *core)
{
    uint64_t num_ticks;

    /* What nobody waits for any more is read too, or it would wake core for ever. */
    if (core->look_fd >= 0 && read(core->look_fd, &num_ticks, sizeof num_ticks) == sizeof num_ticks &&
        core->reload)
        list_push_front(&core->calls, &give(core->reload)->link);
}

/* ---- orders for the ranks, in turn ----------------------------------------------------------- */

/* When no step is in flight. */
static void settle_calls(struct core *core)
{
    struct order *order;

    while (!core->in_flight && !core->has_failed && !list_is_empty(&core->calls)) {
        order = LIST_FIRST(&core->calls, struct order, link);
        if (order->kind == ORDER_RESTART_WORKER)
            restart_worker(core, order);
        else if (order->kind == ORDER_RELOAD_WEIGHTS)
            reload_weights(core, order);
        else
            call_workers(core, order);
    }
}

/* ---- in ------------------------------------------------------------------------------------- */

/* An engine that has failed tells whoever comes too late for engine_submit to refuse it. */
static void refuse(struct core *core, struct request *request)
{
    struct engine_event *event = output_builder_add(&core->events, request);
    char text[sizeof core->stats.failure + 32];
    int length = snprintf(text, sizeof text, "the engine has failed: %s", core->stats.failure);

    event->finish = FINISH_ERROR;
    event->error = ERR_CLOSED;
    event->error_text = arena_strndup(output_builder_arena(&core->events), text, (size_t)length);
    request_free(request);
}

/* Takes the order. */
static void carry_out(struct core *core, struct order *order)
{
    if (core->has_failed && order->listener) {
        answer(core, order, ERR_CLOSED, core->stats.failure);
        free_order(order);
        return;
    }
    switch (order->kind) {
    case ORDER_ADD:
        if (core->has_failed)
            refuse(core, order->request);
        else
            scheduler_add(core->scheduler, order->request);
        break;
    case ORDER_SET_GRAMMAR:
        scheduler_set_grammar(core->scheduler, order->id, order->grammar, order->status,
                              order->text, &core->events);
        break;
    case ORDER_ABORT:
        scheduler_abort(core->scheduler, order->id, &core->events);
        break;
    case ORDER_PAUSE:
        pause_scheduler(core, order);
        return; /* it waits for its answer */
    case ORDER_RESUME:
        resume_scheduler(core, order);
        break;
    case ORDER_RESET_PREFIX_CACHE:
        reset_prefix_cache(core, order);
        break;
    case ORDER_RETUNE:
        scheduler_retune(core->scheduler, &order->tuning);
        answer(core, order, OK, "");
        break;
    case ORDER_CALL_WORKERS:
    case ORDER_RELOAD_WEIGHTS:
    case ORDER_RESTART_WORKER:
        list_push_back(&core->calls, &order->link);
        return; /* it waits for the steps in flight */
    }
    free_order(order);
}

static void obey(struct core *core)
{
    struct mail *mail;

    while ((mail = mailbox_pop(&core->orders)))
        carry_out(core, MAIL_ITEM(mail, struct order, mail));
    publish(core, NULL);
    settle_pauses(core);
    look_at_reload(core);
    settle_calls(core);
}

/* A rank that dies meanwhile has failed too. */
void core_wait(struct core *core)
{
    struct pollfd news = {.fd = core->wake_fd, .events = POLLIN};

    scheduler_check(core->scheduler);
    if (core->has_failed) {
        while (poll(&news, 1, -1) < 0)
            ASSERT(errno == EINTR);
    } else {
        enum status status = executor_wait(core->executor, news.fd);

        if (status != OK) {
            log_error("%s", fail_text());
            recover_or_fail(core, status);
        }
    }
}

/* The steps in flight, oldest first; the one that failed is the last of them, or the first of two.
 */
static void take_steps(struct core *core, struct step_dump *dump)
{
    int32_t n = scheduler_num_in_flight(core->scheduler);
    const struct scheduler_output *plans[DUMP_MAX_STEPS];

    for (int32_t i = 0; i < n; i++) {
        const struct step *step = &core->steps[(core->next_step - n + i) & 1];

        plans[i] = &step->plan;
        dump->steps[i] = (struct dumped_step){step->id, step->plan, step->masks};
    }
    dump->num_steps = n;
    scheduler_describe_in_flight(core->scheduler, plans, n, &dump->arena, &dump->before);
    step_dump_forget_strangers(dump);
}

/* NULL stays NULL, and what is there no more stays as it is. */
static char *whole_path(const char *path)
{
    char *whole = path ? realpath(path, NULL) : NULL;

    return whole || !path ? whole : mem_strdup(path);
}

/* The settings, from which a fresh engine gets the same ranks wherever it is started: what they
 * left open is settled. */
static char *settled_config(const struct core *core)
{
    struct config settled = *core->options.config; /* borrows the texts */
    const struct executor_info *info = &core->executor->info;
    AUTO_MEM char *model = whole_path(settled.model), *sim = whole_path(settled.sim);

    settled.model = model;
    settled.sim = sim;
    settled.max_model_len = info->max_model_len;
    settled.num_gpu_blocks_override = info->num_kv_blocks;
    return config_to_json(&settled);
}

/* To a file, whole, so that it can be run again. */
static void dump_step(struct core *core, enum status status, const char *cause)
{
    const struct config *config = core->options.config;
    const char *folder = config->dump_dir ? config->dump_dir : getenv("TMPDIR");
    AUTO_CLOSE(step_dump)
    struct step_dump dump = {
        .config = settled_config(core),
        .build_id = mem_strdup(build_id_text()),
        .fingerprint = mem_strdup(core->options.executor->info.fingerprint),
        .status = status,
        .cause = mem_strdup(cause),
        .verb = mem_strdup(core->verb),
        .failed_step = core->current->id,
        .failed_rank = rank_in_sentence(cause),
    };
    struct scheduler_stats stats;

    take_steps(core, &dump);
    scheduler_get_stats(core->scheduler, &stats);
    dump_writer_free(core->dump_writer);
    core->dump_writer = dump_writer_start(&dump, &stats, core->executor->wire,
                                          folder && *folder ? folder : "/tmp");
    core->num_dumps++;
}

/* In the log and in a file: the one place where a step's failure is told, in sync and async alike.
 */
static void tell_failure(struct core *core, enum status status)
{
    const struct config *config = core->options.config;
    AUTO_MEM char *cause = mem_strdup(fail_text());

    step_log_failure(config, core->scheduler, core->current->id, &core->current->plan, status,
                     cause);
    /* Where ranks are replaced, one failure may follow the other. */
    if (dump_writer_is_busy(core->dump_writer))
        log_error("the step is not written down: one that failed before it still is");
    else if (core->num_dumps == MAX_DUMPS)
        log_error("the step is not written down: %d before it were", MAX_DUMPS);
    else if (!config->dump_dir || *config->dump_dir) /* "": dumps are not wanted */
        dump_step(core, status, cause);
    (void)fail(status, "%s", cause);
}

static void run_step(struct core *core)
{
    enum status status =
        core->options.config->async_scheduling ? core_step_async(core) : core_step(core);

    if (status == OK)
        return;
    tell_failure(core, status);
    recover_or_fail(core, status);
}

static bool has_work(const struct core *core)
{
    return (scheduler_has_work(core->scheduler) && !core->stats.is_asleep) || core->in_flight;
}

bool core_turn(struct core *core)
{
    obey(core);
    hear_grammars(core);
    scheduler_recall(core->scheduler);
    if (!has_work(core))
        return false;
    run_step(core);
    return true;
}

void core_check(const struct core *core)
{
    scheduler_check(core->scheduler);
}

/* Nobody gives orders any more. */
static void finish(struct core *core)
{
    obey(core);
    scheduler_forget_in_flight(core->scheduler);
    scheduler_end_all(core->scheduler, ERR_ABORTED, "the engine stops", &core->events);
    publish(core, NULL);
    end_pauses(core, ERR_CLOSED, "the engine stops");
    end_calls(core, ERR_CLOSED, "the engine stops");
    executor_free(core->executor);
}

static void *core_loop(void *user)
{
    struct core *core = user;

    trace_name_thread("core");
    while (!mailbox_is_shut(&core->orders))
        if (!core_turn(core))
            core_wait(core);
    finish(core);
    return NULL;
}

/* ---- the front's side ----------------------------------------------------------------------- */

/* One descriptor for whatever ends core's rest. */
static enum status open_wake_fd(struct core *core)
{
    int fds[] = {mailbox_fd(&core->orders), core->options.grammar_fd};

    core->wake_fd = epoll_create1(EPOLL_CLOEXEC);
    if (core->wake_fd < 0)
        return fail(ERR_IO, "no descriptor for the core: %m");
    for (size_t i = 0; i < COUNT_OF(fds); i++) {
        struct epoll_event event = {.events = EPOLLIN};

        if (fds[i] >= 0 && epoll_ctl(core->wake_fd, EPOLL_CTL_ADD, fds[i], &event) != 0)
            return fail(ERR_IO, "the core can't wait for its orders: %m");
    }
    return OK;
}

/* Whoever waits for ranks need not, when the engine is to stop. */
static bool is_given_up(void *user)
{
    struct core *core = user;

    return mailbox_is_shut(&core->orders);
}

enum status core_new(const struct core_options *options, struct core **out)
{
    const struct config *config = options->config;
    const struct executor_info *info = &options->executor->info;
    AUTO_FREE(core) struct core *core = mem_new(struct core);

    core->options = *options;
    core->wake_fd = core->look_fd = -1;
    list_init(&core->pauses);
    list_init(&core->calls);
    pthread_mutex_init(&core->stats_lock, NULL);
    core->stats.phase = PHASE_READY;
    memcpy(core->stats.fingerprint, info->fingerprint, sizeof core->stats.fingerprint);
    core->stats.num_ranks = info->num_ranks;
    core->stats.num_kv_blocks = info->num_kv_blocks;
    core->stats.kv_type = config_kv_type(config);
    core->stats.kv_token_bytes = info->memory.kv_block_bytes / config->block_size;
    core->stats.max_model_len = info->max_model_len;
    core->scheduler = scheduler_new(&(struct scheduler_options){
        .max_num_seqs = config->max_num_seqs,
        .max_num_active_seqs = config->max_num_active_seqs,
        .max_num_batched_tokens = config->max_num_batched_tokens,
        .long_prefill_token_threshold = config->long_prefill_token_threshold,
        .long_prefill_token_threshold_adaptive = config->long_prefill_token_threshold_adaptive,
        .decode_slowdown = config->decode_slowdown,
        .watermark = config->watermark,
        .enable_prefix_caching = config->enable_prefix_caching,
        .enable_chunked_prefill = config->enable_chunked_prefill,
        .max_model_len = info->max_model_len,
        .num_blocks = info->num_kv_blocks,
        .block_size = config->block_size,
        .vocab_size = options->vocab_size,
        .policy =
            strcmp(config->scheduling_policy, "priority") == 0 ? POLICY_PRIORITY : POLICY_FCFS,
    });
    TRY(mailbox_open(&core->orders, MAX_ORDERS));
    TRY(open_wake_fd(core));
    core->executor = options->executor;
    core->executor->is_given_up = is_given_up;
    core->executor->user = core;
    *out = give(core);
    return OK;
}

enum status core_start(struct core *core)
{
    if (pthread_create(&core->thread, NULL, core_loop, core) != 0)
        return fail(ERR_IO, "no thread for the core: %m");
    core->has_thread = true;
    return OK;
}

static enum status give_order(struct core *core, struct order order)
{
    struct order *copy = mem_new(struct order);
    enum status status;

    *copy = order;
    status = mailbox_push(&core->orders, &copy->mail);
    if (status != OK)
        free_order(copy);
    return status;
}

void core_free(struct core *core)
{
    if (!core)
        return;
    if (core->executor) {
        mailbox_shut(&core->orders);
        if (core->has_thread)
            pthread_join(core->thread, NULL);
        else
            finish(core);
    }
    if (core->look_fd >= 0)
        close(core->look_fd);
    if (core->wake_fd >= 0)
        close(core->wake_fd);
    mailbox_close(&core->orders);
    scheduler_free(core->scheduler);
    dump_writer_free(core->dump_writer);
    for (size_t i = 0; i < COUNT_OF(core->steps); i++)
        arena_close(&core->steps[i].arena);
    pthread_mutex_destroy(&core->stats_lock);
    mem_free(core);
}

enum status core_add(struct core *core, struct request *request)
{
    return give_order(core, (struct order){.kind = ORDER_ADD, .request = request});
}

void core_set_grammar(struct core *core, request_id id, struct grammar *grammar, enum status status,
                      const char *text)
{
    struct order order = {
        .kind = ORDER_SET_GRAMMAR, .id = id, .grammar = grammar, .status = status};

    order.text = status == OK ? NULL : mem_strdup(text);
    if (give_order(core, order) != OK) {
        /* Such a box is worked off by nobody: the engine stops, and ends the request. */
        log_warn("request %ld gets no grammar: %s", (long)id, fail_text());
        grammar_free(grammar);
    }
}

void core_abort(struct core *core, request_id id)
{
    /* A box this full of orders is worked off soon, and the abort is for a client that has left. */
    if (give_order(core, (struct order){.kind = ORDER_ABORT, .id = id}) != OK)
        log_warn("request %ld is not aborted: %s", (long)id, fail_text());
}

enum status core_pause(struct core *core, enum pause_mode mode, bool clear_cache,
                       engine_listener *listener, void *user)
{
    return give_order(core, (struct order){.kind = ORDER_PAUSE,
                                           .mode = mode,
                                           .clear_cache = clear_cache,
                                           .listener = listener,
                                           .user = user});
}

enum status core_resume(struct core *core, engine_listener *listener, void *user)
{
    return give_order(core,
                      (struct order){.kind = ORDER_RESUME, .listener = listener, .user = user});
}

enum status core_reset_prefix_cache(struct core *core, bool reset_running,
                                    engine_listener *listener, void *user)
{
    return give_order(core, (struct order){.kind = ORDER_RESET_PREFIX_CACHE,
                                           .reset_running = reset_running,
                                           .listener = listener,
                                           .user = user});
}

enum status core_retune(struct core *core, const struct scheduler_tuning *tuning,
                        engine_listener *listener, void *user)
{
    return give_order(core, (struct order){.kind = ORDER_RETUNE,
                                           .tuning = *tuning,
                                           .listener = listener,
                                           .user = user});
}

enum status core_restart_worker(struct core *core, int32_t rank, engine_listener *listener,
                                void *user)
{
    if (!core->executor->ops->recover)
        return fail(ERR_UNSUPPORTED, "--executor %s can't replace its ranks",
                    core->executor->ops->name);
    if (rank < 0 || rank >= core->executor->info.num_ranks)
        return fail(ERR_NOT_FOUND, "there is no rank %d, of %d", rank,
                    core->executor->info.num_ranks);
    return give_order(core, (struct order){.kind = ORDER_RESTART_WORKER,
                                           .rank = rank,
                                           .listener = listener,
                                           .user = user});
}

enum status core_call_workers(struct core *core, const char *name, const char *args,
                              engine_listener *listener, void *user)
{
    if (!core->executor->ops->call)
        return fail(ERR_UNSUPPORTED, "--executor %s has no calls", core->executor->ops->name);
    return give_order(core, (struct order){.kind = ORDER_CALL_WORKERS,
                                           .text = mem_strdup(name),
                                           .args = mem_strdup(args),
                                           .listener = listener,
                                           .user = user});
}

enum status core_reload_weights(struct core *core, const char *path, engine_listener *listener,
                                void *user)
{
    json_t *args = json_pack("{s:s, s:s}", "phase", "begin", "path", path);
    char *text = args ? json_dumps(args, JSON_COMPACT) : NULL;

    json_decref(args);
    if (!text)
        return fail(ERR_INVALID, "the path of the weights is not UTF-8");
    if (!core->executor->ops->call) {
        mem_free(text);
        return fail(ERR_UNSUPPORTED, "--executor %s has no calls", core->executor->ops->name);
    }
    return give_order(core, (struct order){.kind = ORDER_RELOAD_WEIGHTS,
                                           .text = mem_strdup(path),
                                           .args = text,
                                           .listener = listener,
                                           .user = user});
}

int32_t core_workers(const struct core *core, struct engine_worker *out, int32_t capacity)
{
    return core->executor->ops->workers(core->executor, out, capacity);
}

void core_stats(const struct core *core, struct engine_stats *out)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&core->stats_lock;

    pthread_mutex_lock(lock);
    *out = core->stats;
    pthread_mutex_unlock(lock);
}
