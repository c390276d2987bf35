#include "tests/support/expect.h"

#include "engine/grammar/compiler.h"
#include "engine/server/metrics.h"
#include "engine/server/stats_log.h"

#include <stdio.h>

static const struct grammar_compiler_stats grammars = {.num_compiled = 7, .num_hits = 9};

static const struct engine_worker workers[] = {
    {.rank = 0},
    {.rank = 1,
     .restarts = 3,
     .memory = {.weights_bytes = 5000000000, .kv_cache_bytes = 600, .workspace_bytes = 70, .free_bytes = 8,
                .total_bytes = 9},
     .passes = {.recorded_first = 64, .recorded_later = 2, .replayed = 70, .launched = 8}},
};

static void print_page(const struct metrics *metrics, const struct engine_stats *stats,
                       struct bytes *out)
{
    metrics_print(metrics, &(struct metrics_sources){stats, &grammars, workers, COUNT_OF(workers)},
                  out);
}

static void expect_line(struct bytes *page, const char *line)
{
    AUTO_MEM char *whole = mem_printf("\n%s\n", line);

    if (!strstr(bytes_text(page), whole))
        fail_msg("no line \"%s\" in:\n%s", line, bytes_text(page));
}

static void numbers_of_the_engine_are_on_the_page(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {.num_running = 3,
                                 .num_waiting = 2,
                                 .num_kv_blocks = 8,
                                 .num_kv_blocks_used = 6,
                                 .kv_type = KV_INT8,
                                 .kv_token_bytes = 34,
                                 .num_steps = 5,
                                 .iteration_tokens_sum = 40,
                                 .steps_by_size = {2, 2, [NUM_STEP_SIZES - 1] = 1},
                                 .generation_tokens = 123456789012};

    print_page(metrics, &stats, &page);
    expect_line(&page, "# TYPE vllm:num_requests_running gauge");
    expect_line(&page, "vllm:num_requests_running{model_name=\"tiny\",engine=\"0\"} 3");
    expect_line(&page, "tandem:grammars_compiled_total{model_name=\"tiny\",engine=\"0\"} 7");
    expect_line(&page, "tandem:grammar_cache_hits_total{model_name=\"tiny\",engine=\"0\"} 9");
    expect_line(&page, "vllm:num_requests_waiting{model_name=\"tiny\",engine=\"0\"} 2");
    expect_line(&page, "vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0.75");
    expect_line(&page, "tandem:kv_cache_token_bytes{model_name=\"tiny\",engine=\"0\"} 34");
    expect_line(&page, "vllm:cache_config_info{model_name=\"tiny\",engine=\"0\",block_size=\"16\","
                       "cache_dtype=\"int8\",num_gpu_blocks=\"8\"} 1");
    expect_line(&page, "# TYPE vllm:generation_tokens_total counter");
    expect_line(&page, "vllm:generation_tokens_total{model_name=\"tiny\",engine=\"0\"} 123456789012");
    expect_line(&page, "vllm:iteration_tokens_total_bucket{model_name=\"tiny\",engine=\"0\",le=\"1\"} 2");
    expect_line(&page, "vllm:iteration_tokens_total_bucket{model_name=\"tiny\",engine=\"0\",le=\"8\"} 4");
    expect_line(&page, "vllm:iteration_tokens_total_bucket{model_name=\"tiny\",engine=\"0\",le=\"16384\"} 4");
    expect_line(&page, "vllm:iteration_tokens_total_bucket{model_name=\"tiny\",engine=\"0\",le=\"+Inf\"} 5");
    expect_line(&page, "vllm:iteration_tokens_total_count{model_name=\"tiny\",engine=\"0\"} 5");
    expect_line(&page, "vllm:iteration_tokens_total_sum{model_name=\"tiny\",engine=\"0\"} 40");
}

