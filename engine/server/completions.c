#include "engine/server/completions.h"
#include "engine/server/post.h"

#include "proto/base/clock.h"

#include <string.h>

struct completion {
    struct post post; /* first: post_kind.bytes */
    struct generation *generation;
    bool submitted;
    int32_t *tokens_seen;  /* [num_sequences]: metrics have them */
    int32_t *answers_ended; /* [num_prompts] */
    struct bytes events;   /* SSE, gathered */
    struct list_node node; /* in server->unsent while a poll has brought something */
};

static struct completion *completion_of(struct post *post)
{
    return CONTAINER_OF(post, struct completion, post);
}

/* ---- metrics --------------------------------------------------------------------------------- */

static double seconds(int64_t from_ns, int64_t to_ns)
{
    return (double)(to_ns - from_ns) / 1e9;
}

static void observe_tokens(struct completion *completion, int32_t sequence)
{
    const struct output_processor *output = &completion->generation->outputs[sequence];
    struct metrics *metrics = completion->post.server->metrics;
    int32_t seen = completion->tokens_seen[sequence];

    if (output->num_tokens == seen)
        return;
    completion->tokens_seen[sequence] = output->num_tokens;
    if (!seen)
        metrics_observe(metrics, METRIC_TIME_TO_FIRST_TOKEN,
                        seconds(completion->post.arrived_ns, output->first_token_ns));
    else
        metrics_observe(metrics, METRIC_INTER_TOKEN_LATENCY,
                        seconds(output->previous_ns, output->latest_ns));
}

static void observe_end(struct completion *completion, int32_t sequence)
{
    const struct output_processor *output = &completion->generation->outputs[sequence];
    struct metrics *metrics = completion->post.server->metrics;

    metrics_count_finish(metrics, output->finish);
    metrics_observe(metrics, METRIC_E2E_LATENCY,
                    seconds(completion->post.arrived_ns, output->latest_ns));
    metrics_observe(metrics, METRIC_PROMPT_TOKENS, output->num_prompt_tokens);
    metrics_observe(metrics, METRIC_GENERATION_TOKENS, output->num_tokens);
    if (!output->first_token_ns) /* it failed before */
        return;
    metrics_observe(metrics, METRIC_QUEUE_TIME, seconds(output->queued_ns, output->scheduled_ns));
    metrics_observe(metrics, METRIC_PREFILL_TIME,
                    seconds(output->scheduled_ns, output->first_token_ns));
    metrics_observe(metrics, METRIC_INFERENCE_TIME,
                    seconds(output->scheduled_ns, output->latest_ns));
    metrics_observe(metrics, METRIC_DECODE_TIME,
                    seconds(output->first_token_ns, output->latest_ns));
    if (output->num_tokens > 1)
        metrics_observe(metrics, METRIC_TIME_PER_OUTPUT_TOKEN,
                        seconds(output->first_token_ns, output->latest_ns) /
                            (output->num_tokens - 1));
}

/* One of a prompt's n answers has ended; as in vLLM it is counted when the last one has. */
static void observe_prompt(struct completion *completion, int32_t prompt)
{
    struct metrics *metrics = completion->post.server->metrics;
    int32_t n = completion->generation->params.n, most = 0;
    const struct output_processor *outputs = &completion->generation->outputs[prompt * n];

    if (++completion->answers_ended[prompt] < n)
        return;
    for (int32_t i = 0; i < n; i++)
        most = MAX(most, outputs[i].num_tokens);
    metrics_observe(metrics, METRIC_MAX_GENERATION_TOKENS, most);
    metrics_observe(metrics, METRIC_PARAMS_N, n);
}

/* ---- the answer ------------------------------------------------------------------------------ */

static void on_sequence(void *user, struct generation *generation, int32_t sequence)
{
    struct completion *completion = user;
    struct server *server = completion->post.server;

    observe_tokens(completion, sequence);
    if (generation->outputs[sequence].finish != FINISH_NONE) {
        observe_end(completion, sequence);
        observe_prompt(completion, sequence / generation->params.n);
    }
    if (!completion->node.next)
        list_push_back(&server->unsent, &completion->node);
}

static void reply_whole(struct completion *completion)
{
    struct post *post = &completion->post;
    const struct output_processor *failed = generation_failure(completion->generation);
    AUTO_CLOSE(bytes) struct bytes body = {0};

    if (failed) {
        post_reply_error(post, failed->error, failed->error_text, NULL);
        return;
    }
    openai_response(front_model(post->server->front), completion->generation, &body);
    server_reply(post->server, give(post->exchange), 200, "application/json", &body);
}

static void write_events(struct completion *completion)
{
    http_stream_write(completion->post.exchange, completion->events.data, completion->events.size);
    completion->events.size = 0;
}

static void end_stream(struct completion *completion)
{
    openai_stream_end(completion->generation, &completion->events);
    write_events(completion);
    server_log_access(completion->post.exchange, 200);
    http_stream_end(give(completion->post.exchange));
}

