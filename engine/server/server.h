/*
 * server: one engine behind HTTP, on one event loop.
 *
 * The loop waits for clients (http), for tokens (front) and for what the jobs threads have read;
 * routes.c says which path is what. This header is the room's own, but for server_run.
 *
 * Thread: front, which is the loop's.
 */
#ifndef ENGINE_SERVER_SERVER_H
#define ENGINE_SERVER_SERVER_H

#include "engine/front/front.h"
#include "engine/server/http.h"
#include "engine/server/jobs.h"
#include "engine/server/metrics.h"
#include "engine/server/stats_log.h"
#include "proto/base/list.h"
#include "proto/config/config.h"

struct control; /* engine/control/control.h */

struct server_options {
    const char *api_key; /* NULL: everybody may ask */
    const char *allowed_origins; /* of web pages that may: "https://a.example,http://b.example:80", "*"; NULL: none */
    int drain_ms;        /* what runs at SIGTERM may take that long */
    bool is_quiet;       /* does not tell stdout where it serves */
    bool dev_endpoints;  /* dev.h's are there */
    const struct config *config; /* the engine's settings; NULL without `control` */
    struct control *control;     /* commands come from there; NULL: from nowhere */
};

/*
 * Serves until SIGTERM or SIGINT: then takes nothing new, finishes what runs, and returns OK. A
 * second signal ends at once. ERR_TIMEOUT, ERR_ABORTED: answers were cut off, their clients told;
 * anything else: the engine failed, its requests have been answered with why.
 * `http` is listened on here, and closed at the end; both stay the caller's to free.
 */
MUST_USE enum status server_run(struct front *front, struct http_server *http,
                                const struct server_options *options);

/* ---- inside the room ------------------------------------------------------------------------- */

struct server {
    struct event_base *base;
    struct event *watch, *on_front, *on_jobs, *on_control, *on_term, *on_int;
    struct front *front;
    struct http_server *http;
    struct jobs *jobs;
    struct metrics *metrics;
    const struct server_options *options;
    int64_t started_at; /* Unix seconds */

    struct list_node posts; /* all of them: post.c */
    int num_posts;
    struct list_node orders; /* that the engine has not answered: dev.c */
    struct list_node drains; /* control calls that wait until all is answered: control/commands.c */
    struct config live_config; /* with `control`: the settings as they are now */
    struct list_node unsent; /* completions that the last poll brought something: completions.c */

    _Atomic bool draining; /* it ends when all is answered */
    int num_signals;
    int64_t drain_deadline_ns;
    enum status outcome; /* of server_run, with */
    char *outcome_text;  /* its sentence */

    struct stats_log stats_log;

    enum engine_phase phase_told; /* to whoever started us: proto/base/notify.h */
    int64_t watchdog_ms, watchdog_due_ns; /* how often it wants to hear of us; 0: never */
};

/* Ends the server as SIGTERM does: takes nothing new and finishes what runs, within so many ms. */
void server_drain(struct server *server, int ms);
/* Ends it at once, with this for an outcome: answers are cut off. */
void server_end(struct server *server, const char *why);
/* Looks after what waits for a time to come. */
void server_watch_now(struct server *server);

/* The page of /metrics. Any thread. */
void server_print_metrics(const struct server *server, struct bytes *out);
/* OK: what is inside will be answered, if not at once; else why there is no hope but a new process. */
MUST_USE enum status server_check_alive(const struct server *server);
/* OK: it serves, if there is room; else why not. Any thread. */
MUST_USE enum status server_check_serving(const struct server *server);
/* OK only when a request that came now would be served now; else why not. */
MUST_USE enum status server_check_ready(const struct server *server);

/* The one answer of an exchange, and its line in the access log. */
void server_reply(struct server *server, struct http_exchange *exchange, int code,
                  const char *content_type, const struct bytes *body);
/* The same, in OpenAI's shape of an error. */
void server_reply_refusal(struct server *server, struct http_exchange *exchange, int code,
                          const char *sentence);
void server_log_access(const struct http_exchange *exchange, int code);

#endif
