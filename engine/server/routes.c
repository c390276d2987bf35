#include "engine/server/routes.h"
#include "engine/server/completions.h"
#include "engine/server/dev.h"
#include "engine/server/http_parse.h"
#include "engine/server/post.h"
#include "engine/server/tokenize.h"

#include "proto/config/config.h"

#include <string.h>
#include <strings.h>
#include <sys/random.h>

enum { MAX_REQUEST_ID = 128 };

static void reply_json(struct server *server, struct http_exchange *exchange, json_t *json)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};
    AUTO_MEM char *text = json_dumps(json, JSON_COMPACT);

    ASSERT(text, "an answer is no JSON");
    bytes_append(&body, text, strlen(text));
    json_decref(json);
    server_reply(server, exchange, 200, "application/json", &body);
}

/* ---- small answers --------------------------------------------------------------------------- */

/* vLLM's /health, with something to look at behind its 200. */
static void health_get(struct server *server, struct http_exchange *exchange)
{
    struct engine_stats stats;

    if (server_check_alive(server) != OK) {
        server_reply_refusal(server, exchange, 503, fail_text());
        return;
    }
    engine_stats(front_engine(server->front), &stats);
    reply_json(server, exchange,
               json_pack("{s:s, s:s, s:i, s:i, s:I, s:I, s:i, s:i}", "status", "ok", "phase",
                         engine_phase_name(stats.phase), "ranks", (int)stats.num_ranks,
                         "ranks_alive", (int)stats.num_ranks_alive, "steps",
                         (json_int_t)stats.num_steps, "generation_tokens",
                         (json_int_t)stats.generation_tokens, "running", (int)stats.num_running,
                         "waiting", (int)stats.num_waiting));
}

/* May more be sent here? */
static void ready_get(struct server *server, struct http_exchange *exchange)
{
    if (server_check_ready(server) == OK)
        reply_json(server, exchange, json_pack("{s:s}", "status", "ready"));
    else
        server_reply_refusal(server, exchange, 503, fail_text());
}

/* The event loop turns: that we answer is the answer. */
static void live_get(struct server *server, struct http_exchange *exchange)
{
    reply_json(server, exchange, json_pack("{s:s}", "status", "live"));
}

static void version_get(struct server *server, struct http_exchange *exchange)
{
    reply_json(server, exchange, json_pack("{s:s}", "version", TANDEM_VERSION));
}

static void load_get(struct server *server, struct http_exchange *exchange)
{
    reply_json(server, exchange, json_pack("{s:i}", "server_load", server->num_posts));
}

static void models_get(struct server *server, struct http_exchange *exchange)
{
    const struct openai_model *model = front_model(server->front);

    reply_json(server, exchange,
               json_pack("{s:s, s:[{s:s, s:s, s:I, s:s, s:s, s:n, s:i, s:[]}]}", "object", "list",
                         "data", "id", model->name, "object", "model", "created",
                         (json_int_t)server->started_at, "owned_by", "tandem", "root", model->name,
                         "parent", "max_model_len", (int)model->max_model_len, "permission"));
}

static void metrics_get(struct server *server, struct http_exchange *exchange)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};

    server_print_metrics(server, &body);
    server_reply(server, exchange, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}

/* ---- the table ------------------------------------------------------------------------------- */

enum access { ANYONE, KEY }; /* with --api-key: who may ask */

static const struct endpoint {
    const char *method; /* GET answers HEAD too */
    const char *path;
    void (*handle)(struct server *server, struct http_exchange *exchange);
    enum access access;
    bool is_dev; /* there with --enable-dev-endpoints only */
} endpoints[] = {
    {"POST", "/v1/completions", completions_post, KEY},
    {"POST", "/v1/chat/completions", chat_completions_post, KEY},
    {"GET", "/v1/models", models_get, KEY},
    {"POST", "/tokenize", tokenize_post, KEY},
    {"POST", "/detokenize", detokenize_post, KEY},
    {"GET", "/health", health_get, ANYONE},
    {"GET", "/ready", ready_get, ANYONE},
    {"GET", "/live", live_get, ANYONE},
    {"GET", "/ping", health_get, ANYONE},
    {"POST", "/ping", health_get, ANYONE},
    {"GET", "/version", version_get, KEY},
    {"GET", "/load", load_get, KEY},
    {"GET", "/metrics", metrics_get, KEY},
    {"POST", "/pause", pause_post, KEY, .is_dev = true},
    {"POST", "/resume", resume_post, KEY, .is_dev = true},
    {"GET", "/is_paused", is_paused_get, KEY, .is_dev = true},
    {"POST", "/reset_prefix_cache", reset_prefix_cache_post, KEY, .is_dev = true},
    {"POST", "/sleep", sleep_post, KEY, .is_dev = true},
    {"POST", "/wake_up", wake_up_post, KEY, .is_dev = true},
    {"GET", "/is_sleeping", is_sleeping_get, KEY, .is_dev = true},
};

