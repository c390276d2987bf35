#include "engine/server/post.h"

#include "proto/base/clock.h"

#include <string.h>
#include <strings.h>

/* "application/json; charset=utf-8" is JSON. A browser can't send this to another site unasked. */
static bool is_json(const char *content_type)
{
    const char *json = "application/json";
    size_t size = content_type ? strcspn(content_type, "; \t") : 0;

    return size == strlen(json) && strncasecmp(content_type, json, size) == 0;
}

static void run_read(struct job *job)
{
    struct post *post = CONTAINER_OF(job, struct post, job);
    const char *param = NULL;
    json_t *json = NULL;

    post->status = openai_decode((const char *)post->body.data, post->body.size, 1, &json);
    if (post->status == OK)
        post->status = post->kind->read(post, json, &param);
    if (post->status != OK) {
        post->sentence = mem_strdup(fail_text());
        post->param = param ? mem_strdup(param) : NULL;
    }
    json_decref(json);
    bytes_close(&post->body);
}

static void read_done(struct job *job)
{
    struct post *post = CONTAINER_OF(job, struct post, job);

    post->reading = false;
    if (!post->exchange) {
        post_free(post);
    } else if (post->status != OK) {
        post_reply_error(post, post->status, post->sentence, post->param);
        post_free(post);
    } else {
        post->kind->answer(post);
    }
}

void post_start(struct server *server, struct http_exchange *exchange, const struct post_kind *kind)
{
    if (!is_json(http_find_header(exchange, "Content-Type"))) {
        server_reply_refusal(server, exchange, 415,
                             "Unsupported Media Type: only 'application/json' is allowed");
        return;
    }

    struct post *post = mem_alloc(kind->bytes);
    *post = (struct post){
        .server = server,
        .kind = kind,
        .exchange = exchange,
        .arrived_ns = clock_now_ns(),
        .job = {.run = run_read, .done = read_done},
        .reading = true,
        .body = http_take_body(exchange),
    };
    list_push_back(&server->posts, &post->node);
    server->num_posts++;
    http_set_user(exchange, post);
    jobs_add(server->jobs, &post->job);
}

void post_free(struct post *post)
{
    post->kind->close(post);
    list_remove(&post->node);
    post->server->num_posts--;
    bytes_close(&post->body);
    mem_free(post->sentence);
    mem_free(post->param);
    mem_free(post);
}

void post_gone(struct post *post)
{
    post->exchange = NULL;
    if (!post->reading) /* else it is freed when it has been read */
        post_free(post);
}

void post_reply_error(struct post *post, enum status status, const char *sentence,
                      const char *param)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};

    openai_error(status, sentence, param, &body);
    if (status == ERR_FULL)
        http_add_retry_after(post->exchange, MAX(post->retry_after_s, 1));
    server_reply(post->server, give(post->exchange), openai_http_status(status), "application/json",
                 &body);
}

void posts_cut(struct server *server, enum status why, const char *sentence)
{
    struct post *post;

    LIST_FOR_EACH(post, &server->posts, node)
    {
        if (!post->exchange)
            continue;
        if (post->reading) {
            post_reply_error(post, why, sentence, NULL);
            continue;
        }
        post->kind->cut(post, why, sentence);
        post_free(post);
    }
}

void posts_free(struct server *server)
{
    struct post *post;

    LIST_FOR_EACH(post, &server->posts, node)
    {
        post->exchange = NULL;
        if (!post->reading)
            post_free(post);
    }
}
