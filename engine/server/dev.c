#include "engine/server/dev.h"
#include "engine/server/query.h"

#include <string.h>

/* ---- an order on its way --------------------------------------------------------------------- */

struct dev_order {
    struct server *server;          /* NULL: it has ended */
    struct http_exchange *exchange; /* NULL: the client has left */
    const char *done;               /* what the client is told when it has gone well */
    struct list_node node;          /* in server->orders */
};

static struct dev_order *order_new(struct server *server, struct http_exchange *exchange,
                                   const char *done)
{
    struct dev_order *order = mem_new(struct dev_order);

    *order = (struct dev_order){.server = server, .exchange = exchange, .done = done};
    list_push_back(&server->orders, &order->node);
    return order;
}

static void reply(struct server *server, struct http_exchange *exchange, enum status status,
                  const char *done, const char *text)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};
    bool is_conflict = status == ERR_FULL || status == ERR_ABORTED;

    if (status != OK) {
        server_reply_refusal(server, exchange, is_conflict ? 409 : 503, text);
        return;
    }
    bytes_printf(&body, "{\"status\":\"%s\"}", done);
    server_reply(server, exchange, 200, "application/json", &body);
}

static void on_order(void *user, enum status status, const char *text)
{
    struct dev_order *order = user;

    if (order->server)
        list_remove(&order->node);
    if (order->server && order->exchange)
        reply(order->server, order->exchange, status, order->done, text);
    mem_free(order);
}

/* What engine_pause and its like returned: a refusal is the last word. */
static void given(struct dev_order *order, enum status status)
{
    if (status != OK)
        on_order(order, status, fail_text());
}

void dev_gone(struct server *server, struct http_exchange *exchange)
{
    struct dev_order *order;

    LIST_FOR_EACH (order, &server->orders, node) {
        if (order->exchange == exchange)
            order->exchange = NULL;
    }
}

void dev_orders_forget(struct server *server)
{
    struct dev_order *order;

    LIST_FOR_EACH (order, &server->orders, node) {
        list_remove(&order->node);
        order->server = NULL;
    }
}

/* ---- endpoints ------------------------------------------------------------------------------- */

static enum status read_pause(const struct http_exchange *exchange, enum pause_mode *mode_out,
                              bool *clear_cache_out)
{
    struct query_parameter parameters[] = {{"mode", "abort"}, {"clear_cache", "true"}};

    TRY(query_read(http_query(exchange), parameters, COUNT_OF(parameters)));
    TRY(pause_mode_parse(parameters[0].value, mode_out));
    return query_flag(&parameters[1], clear_cache_out);
}

void pause_post(struct server *server, struct http_exchange *exchange)
{
    enum pause_mode mode;
    bool clear_cache;

    if (read_pause(exchange, &mode, &clear_cache) != OK) {
        server_reply_refusal(server, exchange, 400, fail_text());
        return;
    }

    struct dev_order *order = order_new(server, exchange, "paused");

    given(order, engine_pause(front_engine(server->front), mode, clear_cache, on_order, order));
}

void resume_post(struct server *server, struct http_exchange *exchange)
{
    struct dev_order *order = order_new(server, exchange, "resumed");

    given(order, engine_resume(front_engine(server->front), on_order, order));
}

void is_paused_get(struct server *server, struct http_exchange *exchange)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};

    bytes_printf(&body, "{\"is_paused\":%s}",
                 engine_is_paused(front_engine(server->front)) ? "true" : "false");
    server_reply(server, exchange, 200, "application/json", &body);
}

static enum status read_reset(const struct http_exchange *exchange, bool *reset_running_out)
{
    struct query_parameter parameters[] = {{"reset_running_requests", "false"}};

    TRY(query_read(http_query(exchange), parameters, COUNT_OF(parameters)));
    return query_flag(&parameters[0], reset_running_out);
}

void reset_prefix_cache_post(struct server *server, struct http_exchange *exchange)
{
    bool reset_running;

    if (read_reset(exchange, &reset_running) != OK) {
        server_reply_refusal(server, exchange, 400, fail_text());
        return;
    }

    struct dev_order *order = order_new(server, exchange, "reset");

    given(order,
          engine_reset_prefix_cache(front_engine(server->front), reset_running, on_order, order));
}

static enum status read_level(const struct http_exchange *exchange, const char **args_out)
{
    struct query_parameter parameters[] = {{"level", "1"}};
    bool is_deep;

    TRY(query_read(http_query(exchange), parameters, COUNT_OF(parameters)));
    is_deep = strcmp(parameters[0].value, "2") == 0;
    if (!is_deep && strcmp(parameters[0].value, "1") != 0)
        return fail(ERR_INVALID, "level must be 1 or 2, not '%s'", parameters[0].value);
    *args_out = is_deep ? "{\"level\": 2}" : "{\"level\": 1}";
    return OK;
}

void sleep_post(struct server *server, struct http_exchange *exchange)
{
    const char *args;

    if (read_level(exchange, &args) != OK) {
        server_reply_refusal(server, exchange, 400, fail_text());
        return;
    }

    struct dev_order *order = order_new(server, exchange, "asleep");

    given(order,
          engine_call_workers(front_engine(server->front), "sleep", args, on_order, order));
}

void wake_up_post(struct server *server, struct http_exchange *exchange)
{
    struct dev_order *order = order_new(server, exchange, "awake");

    given(order,
          engine_call_workers(front_engine(server->front), "wake_up", "{}", on_order, order));
}

void is_sleeping_get(struct server *server, struct http_exchange *exchange)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};
    struct engine_stats stats;

    engine_stats(front_engine(server->front), &stats);
    bytes_printf(&body, "{\"is_sleeping\":%s}", stats.is_asleep ? "true" : "false");
    server_reply(server, exchange, 200, "application/json", &body);
}
