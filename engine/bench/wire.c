/* bench wire: a decode step's SchedulerOutput, to a frame and back. */
#include "engine/bench/bench.h"
#include "engine/bench/decode_load.h"
#include "engine/bench/samples.h"
#include "proto/base/clock.h"

enum { NUM_REPEATS = 5, NUM_STEPS = 320 };

struct wire_settings {
    int32_t running;
};

struct wire_samples {
    struct samples bytes, encode, decode;
};

static void wire_samples_close(struct wire_samples *samples)
{
    samples_close(&samples->bytes);
    samples_close(&samples->encode);
    samples_close(&samples->decode);
}

/* As link_send_all encodes it, into a new buffer, and as a worker decodes it. */
static enum status send_and_receive(const struct decode_step *step, struct arena *arena,
                                    struct wire_samples *samples)
{
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct message message;
    int64_t start_ns = clock_now_ns(), encoded_ns;

    TRY(message_encode(&scheduler_output_type, 1, step->id, &step->plan, &frame));
    encoded_ns = clock_now_ns();
    arena_reset(arena);
    TRY(message_decode(frame.data, frame.size, arena, &message));
    samples_add(&samples->decode, clock_now_ns() - encoded_ns);
    samples_add(&samples->encode, encoded_ns - start_ns);
    samples_add(&samples->bytes, (int64_t)frame.size);
    if (!message_equal(&scheduler_output_type, &step->plan, message.body))
        return fail(ERR_INTERNAL, "the plan is another one behind the wire");
    return OK;
}

static enum status run_steps(int32_t num_running, struct arena *arena, struct wire_samples *samples)
{
    AUTO_CLOSE(decode_load) struct decode_load load = {0};

    TRY(decode_load_open(num_running, NUM_STEPS, &load));
    for (int32_t i = 0; i < NUM_STEPS; i++) {
        struct decode_step *step = decode_load_begin(&load);

        scheduler_schedule(load.scheduler, &step->arena, &step->plan);
        TRY(send_and_receive(step, arena, samples));
        decode_load_answer(&load, step);
        TRY(scheduler_update_from_output(load.scheduler, &step->plan, &step->answer, &load.events));
        decode_load_drop_events(&load);
    }
    return OK;
}

static enum status run(const void *settings, double *figures_out)
{
    AUTO_CLOSE(wire_samples) struct wire_samples samples = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};

    for (int i = 0; i < NUM_REPEATS; i++)
        TRY(run_steps(((const struct wire_settings *)settings)->running, &arena, &samples));
    figures_out[0] = (double)samples_quantile(&samples.bytes, 0.5);
    figures_out[1] = samples_median_us(&samples.encode);
    figures_out[2] = samples_median_us(&samples.decode);
    return OK;
}

static const struct option options[] = {
    OPTION(struct wire_settings, running, OPTION_I32, "256", "requests that decode", .least = 1,
           .most = BENCH_MAX_RUNNING),
};

static const struct figure figures[] = {
    {"bytes", 0, "of the frame"},
    {"encode_us", 2, "once for all ranks"},
    {"decode_us", 2, "on each rank"},
};

const struct bench bench_wire = {
    .name = "wire",
    .help = "the SchedulerOutput of a decode step, encoded and decoded",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct wire_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
