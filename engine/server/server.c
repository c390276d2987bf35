#include "engine/server/server.h"
#include "engine/control/control.h"
#include "engine/grammar/compiler.h"
#include "engine/server/completions.h"
#include "engine/server/dev.h"
#include "engine/server/post.h"
#include "engine/server/routes.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/notify.h"
#include "proto/base/trace.h"

#include <event2/event.h>
#include <signal.h>
#include <string.h>
#include <time.h>

enum {
    JOB_THREADS = 2,
    WATCH_MS = 500,       /* the engine's phase and pulse */
    DRAIN_WATCH_MS = 20,  /* is everything sent? */
    LAST_WORDS_MS = 5000, /* for errors to reach their clients, when we end for another cause */
    STALL_MS = 60000,     /* requests run, and no step ends: the core loop hangs */
};

/* ---- answers --------------------------------------------------------------------------------- */

void server_log_access(const struct http_exchange *exchange, int code)
{
    log_debug("http %s: %s %s %d in %.1f ms", http_peer(exchange), http_method(exchange),
              http_path(exchange), code, clock_ms(clock_now_ns() - http_started_ns(exchange)));
}

void server_reply(struct server *server, struct http_exchange *exchange, int code,
                  const char *content_type, const struct bytes *body)
{
    (void)server;
    server_log_access(exchange, code);
    http_reply(exchange, code, content_type, body->data, body->size);
}

static const struct {
    int code;
    const char *type;
} refusal_types[] = {
    {400, "BadRequestError"},
    {401, "AuthenticationError"},
    {404, "NotFoundError"},
    {405, "MethodNotAllowedError"},
    {408, "TimeoutError"},
    {409, "ConflictError"},
    {413, "RequestTooLargeError"},
    {415, "UnsupportedMediaTypeError"},
    {431, "RequestTooLargeError"},
    {501, "NotImplementedError"},
    {503, "ServiceUnavailableError"},
};

static void write_refusal(int code, const char *sentence, struct bytes *out)
{
    const char *type = "InternalServerError";

    for (size_t i = 0; i < COUNT_OF(refusal_types); i++)
        if (refusal_types[i].code == code)
            type = refusal_types[i].type;

    /* A path in the sentence may be any bytes. */
    json_t *message = json_string(sentence);
    json_t *json = json_pack("{s:{s:o, s:s, s:n, s:i}}", "error", "message",
                             message ? message : json_string("the request is not UTF-8"), "type",
                             type, "param", "code", code);
    AUTO_MEM char *text = json_dumps(json, JSON_COMPACT);
    bytes_append(out, text, strlen(text));
    json_decref(json);
}

void server_reply_refusal(struct server *server, struct http_exchange *exchange, int code,
                          const char *sentence)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};

    write_refusal(code, sentence, &body);
    server_reply(server, exchange, code, "application/json", &body);
}

/* ---- health ---------------------------------------------------------------------------------- */

/* A step is to end soon. */
static bool is_at_work(const struct engine_stats *stats)
{
    return stats->num_running > 0 && !stats->is_paused && stats->phase != PHASE_RECOVERING;
}

static enum status check_alive(const struct engine_stats *stats)
{
    double stalled_s = (double)(clock_now_ns() - stats->progress_ns) / 1e9;

    if (stats->phase == PHASE_FAILED)
        return fail(ERR_CLOSED, "the engine has failed: %s", stats->failure);
    if (is_at_work(stats) && stalled_s > STALL_MS / 1e3)
        return fail(ERR_TIMEOUT, "%d requests run, and no step has ended for %.0f s",
                    stats->num_running, stalled_s);
    return OK;
}

enum status server_check_alive(const struct server *server)
{
    struct engine_stats stats;

    engine_stats(front_engine(server->front), &stats);
    return check_alive(&stats);
}

static enum status check_serving(const struct server *server, const struct engine_stats *stats)
{
    TRY(check_alive(stats));
    if (server->draining || stats->phase == PHASE_DRAINING)
        return fail(ERR_CLOSED, "the server is draining: it takes nothing new, and %d requests run",
                    stats->num_running + stats->num_waiting);
    if (stats->phase == PHASE_RECOVERING || stats->num_ranks_alive < stats->num_ranks)
        return fail(ERR_CLOSED, "ranks are being replaced: %d of %d are ready",
                    stats->num_ranks_alive, stats->num_ranks);
    if (stats->phase != PHASE_READY)
        return fail(ERR_CLOSED, "the engine is %s", engine_phase_name(stats->phase));
    if (stats->is_asleep)
        return fail(ERR_CLOSED, "the engine is asleep");
    return stats->is_paused ? fail(ERR_CLOSED, "the engine is paused") : OK;
}

