#include "proto/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[NUM_LOG_LEVELS] = {"error", "warn", "info", "debug"};
static _Atomic int current_level = LOG_INFO;
static char role_text[32] = "tandem";

void log_set_role(const char *role, int rank)
{
    if (rank < 0)
        snprintf(role_text, sizeof role_text, "%s", role);
    else
        snprintf(role_text, sizeof role_text, "%s.%d", role, rank);
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load_explicit(&current_level, memory_order_relaxed);
}

enum status log_parse_level(const char *word, enum log_level *out)
{
    for (int i = 0; i < NUM_LOG_LEVELS; i++)
        if (strcmp(word, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return OK;
        }
    return fail(ERR_INVALID, "log level '%.32s' is unknown; use error, warn, info or debug", word);
}

void log_line(enum log_level level, const char *file, int line, const char *format, ...)
{
    char text[2048];
    struct timespec now;
    struct tm tm;
    va_list args;
    int n;

    if (level > log_get_level())
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    n = (int)strftime(text, sizeof text, "%H:%M:%S", &tm);
    n += snprintf(text + n, sizeof text - (size_t)n, ".%03ld %s %s %s:%d ", now.tv_nsec / 1000000,
                  level_names[level], role_text, file, line);
    va_start(args, format);
    n += vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    if (n > (int)sizeof text - 2)
        n = (int)sizeof text - 2;
    text[n++] = '\n';
    /* One write a line: lines of several processes on one pipe do not mix. */
    if (write(STDERR_FILENO, text, (size_t)n) < 0)
        return;
}
