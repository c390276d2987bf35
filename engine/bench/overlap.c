/*
 * bench overlap: does the device wait for the engine? The real core and the real ranks, on a device
 * that --sim describes; what is measured is that device's own account of its time.
 */
#include "engine/bench/bench.h"
#include "engine/bench/decode_load.h"
#include "engine/bench/samples.h"
#include "engine/bench/toy_grammar.h"
#include "engine/core/core.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"

#include <poll.h>
#include <stdatomic.h>

enum { NUM_WARM_UP = 20, START_TIMEOUT_MS = 120000 };

struct overlap_settings {
    char *sim, *executor;
    int32_t running, prompt_tokens, steps;
    double structured;
    bool async_scheduling;
};

/* ---- an executor that is watched ------------------------------------------------------------- */

/* Passes every verb on, and writes down what steps say in which every request decodes one token. */
struct watched_executor {
    struct executor executor;
    struct executor *inner;
    int32_t num_running;
    int32_t num_tokens[2]; /* of the steps in flight, by step & 1 */
    int32_t num_wanted;    /* steps to write down */
    struct samples idle, busy;
    int64_t first_ns;         /* when the step before the first of them was answered */
    int64_t last_ns;          /* when the last was */
    _Atomic int32_t num_full; /* steps in which all decode, warm-up included */
};

static struct watched_executor *watched(struct executor *executor)
{
    return CONTAINER_OF(executor, struct watched_executor, executor);
}

static enum status watch_prepare_inputs(struct executor *executor, int64_t step,
                                        const struct scheduler_output *plan)
{
    watched(executor)->num_tokens[step & 1] =
        plan->num_new_requests ? 0 : plan->total_num_scheduled_tokens;
    return executor_prepare_inputs(watched(executor)->inner, step, plan);
}

static enum status watch_execute_model(struct executor *executor, int64_t step)
{
    return executor_execute_model(watched(executor)->inner, step);
}

static enum status watch_sample(struct executor *executor, int64_t step,
                                const struct grammar_output *grammar)
{
    return executor_sample(watched(executor)->inner, step, grammar);
}

static void write_down(struct watched_executor *self, const struct model_runner_output *output)
{
    int32_t n = atomic_load_explicit(&self->num_full, memory_order_relaxed) + 1;

    if (n == NUM_WARM_UP)
        self->first_ns = clock_now_ns();
    if (n > NUM_WARM_UP && n <= NUM_WARM_UP + self->num_wanted) {
        samples_add(&self->idle, output->idle_ns);
        samples_add(&self->busy, output->execute_ns + output->sample_ns);
        self->last_ns = clock_now_ns();
    }
    atomic_store_explicit(&self->num_full, n, memory_order_release);
}

static enum status watch_collect(struct executor *executor, int64_t step,
                                 const struct model_runner_output **output_out)
{
    struct watched_executor *self = watched(executor);

    TRY(executor_collect(self->inner, step, output_out));
    if (self->num_tokens[step & 1] == self->num_running &&
        (*output_out)->num_sampled == self->num_running)
        write_down(self, *output_out);
    return OK;
}

static enum status watch_wait(struct executor *executor, int fd)
{
    return executor_wait(watched(executor)->inner, fd);
}

/* The watcher outlives the core, which frees what it watches. */
static void watch_free(struct executor *executor)
{
    executor_free(watched(executor)->inner);
    watched(executor)->inner = NULL;
}

static const struct executor_ops watching = {
    .name = "watched",
    .prepare_inputs = watch_prepare_inputs,
    .execute_model = watch_execute_model,
    .sample = watch_sample,
    .collect = watch_collect,
    .wait = watch_wait,
    .free = watch_free,
};

static void watched_executor_close(struct watched_executor *self)
{
    executor_free(self->inner);
    samples_close(&self->idle);
    samples_close(&self->busy);
}

/* ---- the load -------------------------------------------------------------------------------- */