enum status server_check_serving(const struct server *server)
{
    struct engine_stats stats;

    engine_stats(front_engine(server->front), &stats);
    return check_serving(server, &stats);
}

enum status server_check_ready(const struct server *server)
{
    const struct engine *engine = front_engine(server->front);
    struct engine_stats stats;

    engine_stats(engine, &stats);
    TRY(check_serving(server, &stats));
    if (!engine_has_room(engine))
        return fail(ERR_FULL, "the queue is full: %d requests run and %d wait", stats.num_running,
                    stats.num_waiting);
    return OK;
}

void server_print_metrics(const struct server *server, struct bytes *out)
{
    const struct engine *engine = front_engine(server->front);
    struct engine_worker workers[MAX_RANKS];
    struct grammar_compiler_stats grammars;
    struct engine_stats stats;
    struct metrics_sources sources = {
        .engine = &stats,
        .grammars = &grammars,
        .workers = workers,
        .num_workers = engine_workers(engine, workers, MAX_RANKS),
    };

    engine_stats(engine, &stats);
    grammar_compiler_get_stats(front_grammars(server->front), &grammars);
    metrics_print(server->metrics, &sources, out);
}

/* The first cause is the one that is told. */
static void set_outcome(struct server *server, enum status status, const char *sentence)
{
    if (server->outcome != OK)
        return;
    server->outcome = status;
    server->outcome_text = mem_strdup(sentence);
}

void server_watch_now(struct server *server)
{
    event_active(server->watch, EV_TIMEOUT, 0);
}

void server_drain(struct server *server, int ms)
{
    if (!server->draining)
        notify("STOPPING=1\nSTATUS=draining %d requests", server->num_posts);
    server->draining = true;
    server->drain_deadline_ns = clock_deadline_ns(ms);
    http_drain(server->http);
    server_watch_now(server);
}

void server_end(struct server *server, const char *why)
{
    set_outcome(server, ERR_ABORTED, why);
    event_base_loopbreak(server->base);
}

/* Whoever started us is told how we are; of an engine that hangs it hears no more, and ends it. */
static void notify_supervisor(struct server *server, const struct engine_stats *stats)
{
    int64_t now_ns = clock_now_ns();

    if (stats->phase != server->phase_told && !server->draining)
        notify("STATUS=%s on %s: the engine is %s", front_model(server->front)->name,
               http_url(server->http), engine_phase_name(stats->phase));
    server->phase_told = stats->phase;
    if (!server->watchdog_ms || now_ns < server->watchdog_due_ns || check_alive(stats) != OK)
        return;
    notify("WATCHDOG=1");
    server->watchdog_due_ns = clock_deadline_ns(server->watchdog_ms);
}

static void watch_engine(struct server *server)
{
    struct engine_stats stats;

    engine_stats(front_engine(server->front), &stats);
    notify_supervisor(server, &stats);
    stats_log_tick(&server->stats_log, &stats, clock_now_ns());
    if (stats.phase == PHASE_FAILED && server->outcome == OK) {
        set_outcome(server, stats.failure_status, stats.failure);
        server_drain(server, LAST_WORDS_MS);
    }
}

/* Everything has been said, or there is no more time to say it. */
static void watch_drain(struct server *server)
{
    if (!http_num_busy(server->http)) {
        event_base_loopbreak(server->base);
        return;
    }
    if (clock_left_ms(server->drain_deadline_ns) > 0)
        return;
    if (!server->num_posts) { /* clients that do not read what they were told */
        event_base_loopbreak(server->base);
        return;
    }
    char sentence[96];
    snprintf(sentence, sizeof(sentence), "the server ended before %d requests were answered",
             server->num_posts);
    set_outcome(server, ERR_TIMEOUT, sentence);
    posts_cut(server, ERR_CLOSED, "the server is shutting down and could not finish this");
    server->drain_deadline_ns = clock_deadline_ns(LAST_WORDS_MS);
}

static void on_watch(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct server *server = user;

    watch_engine(server);
    if (server->draining)
        watch_drain(server);
    int ms = control_commands_tick(server) || server->draining ? DRAIN_WATCH_MS : WATCH_MS;
    if (server->watchdog_ms)
        ms = (int)MIN(ms, server->watchdog_ms);
    struct timeval wait = {0, ms * 1000};
    event_add(server->watch, &wait);
}

/* ---- events ---------------------------------------------------------------------------------- */