/* All that a poll of the engine has brought goes out as one event a sequence: when steps come faster
 * than they can be told, events grow, and nobody falls behind. */
static void gather_events(struct completion *completion)
{
    struct generation *generation = completion->generation;
    const struct openai_model *model = front_model(completion->post.server->front);

    for (int32_t i = 0; i < generation->num_sequences; i++)
        openai_stream_delta(model, generation, i, &completion->events);
}

static void begin_stream(struct completion *completion)
{
    struct http_exchange *exchange = completion->post.exchange;

    http_add_header(exchange, "Cache-Control", "no-cache");
    http_stream_begin(exchange, 200, "text/event-stream; charset=utf-8");
    openai_stream_start(front_model(completion->post.server->front), completion->generation,
                        &completion->events);
}

/* Its grammar can't be had: a status says so, while none has been sent. */
static bool failed_at_once(const struct completion *completion)
{
    const struct output_processor *failed = generation_failure(completion->generation);

    return failed && failed->num_tokens == 0;
}

static void send_news(struct completion *completion)
{
    const struct generation *generation = completion->generation;
    bool finished = generation->num_finished == generation->num_sequences;

    if (generation->stream && !http_is_streaming(completion->post.exchange)) {
        if (failed_at_once(completion)) {
            reply_whole(completion);
            post_free(&completion->post);
            return;
        }
        begin_stream(completion);
    }
    if (generation->stream)
        gather_events(completion);

    if (!finished) {
        if (generation->stream)
            write_events(completion);
        return;
    }
    if (generation->stream)
        end_stream(completion);
    else
        reply_whole(completion);
    post_free(&completion->post);
}

void completions_send(struct server *server)
{
    struct completion *completion;

    while ((completion = LIST_FIRST(&server->unsent, struct completion, node))) {
        list_remove(&completion->node);
        send_news(completion);
    }
}

/* ---- a completion's life --------------------------------------------------------------------- */

static void answer_completion(struct post *post)
{
    struct completion *completion = completion_of(post);
    struct generation *generation = completion->generation;
    struct front *front = post->server->front;
    const char *client_id = http_find_header(post->exchange, "X-Request-Id");

    if (client_id)
        generation->client_id = arena_strndup(&generation->arena, client_id, strlen(client_id));

    enum status status = front_submit(front, generation, on_sequence, completion);

    if (status != OK) {
        post->retry_after_s = engine_retry_after_s(front_engine(front));
        post_reply_error(post, status, fail_text(), NULL);
        post_free(post);
        return;
    }
    completion->submitted = true;
    completion->tokens_seen = mem_new_array(int32_t, generation->num_sequences);
    completion->answers_ended = mem_new_array(int32_t, generation->num_prompts);
    if (!generation->stream || generation->grammar)
        return; /* a grammar may be refused yet */
    begin_stream(completion);
    write_events(completion);
}

static void cut_completion(struct post *post, enum status why, const char *sentence)
{
    struct completion *completion = completion_of(post);

    if (!http_is_streaming(post->exchange)) {
        post_reply_error(post, why, sentence, NULL);
        return;
    }
    bytes_printf(&completion->events, "data: ");
    openai_error(why, sentence, NULL, &completion->events);
    bytes_printf(&completion->events, "\n\n");
    end_stream(completion);
}

static void count_aborted(struct completion *completion)
{
    const struct generation *generation = completion->generation;

    for (int32_t i = 0; i < generation->num_sequences; i++)
        if (generation->outputs[i].finish == FINISH_NONE)
            metrics_count_finish(completion->post.server->metrics, FINISH_ABORT);
}

static void close_completion(struct post *post)
{
    struct completion *completion = completion_of(post);

    if (completion->submitted) {
        count_aborted(completion);
        front_abort(post->server->front, completion->generation);
    }
    if (completion->node.next)
        list_remove(&completion->node);
    generation_free(completion->generation);
    mem_free(completion->tokens_seen);
    mem_free(completion->answers_ended);
    bytes_close(&completion->events);
}

static enum status read_as(struct post *post, enum openai_endpoint endpoint, const json_t *json,
                           const char **param_out)
{
    struct completion *completion = completion_of(post);

    return openai_read(front_model(post->server->front), endpoint, json, &completion->generation,
                       param_out);
}

static enum status read_completion(struct post *post, const json_t *json, const char **param_out)
{
    return read_as(post, OPENAI_COMPLETIONS, json, param_out);
}

static enum status read_chat(struct post *post, const json_t *json, const char **param_out)
{
    return read_as(post, OPENAI_CHAT, json, param_out);
}

static const struct post_kind completion_kind = {
    sizeof(struct completion), read_completion, answer_completion, cut_completion, close_completion,
};
static const struct post_kind chat_kind = {
    sizeof(struct completion), read_chat, answer_completion, cut_completion, close_completion,
};

void completions_post(struct server *server, struct http_exchange *exchange)
{
    post_start(server, exchange, &completion_kind);
}

void chat_completions_post(struct server *server, struct http_exchange *exchange)
{
    post_start(server, exchange, &chat_kind);
}
