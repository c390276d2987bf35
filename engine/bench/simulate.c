/*
 * bench simulate: the real core under a simulated world, from a seed: are the tokens right,
 * whatever comes?
 */
#include "engine/bench/bench.h"
#include "engine/simulation/simulation.h"
#include "proto/base/log.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct simulate_settings {
    int64_t seed, steps;
};

/* The run in hand, in words; here for whoever hears that the process aborts. */
static char run_text[160];

static void begin(void *user, const struct scenario *scenario, int32_t setup)
{
    (void)user;
    snprintf(run_text, sizeof run_text,
             "seed %" PRIu64 ", setup %d (%s); alone: tandem bench simulate --seed %" PRIu64
             " --steps 1\n",
             scenario->seed, setup, scenario->setups[setup].async_scheduling ? "async" : "sync",
             scenario->seed);
}

static void report(void *user, const struct scenario *scenario, int32_t setup, const char *sentence)
{
    (void)user;
    (void)scenario;
    (void)setup;
    fprintf(stderr, "%s\n  %s", sentence, run_text);
}

/* An assertion has failed, and has said which: this says where. Then the process ends as it would.
 */
static void on_abort(int signal_number)
{
    if (write(STDERR_FILENO, run_text, strlen(run_text)) < 0)
        return;
    signal(signal_number, SIG_DFL);
}

static enum status run(const void *user, double *figures_out)
{
    const struct simulate_settings *settings = user;
    struct simulation_result result;
    enum log_level level = log_get_level();

    signal(SIGABRT, on_abort);
    signal(SIGFPE, on_abort);
    signal(SIGSEGV, on_abort);
    log_set_level(LOG_NONE); /* engines fail here by the thousand, and print their steps */
    simulation_run(&(struct simulation_options){.seed = (uint64_t)settings->seed,
                                                .num_steps = settings->steps,
                                                .begin = begin,
                                                .report = report},
                   &result);
    log_set_level(level);
    signal(SIGABRT, SIG_DFL);
    figures_out[0] = (double)result.totals.num_steps;
    figures_out[1] = (double)result.num_differences;
    figures_out[2] = 0;
    for (int kind = 0; kind < NUM_FAULT_KINDS; kind++)
        figures_out[2] += (double)result.totals.num_faults[kind];
    figures_out[3] = (double)settings->seed;
    return OK;
}

#define ROW(member, ...) OPTION(struct simulate_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(seed, OPTION_I64, "1", "of the first scenario; the next has the next number", .most = 1e15),
    ROW(steps, OPTION_I64, "1000000", "of the engine, at least", .least = 1, .most = 1e15),
};
#undef ROW

static const struct figure figures[] = {
    {"steps", 0, "that engines ran"},
    {"differences", 0, "from what the oracle says; the exit status is 1 if there are any",
     .must_be_zero = true},
    {"faults_injected", 0, "lost ranks, messages and calls"},
    {"seed", 0, "of the first scenario"},
};

const struct bench bench_simulate = {
    .name = "simulate",
    .help = "not time, but whether all is right: a simulation of the engine, with faults",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct simulate_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
