/*
 * bench model: prefill and decode of a real model by the whole engine: core, executor, ranks, sampler.
 *
 * A round submits --batch random prompts at once and lets every sequence run to its last token. What the
 * figures are held against is memory: a decode step reads the weights once, and each sequence's KV.
 */
#include "engine/bench/bench.h"
#include "engine/bench/samples.h"
#include "engine/engine.h"
#include "engine/executor/executor.h"
#include "engine/simulation/random.h"
#include "kernels/bench/limits.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/rounding.h"
#include "proto/config/config.h"

#include <poll.h>
#include <string.h>

enum { DEFAULT_BATCHED_TOKENS = 2048, MAX_ROUNDS = 1000 };

struct model_settings {
    char *model, *load_format, *dummy_type, *device, *cuda_module, *isa, *executor, *cpu_bind, *kv_cache_dtype;
    int32_t prefill, decode, batch, threads, tp, rounds;
    bool exact_sums, async_scheduling;
};

/* ---- an engine of just this size ------------------------------------------------------------- */

struct shape { /* of a round */
    int32_t batch;
    int32_t prompt; /* tokens of each prompt */
    int32_t output; /* tokens of each answer, >= 1: a prompt that is computed gives one */
};

/* A prompt as long as the context leaves no place for the token that it gives: it is one shorter. */
static enum status find_shape(const struct model_settings *settings, int32_t context,
                              struct shape *out)
{
    int32_t output = MAX(settings->decode, 1), prompt = settings->prefill;

    if (output == 1 && prompt == context)
        prompt--;
    if (prompt < 1 || output > context - prompt)
        return fail(ERR_INVALID,
                    "--prefill %d and --decode %d do not fit in the %d positions of the model",
                    settings->prefill, output, context);
    *out = (struct shape){settings->batch, prompt, output};
    return OK;
}

static enum status parse_config(const struct model_settings *settings, struct config *out)
{
    AUTO_MEM char *tp = mem_printf("%d", settings->tp);
    AUTO_MEM char *threads = mem_printf("%d", settings->threads);
    char *argv[30] = {
        (char *)"model",
        (char *)"--model",
        settings->model,
        (char *)"--load-format",
        settings->load_format,
        (char *)"--dummy-type",
        settings->dummy_type,
        (char *)"--device",
        settings->device,
        (char *)"--tp",
        tp,
        (char *)"--threads",
        threads,
        (char *)"--log-level",
        (char *)"warn",
        (char *)"--cpu-bind",
        settings->cpu_bind,
        (char *)"--kv-cache-dtype",
        settings->kv_cache_dtype,
        (char *)"--no-enable-prefix-caching",
        (char *)"--decode-slowdown", /* the prompts first, then all decode together */
        (char *)"0",
        (char *)(settings->async_scheduling ? "--async-scheduling" : "--no-async-scheduling"),
    };
    int argc = 23;

    if (!settings->model)
        return fail(ERR_INVALID, "say what is to run: --model FILE");
    if (!settings->exact_sums)
        argv[argc++] = (char *)"--no-exact-sums";
    if (settings->isa) {
        argv[argc++] = (char *)"--isa";
        argv[argc++] = settings->isa;
    }
    if (settings->cuda_module) {
        argv[argc++] = (char *)"--cuda-module";
        argv[argc++] = settings->cuda_module;
    }
    if (settings->executor) {
        argv[argc++] = (char *)"--executor";
        argv[argc++] = settings->executor;
    }
    return config_parse(out, NULL, argc, argv);
}

/* Room for these sequences and no more. */
static void fit(struct config *config, const struct shape *shape)
{
    int32_t blocks = divide_up(shape->prompt + shape->output, KV_BLOCK_SIZE);

    config->max_num_seqs = shape->batch;
    config->max_num_batched_tokens = MAX(DEFAULT_BATCHED_TOKENS, shape->batch);
    config->max_model_len = shape->prompt + shape->output;
    config->num_gpu_blocks_override = blocks * shape->batch;
}