static void reasons_are_told_apart(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {
        .num_waiting_by_reason = {[WAITING_CAPACITY] = 2, [WAITING_DEFERRED] = 1},
        .admission_rejections = {[LIMIT_QUEUED_REQS] = 7, [LIMIT_QUEUED_TOKENS] = 9},
    };

    print_page(metrics, &stats, &page);
    expect_line(&page, "# TYPE vllm:num_requests_waiting_by_reason gauge");
    expect_line(&page,
                "vllm:num_requests_waiting_by_reason{model_name=\"tiny\",engine=\"0\",reason=\"capacity\"} 2");
    expect_line(&page,
                "vllm:num_requests_waiting_by_reason{model_name=\"tiny\",engine=\"0\",reason=\"deferred\"} 1");
    expect_line(&page, "# TYPE vllm:admission_rejections_total counter");
    expect_line(&page, "vllm:admission_rejections_total{model_name=\"tiny\",engine=\"0\","
                       "reason=\"max_num_queued_reqs\"} 7");
    expect_line(&page, "vllm:admission_rejections_total{model_name=\"tiny\",engine=\"0\","
                       "reason=\"max_num_queued_tokens\"} 9");
}

static void ranks_that_were_replaced_are_counted(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {
        .num_recoveries = 3, .recovery_ns = 500000000, .recovery_sum_ns = 1750000000};

    print_page(metrics, &stats, &page);
    expect_line(&page, "tandem:recoveries_total{model_name=\"tiny\",engine=\"0\"} 3");
    expect_line(&page, "tandem:recovery_seconds_sum{model_name=\"tiny\",engine=\"0\"} 1.75");
    expect_line(&page, "tandem:recovery_seconds_count{model_name=\"tiny\",engine=\"0\"} 3");
    expect_line(&page,
                "tandem:worker_restarts_total{model_name=\"tiny\",engine=\"0\",rank=\"0\"} 0");
    expect_line(&page,
                "tandem:worker_restarts_total{model_name=\"tiny\",engine=\"0\",rank=\"1\"} 3");
}

static void what_ranks_hold_is_told(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    const char *about = "# TYPE tandem:worker_memory_bytes gauge\n";

    print_page(metrics, &(struct engine_stats){0}, &page);
    assert_non_null(strstr(bytes_text(&page), about));
    assert_null(strstr(strstr(bytes_text(&page), about) + 1, about)); /* once, and its lines together */
#define HELD "tandem:worker_memory_bytes{model_name=\"tiny\",engine=\"0\","
    expect_line(&page, HELD "rank=\"0\",of=\"weights\"} 0\n" HELD "rank=\"1\",of=\"weights\"} 5000000000\n" HELD
                            "rank=\"0\",of=\"kv_cache\"} 0");
    expect_line(&page, HELD "rank=\"1\",of=\"kv_cache\"} 600");
    expect_line(&page, HELD "rank=\"1\",of=\"workspace\"} 70");
#undef HELD
    expect_line(&page, "tandem:device_memory_free_bytes{model_name=\"tiny\",engine=\"0\",rank=\"1\"} 8");
    expect_line(&page, "tandem:device_memory_size_bytes{model_name=\"tiny\",engine=\"0\",rank=\"1\"} 9");
}

static void passes_are_told_apart_by_how_they_ran(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};

    print_page(metrics, &(struct engine_stats){0}, &page);
    expect_line(&page,
                "tandem:recorded_passes_total{model_name=\"tiny\",engine=\"0\",rank=\"1\",when=\"start\"} 64");
    expect_line(&page, "tandem:recorded_passes_total{model_name=\"tiny\",engine=\"0\",rank=\"1\",when=\"step\"} 2");
    expect_line(&page, "tandem:passes_total{model_name=\"tiny\",engine=\"0\",rank=\"1\",how=\"replayed\"} 70");
    expect_line(&page, "tandem:passes_total{model_name=\"tiny\",engine=\"0\",rank=\"1\",how=\"launched\"} 8");
}

static void the_log_has_the_same_in_a_line(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes line = {0};
    struct stats_log log = {.prompt_tokens = 100, .generation_tokens = 50};
    struct engine_stats stats = {.prompt_tokens = 1100,
                                 .generation_tokens = 75,
                                 .num_running = 2,
                                 .num_waiting = 1,
                                 .num_kv_blocks = 8,
                                 .num_kv_blocks_used = 2};

    stats_log_print(&log, &stats, 10, &line);
    assert_string_equal(bytes_text(&line), "prompt 100.0 tokens/s, generation 2.5 tokens/s, "
                                           "2 running, 1 waiting, KV cache 25.0 %");
    line.size = 0;
    stats.recent_prefix_cache_queries = 1000; /* a rate of no queries is none */
    stats.recent_prefix_cache_hits = 875;
    stats.is_paused = true;
    stats_log_print(&log, &stats, 10, &line);
    assert_non_null(strstr(bytes_text(&line), "25.0 %, prefix cache hits 87.5 %, paused"));
}

