/* bench step: what the engine itself does for a decode step. */
#include "engine/bench/bench.h"
#include "engine/bench/decode_load.h"
#include "engine/bench/samples.h"
#include "proto/base/clock.h"

enum { NUM_REPEATS = 5, NUM_STEPS = 320 };

struct step_settings {
    int32_t running;
    bool async_scheduling;
};

struct step_times {
    struct samples schedule, update, total;
};

static void step_times_close(struct step_times *times)
{
    samples_close(&times->schedule);
    samples_close(&times->update);
    samples_close(&times->total);
}

/* In the order of core_step and core_step_async: in async a step is in flight while the next one is
 * scheduled. */
static enum status run_steps(const struct step_settings *settings, struct step_times *times)
{
    AUTO_CLOSE(decode_load) struct decode_load load = {0};
    struct decode_step *last = NULL;

    TRY(decode_load_open(settings->running, NUM_STEPS, &load));
    for (int32_t i = 0; i < NUM_STEPS; i++) {
        struct decode_step *next = decode_load_begin(&load);
        struct decode_step *back = settings->async_scheduling ? last : next;
        int64_t schedule_ns = -clock_now_ns(), update_ns;

        scheduler_schedule(load.scheduler, &next->arena, &next->plan);
        schedule_ns += clock_now_ns();
        ASSERT(next->plan.total_num_scheduled_tokens == settings->running);
        decode_load_answer(&load, next);
        last = next;
        if (!back)
            continue;

        update_ns = -clock_now_ns();
        TRY(scheduler_update_from_output(load.scheduler, &back->plan, &back->answer, &load.events));
        update_ns += clock_now_ns();
        decode_load_drop_events(&load);

        samples_add(&times->schedule, schedule_ns);
        samples_add(&times->update, update_ns);
        samples_add(&times->total, schedule_ns + update_ns);
    }
    return OK;
}

static enum status run(const void *settings, double *figures_out)
{
    AUTO_CLOSE(step_times) struct step_times times = {0};

    for (int i = 0; i < NUM_REPEATS; i++)
        TRY(run_steps(settings, &times));
    figures_out[0] = samples_median_us(&times.schedule);
    figures_out[1] = samples_median_us(&times.update);
    figures_out[2] = samples_median_us(&times.total);
    return OK;
}

#define ROW(member, ...) OPTION(struct step_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(running, OPTION_I32, "256", "requests that decode", .least = 1, .most = BENCH_MAX_RUNNING),
    ROW(async_scheduling, OPTION_BOOL, "true", "a step is in flight while the next is scheduled"),
};
#undef ROW

static const struct figure figures[] = {
    {"schedule_us", 2, "the plan of a step"},
    {"update_us", 2, "its answer taken in, update_from_output"},
    {"total_us", 2, "both together"},
};

const struct bench bench_step = {
    .name = "step",
    .help = "the scheduler's part of a decode step",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct step_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