/* ---- a round --------------------------------------------------------------------------------- */

struct round {
    int64_t start_ns;
    int64_t prefilled_ns; /* every sequence has its first token */
    int64_t end_ns;
    int32_t num_prefilled, num_finished; /* sequences */
    int64_t num_decoded; /* tokens that came behind prefilled_ns */
    int64_t last_ns;     /* the output before */
};

struct measured {
    struct engine *engine;
    struct shape shape;
    int32_t vocab_size;
    struct random random;
    token_id *prompts;    /* [batch, prompt] */
    struct samples steps; /* ns of those in which the whole batch decodes, of all rounds */
};

static void measured_close(struct measured *bench)
{
    engine_free(bench->engine);
    mem_free(bench->prompts);
    samples_close(&bench->steps);
}

static enum status submit_all(struct measured *bench)
{
    struct sampling_params params;

    sampling_params_init(&params);
    params.max_tokens = bench->shape.output;
    params.ignore_eos = true;
    params.temperature = 0;
    for (int32_t i = 0; i < bench->shape.batch; i++) {
        request_id id;

        TRY(engine_submit(bench->engine,
                          &(struct submission){.prompt = bench->prompts +
                                                         (int64_t)i * bench->shape.prompt,
                                               .num_prompt = bench->shape.prompt,
                                               .params = &params},
                          &id));
    }
    return OK;
}

static enum status take_event(struct round *round, const struct engine_event *event)
{
    if (event->finish == FINISH_ERROR)
        return fail(event->error, "%s", event->error_text);
    if (round->prefilled_ns)
        round->num_decoded += event->num_tokens;
    if (event->num_tokens > 0 && event->num_tokens == event->num_output_tokens)
        round->num_prefilled++;
    round->num_finished += event->finish != FINISH_NONE;
    return OK;
}

/* All that one step has brought. */
static enum status take_output(struct measured *bench, struct round *round,
                               struct engine_output *output, bool counts)
{
    int64_t now_ns = clock_now_ns();
    bool all_ran = round->num_finished == 0;
    enum status status = OK;

    for (int32_t i = 0; i < output->num_events && status == OK; i++)
        status = take_event(round, &output->events[i]);
    if (counts && round->prefilled_ns && all_ran)
        samples_add(&bench->steps, now_ns - round->last_ns);
    if (!round->prefilled_ns && round->num_prefilled == bench->shape.batch)
        round->prefilled_ns = now_ns;
    round->end_ns = round->last_ns = now_ns;
    engine_output_free(output);
    return status;
}

/* counts: its steps are among the figures. */
static enum status run_round(struct measured *bench, bool counts, struct round *out)
{
    int64_t num_tokens = (int64_t)bench->shape.batch * bench->shape.prompt;
    struct round round = {0};