static bool takes_method(const struct endpoint *endpoint, const char *method)
{
    return strcmp(endpoint->method, method) == 0 ||
           (strcmp(endpoint->method, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* The endpoint, or NULL: then `allow` has the methods of the path, none when it does not exist. */
static const struct endpoint *find_endpoint(const char *method, const char *path,
                                            struct bytes *allow)
{
    for (size_t i = 0; i < COUNT_OF(endpoints); i++) {
        if (strcmp(endpoints[i].path, path) != 0)
            continue;
        if (takes_method(&endpoints[i], method))
            return &endpoints[i];
        bytes_printf(allow, "%s%s", allow->size ? ", " : "",
                     strcmp(endpoints[i].method, "GET") == 0 ? "GET, HEAD" : endpoints[i].method);
    }
    return NULL;
}

/* ---- who asks -------------------------------------------------------------------------------- */

/* In a time that depends on the length of what was given alone. */
static bool is_key(const char *given, const char *key)
{
    size_t given_size = strlen(given), key_size = strlen(key);
    volatile uint8_t difference = given_size != key_size;

    for (size_t i = 0; i < given_size; i++)
        difference |= (uint8_t)(given[i] ^ key[i % (key_size + 1)]);
    return !difference;
}

static bool may_ask(const struct server *server, const struct http_exchange *exchange)
{
    const char *given = http_find_header(exchange, "Authorization");

    if (!server->options->api_key)
        return true;
    return given && strncasecmp(given, "Bearer ", 7) == 0 &&
           is_key(given + 7, server->options->api_key);
}

/* list: divided by commas or spaces; "*": every origin. */
static bool has_origin(const char *list, const char *origin)
{
    size_t size = strlen(origin), here_size;
    const char *here;

    if (strcmp(list, "*") == 0)
        return true;
    while (http_next_word(&list, ", ", &here, &here_size))
        if (here_size == size && memcmp(here, origin, size) == 0)
            return true;
    return false;
}

/* True: it comes from a web page that may ask, and whose browser is told so by the answer (CORS). */
static bool allow_page(const struct server *server, struct http_exchange *exchange)
{
    const char *origins = server->options->allowed_origins;
    const char *origin = http_find_header(exchange, "Origin");

    if (!origins)
        return false;
    http_add_header(exchange, "Vary", "Origin");
    if (!origin || !has_origin(origins, origin))
        return false;
    http_add_header(exchange, "Access-Control-Allow-Origin", origin);
    http_add_header(exchange, "Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
    return true;
}

/* What a browser asks before it sends a page's request, and without the key. */
static bool is_preflight(const struct http_exchange *exchange)
{
    return strcmp(http_method(exchange), "OPTIONS") == 0 &&
           http_find_header(exchange, "Access-Control-Request-Method");
}

static void reply_preflight(struct server *server, struct http_exchange *exchange)
{
    const char *headers = http_find_header(exchange, "Access-Control-Request-Headers");

    http_add_header(exchange, "Access-Control-Allow-Methods", "GET, POST");
    if (headers) /* "*" would leave Authorization out */
        http_add_header(exchange, "Access-Control-Allow-Headers", headers);
    http_add_header(exchange, "Access-Control-Max-Age", "600"); /* seconds until it is asked again */
    server_reply(server, exchange, 204, NULL, &(struct bytes){0});
}

/* The client's own id comes back to it; without one it gets one to quote. */
static void add_request_id(struct http_exchange *exchange)
{
    const char *given = http_find_header(exchange, "X-Request-Id");
    char id[MAX_REQUEST_ID + 1];
    uint64_t random[2];

    if (given && *given) {
        snprintf(id, sizeof(id), "%s", given);
    } else {
        ASSERT(getrandom(random, sizeof(random), 0) == sizeof(random));
        snprintf(id, sizeof(id), "%016llx%016llx", (unsigned long long)random[0],
                 (unsigned long long)random[1]);
    }
    http_add_header(exchange, "X-Request-Id", id);
}

/* ---- dispatch -------------------------------------------------------------------------------- */

static void refuse_method(struct server *server, struct http_exchange *exchange, const char *allow)
{
    char sentence[256];

    http_add_header(exchange, "Allow", allow);
    snprintf(sentence, sizeof(sentence), "%.20s is not a method of %s; these are: %s",
             http_method(exchange), http_path(exchange), allow);
    server_reply_refusal(server, exchange, 405, sentence);
}

static void refuse_path(struct server *server, struct http_exchange *exchange)
{
    char sentence[256];

    snprintf(sentence, sizeof(sentence), "there is nothing at %.200s", http_path(exchange));
    server_reply_refusal(server, exchange, 404, sentence);
}

static void refuse_dev(struct server *server, struct http_exchange *exchange)
{
    char sentence[256];

    snprintf(sentence, sizeof(sentence), "%s is there with --enable-dev-endpoints only",
             http_path(exchange));
    server_reply_refusal(server, exchange, 404, sentence);
}

static void refuse_asker(struct server *server, struct http_exchange *exchange)
{
    http_add_header(exchange, "WWW-Authenticate", "Bearer");
    server_reply_refusal(server, exchange, 401,
                         "this server wants its key: send Authorization: Bearer KEY");
}

void routes_dispatch(struct server *server, struct http_exchange *exchange)
{
    const char *method = http_method(exchange);
    AUTO_CLOSE(bytes) struct bytes allow = {0};
    const struct endpoint *endpoint = find_endpoint(method, http_path(exchange), &allow);

    add_request_id(exchange);
    if (allow_page(server, exchange) && is_preflight(exchange)) {
        reply_preflight(server, exchange);
    } else if ((!endpoint || endpoint->access == KEY) && !may_ask(server, exchange)) {
        refuse_asker(server, exchange);
    } else if (endpoint && endpoint->is_dev && !server->options->dev_endpoints) {
        refuse_dev(server, exchange);
    } else if (endpoint) {
        endpoint->handle(server, exchange);
    } else if (!allow.size) {
        refuse_path(server, exchange);
    } else if (strcmp(method, "OPTIONS") == 0) {
        http_add_header(exchange, "Allow", bytes_text(&allow));
        server_reply(server, exchange, 204, NULL, &(struct bytes){0});
    } else {
        refuse_method(server, exchange, bytes_text(&allow));
    }
}
