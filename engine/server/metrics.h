/*
 * metrics: counts and times of the requests, as Prometheus text under vLLM's names.
 *
 * A metric is a row of metrics.c. Gauges and most counters are read from the engine when somebody
 * asks; what only the front sees (times until a token is told, why a request ended) is kept here.
 *
 * Thread: front; metrics_print: any.
 */
#ifndef ENGINE_SERVER_METRICS_H
#define ENGINE_SERVER_METRICS_H

#include "engine/engine.h"

struct grammar_compiler_stats; /* engine/grammar/compiler.h */

enum metric_histogram {
    METRIC_TIME_TO_FIRST_TOKEN,
    METRIC_INTER_TOKEN_LATENCY,
    METRIC_TIME_PER_OUTPUT_TOKEN, /* of one request, on average */
    METRIC_E2E_LATENCY,
    METRIC_QUEUE_TIME,
    METRIC_INFERENCE_TIME,
    METRIC_PREFILL_TIME,
    METRIC_DECODE_TIME,
    METRIC_PROMPT_TOKENS,
    METRIC_GENERATION_TOKENS,
    METRIC_MAX_GENERATION_TOKENS, /* of a prompt's n answers */
    METRIC_PARAMS_N,
    NUM_METRIC_HISTOGRAMS
};

struct metrics;

/* `model_name` is copied: the label of every line. */
struct metrics *metrics_new(const char *model_name);
void metrics_free(struct metrics *metrics); /* NULL is fine */
DEFINE_AUTO_FREE(metrics)

/* Seconds, tokens, …: what the histogram counts. */
void metrics_observe(struct metrics *metrics, enum metric_histogram histogram, double value);
/* A sequence has ended. */
void metrics_count_finish(struct metrics *metrics, enum finish_reason reason);

/* What the numbers on the page are read from. */
struct metrics_sources {
    const struct engine_stats *engine;
    const struct grammar_compiler_stats *grammars;
    const struct engine_worker *workers; /* [num_workers] */
    int32_t num_workers;
};

/* Appends the whole page, version 0.0.4 of the text format. */
void metrics_print(const struct metrics *metrics, const struct metrics_sources *from,
                   struct bytes *out);

#endif