    for (int64_t i = 0; i < num_tokens; i++)
        bench->prompts[i] = random_below(&bench->random, bench->vocab_size);
    round.start_ns = clock_now_ns();
    TRY(submit_all(bench));
    while (round.num_finished < bench->shape.batch) {
        struct pollfd fd = {.fd = engine_fd(bench->engine), .events = POLLIN};
        struct engine_output *output;

        poll(&fd, 1, -1);
        while ((output = engine_poll(bench->engine)))
            TRY(take_output(bench, &round, output, counts));
    }
    *out = round;
    return OK;
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Of all sequences in the middle of their answers. Layers with a sliding window read no more than it. */
static double kv_bytes_per_step(const struct model_config *model, const struct engine_memory *memory,
                                const struct shape *shape)
{
    double token_bytes = (double)memory->kv_block_bytes / KV_BLOCK_SIZE / model->num_layers;
    double context = shape->prompt + (shape->output + 1) / 2.0, tokens = 0;

    for (int32_t i = 0; i < model->num_layers; i++)
        tokens += model_config_is_global(model, i) ? context : MIN(context, (double)model->sliding_window);
    return shape->batch * tokens * token_bytes;
}

/* ---- figures --------------------------------------------------------------------------------- */

/* Of rounds: samples are 1/1000 of the unit. */
struct rates {
    struct samples prefill, decode, whole;
};

static void rates_close(struct rates *rates)
{
    samples_close(&rates->prefill);
    samples_close(&rates->decode);
    samples_close(&rates->whole);
}

static void add_rate(struct samples *samples, int64_t tokens, int64_t ns)
{
    if (tokens > 0)
        samples_add(samples, (int64_t)((double)tokens * 1e12 / (double)ns));
}

static void rates_add(struct rates *rates, const struct shape *shape, const struct round *round)
{
    int64_t prompts = (int64_t)shape->batch * shape->prompt;
    int64_t outputs = (int64_t)shape->batch * shape->output;

    add_rate(&rates->prefill, prompts, round->prefilled_ns - round->start_ns);
    add_rate(&rates->decode, round->num_decoded, round->end_ns - round->prefilled_ns);
    add_rate(&rates->whole, prompts + outputs, round->end_ns - round->start_ns);
}

static double median(struct samples *samples)
{
    return samples->count ? (double)samples_quantile(samples, 0.5) / 1e3 : 0;
}

static double spread(struct samples *samples)
{
    return samples->count ? (double)(samples_quantile(samples, 1) - samples_quantile(samples, 0)) /
                                (double)samples_quantile(samples, 0.5)
                          : 0;
}

static double step_ms(struct samples *steps, double share)
{
    return steps->count ? samples_quantile_us(steps, share) / 1e3 : 0;
}

static const char *const isa_words[] = {"ref", "generic", "sse2", "avx2", "avxvnni", "avx512", "avx512bf16", "amx", NULL};

enum {
    PREFILL_TOK_S, PREFILL_SPREAD, DECODE_TOK_S, DECODE_SPREAD, LIMIT_TOK_S, LIMIT_SHARE, WHOLE_TOK_S,
    WHOLE_SPREAD, PREFILL_MS, STEP_MS, STEP_MS_P99, BANDWIDTH_GB_S, WEIGHT_BYTES, KV_BYTES, ISA, THREADS,
    TP, BATCH, PROMPT_TOKENS, OUTPUT_TOKENS, ROUNDS, NUM_FIGURES
};

static const struct figure figures[NUM_FIGURES] = {
    [PREFILL_TOK_S] = {"prefill_tok_s", 2,
                       "tokens of all prompts, by the time from before the first submission until the "
                       "last sequence has its first token"},
    [PREFILL_SPREAD] = {"prefill_spread", 4, "of the rounds: (most - least) / median"},
    [DECODE_TOK_S] = {"decode_tok_s", 2,
                      "tokens that come after that moment, by the time from it to the last of them; 0: "
                      "none do"},
    [DECODE_SPREAD] = {"decode_spread", 4, "likewise"},
    [LIMIT_TOK_S] = {"bandwidth_limit_tok_s", 2,
                     "what reading weights and KV allows: batch * bandwidth / (step_weight_bytes + "
                     "step_kv_bytes); caches that hold part of them can beat it"},
    [LIMIT_SHARE] = {"bandwidth_share", 4, "decode_tok_s / bandwidth_limit_tok_s"},
    [WHOLE_TOK_S] = {"whole_tok_s", 2, "tokens of prompts and answers, by the time of a whole round"},
    [WHOLE_SPREAD] = {"whole_spread", 4, "likewise"},
    [PREFILL_MS] = {"prefill_ms", 3, "that time of the prompts"},
    [STEP_MS] = {"decode_step_ms", 4, "from answer to answer, while the whole batch decodes"},
    [STEP_MS_P99] = {"decode_step_ms_p99", 4, "which 99 of 100 steps do not exceed"},
    [BANDWIDTH_GB_S] = {"bandwidth_gb_s", 2,
                        "1e9 bytes a second that threads * tp threads read of 512 MiB, the best of "
                        "before and after the rounds"},
    [WEIGHT_BYTES] = {"step_weight_bytes", 0, "of all ranks, packed, that a step reads"},
    [KV_BYTES] = {"step_kv_bytes", 0, "of the batch, that a decode step reads in the middle of the answers"},
    [ISA] = {"isa", .help = "of the kernels", .words = isa_words},
    [THREADS] = {"threads", 0, "of a rank"},
    [TP] = {"tp", 0, "ranks"},
    [BATCH] = {"batch", 0, "sequences"},
    [PROMPT_TOKENS] = {"prompt_tokens", 0, "of each prompt"},
    [OUTPUT_TOKENS] = {"output_tokens", 0, "of each answer"},
    [ROUNDS] = {"rounds", 0, "behind one that warms up"},
};

/* ---- the bench ------------------------------------------------------------------------------- */

static enum status run_rounds(struct measured *bench, int32_t num_rounds, struct rates *rates)
{
    struct engine_stats stats;
    struct round round;