static enum status add_request(struct core *core, const struct overlap_settings *settings,
                               const struct executor_info *info, int32_t vocab_size, int32_t number)
{
    AUTO_MEM token_id *prompt = mem_new_array(token_id, (size_t)settings->prompt_tokens);
    AUTO_FREE(request) struct request *request = NULL;
    struct sampling_params params;

    sampling_params_init(&params);
    params.temperature = 0;
    params.ignore_eos = true;
    /* Prompts are computed a few at a time: those that come first wait for the last. */
    params.max_tokens = info->max_model_len - settings->prompt_tokens;
    make_up_prompt(number % MADE_UP_VOCAB, settings->prompt_tokens, prompt);
    for (int32_t i = 0; i < settings->prompt_tokens; i++)
        prompt[i] %= vocab_size;
    request =
        request_new(number + 1,
                    &(struct submission){
                        .prompt = prompt, .num_prompt = settings->prompt_tokens, .params = &params},
                    info->max_model_len, LOAD_BLOCK_SIZE);
    TRY(request_check_fits(request, info->num_kv_blocks, LOAD_BLOCK_SIZE));
    /* Spread evenly over the batch. */
    if ((int32_t)((number + 1) * settings->structured) > (int32_t)(number * settings->structured))
        request->grammar = toy_grammar_new(&(struct toy_grammar_options){
            .seed = (uint64_t)number, .vocab_size = vocab_size, .num_tokens = INT32_MAX});
    TRY(core_add(core, request));
    request = NULL; /* core's now */
    return OK;
}

/* Events of a failure; those of tokens are thrown away. */
static enum status drain(struct mailbox *outputs)
{
    enum status status = OK;

    for (struct mail *mail; (mail = mailbox_pop(outputs));) {
        struct engine_output *output = &MAIL_ITEM(mail, struct output_node, mail)->output;

        for (int32_t i = 0; i < output->num_events && status == OK; i++)
            if (output->events[i].finish == FINISH_ERROR)
                status = fail(output->events[i].error, "%s", output->events[i].error_text);
            else if (output->events[i].finish == FINISH_LENGTH)
                status = fail(ERR_FULL, "a request is at the model's length before %s",
                              "all steps are measured: fewer --steps, or shorter prompts");
        engine_output_free(output);
    }
    return status;
}

static enum status run_steps(const struct watched_executor *self, struct mailbox *outputs)
{
    int64_t deadline_ns = clock_deadline_ns(START_TIMEOUT_MS);

    while (atomic_load_explicit(&self->num_full, memory_order_acquire) <
           NUM_WARM_UP + self->num_wanted) {
        struct pollfd readable = {.fd = mailbox_fd(outputs), .events = POLLIN};

        poll(&readable, 1, 100);
        TRY(drain(outputs));
        if (!atomic_load_explicit(&self->num_full, memory_order_relaxed) &&
            clock_now_ns() >= deadline_ns)
            return fail(ERR_TIMEOUT, "after %d s the %d requests do not run together yet",
                        START_TIMEOUT_MS / 1000, self->num_running);
    }
    return OK;
}

static enum status run_core(const struct overlap_settings *settings, const struct config *config,
                            const struct model_file *model, struct watched_executor *self)
{
    struct mailbox outputs = {0};
    struct core *core = NULL;
    int32_t vocab_size = model_file_vocabulary(model)->num_tokens;
    enum status status;

    TRY(mailbox_open(&outputs, 1 << 20));
    status = core_new(&(struct core_options){.config = config,
                                             .grammar_fd = -1,
                                             .executor = &self->executor,
                                             .outputs = &outputs,
                                             .vocab_size = vocab_size},
                      &core);
    for (int32_t i = 0; i < settings->running && status == OK; i++)
        status = add_request(core, settings, &self->executor.info, vocab_size, i);
    if (status == OK)
        status = core_start(core);
    if (status == OK)
        status = run_steps(self, &outputs);

    AUTO_MEM char *sentence = mem_strdup(fail_text());

    core_free(core);
    if (drain(&outputs) != OK && status == OK)
        status = ERR_INTERNAL; /* its own sentence */
    else
        (void)fail(status, "%s", sentence);
    mailbox_close(&outputs);
    return status;
}

