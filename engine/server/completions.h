/*
 * completions: POST /v1/completions and /v1/chat/completions, whole or as a stream of
 * server-sent events.
 *
 * A stream's events are gathered while a step's tokens are handed out and written once behind it,
 * however many sequences the request has. A client that leaves takes its requests with it.
 *
 * Thread: front.
 */
#ifndef ENGINE_SERVER_COMPLETIONS_H
#define ENGINE_SERVER_COMPLETIONS_H

#include "engine/server/server.h"

void completions_post(struct server *server, struct http_exchange *exchange);
void chat_completions_post(struct server *server, struct http_exchange *exchange);

/* Behind front_poll: sends what the steps have brought. */
void completions_send(struct server *server);

#endif