    TRY(run_round(bench, false, &round));
    for (int32_t i = 0; i < num_rounds; i++) {
        TRY(run_round(bench, true, &round));
        rates_add(rates, &bench->shape, &round);
    }
    engine_stats(bench->engine, &stats);
    return stats.num_preemptions == 0
               ? OK
               : fail(ERR_MISMATCH, "%lld sequences were preempted", (long long)stats.num_preemptions);
}

static double best_isa(const char *wanted)
{
    const char *name = limit_isa(wanted);
    int i = 0;

    while (isa_words[i + 1] && strcmp(isa_words[i], name) != 0)
        i++;
    return i;
}

/* Of what all ranks read. GPUs: as if each rank had one of its own. */
static enum status measure_bandwidth(const struct config *config, int32_t threads, double *gb_s_out)
{
    if (strcmp(config->device, "cuda") != 0)
        return limit_read_gb_s(threads * config->tp, gb_s_out);
    TRY(limit_gpu_read_gb_s(config->cuda_module, gb_s_out));
    *gb_s_out *= config->tp;
    return OK;
}

static enum status measure(const struct model_settings *settings, struct config *config,
                           const struct model_file *file, double *figures_out)
{
    const struct model_config *model = model_file_config(file);
    AUTO_CLOSE(measured) struct measured bench = {
        .random = {1}, .vocab_size = model_file_vocabulary(file)->num_tokens};
    AUTO_CLOSE(rates) struct rates rates = {0};
    struct engine_memory memory;
    double before, after;
    int32_t threads = executor_threads(config);

    TRY(find_shape(settings, model->max_position, &bench.shape));
    fit(config, &bench.shape);
    TRY(measure_bandwidth(config, threads, &before));
    TRY(engine_new(config, file, NULL, NULL, &bench.engine));
    bench.prompts = mem_new_array(token_id, (size_t)bench.shape.batch * (size_t)bench.shape.prompt);
    TRY(run_rounds(&bench, settings->rounds, &rates));
    engine_memory(bench.engine, &memory);
    TRY(measure_bandwidth(config, threads, &after));

    double kv_bytes = kv_bytes_per_step(model, &memory, &bench.shape);
    double bandwidth = MAX(before, after);

    figures_out[PREFILL_TOK_S] = median(&rates.prefill);
    figures_out[PREFILL_SPREAD] = spread(&rates.prefill);
    figures_out[DECODE_TOK_S] = median(&rates.decode);
    figures_out[DECODE_SPREAD] = spread(&rates.decode);
    figures_out[LIMIT_TOK_S] =
        bench.shape.batch * bandwidth * 1e9 / ((double)memory.step_weight_bytes + kv_bytes);
    figures_out[LIMIT_SHARE] = figures_out[DECODE_TOK_S] / figures_out[LIMIT_TOK_S];
    figures_out[WHOLE_TOK_S] = median(&rates.whole);
    figures_out[WHOLE_SPREAD] = spread(&rates.whole);
    figures_out[PREFILL_MS] =
        1e3 * bench.shape.batch * bench.shape.prompt / figures_out[PREFILL_TOK_S];
    figures_out[STEP_MS] = step_ms(&bench.steps, 0.5);
    figures_out[STEP_MS_P99] = step_ms(&bench.steps, 0.99);
    figures_out[BANDWIDTH_GB_S] = bandwidth;
    figures_out[WEIGHT_BYTES] = (double)memory.step_weight_bytes;
    figures_out[KV_BYTES] = kv_bytes;
    figures_out[ISA] = best_isa(config->isa);
    figures_out[THREADS] = threads;
    figures_out[TP] = config->tp;
    figures_out[BATCH] = bench.shape.batch;
    figures_out[PROMPT_TOKENS] = bench.shape.prompt;
    figures_out[OUTPUT_TOKENS] = bench.shape.output;
    figures_out[ROUNDS] = settings->rounds;
    return OK;
}

static enum status run(const void *user, double *figures_out)
{
    const struct model_settings *settings = user;
    AUTO_CLOSE(config) struct config config = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;

