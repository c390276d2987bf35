#include "proto/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local char last_sentence[1024];

static const char *const names[NUM_STATUS] = {
    [OK] = "ok",
    [ERR_INVALID] = "invalid",
    [ERR_NOT_FOUND] = "not_found",
    [ERR_FULL] = "full",
    [ERR_NO_MEMORY] = "no_memory",
    [ERR_IO] = "io",
    [ERR_CORRUPT] = "corrupt",
    [ERR_UNSUPPORTED] = "unsupported",
    [ERR_MISMATCH] = "mismatch",
    [ERR_TIMEOUT] = "timeout",
    [ERR_CLOSED] = "closed",
    [ERR_ABORTED] = "aborted",
    [ERR_EXHAUSTED] = "exhausted",
    [ERR_DENIED] = "denied",
    [ERR_MISSING] = "missing",
    [ERR_INTERNAL] = "internal",
};

const char *status_name(enum status status)
{
    return (unsigned)status < NUM_STATUS ? names[status] : "unknown";
}

enum status (fail)(enum status status, const char *format, ...)
{
    char sentence[sizeof last_sentence];
    va_list args;

    /* Formatted aside first: an argument may be the previous sentence. */
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    memcpy(last_sentence, sentence, sizeof sentence);
    return status;
}

const char *fail_text(void)
{
    return last_sentence;
}

_Noreturn void assert_failed(const char *file, int line, const char *condition, const char *format,
                             ...)
{
    va_list args;

    fprintf(stderr, "%s:%d: assertion failed: %s", file, line, condition);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}
