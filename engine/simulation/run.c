#include "engine/simulation/run.h"

#include "engine/simulation/toy_executor.h"
#include "proto/base/clock.h"
#include "proto/base/mailbox.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    MAX_OUTPUTS = 1 << 20,
    CHECK_TURNS = 16,      /* between two looks at all of the scheduler */
    MAX_IDLE_TURNS = 1000, /* without any output: a livelock */
};

/* An engine that has failed is asked for so long at most. */
static const int64_t LINGER_NS = 2000000000;

struct run {
    const struct scenario *scenario;
    const struct setup *setup;
    struct run_totals *totals;
    struct agenda agenda;
    struct fault_plan faults;
    struct random random;
    struct config config;
    struct mailbox outputs;
    struct toy_front front;
    struct core *core;
    uint32_t epoch;
    struct engine_stats stats; /* after the last turn */
    int64_t num_turns;
    int64_t num_events, idle_turns; /* outputs so far; turns since the last */
};

#define DIFFERS(...) fail(ERR_MISMATCH, __VA_ARGS__)

/* ---- after every turn ----------------------------------------------------------------------- */

static bool has_failed(const struct run *run)
{
    return run->stats.phase == PHASE_FAILED;
}

/* A failure is one that was to be expected, and no later than that. */
static enum status check_failure(const struct run *run, enum fault_kind fatal, int64_t late_ns,
                                 const char *sentence)
{
    bool is_tainted = run->faults.is_tainted;

    if (fatal == FAULT_NONE && !is_tainted)
        return DIFFERS("the engine failed without a fault: %s", sentence);
    if (fatal != FAULT_NONE && late_ns > fault_notice_ns(fatal))
        return DIFFERS("%s was noticed after %.3f s: %s", fault_name(fatal), clock_ms(late_ns) / 1e3,
                       sentence);
    if (fatal != FAULT_CALL_FAILS && !is_tainted && !strstr(sentence, "rank"))
        return DIFFERS("a failure names no rank: %s", sentence);
    return OK;
}

static enum status check_end(const struct run *run, const char *sentence)
{
    const struct fault_plan *faults = &run->faults;

    return check_failure(run, faults->fatal, run->agenda.now_ns - faults->fatal_ns, sentence);
}

/* Requests have not noticed, but for those that had been told something wrong. */
static enum status check_recovery(struct run *run)
{
    const struct fault_plan *faults = &run->faults;

    run->totals->num_recoveries++;
    return check_failure(run, faults->cured, faults->cured_notice_ns - faults->cured_fatal_ns,
                         run->stats.failure);
}

static enum status look(struct run *run)
{
    struct engine_stats before = run->stats;

    core_stats(run->core, &run->stats);
    run->totals->num_steps += run->stats.num_steps - before.num_steps;
    run->totals->num_preemptions += run->stats.num_preemptions - before.num_preemptions;
    run->totals->num_late_masks += run->stats.num_late_masks - before.num_late_masks;
    if (run->stats.num_recoveries > before.num_recoveries)
        return check_recovery(run);
    return has_failed(run) && before.phase != PHASE_FAILED ? check_end(run, run->stats.failure) : OK;
}

static enum status check_books(const struct run *run)
{
    const struct toy_front *front = &run->front;
    int64_t num_live = run->stats.num_running + run->stats.num_waiting;
    int64_t num_in = front->num_added - front->num_pending;

    if (num_in != front->num_ended + num_live)
        return DIFFERS("%" PRId64 " requests came in, %" PRId64 " have ended and %" PRId64 " live",
                       num_in, front->num_ended, num_live);
    if (num_live == 0 && run->stats.num_kv_blocks_used > 0)
        return DIFFERS("nobody lives, and %d KV blocks are taken", run->stats.num_kv_blocks_used);
    return OK;
}

static enum status check_progress(struct run *run)
{
    if (run->front.num_events > run->num_events)
        run->idle_turns = 0;
    run->num_events = run->front.num_events;
    if (++run->idle_turns > MAX_IDLE_TURNS)
        return DIFFERS("%d turns have brought nothing", MAX_IDLE_TURNS);
    return OK;
}

static enum status check_turn(struct run *run)
{
    TRY(look(run));
    run->front.core_has_failed = has_failed(run);
    TRY(toy_front_take_outputs(&run->front, &run->outputs));
    TRY(check_books(run));
    if (++run->num_turns % CHECK_TURNS == 0)
        core_check(run->core);
    return check_progress(run);
}

/* false: there was no step to run. */
static enum status take_turn(struct run *run, bool *has_run_out)
{
    toy_front_expect_heard(&run->front); /* it hears all that it was given */
    *has_run_out = core_turn(run->core);
    return check_turn(run);
}

static enum status wait_for_order(struct run *run)
{
    core_wait(run->core);
    run->idle_turns = 0;
    return check_turn(run);
}

/* ---- engines -------------------------------------------------------------------------------- */

static void set_text(char **text, const char *value)
{
    mem_free(*text);
    *text = mem_strdup(value);
}

static void configure(const struct scenario *scenario, const struct setup *setup,
                      struct config *config)
{
    config_init(config);
    config->threads = 1;
    config->tp = setup->world;
    config->max_model_len = scenario->max_model_len;
    config->block_size = scenario->block_size;
    config->num_gpu_blocks_override = setup->num_blocks;
    config->async_scheduling = setup->async_scheduling;
    config->enable_prefix_caching = setup->enable_prefix_caching;
    config->enable_chunked_prefill = setup->enable_chunked_prefill;
    config->max_num_seqs = setup->max_num_seqs;
    config->max_num_active_seqs = setup->max_num_active_seqs;
    config->max_num_batched_tokens = setup->max_num_batched_tokens;
    config->long_prefill_token_threshold = setup->long_prefill_token_threshold;
    config->long_prefill_token_threshold_adaptive = setup->long_prefill_token_threshold_adaptive;
    config->decode_slowdown = setup->decode_slowdown;
    config->watermark = setup->watermark;
    config->flight_recorder_bytes = 1 << 14;
    config->max_restarts = setup->replaces_ranks;
    set_text(&config->dump_dir, "");
    set_text(&config->scheduling_policy, setup->policy == POLICY_PRIORITY ? "priority" : "fcfs");
}