    TRY(parse_config(settings, &config));
    log_set_level(LOG_WARN);
    TRY(config_open_model(&config, MODEL_WHOLE, &file));
    return measure(settings, &config, file, figures_out);
}

#define ROW(member, ...) OPTION(struct model_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(model, OPTION_TEXT, NULL, "to run on this machine", .value = "FILE"),
    ROW(load_format, OPTION_WORD, "auto", "as of the engine", .words = "auto safetensors dummy"),
    ROW(dummy_type, OPTION_TEXT, "bf16", "as of the engine", .value = "TYPE"),
    ROW(prefill, OPTION_I32, "512", "random tokens of each prompt, up to the model's context",
        .least = 1, .most = 1 << 24),
    ROW(decode, OPTION_I32, "128",
        "likeliest tokens of each answer, the first included; 0: the first alone, that a prompt gives",
        .most = 1 << 24),
    ROW(batch, OPTION_I32, "1", "sequences at a time", .least = 1, .most = BENCH_MAX_RUNNING),
    ROW(rounds, OPTION_I32, "5", "of which the figures are medians, behind one that warms up",
        .least = 1, .most = MAX_ROUNDS),
    ROW(threads, OPTION_I32, "0", "of a rank; 0: as the engine chooses", .most = 1024),
    ROW(cpu_bind, OPTION_WORD, "auto", "as of the engine", .words = "auto none"),
    ROW(tp, OPTION_I32, "1", "ranks that share the model", .least = 1, .most = MAX_RANKS),
    ROW(device, OPTION_WORD, "cpu", "as of the engine", .words = "cpu cuda"),
    ROW(cuda_module, OPTION_TEXT, NULL, "as of the engine", .value = "FILE"),
    ROW(kv_cache_dtype, OPTION_WORD, "auto", "as of the engine", .words = KV_TYPE_WORDS),
    ROW(isa, OPTION_WORD, NULL, "instruction set; the best there is", .words = ISA_WORDS),
    ROW(executor, OPTION_WORD, NULL, "where the ranks run; uniproc for one",
        .words = "uniproc multiproc"),
    ROW(exact_sums, OPTION_BOOL, "true", "as of the engine"),
    ROW(async_scheduling, OPTION_BOOL, "true", "a step is prepared while the one before runs"),
};
#undef ROW

const struct bench bench_model = {
    .name = "model",
    .help = "prefill and decode of a model by the whole engine, beside what memory allows",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct model_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
