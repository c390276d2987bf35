/*
 * routes: which path is what. A new endpoint is a row of routes.c.
 *
 * Thread: front.
 */
#ifndef ENGINE_SERVER_ROUTES_H
#define ENGINE_SERVER_ROUTES_H

#include "engine/server/server.h"

/* Answers, or starts to, whatever the request is: 401, 404 and 405 are answered here. */
void routes_dispatch(struct server *server, struct http_exchange *exchange);

#endif
