/*
 * post: a POST with a JSON body: read on a jobs thread, answered on the loop.
 *
 * It holds its exchange until the answer is given or the client has left, and knows which of the
 * threads has it; what the body means and how it is answered is its kind's business.
 *
 * Thread: front, except for kind.read.
 */
#ifndef ENGINE_SERVER_POST_H
#define ENGINE_SERVER_POST_H

#include "engine/server/server.h"

struct post;

struct post_kind {
    size_t bytes; /* of the struct whose first member is the post */
    /* On a jobs thread. param_out: the field at fault, borrowed from `json`, or NULL. */
    enum status (*read)(struct post *post, const json_t *json, const char **param_out);
    /* It was read well: answer it, now or later, and then post_free. */
    void (*answer)(struct post *post);
    /* Between answer and its end: tell the client why there is no more. NULL: no such time. */
    void (*cut)(struct post *post, enum status why, const char *sentence);
    /* What it owns besides. The exchange is not its any more. */
    void (*close)(struct post *post);
};

struct post {
    struct server *server;
    const struct post_kind *kind;
    struct http_exchange *exchange; /* NULL: the client has left */
    struct list_node node;          /* in server->posts */
    int64_t arrived_ns;

    struct job job;
    bool reading; /* a jobs thread has it */
    struct bytes body;
    enum status status; /* of reading, with its sentence and the field at fault */
    char *sentence, *param;
    int32_t retry_after_s; /* what post_reply_error tells of ERR_FULL; 0: a second */
};

/* Takes the exchange. Refuses bodies that do not say that they are JSON. */
void post_start(struct server *server, struct http_exchange *exchange,
                const struct post_kind *kind);
void post_free(struct post *post);
/* The client left: whatever runs for it ends. */
void post_gone(struct post *post);
/* openai_error with the HTTP status that belongs to it; the exchange ends. */
void post_reply_error(struct post *post, enum status status, const char *sentence,
                      const char *param);
/* Ends every post with an error. */
void posts_cut(struct server *server, enum status why, const char *sentence);
/* Ends every post without a word. */
void posts_free(struct server *server);

#endif
