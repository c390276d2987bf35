/*
 * log: one line per event on stderr:  time level role.rank file:line sentence
 *
 * error = somebody must act; warn = we coped; info = the life of the process;
 * debug = one request. Per step there is only the trace, and nothing inside kernels.
 *
 * Thread: any; a line is written whole.
 */
#ifndef PROTO_BASE_LOG_H
#define PROTO_BASE_LOG_H

#include "proto/base/status.h"

enum log_level { LOG_NONE = -1, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, NUM_LOG_LEVELS };

/* "engine" with rank -1, "worker" with its rank. Before the first call: "tandem". */
void log_set_role(const char *role, int rank);
/* Lines above this level are dropped; LOG_NONE: all. Default LOG_INFO. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* "error", "warn", "info", "debug"; ERR_INVALID names the word and the choices. */
MUST_USE enum status log_parse_level(const char *word, enum log_level *out);

void log_line(enum log_level level, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define log_error(...) log_line(LOG_ERROR, __FILE__, __LINE__, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __FILE__, __LINE__, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __FILE__, __LINE__, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __FILE__, __LINE__, __VA_ARGS__)

#endif
