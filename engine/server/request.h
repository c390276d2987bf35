/*
 * request: a POST with a JSON body: read on a jobs thread, answered on the loop.
 *
 * It holds its exchange until the answer is given or the client has left, and knows which of the
 * threads has it; what the body means and how it is answered is its kind's business.
 *
 * Thread: front, except for kind.read.
 */
#ifndef ENGINE_SERVER_REQUEST_H
#define ENGINE_SERVER_REQUEST_H

#include "engine/server/server.h"

struct request;

struct request_kind {
    size_t bytes; /* of the struct whose first member is the request */
    /* On a jobs thread. param_out: the field at fault, borrowed from `json`, or NULL. */
    enum status (*read)(struct request *request, const json_t *json, const char **param_out);
    /* It was read well: answer it, now or later, and then post_free. */
    void (*answer)(struct request *request);
    /* Between answer and its end: tell the client why there is no more. NULL: there is no between.
     */
    void (*cut)(struct request *request, enum status why, const char *sentence);
    /* What it owns besides. The exchange is not its any more. */
    void (*close)(struct request *request);
};

struct request {
    struct server *server;
    const struct request_kind *kind;
    struct http_exchange *exchange; /* NULL: the client has left */
    struct list_node node;          /* in server->requests */
    int64_t arrived_ns;

    struct job job;
    bool reading; /* a jobs thread has it */
    struct bytes body;
    enum status status; /* of reading, with its sentence and the field at fault */
    char *sentence, *param;
};

/* Takes the exchange. Refuses bodies that do not say that they are JSON. */
void request_start(struct server *server, struct http_exchange *exchange,
                   const struct request_kind *kind);
void post_free(struct request *request);
/* The client left: whatever runs for it ends. */
void request_gone(struct request *request);
/* openai_error with the HTTP status that belongs to it; the exchange ends. */
void request_reply_error(struct request *request, enum status status, const char *sentence,
                         const char *param);
/* Ends every request with an error. */
void requests_cut(struct server *server, enum status why, const char *sentence);
/* Ends every request without a word. */
void requests_free(struct server *server);

#endif