static void an_empty_cache_is_not_divided_by(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {0};

    print_page(metrics, &stats, &page);
    expect_line(&page, "vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"} 0");
}

static void buckets_of_a_histogram_add_up(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {0};

    metrics_observe(metrics, METRIC_PARAMS_N, 1); /* on a bound: it belongs below */
    metrics_observe(metrics, METRIC_PARAMS_N, 2.5);
    metrics_observe(metrics, METRIC_PARAMS_N, 100); /* above all bounds */
    print_page(metrics, &stats, &page);
    expect_line(&page, "# TYPE vllm:request_params_n histogram");
    expect_line(&page, "vllm:request_params_n_bucket{model_name=\"tiny\",engine=\"0\",le=\"1\"} 1");
    expect_line(&page, "vllm:request_params_n_bucket{model_name=\"tiny\",engine=\"0\",le=\"2\"} 1");
    expect_line(&page, "vllm:request_params_n_bucket{model_name=\"tiny\",engine=\"0\",le=\"5\"} 2");
    expect_line(&page, "vllm:request_params_n_bucket{model_name=\"tiny\",engine=\"0\",le=\"20\"} 2");
    expect_line(&page, "vllm:request_params_n_bucket{model_name=\"tiny\",engine=\"0\",le=\"+Inf\"} 3");
    expect_line(&page, "vllm:request_params_n_sum{model_name=\"tiny\",engine=\"0\"} 103.5");
    expect_line(&page, "vllm:request_params_n_count{model_name=\"tiny\",engine=\"0\"} 3");
}

static void ends_are_counted_by_reason(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {0};

    metrics_count_finish(metrics, FINISH_STOP);
    metrics_count_finish(metrics, FINISH_STOP);
    metrics_count_finish(metrics, FINISH_ABORT);
    print_page(metrics, &stats, &page);
    expect_line(&page,
                "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"stop\"} 2");
    expect_line(&page,
                "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"length\"} 0");
    expect_line(&page,
                "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"abort\"} 1");
}

static void a_model_s_name_is_escaped(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("a\"b\\c\nd");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {0};

    print_page(metrics, &stats, &page);
    expect_line(&page, "vllm:num_requests_running{model_name=\"a\\\"b\\\\c\\nd\",engine=\"0\"} 0");
}

/* Each name has one HELP, one TYPE behind it, and then its lines: what scrapers insist on. */
static void every_line_stands_behind_its_type(void **state)
{
    (void)state;
    AUTO_FREE(metrics) struct metrics *metrics = metrics_new("tiny");
    AUTO_CLOSE(bytes) struct bytes page = {0};
    struct engine_stats stats = {0};
    char name[128] = "", helped[128] = "";

    print_page(metrics, &stats, &page);
    assert_int_equal(page.data[page.size - 1], '\n');
    char *text = (char *)bytes_text(&page);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (sscanf(line, "# HELP %127s", helped) == 1)
            continue;
        if (sscanf(line, "# TYPE %127s", name) == 1) {
            assert_string_equal(name, helped);
            continue;
        }
        assert_int_equal(strncmp(line, name, strlen(name)), 0);
        assert_non_null(strstr(line, "{model_name=\"tiny\",engine=\"0\""));
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(numbers_of_the_engine_are_on_the_page),
    cmocka_unit_test(reasons_are_told_apart),
    cmocka_unit_test(ranks_that_were_replaced_are_counted),
    cmocka_unit_test(what_ranks_hold_is_told),
    cmocka_unit_test(passes_are_told_apart_by_how_they_ran),
    cmocka_unit_test(the_log_has_the_same_in_a_line),
    cmocka_unit_test(an_empty_cache_is_not_divided_by),
    cmocka_unit_test(buckets_of_a_histogram_add_up),
    cmocka_unit_test(ends_are_counted_by_reason),
    cmocka_unit_test(a_model_s_name_is_escaped),
    cmocka_unit_test(every_line_stands_behind_its_type),
};
TEST_MAIN(tests)
