#include "engine/server/request.h"

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
    struct request *request = CONTAINER_OF(job, struct request, job);
    const char *param = NULL;
    json_t *json = NULL;

    request->status = openai_decode((const char *)request->body.data, request->body.size, 1, &json);
    if (request->status == OK)
        request->status = request->kind->read(request, json, &param);
    if (request->status != OK) {
        request->sentence = mem_strdup(fail_text());
        request->param = param ? mem_strdup(param) : NULL;
    }
    json_decref(json);
    bytes_close(&request->body);
}

static void read_done(struct job *job)
{
    struct request *request = CONTAINER_OF(job, struct request, job);

    request->reading = false;
    if (!request->exchange) {
        post_free(request);
    } else if (request->status != OK) {
        request_reply_error(request, request->status, request->sentence, request->param);
        post_free(request);
    } else {
        request->kind->answer(request);
    }
}

void request_start(struct server *server, struct http_exchange *exchange,
                   const struct request_kind *kind)
{
    if (!is_json(http_find_header(exchange, "Content-Type"))) {
        server_reply_refusal(server, exchange, 415,
                             "Unsupported Media Type: only 'application/json' is allowed");
        return;
    }

    struct request *request = mem_alloc(kind->bytes);
    *request = (struct request){
        .server = server,
        .kind = kind,
        .exchange = exchange,
        .arrived_ns = clock_now_ns(),
        .job = {.run = run_read, .done = read_done},
        .reading = true,
        .body = http_take_body(exchange),
    };
    list_push_back(&server->requests, &request->node);
    server->num_requests++;
    http_set_user(exchange, request);
    jobs_add(server->jobs, &request->job);
}

void post_free(struct request *request)
{
    request->kind->close(request);
    list_remove(&request->node);
    request->server->num_requests--;
    bytes_close(&request->body);
    mem_free(request->sentence);
    mem_free(request->param);
    mem_free(request);
}

void request_gone(struct request *request)
{
    request->exchange = NULL;
    if (!request->reading) /* else it is freed when it has been read */
        post_free(request);
}

void request_reply_error(struct request *request, enum status status, const char *sentence,
                         const char *param)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};

    openai_error(status, sentence, param, &body);
    server_reply(request->server, give(request->exchange), openai_http_status(status),
                 "application/json", &body);
}

void requests_cut(struct server *server, enum status why, const char *sentence)
{
    struct request *request;

    LIST_FOR_EACH(request, &server->requests, node)
    {
        if (!request->exchange)
            continue;
        if (request->reading) {
            request_reply_error(request, why, sentence, NULL);
            continue;
        }
        request->kind->cut(request, why, sentence);
        post_free(request);
    }
}

void requests_free(struct server *server)
{
    struct request *request;

    LIST_FOR_EACH(request, &server->requests, node)
    {
        request->exchange = NULL;
        if (!request->reading)
            post_free(request);
    }
}