static enum status open_executor(struct run *run, struct executor **out)
{
    const struct setup *setup = run->setup;

    return toy_executor_open(&run->config,
                             &(struct cluster_options){
                                 .agenda = &run->agenda,
                                 .faults = &run->faults,
                                 .seed = random_next(&run->random),
                                 .epoch = run->epoch,
                                 .world = setup->world,
                                 .limits = {.max_num_seqs = setup->max_num_seqs,
                                            .max_num_batched_tokens = setup->max_num_batched_tokens,
                                            .max_model_len = run->scenario->max_model_len,
                                            .vocab_size = run->scenario->vocab_size,
                                            .block_size = run->scenario->block_size},
                                 .latency_max_ns = setup->latency_max_ns,
                                 .step_max_ns = setup->step_max_ns,
                             },
                             out);
}

static void begin_epoch(struct run *run)
{
    run->epoch++;
    run->faults.fatal = FAULT_NONE;
    run->faults.is_tainted = false;
    run->stats = (struct engine_stats){0};
}

/* The next epoch's. Faults may strike before its ranks are ready: then the one after it. */
static enum status open_engine(struct run *run)
{
    struct executor *executor;

    for (begin_epoch(run); open_executor(run, &executor) != OK; begin_epoch(run)) {
        TRY(check_end(run, fail_text()));
        run->totals->num_epochs_ended++;
    }
    TRY(core_new(&(struct core_options){.config = &run->config,
                                        .executor = executor,
                                        .outputs = &run->outputs,
                                        .grammar_fd = run->front.grammar_fd,
                                        .vocab_size = run->scenario->vocab_size},
                 &run->core));
    toy_front_connect(&run->front, run->core);
    return OK;
}

/* Ends what is left. */
static enum status close_engine(struct run *run)
{
    struct core *core = run->core;

    run->core = run->front.core = NULL; /* nobody comes to it any more */
    core_free(core);
    return toy_front_take_outputs(&run->front, &run->outputs);
}

/* An engine that has failed is asked for a while, and answers with errors; then the next one comes.
 */
static enum status replace_engine(struct run *run)
{
    int64_t end_ns;
    bool has_run;

    end_ns = run->agenda.now_ns + random_between(&run->random, 0, LINGER_NS);
    while (agenda_next_ns(&run->agenda) < end_ns) {
        agenda_step(&run->agenda);
        TRY(take_turn(run, &has_run));
    }
    TRY(close_engine(run));
    run->totals->num_epochs_ended++;
    return open_engine(run);
}

/* ---- the run -------------------------------------------------------------------------------- */

static enum status take_turns(struct run *run)
{
    while (!run->front.is_settled) {
        bool has_run;

        TRY(take_turn(run, &has_run));
        if (!has_run && !has_failed(run))
            TRY(wait_for_order(run));
        if (has_failed(run))
            TRY(replace_engine(run));
    }
    if (run->faults.fatal != FAULT_NONE)
        return DIFFERS("%s went unnoticed", fault_name(run->faults.fatal));
    TRY(close_engine(run));
    return toy_front_check_end(&run->front);
}

static enum status run_open(struct run *run)
{
    configure(run->scenario, run->setup, &run->config);
    clock_simulate(&run->agenda.now_ns);
    run->agenda.now_ns = 1000000000;
    run->random.state = mix(run->scenario->seed + 1);
    run->faults.random.state = mix(run->scenario->seed + 2);
    run->faults.num_faults = run->setup->num_faults;
    memcpy(run->faults.faults, run->setup->faults, sizeof run->setup->faults);
    run->front = (struct toy_front){
        .scenario = run->scenario,
        .setup = run->setup,
        .agenda = &run->agenda,
        .faults = &run->faults,
        .totals = run->totals,
        .grammar_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
    };
    if (run->front.grammar_fd < 0)
        return fail(ERR_IO, "no descriptor for grammars: %m");
    toy_front_open(&run->front);
    TRY(mailbox_open(&run->outputs, MAX_OUTPUTS));
    return open_engine(run);
}

static void run_close(struct run *run)
{
    run->front.faults = &run->faults;
    (void)close_engine(run);
    mailbox_close(&run->outputs);
    agenda_close(&run->agenda);
    if (run->front.grammar_fd > 0)
        close(run->front.grammar_fd);
    config_close(&run->config);
    clock_simulate(NULL);
}

enum status run_setup(const struct scenario *scenario, const struct setup *setup,
                      struct run_totals *totals)
{
    struct run run = {.scenario = scenario, .setup = setup, .totals = totals};
    enum status status = run_open(&run);
    char sentence[512];

    if (status == OK)
        status = take_turns(&run);
    snprintf(sentence, sizeof sentence, "step %" PRId64 " of epoch %u: %s", run.stats.num_steps,
             run.epoch, fail_text());
    run_close(&run);
    totals->num_runs++;
    for (int kind = 0; kind < NUM_FAULT_KINDS; kind++)
        totals->num_faults[kind] += run.faults.num_injected[kind];
    return status == OK ? OK : fail(status, "%s", sentence);
}
