#include "engine/core/step_log.h"

#include "proto/base/log.h"

#include <inttypes.h>
#include <string.h>

/* A log line has a limit of length; a dump has none. */
static void log_lines(const char *text)
{
    while (*text) {
        size_t n = strcspn(text, "\n");

        log_error("  %.*s", (int)n, text);
        text += n + (text[n] == '\n');
    }
}

void step_log_failure(const struct config *config, const struct scheduler *scheduler, int64_t step,
                      const struct scheduler_output *plan, enum status status, const char *cause)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    struct scheduler_stats stats;
    AUTO_MEM char *settings = config_to_json(config);

    log_error("step %" PRId64 " failed (%s): %s", step, status_name(status), cause);
    scheduler_get_stats(scheduler, &stats);
    bytes_printf(&text, "%d running, %d waiting, %d KV blocks free\n", stats.num_running,
                 stats.num_waiting, stats.num_free_blocks);
    message_body_print(&scheduler_output_type, plan, 0, &text);
    bytes_printf(&text, "configuration:\n");
    bytes_printf(&text, "%s\n", settings);
    log_lines(bytes_text(&text));
}
