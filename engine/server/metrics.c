#include "engine/server/metrics.h"

#include "engine/grammar/compiler.h"
#include "proto/config/config.h"

#include <stdatomic.h>
#include <string.h>

enum { MAX_BUCKETS = 32 };

/* Upper bounds, ascending; +Inf is understood. vLLM's, and finer below 0.3 s, where ours live. */
struct buckets {
    int count;
    double bounds[MAX_BUCKETS];
};

#define BUCKETS(...)                                                                               \
    {                                                                                              \
        COUNT_OF(((double[]){__VA_ARGS__})),                                                       \
        {                                                                                          \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    }

static const struct buckets first_token_buckets =
    BUCKETS(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
            20, 40, 80, 160, 640, 2560);
static const struct buckets token_buckets =
    BUCKETS(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1,
            2.5, 5, 7.5, 10, 20, 40, 80);
static const struct buckets latency_buckets =
    BUCKETS(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50,
            60, 120, 240, 480, 960, 1920, 7680);
static const struct buckets count_buckets =
    BUCKETS(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000,
            200000, 500000, 1000000);
static const struct buckets n_buckets = BUCKETS(1, 2, 5, 10, 20);

/* Atomic, as others print what the front counts; it alone writes, so it need not lock. */
struct histogram {
    _Atomic int64_t counts[MAX_BUCKETS + 1]; /* each value in its own bucket only; the last is +Inf */
    _Atomic double sum;
};

#define LOAD(place)       atomic_load_explicit(&(place), memory_order_relaxed)
#define ADD(place, value) atomic_store_explicit(&(place), LOAD(place) + (value), memory_order_relaxed)

struct metrics {
    char *label; /* model_name="…", escaped, and engine="0": vLLM numbers its replicas, we are one */
    struct histogram histograms[NUM_METRIC_HISTOGRAMS];
    _Atomic int64_t finished[FINISH_ERROR + 1];
};

/* ---- histograms ------------------------------------------------------------------------------ */

static const struct {
    const char *name, *help;
    const struct buckets *buckets;
} histogram_rows[] = {
    [METRIC_TIME_TO_FIRST_TOKEN] = {"vllm:time_to_first_token_seconds",
                                    "From a request's arrival to its first token.",
                                    &first_token_buckets},
    [METRIC_INTER_TOKEN_LATENCY] = {"vllm:inter_token_latency_seconds",
                                    "Between two steps that brought one request tokens.",
                                    &token_buckets},
    [METRIC_TIME_PER_OUTPUT_TOKEN] = {"vllm:request_time_per_output_token_seconds",
                                      "A request's time per token behind its first.",
                                      &token_buckets},
    [METRIC_E2E_LATENCY] = {"vllm:e2e_request_latency_seconds",
                            "From a request's arrival to its end.", &latency_buckets},
    [METRIC_QUEUE_TIME] = {"vllm:request_queue_time_seconds",
                           "From submission until a step has room for the request.",
                           &latency_buckets},
    [METRIC_INFERENCE_TIME] = {"vllm:request_inference_time_seconds",
                               "From a request's first step to its end.", &latency_buckets},
    [METRIC_PREFILL_TIME] = {"vllm:request_prefill_time_seconds",
                             "From a request's first step to its first token.", &latency_buckets},
    [METRIC_DECODE_TIME] = {"vllm:request_decode_time_seconds",
                            "From a request's first token to its end.", &latency_buckets},
    [METRIC_PROMPT_TOKENS] = {"vllm:request_prompt_tokens", "Tokens of a request's prompt.",
                              &count_buckets},
    [METRIC_GENERATION_TOKENS] = {"vllm:request_generation_tokens", "Tokens a request generated.",
                                  &count_buckets},
    [METRIC_MAX_GENERATION_TOKENS] = {"vllm:request_max_num_generation_tokens",
                                      "Tokens of the longest answer to a prompt.", &count_buckets},
    [METRIC_PARAMS_N] = {"vllm:request_params_n", "The n that requests ask for.", &n_buckets},
};
_Static_assert(COUNT_OF(histogram_rows) == NUM_METRIC_HISTOGRAMS, "a row for each histogram");

void metrics_observe(struct metrics *metrics, enum metric_histogram histogram, double value)
{
    const struct buckets *buckets = histogram_rows[histogram].buckets;
    struct histogram *into = &metrics->histograms[histogram];
    int i = 0;

    while (i < buckets->count && value > buckets->bounds[i])
        i++;
    ADD(into->counts[i], 1);
    ADD(into->sum, value);
}

void metrics_count_finish(struct metrics *metrics, enum finish_reason reason)
{
    ADD(metrics->finished[reason], 1);
}

/* ---- the page -------------------------------------------------------------------------------- */

static void print_about(struct bytes *out, const char *name, const char *type, const char *help)
{
    bytes_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void print_histogram(const struct metrics *metrics, const char *name, const char *help,
                            const struct buckets *buckets, const struct histogram *histogram,
                            struct bytes *out)
{
    int64_t count = 0;

    print_about(out, name, "histogram", help);
    for (int i = 0; i < buckets->count; i++) {
        count += LOAD(histogram->counts[i]);
        bytes_printf(out, "%s_bucket{%s,le=\"%.15g\"} %lld\n", name, metrics->label,
                     buckets->bounds[i], (long long)count);
    }
    count += LOAD(histogram->counts[buckets->count]);
    bytes_printf(out, "%s_bucket{%s,le=\"+Inf\"} %lld\n", name, metrics->label, (long long)count);
    bytes_printf(out, "%s_sum{%s} %.17g\n", name, metrics->label, LOAD(histogram->sum));
    bytes_printf(out, "%s_count{%s} %lld\n", name, metrics->label, (long long)count);
}

/* The engine's own count: the front does not see steps. */
static void print_iteration_tokens(const struct metrics *metrics, const struct engine_stats *stats,
                                   struct bytes *out)
{
    struct buckets buckets = {.count = NUM_STEP_SIZES - 1};
    struct histogram histogram = {.sum = (double)stats->iteration_tokens_sum};

    for (int i = 0; i < buckets.count; i++)
        buckets.bounds[i] = step_size_bound(i);
    for (int i = 0; i < NUM_STEP_SIZES; i++)
        ADD(histogram.counts[i], stats->steps_by_size[i]);
    print_histogram(metrics, "vllm:iteration_tokens_total", "Tokens scheduled in a step.", &buckets,
                    &histogram, out);
}

/* OpenMetrics and Prometheus agree on HELP and TYPE with the name of the lines below them. */
static void print_finished(const struct metrics *metrics, struct bytes *out)
{
    const char *name = "vllm:request_success_total";

    print_about(out, name, "counter", "Requests that ended, by reason.");
    for (int reason = FINISH_STOP; reason <= FINISH_ERROR; reason++)
        bytes_printf(out, "%s{%s,finished_reason=\"%s\"} %lld\n", name, metrics->label,
                     finish_reason_name(reason), (long long)LOAD(metrics->finished[reason]));
}

/* One number for each of several reasons. */
static void print_by_reason(const struct metrics *metrics, const char *name,
                            const char *const *reasons, const double *values, int n,
                            struct bytes *out)
{
    for (int i = 0; i < n; i++)
        bytes_printf(out, "%s{%s,reason=\"%s\"} %.17g\n", name, metrics->label, reasons[i],
                     values[i]);
}

static void print_waiting(const struct metrics *metrics, const struct engine_stats *stats,
                          struct bytes *out)
{
    static const char *const reasons[] = {
        [WAITING_CAPACITY] = "capacity",
        [WAITING_DEFERRED] = "deferred",
    };
    const char *name = "vllm:num_requests_waiting_by_reason";
    double values[NUM_WAITING_REASONS];

    for (int i = 0; i < NUM_WAITING_REASONS; i++)
        values[i] = stats->num_waiting_by_reason[i];
    print_about(out, name, "gauge", "Requests that wait for room, or for their grammars.");
    print_by_reason(metrics, name, reasons, values, NUM_WAITING_REASONS, out);
}

static void print_rejections(const struct metrics *metrics, const struct engine_stats *stats,
                             struct bytes *out)
{
    static const char *const reasons[] = {
        [LIMIT_QUEUED_REQS] = "max_num_queued_reqs",
        [LIMIT_QUEUED_TOKENS] = "max_num_queued_tokens",
    };
    const char *name = "vllm:admission_rejections_total";
    double values[NUM_ADMISSION_LIMITS];

    for (int i = 0; i < NUM_ADMISSION_LIMITS; i++)
        values[i] = (double)stats->admission_rejections[i];
    print_about(out, name, "counter", "Requests refused because the queue was full, by limit.");
    print_by_reason(metrics, name, reasons, values, NUM_ADMISSION_LIMITS, out);
}

static double kv_cache_usage(const struct metrics_sources *from)
{
    const struct engine_stats *stats = from->engine;

    return stats->num_kv_blocks ? (double)stats->num_kv_blocks_used / stats->num_kv_blocks : 0;
}

static double decode_seconds(const struct metrics_sources *from)
{
    return (double)from->engine->decode_ns / 1e9;
}

#define STAT(name, field)                                                                          \
    static double name(const struct metrics_sources *from)                                                 \
    {                                                                                              \
        return (double)from->field;                                                                \
    }
STAT(stat_running, engine->num_running)
STAT(stat_waiting, engine->num_waiting)
STAT(stat_preemptions, engine->num_preemptions)
STAT(stat_prompt_tokens, engine->prompt_tokens)
STAT(stat_generation_tokens, engine->generation_tokens)
STAT(stat_prefix_queries, engine->prefix_cache_queries)
STAT(stat_prefix_hits, engine->prefix_cache_hits)
STAT(stat_prompt_limit, engine->prompt_limit)
STAT(stat_late_masks, engine->num_late_masks)
STAT(stat_steps, engine->num_steps)
STAT(stat_ranks, engine->num_ranks)
STAT(stat_ranks_alive, engine->num_ranks_alive)
STAT(kv_token_bytes, engine->kv_token_bytes)
STAT(stat_recoveries, engine->num_recoveries)
STAT(grammars_compiled, grammars->num_compiled)
STAT(grammars_refused, grammars->num_refused)
STAT(grammars_killed, grammars->num_killed)
STAT(grammar_hits, grammars->num_hits)
STAT(grammar_processes, grammars->num_processes)
STAT(grammar_bytes, grammars->bytes)

static const struct {
    const char *name, *type, *help;
    double (*value)(const struct metrics_sources *from);
} stat_rows[] = {
    {"vllm:num_requests_running", "gauge", "Requests in the running batch.", stat_running},
    {"vllm:num_requests_waiting", "gauge", "Requests that wait for room.", stat_waiting},
    {"vllm:kv_cache_usage_perc", "gauge", "KV-cache blocks in use, 1 is all.", kv_cache_usage},
    {"tandem:kv_cache_token_bytes", "gauge", "Bytes that a token takes in the KV cache.", kv_token_bytes},
    {"vllm:num_preemptions_total", "counter", "Requests sent back to wait for want of KV blocks.",
     stat_preemptions},
    {"vllm:prompt_tokens_total", "counter", "Prompt tokens computed or found in the prefix cache.",
     stat_prompt_tokens},
    {"vllm:generation_tokens_total", "counter", "Tokens generated.", stat_generation_tokens},
    {"vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
     stat_prefix_queries},
    {"vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
     stat_prefix_hits},
    {"tandem:late_masks_total", "counter",
     "Masks that were not filled in time for their step.", stat_late_masks},
    {"tandem:prompt_limit_tokens", "gauge",
     "Tokens of prompts that a step may compute beside requests that decode; -1: no limit.",
     stat_prompt_limit},
    {"tandem:decode_step_seconds", "gauge", "What a step that only decodes takes; 0: not known.",
     decode_seconds},
    {"tandem:steps_total", "counter", "Steps of the core loop.", stat_steps},
    {"tandem:ranks", "gauge", "Ranks that the engine has.", stat_ranks},
    {"tandem:ranks_alive", "gauge", "Ranks that are alive.", stat_ranks_alive},
    {"tandem:recoveries_total", "counter", "How often ranks that died or hung were replaced.",
     stat_recoveries},
    {"tandem:grammars_compiled_total", "counter", "Grammars that were compiled.", grammars_compiled},
    {"tandem:grammars_refused_total", "counter", "Grammars that could not be compiled.",
     grammars_refused},
    {"tandem:grammars_killed_total", "counter",
     "Grammars whose processes were killed, for they took too long.", grammars_killed},
    {"tandem:grammar_cache_hits_total", "counter", "Grammars that were there when they were wanted.",
     grammar_hits},
    {"tandem:grammar_processes", "gauge", "Processes that fill masks.", grammar_processes},
    {"tandem:grammar_bytes", "gauge", "Memory of those processes.", grammar_bytes},
};

static void print_kv_cache(const struct metrics *metrics, const struct engine_stats *stats, struct bytes *out)
{
    const char *name = "vllm:cache_config_info";

    print_about(out, name, "gauge", "What the KV cache is like.");
    bytes_printf(out, "%s{%s,block_size=\"%d\",cache_dtype=\"%s\",num_gpu_blocks=\"%d\"} 1\n", name,
                 metrics->label, KV_BLOCK_SIZE, kv_type_name(stats->kv_type), stats->num_kv_blocks);
}

/* A summary without quantiles: how long requests stood still for it, all in all. */
static void print_recovery(const struct metrics *metrics, const struct engine_stats *stats,
                           struct bytes *out)
{
    const char *name = "tandem:recovery_seconds";

    print_about(out, name, "summary", "From the failure of a rank until all were ready again.");
    bytes_printf(out, "%s_sum{%s} %.17g\n", name, metrics->label,
                 (double)stats->recovery_sum_ns / 1e9);
    bytes_printf(out, "%s_count{%s} %lld\n", name, metrics->label,
                 (long long)stats->num_recoveries);
}

static void print_restarts(const struct metrics *metrics, const struct metrics_sources *from,
                           struct bytes *out)
{
    const char *name = "tandem:worker_restarts_total";

    print_about(out, name, "counter", "How often another process took a rank's place.");
    for (int32_t i = 0; i < from->num_workers; i++)
        bytes_printf(out, "%s{%s,rank=\"%d\"} %d\n", name, metrics->label, from->workers[i].rank,
                     from->workers[i].restarts);
}

#define OF(member) offsetof(struct engine_worker, member)
/* Of each rank, as it said last. */
static const struct {
    const char *name;
    const char *type, *help; /* NULL: it has those of the row above, and its name */
    const char *label;       /* besides the rank's */
    size_t place;            /* of an int64_t in struct engine_worker */
} rank_rows[] = {
    {"tandem:worker_memory_bytes", "gauge", "What a rank holds of its device's memory.", ",of=\"weights\"",
     OF(memory.weights_bytes)},
    {"tandem:worker_memory_bytes", NULL, NULL, ",of=\"kv_cache\"", OF(memory.kv_cache_bytes)},
    {"tandem:worker_memory_bytes", NULL, NULL, ",of=\"workspace\"", OF(memory.workspace_bytes)},
    {"tandem:device_memory_size_bytes", "gauge", "Memory of a rank's device, or of its host where that is a CPU.", "",
     OF(memory.total_bytes)},
    {"tandem:device_memory_free_bytes", "gauge",
     "Of that what was free when the rank's weights or KV cache changed last.", "", OF(memory.free_bytes)},
    {"tandem:recorded_passes_total", "counter",
     "Passes of decode steps, recorded as CUDA graphs: at the start, or by a step.", ",when=\"start\"",
     OF(passes.recorded_first)},
    {"tandem:recorded_passes_total", NULL, NULL, ",when=\"step\"", OF(passes.recorded_later)},
    {"tandem:passes_total", "counter",
     "Passes through the model: replayed as recorded, or launched kernel by kernel.", ",how=\"replayed\"",
     OF(passes.replayed)},
    {"tandem:passes_total", NULL, NULL, ",how=\"launched\"", OF(passes.launched)},
};
#undef OF

static void print_ranks(const struct metrics *metrics, const struct metrics_sources *from, struct bytes *out)
{
    for (size_t row = 0; row < COUNT_OF(rank_rows); row++) {
        const char *name = rank_rows[row].name;

        if (rank_rows[row].help)
            print_about(out, name, rank_rows[row].type, rank_rows[row].help);
        for (int32_t i = 0; i < from->num_workers; i++) {
            const struct engine_worker *worker = &from->workers[i];

            bytes_printf(out, "%s{%s,rank=\"%d\"%s} %lld\n", name, metrics->label, worker->rank, rank_rows[row].label,
                         (long long)*(const int64_t *)((const char *)worker + rank_rows[row].place));
        }
    }
}

void metrics_print(const struct metrics *metrics, const struct metrics_sources *from,
                   struct bytes *out)
{
    for (size_t i = 0; i < COUNT_OF(stat_rows); i++) {
        print_about(out, stat_rows[i].name, stat_rows[i].type, stat_rows[i].help);
        bytes_printf(out, "%s{%s} %.17g\n", stat_rows[i].name, metrics->label,
                     stat_rows[i].value(from));
    }
    print_kv_cache(metrics, from->engine, out);
    print_recovery(metrics, from->engine, out);
    print_restarts(metrics, from, out);
    print_ranks(metrics, from, out);
    print_waiting(metrics, from->engine, out);
    print_rejections(metrics, from->engine, out);
    print_finished(metrics, out);
    print_iteration_tokens(metrics, from->engine, out);
    for (int i = 0; i < NUM_METRIC_HISTOGRAMS; i++)
        print_histogram(metrics, histogram_rows[i].name, histogram_rows[i].help,
                        histogram_rows[i].buckets, &metrics->histograms[i], out);
}

/* ---- life ------------------------------------------------------------------------------------ */

/* A label's value: backslash, quote and newline are escaped. */
static char *make_label(const char *model_name)
{
    AUTO_CLOSE(bytes) struct bytes label = {0};

    bytes_printf(&label, "model_name=\"");
    for (const char *c = model_name; *c; c++) {
        if (*c == '\n') {
            bytes_append(&label, "\\n", 2);
            continue;
        }
        if (*c == '\\' || *c == '"')
            bytes_append(&label, "\\", 1);
        bytes_append(&label, c, 1);
    }
    bytes_printf(&label, "\",engine=\"0\"");
    return mem_strndup((const char *)label.data, label.size);
}

struct metrics *metrics_new(const char *model_name)
{
    struct metrics *metrics = mem_new(struct metrics);

    metrics->label = make_label(model_name);
    return metrics;
}

void metrics_free(struct metrics *metrics)
{
    if (!metrics)
        return;
    mem_free(metrics->label);
    mem_free(metrics);
}
