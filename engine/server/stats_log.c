#include "engine/server/stats_log.h"

#include "proto/base/log.h"

enum { PERIOD_S = 10 };

static double percent(int64_t part, int64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 0;
}

void stats_log_print(const struct stats_log *log, const struct engine_stats *stats, double seconds,
                     struct bytes *out)
{
    bytes_printf(out,
                 "prompt %.1f tokens/s, generation %.1f tokens/s, %d running, %d waiting, "
                 "KV cache %.1f %%",
                 (double)(stats->prompt_tokens - log->prompt_tokens) / seconds,
                 (double)(stats->generation_tokens - log->generation_tokens) / seconds,
                 stats->num_running, stats->num_waiting,
                 percent(stats->num_kv_blocks_used, stats->num_kv_blocks));
    if (stats->recent_prefix_cache_queries > 0)
        bytes_printf(out, ", prefix cache hits %.1f %%",
                     percent(stats->recent_prefix_cache_hits, stats->recent_prefix_cache_queries));
    if (stats->is_paused)
        bytes_printf(out, ", paused");
}

void stats_log_tick(struct stats_log *log, const struct engine_stats *stats, int64_t now_ns)
{
    AUTO_CLOSE(bytes) struct bytes line = {0};
    double seconds = (double)(now_ns - log->logged_ns) / 1e9;
    bool is_busy = stats->prompt_tokens != log->prompt_tokens ||
                   stats->generation_tokens != log->generation_tokens || stats->num_running > 0;

    if (seconds < PERIOD_S)
        return;
    if (log->logged_ns > 0 && (is_busy || log->was_busy)) {
        stats_log_print(log, stats, seconds, &line);
        log_info("%s", bytes_text(&line));
    }
    *log = (struct stats_log){
        .logged_ns = now_ns,
        .prompt_tokens = stats->prompt_tokens,
        .generation_tokens = stats->generation_tokens,
        .was_busy = is_busy,
    };
}