/* ---- the bench ------------------------------------------------------------------------------- */

static enum status parse_config(const struct overlap_settings *settings, struct config *out)
{
    AUTO_MEM char *seqs = mem_printf("%d", settings->running);
    char *argv[16] = {
        (char *)"overlap",
        (char *)"--sim",
        settings->sim,
        (char *)"--max-num-seqs",
        seqs,
        (char *)"--max-num-batched-tokens",
        (char *)"8192",
        (char *)"--log-level",
        (char *)"warn",
        (char *)(settings->async_scheduling ? "--async-scheduling" : "--no-async-scheduling"),
    };
    int argc = 10;

    if (!settings->sim)
        return fail(ERR_INVALID, "--sim is missing: a file that describes a device and a model");
    if (settings->executor) {
        argv[argc++] = (char *)"--executor";
        argv[argc++] = settings->executor;
    }
    return config_parse(out, NULL, argc, argv);
}

static double sum_of(const struct samples *samples)
{
    double sum = 0;

    for (size_t i = 0; i < samples->count; i++)
        sum += (double)samples->values[i];
    return sum;
}

static enum status run(const void *user, double *figures_out)
{
    const struct overlap_settings *settings = user;
    AUTO_CLOSE(config) struct config config = {0};
    AUTO_FREE(model_file) struct model_file *model = NULL;
    AUTO_CLOSE(watched_executor)
    struct watched_executor self = {
        .executor.ops = &watching,
        .num_running = settings->running,
        .num_wanted = settings->steps,
    };

    TRY(parse_config(settings, &config));
    log_set_level(LOG_WARN);
    TRY(config_open_model(&config, MODEL_WHOLE, &model));
    TRY(executor_open(&(struct executor_options){.config = &config, .model = model}, &self.inner));
    self.executor.info = self.inner->info;
    TRY(run_core(settings, &config, model, &self));

    double seconds = (double)(self.last_ns - self.first_ns) / 1e9;
    double idle = sum_of(&self.idle), busy = sum_of(&self.busy);

    figures_out[0] = seconds * 1e3 / settings->steps;
    figures_out[1] = 100 * idle / (idle + busy);
    figures_out[2] = samples_median_us(&self.idle);
    figures_out[3] = samples_quantile_us(&self.idle, 0.99);
    figures_out[4] = (double)settings->running * settings->steps / seconds;
    figures_out[5] = (double)settings->running * settings->steps / (busy / 1e9);
    return OK;
}

#define ROW(member, ...) OPTION(struct overlap_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(sim, OPTION_TEXT, NULL, "the device and the model that it runs", .value = "FILE"),
    ROW(running, OPTION_I32, "256", "requests that decode", .least = 1, .most = BENCH_MAX_RUNNING),
    ROW(structured, OPTION_F64, "0", "share of them that follow a grammar", .most = 1),
    ROW(steps, OPTION_I32, "300", "to measure", .least = 1, .most = 1 << 20),
    ROW(prompt_tokens, OPTION_I32, "128", "of each request", .least = 1, .most = 1 << 16),
    ROW(executor, OPTION_WORD, NULL, "where the ranks run; uniproc for one",
        .words = "uniproc multiproc"),
    ROW(async_scheduling, OPTION_BOOL, "true", "a step is prepared while the one before runs"),
};
#undef ROW

static const struct figure figures[] = {
    {"step_ms", 3, "from one answer to the next, mean"},
    {"idle_pct", 3, "of the device's time: between steps, and before a step's sampling"},
    {"idle_us_p50", 2, "of a step"},
    {"idle_us_p99", 2, "of a step"},
    {"tokens_per_s", 0, "that came out"},
    {"device_tokens_per_s", 0, "if the device never waited"},
};

const struct bench bench_overlap = {
    .name = "overlap",
    .help = "how long a simulated device waits for the engine",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct overlap_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