static void on_front(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct server *server = user;

    front_poll(server->front);

    int64_t begin_ns = trace_begin();

    completions_send(server);
    trace_end("stream", begin_ns, -1);
}

static void on_jobs(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct server *server = user;
    jobs_poll(server->jobs);
}

static void on_control(evutil_socket_t fd, short what, void *user)
{
    (void)fd;
    (void)what;
    struct server *server = user;
    control_poll(server->options->control);
}

static void on_signal(evutil_socket_t number, short what, void *user)
{
    (void)what;
    struct server *server = user;

    if (server->num_signals++) {
        server_end(server, "ended by a second signal");
        return;
    }
    log_info("%s: draining %d requests, for %.1f s at most", strsignal((int)number),
             server->num_posts, server->options->drain_ms / 1e3);
    server_drain(server, server->options->drain_ms);
}

static void on_request(void *user, struct http_exchange *exchange)
{
    routes_dispatch(user, exchange);
}

static void on_gone(void *user, struct http_exchange *exchange)
{
    struct server *server = user;
    struct post *post = http_user(exchange);

    server_log_access(exchange, 499);
    if (post)
        post_gone(post);
    else
        dev_gone(server, exchange);
}

/* ---- life ------------------------------------------------------------------------------------ */

static void server_close(struct server *server)
{
    struct event *events[] = {server->watch, server->on_front, server->on_jobs, server->on_control,
                              server->on_term, server->on_int};

    control_detach(server->options->control);
    control_commands_end(server);
    if (server->front) {
        posts_free(server);
        dev_orders_forget(server);
    }
    jobs_free(server->jobs);
    for (size_t i = 0; i < COUNT_OF(events); i++)
        if (events[i])
            event_free(events[i]);
    http_close(server->http);
    config_close(&server->live_config);
    metrics_free(server->metrics);
    mem_free(server->outcome_text);
    if (server->base)
        event_base_free(server->base);
}

static struct event *add_event(struct server *server, evutil_socket_t fd, short what,
                               event_callback_fn callback)
{
    struct event *event = event_new(server->base, fd, what | EV_PERSIST, callback, server);

    ASSERT(event && event_add(event, NULL) == 0);
    return event;
}

static enum status open_control(struct server *server)
{
    const struct server_options *options = server->options;
    AUTO_MEM char *settings = config_to_json(options->config);

    config_init(&server->live_config);
    TRY(config_from_json(settings, &server->live_config));
    server->on_control = add_event(server, control_fd(options->control), EV_READ, on_control);
    control_attach(options->control, server);
    return OK;
}

static enum status server_open(struct server *server)
{
    struct http_handler handler = {on_request, on_gone, write_refusal, server};

    server->base = event_base_new();
    ASSERT(server->base);
    TRY(jobs_new(JOB_THREADS, &server->jobs));
    server->on_front = add_event(server, front_fd(server->front), EV_READ, on_front);
    server->on_jobs = add_event(server, jobs_fd(server->jobs), EV_READ, on_jobs);
    server->on_term = add_event(server, SIGTERM, EV_SIGNAL, on_signal);
    server->on_int = add_event(server, SIGINT, EV_SIGNAL, on_signal);
    server->watch = evtimer_new(server->base, on_watch, server);
    ASSERT(server->watch);
    server_watch_now(server);
    TRY(http_listen(server->http, server->base, &handler));
    return server->options->control ? open_control(server) : OK;
}

static void tell_where(const struct server *server)
{
    const struct control *control = server->options->control;
    const char *key = control ? control_public_key(control) : NULL;

    printf("tandem: serving %s on %s\n", front_model(server->front)->name, http_url(server->http));
    if (control)
        printf("tandem: control on %s%s%s\n", control_endpoint(control), key ? " with key " : "",
               key ? key : "");
    fflush(stdout);
}

enum status server_run(struct front *front, struct http_server *http,
                       const struct server_options *options)
{
    AUTO_CLOSE(server)
    struct server server = {
        .front = front,
        .http = http,
        .options = options,
        .metrics = metrics_new(front_model(front)->name),
        .started_at = time(NULL),
        .phase_told = PHASE_STARTING,
        .watchdog_ms = notify_watchdog_ms(),
    };

    list_init(&server.posts);
    list_init(&server.orders);
    list_init(&server.drains);
    list_init(&server.unsent);
    signal(SIGPIPE, SIG_IGN);
    TRY(server_open(&server));
    if (!options->is_quiet)
        tell_where(&server);
    notify("READY=1");
    event_base_dispatch(server.base);
    return server.outcome == OK ? OK : fail(server.outcome, "%s", server.outcome_text);
}
