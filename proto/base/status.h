/*
 * status: how a failure travels.
 *
 * The world's failures (files, peers, requests, memory for sizes that the world
 * chose) are values: a code, and one sentence in thread-local storage put there
 * where the fault is first understood. The programmer's failures are ASSERTs,
 * which stay on in release builds.
 *
 * Thread: any; the sentence belongs to the thread that failed.
 */
#ifndef PROTO_BASE_STATUS_H
#define PROTO_BASE_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum status {
    OK = 0,
    ERR_INVALID,     /* the caller's input is wrong: HTTP 400, exit 2 */
    ERR_NOT_FOUND,   /* a name, file or id that does not exist */
    ERR_FULL,        /* a pool, queue or limit is exhausted: try later, HTTP 503 */
    ERR_NO_MEMORY,   /* the machine has not got what was asked for */
    ERR_IO,          /* the operating system refused; the sentence has its words */
    ERR_CORRUPT,     /* bytes from outside that do not hold together */
    ERR_UNSUPPORTED, /* well-formed, and not for this build or model */
    ERR_MISMATCH,    /* a message that does not fit: version, build, epoch, step, rows */
    ERR_TIMEOUT,     /* a deadline passed */
    ERR_CLOSED,      /* the other side is gone */
    ERR_ABORTED,     /* somebody asked for it to stop */
    ERR_EXHAUSTED,   /* it was tried as often as was allowed */
    ERR_DENIED,      /* who asks may not have it: HTTP 403, exit 77 */
    ERR_MISSING,     /* a part that is not installed here: HTTP 501 */
    ERR_INTERNAL,    /* a promise of ours broke, and the process can go on */
    NUM_STATUS
};

#define MUST_USE __attribute__((warn_unused_result))

/* "ERR_FULL" -> "full": the short name used in logs, JSON and metrics. */
const char *status_name(enum status status);

/* Records the sentence for this thread (cut at 1023 bytes) and returns `status`.
 * The arguments may include fail_text() itself: that is how context is added. */
enum status fail(enum status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* So that the compiler sees which status it returns, and does not take a failed call for one
 * that went well and has set its outputs. */
#define fail(code, ...)                                                                            \
    ({                                                                                             \
        enum status fail_code_ = (code);                                                           \
        (fail)(fail_code_, __VA_ARGS__);                                                           \
        fail_code_;                                                                                \
    })

/* The last sentence of this thread; "" before the first failure. Valid until the next fail(). */
const char *fail_text(void);

/* Passes a status up; the sentence of a failure has this before it: the file, or what else it happened in. */
MUST_USE static inline enum status fail_in(const char *name, enum status status)
{
    return status == OK ? OK : fail(status, "%s: %s", name, fail_text());
}

/* Passes a failure up unchanged. */
#define TRY(expression)                                                                            \
    do {                                                                                           \
        enum status try_status_ = (expression);                                                    \
        if (try_status_ != OK)                                                                     \
            return try_status_;                                                                    \
    } while (0)

/* Prints file, line, the condition and, if given, a printf sentence; then aborts. */
#define ASSERT(condition, ...)                                                                     \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            assert_failed(__FILE__, __LINE__, #condition, " " __VA_ARGS__);                        \
    } while (0)

void assert_failed(const char *file, int line, const char *condition, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));

#ifdef __cplusplus
}
#endif
#endif
