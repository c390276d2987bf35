/*
 * dev: the endpoints that give the engine orders: /pause, /resume, /is_paused, /reset_prefix_cache, /sleep, /wake_up,
 * /is_sleeping.
 *
 * Whoever can reach them can stop everybody's requests, so they are there with
 * --enable-dev-endpoints only (vLLM: VLLM_SERVER_DEV_MODE=1). What they do is engine.h's.
 *
 * Thread: front.
 */
#ifndef ENGINE_SERVER_DEV_H
#define ENGINE_SERVER_DEV_H

#include "engine/server/server.h"

/* POST /pause?mode=abort|wait|keep&clear_cache=true|false: answered when the engine has paused. */
void pause_post(struct server *server, struct http_exchange *exchange);
void resume_post(struct server *server, struct http_exchange *exchange);
void is_paused_get(struct server *server, struct http_exchange *exchange);
/* POST /reset_prefix_cache?reset_running_requests=true|false; 409 while requests run. */
void reset_prefix_cache_post(struct server *server, struct http_exchange *exchange);

/* POST /sleep?level=1|2: requests are kept, and wait for POST /wake_up. GET /is_sleeping. */
void sleep_post(struct server *server, struct http_exchange *exchange);
void wake_up_post(struct server *server, struct http_exchange *exchange);
void is_sleeping_get(struct server *server, struct http_exchange *exchange);

/* The client that waits for an order has left. An exchange that waits for none is fine. */
void dev_gone(struct server *server, struct http_exchange *exchange);
/* The server ends: nobody waits for the orders that are not answered yet. */
void dev_orders_forget(struct server *server);

#endif
