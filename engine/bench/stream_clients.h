/*
 * stream_clients: many HTTP clients on one thread, each with one streamed completion at a time,
 * again and again. Enough of HTTP to measure a server of ours, and no more.
 *
 * Thread: that of the owner.
 */
#ifndef ENGINE_BENCH_STREAM_CLIENTS_H
#define ENGINE_BENCH_STREAM_CLIENTS_H

#include "proto/base/memory.h"

struct stream_clients_options {
    int port; /* of 127.0.0.1 */
    int32_t num_clients;
    const char *body; /* of each request; asks for "stream" and for usage at the end */
    int64_t duration_ns;
};

struct stream_counts {
    int64_t num_requests; /* answered whole */
    int64_t num_tokens;   /* as the usage of those tells */
    int64_t num_events;   /* "data: " lines, of all */
    int64_t elapsed_ns;   /* from the first request to the last answer */
};

/* No request begins after the duration; those that run are waited for. The first failure (a
 * connection lost, a status other than 200) ends it. */
MUST_USE enum status stream_clients_run(const struct stream_clients_options *options,
                                        struct stream_counts *out);

#endif
