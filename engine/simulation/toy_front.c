#include "engine/simulation/toy_front.h"

#include "engine/simulation/toy_model.h"
#include "proto/base/mailbox.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static const int64_t MS = 1000000;
/* A client that finds no engine comes again. */
static const int64_t RETRY_NS = 1000 * MS;
/* After the last client: stray messages are noticed by then; and with faults silences too. */
static const int64_t SETTLE_NS = 1000 * MS, SETTLE_AFTER_FAULTS_NS = 20000 * MS;
/* No run lasts so long. */
static const int64_t HORIZON_NS = 24 * 3600 * 1000 * MS;

#define DIFFERS(...) fail(ERR_MISMATCH, __VA_ARGS__)

static struct session *session_of(struct toy_front *front, int32_t client)
{
    return &front->sessions[client];
}

static void happen_at(struct toy_front *front, int64_t at_ns, int32_t who,
                      void (*happen)(void *front, const struct event *event))
{
    agenda_add(front->agenda,
               &(struct event){.at_ns = at_ns, .happen = happen, .owner = front, .who = who});
}

/* ---- clients -------------------------------------------------------------------------------- */

/* Wakes the core, if nothing else does: an abort of nobody. */
static void end_run(void *user, const struct event *event)
{
    struct toy_front *front = user;

    (void)event;
    front->is_settled = true;
    if (front->core)
        core_abort(front->core, front->last_id + 1);
}

static void settle(void *user, const struct event *event)
{
    struct toy_front *front = user;

    if (event->who == front->num_settles) /* no engine has come since */
        end_run(front, event);
}

static void begin_to_settle(struct toy_front *front)
{
    bool has_faults = front->setup->num_faults > 0;

    happen_at(front, front->agenda->now_ns + (has_faults ? SETTLE_AFTER_FAULTS_NS : SETTLE_NS),
              ++front->num_settles, settle);
}

static void end_session(struct toy_front *front, struct session *session)
{
    session->is_over = true;
    if (++front->num_over == front->scenario->num_clients)
        begin_to_settle(front);
}

static void abort_request(void *user, const struct event *event)
{
    struct toy_front *front = user;
    struct session *session = session_of(front, event->who);

    session->was_aborted = true;
    if (front->core)
        core_abort(front->core, session->id); /* it may be over, or aborted: that is fine */
    else if (!session->is_over)
        happen_at(front, front->agenda->now_ns + RETRY_NS, event->who, abort_request);
}

/* A mask has been filled. */
static void wake_core(void *user, const struct event *event)
{
    struct toy_front *front = user;
    uint64_t one = 1;

    (void)event;
    ASSERT(write(front->grammar_fd, &one, sizeof one) == sizeof one);
}

static void wake_core_at(void *user, int64_t ready_ns)
{
    happen_at(user, ready_ns, 0, wake_core);
}

static struct grammar *make_grammar(struct toy_front *front, const struct client *client)
{
    struct toy_grammar_options options = client->language;

    options.on_late = wake_core_at;
    options.user = front;
    return toy_grammar_new(&options);
}

static void bring_grammar(void *user, const struct event *event)
{
    struct toy_front *front = user;
    const struct client *client = &front->scenario->clients[event->who];

    if (!front->core)
        return; /* its request went with the engine */
    if (client->grammar_fails)
        core_set_grammar(front->core, session_of(front, event->who)->id, NULL, ERR_INVALID,
                         "line 1: a bracket is missing");
    else
        core_set_grammar(front->core, session_of(front, event->who)->id,
                         make_grammar(front, client), OK, NULL);
}

static struct request *make_request(const struct toy_front *front, const struct client *client)
{
    struct submission submission = {
        .prompt = client->prompt,
        .num_prompt = client->num_prompt,
        .params = &client->params,
        .cache_salt = client->cache_salt,
        .priority = client->priority,
        .eos_ids = &client->eos,
        .num_eos_ids = 1,
        .awaits_grammar = client->has_grammar && client->grammar_after_ns > 0,
    };

    return request_new(front->last_id + 1, &submission, front->scenario->max_model_len,
                       front->scenario->block_size);
}

static void arrive(void *user, const struct event *event)
{
    struct toy_front *front = user;
    const struct client *client = &front->scenario->clients[event->who];
    struct session *session = session_of(front, event->who);
    int64_t now_ns = front->agenda->now_ns;
    AUTO_FREE(request) struct request *request = NULL;

    if (!front->core) { /* the next engine is about to come */
        happen_at(front, now_ns + RETRY_NS, event->who, arrive);
        return;
    }
    request = make_request(front, client);
    if (request_check_fits(request, front->setup->num_blocks, front->scenario->block_size) != OK) {
        front->totals->num_refused++;
        end_session(front, session);
        return;
    }
    if (client->has_grammar && client->grammar_after_ns == 0)
        request->grammar = make_grammar(front, client);
    if (core_add(front->core, request) != OK)
        ASSERT(false, "%s", fail_text()); /* the box is larger than all clients */
    request = NULL;
    session->id = ++front->last_id;
    front->by_id[session->id] = event->who;
    front->num_added++;
    front->num_pending++;
    front->totals->num_requests++;
    if (client->abort_after_ns != NEVER_NS)
        happen_at(front, now_ns + client->abort_after_ns, event->who, abort_request);
    if (client->has_grammar && client->grammar_after_ns > 0)
        happen_at(front, now_ns + client->grammar_after_ns, event->who, bring_grammar);
}

/* ---- orders --------------------------------------------------------------------------------- */

/* Every request that lives will be aborted. */
static void note_abort_of_all(struct toy_front *front)
{
    for (int32_t i = 0; i < front->scenario->num_clients; i++)
        front->sessions[i].was_aborted |= front->sessions[i].id > 0;
}

static bool may_fail(const struct toy_front *front, const struct planned_order *order,
                     enum status status)
{
    if (front->core_has_failed || status == ERR_CLOSED)
        return true;
    if (order->kind == ORDER_RESET_CACHE)
        return status == ERR_FULL && !order->reset_running;
    return order->kind == ORDER_PAUSE_CORE && status == ERR_ABORTED;
}

static void hear_answer(void *user, enum status status, const char *text)
{
    struct order_state *state = user;
    struct toy_front *front = state->front;
    const struct planned_order *order = &front->scenario->orders[state - front->orders];

    if (!state->is_given || state->is_answered)
        snprintf(front->difference, sizeof front->difference, "order %d is answered twice",
                 (int)(state - front->orders));
    else if (status != OK && !may_fail(front, order, status))
        snprintf(front->difference, sizeof front->difference, "order %d fails: %s",
                 (int)(state - front->orders), text);
    state->is_answered = true;
    if (status == OK)
        front->totals->num_orders_done++;
    else
        front->totals->num_orders_refused++;
    if (front->pause == state && status == OK)
        front->is_frozen = true;
}

static enum status pass_on(struct toy_front *front, const struct planned_order *order,
                           struct order_state *state)
{
    switch (order->kind) {
    case ORDER_PAUSE_CORE:
        if (order->mode == PAUSE_ABORT)
            note_abort_of_all(front);
        for (int32_t i = 0; i < front->scenario->num_clients; i++)
            front->sessions[i].num_at_pause = front->sessions[i].num_tokens;
        front->pause = state;
        return core_pause(front->core, order->mode, order->clear_cache, hear_answer, state);
    case ORDER_RESUME_CORE:
        front->pause = NULL;
        return core_resume(front->core, hear_answer, state);
    default:
        return core_reset_prefix_cache(front->core, order->reset_running, hear_answer, state);
    }
}

static void give_order(void *user, const struct event *event)
{
    struct toy_front *front = user;
    const struct planned_order *order = &front->scenario->orders[event->who];
    struct order_state *state = &front->orders[event->who];

    if (!front->core || (event->who > 0 && !state[-1].is_given)) {
        happen_at(front, front->agenda->now_ns + RETRY_NS, event->who, give_order);
        return;
    }
    state->is_given = true;
    if (order->kind != ORDER_RESET_CACHE)
        front->is_frozen = false;
    if (pass_on(front, order, state) != OK)
        ASSERT(false, "%s", fail_text()); /* the box is larger than all orders */
}

/* ---- what clients get ----------------------------------------------------------------------- */

static enum status check_tokens(struct toy_front *front, int32_t number,
                                const struct engine_event *event)
{
    const struct client *client = &front->scenario->clients[number];
    struct session *session = session_of(front, number);

    for (int32_t i = 0; i < event->num_tokens; i++, session->num_tokens++) {
        int32_t at = session->num_tokens;

        if (front->faults->is_tainted)
            continue;
        if (at >= client->num_tokens)
            return DIFFERS("client %d: token %d is %d, the oracle has %d tokens", number, at,
                           event->tokens[i], client->num_tokens);
        if (event->tokens[i] != client->tokens[at])
            return DIFFERS("client %d: token %d of %d is %d, the oracle's is %d", number, at,
                           client->num_tokens, event->tokens[i], client->tokens[at]);
    }
    front->totals->num_tokens += event->num_tokens;
    if (event->num_output_tokens != session->num_tokens ||
        event->num_prompt_tokens != client->num_prompt)
        return DIFFERS("client %d: %d prompt and %d output tokens are counted, of %d and %d",
                       number, event->num_prompt_tokens, event->num_output_tokens,
                       client->num_prompt, session->num_tokens);
    front->totals->num_masked_tokens += client->has_grammar ? event->num_tokens : 0;
    return OK;
}

static enum status check_logprobs(const struct toy_front *front, int32_t number,
                                  const struct engine_event *event)
{
    int32_t wanted = front->scenario->clients[number].params.logprobs;

    if (front->faults->is_tainted || event->num_tokens == 0)
        return OK;
    if (!event->logprobs != (wanted < 0))
        return DIFFERS("client %d: logprobs %s, %d were wanted", number,
                       event->logprobs ? "came" : "are missing", wanted);
    for (int32_t i = 0; event->logprobs && i < event->num_tokens; i++) {
        const struct token_logprobs *logprobs = &event->logprobs[i];

        if (logprobs->num_top != wanted ||
            logprobs->logprob != toy_model_logprob(event->tokens[i], 0))
            return DIFFERS("client %d: the logprobs are another token's, or of another count",
                           number);
        for (int32_t k = 0; k < wanted; k++)
            if (logprobs->top[k].logprob != toy_model_logprob(event->tokens[i], k + 1))
                return DIFFERS("client %d: logprob %d is another token's", number, k);
    }
    return OK;
}

/* Tokens at the start that both have. */
static int32_t num_common(const struct client *a, const struct client *b)
{
    int32_t n = 0;

    while (n < a->num_prompt && n < b->num_prompt + b->num_tokens &&
           a->prompt[n] == (n < b->num_prompt ? b->prompt[n] : b->tokens[n - b->num_prompt]))
        n++;
    return n;
}

/* Nothing is found in the cache but what somebody of the same salt has computed before. */
static enum status check_cached(const struct toy_front *front, int32_t number,
                                const struct engine_event *event)
{
    const struct client *client = &front->scenario->clients[number];
    int32_t most = 0, n = event->num_cached_tokens;

    if (n == 0 || front->faults->is_tainted)
        return OK;
    for (int32_t i = 0; i < front->scenario->num_clients; i++) {
        const struct client *other = &front->scenario->clients[i];

        if (i != number && front->sessions[i].id > 0 && !other->cache_salt == !client->cache_salt)
            most = MAX(most, num_common(client, other));
    }
    if (!front->setup->enable_prefix_caching || n > most || n % front->scenario->block_size != 0)
        return DIFFERS("client %d: %d tokens were cached, at most %d can be", number, n, most);
    return OK;
}

static enum status check_finish(const struct toy_front *front, int32_t number,
                                const struct engine_event *event)
{
    const struct client *client = &front->scenario->clients[number];
    const struct session *session = &front->sessions[number];
    bool is_complete = session->num_tokens == client->num_tokens;

    if (event->finish == FINISH_ABORT) {
        if (!session->was_aborted)
            return DIFFERS("client %d: aborted, and nobody asked for it", number);
        return OK;
    }
    if (event->finish == FINISH_ERROR) {
        if (!front->core_has_failed && !front->faults->is_tainted &&
            !(client->grammar_fails && session->num_tokens == 0) &&
            !(client->finish == FINISH_ERROR && is_complete))
            return DIFFERS("client %d: error after %d tokens: %s", number, session->num_tokens,
                           event->error_text);
        return OK;
    }
    if (front->faults->is_tainted)
        return OK;
    if (event->finish != client->finish || !is_complete || event->stop_token != client->stop_token)
        return DIFFERS(
            "client %d: %s after %d tokens by token %d, the oracle has %s after %d by %d", number,
            finish_reason_name(event->finish), session->num_tokens, event->stop_token,
            finish_reason_name(client->finish), client->num_tokens, client->stop_token);
    return OK;
}

/* Of a pause that keeps, what is on its way may still come: a token of each step in flight. */
static enum status check_pause(const struct toy_front *front, int32_t number,
                               const struct engine_event *event)
{
    const struct session *session = &front->sessions[number];

    if (event->num_tokens == 0 || !front->pause)
        return OK;
    if (front->is_frozen)
        return DIFFERS("client %d: a token while the engine is paused", number);
    if (front->scenario->orders[front->pause - front->orders].mode == PAUSE_KEEP &&
        session->num_tokens + event->num_tokens > session->num_at_pause + 2)
        return DIFFERS("client %d: %d tokens since a pause that keeps all", number,
                       session->num_tokens + event->num_tokens - session->num_at_pause);
    return OK;
}

static enum status take_event(struct toy_front *front, const struct engine_event *event)
{
    int32_t number;

    if (event->id < 1 || event->id > front->last_id)
        return DIFFERS("an event of request %ld, which nobody submitted", (long)event->id);
    number = front->by_id[event->id];
    if (session_of(front, number)->is_over)
        return DIFFERS("client %d: an event after its last", number);
    TRY(check_pause(front, number, event));
    TRY(check_tokens(front, number, event));
    TRY(check_logprobs(front, number, event));
    if (event->finish == FINISH_NONE)
        return OK;
    TRY(check_cached(front, number, event));
    TRY(check_finish(front, number, event));
    front->totals->num_finished[event->finish]++;
    front->totals->num_cached_tokens += event->num_cached_tokens;
    front->num_ended++;
    end_session(front, session_of(front, number));
    return OK;
}

static enum status take_output(struct toy_front *front, const struct engine_output *output)
{
    for (int32_t i = 0; i < output->num_events; i++)
        TRY(take_event(front, &output->events[i]));
    return OK;
}

/* ---- out ------------------------------------------------------------------------------------ */

static enum status take_node(struct toy_front *front, const struct output_node *node)
{
    if (!node->listener)
        return take_output(front, &node->output);
    node->listener(node->user, node->status, node->text);
    return *front->difference ? DIFFERS("%s", front->difference) : OK;
}

void toy_front_expect_heard(struct toy_front *front)
{
    front->num_pending = 0;
    for (int32_t i = 0; i < front->scenario->num_clients; i++)
        front->sessions[i].must_end = front->sessions[i].was_aborted && !front->sessions[i].is_over;
}

static enum status check_aborts(const struct toy_front *front)
{
    for (int32_t i = 0; i < front->scenario->num_clients; i++)
        if (front->sessions[i].must_end && !front->sessions[i].is_over)
            return DIFFERS("client %d was aborted, and lives", i);
    return OK;
}

enum status toy_front_take_outputs(struct toy_front *front, struct mailbox *outputs)
{
    enum status status = OK;
    struct mail *mail;

    while ((mail = mailbox_pop(outputs))) {
        struct output_node *node = MAIL_ITEM(mail, struct output_node, mail);

        if (status == OK)
            status = take_node(front, node);
        engine_output_free(&node->output);
        front->num_events++;
    }
    return status == OK ? check_aborts(front) : status;
}

/* ---- the whole ------------------------------------------------------------------------------ */

void toy_front_open(struct toy_front *front)
{
    const struct scenario *scenario = front->scenario;
    int64_t now_ns = front->agenda->now_ns;

    for (int32_t i = 0; i < scenario->num_clients; i++)
        happen_at(front, now_ns + scenario->clients[i].arrives_ns, i, arrive);
    for (int32_t i = 0; i < scenario->num_orders; i++) {
        front->orders[i].front = front;
        happen_at(front, now_ns + scenario->orders[i].at_ns, i, give_order);
    }
    happen_at(front, HORIZON_NS, 0, end_run);
}

void toy_front_connect(struct toy_front *front, struct core *core)
{
    front->core = core;
    front->core_has_failed = front->is_frozen = false;
    front->pause = NULL;
    if (front->num_over == front->scenario->num_clients) {
        front->is_settled = false;
        begin_to_settle(front);
    }
    front->num_added = front->num_pending = front->num_ended = 0;
}

enum status toy_front_check_end(const struct toy_front *front)
{
    if (front->num_over < front->scenario->num_clients)
        return DIFFERS("%d of %d clients were never answered",
                       front->scenario->num_clients - front->num_over,
                       front->scenario->num_clients);
    for (int32_t i = 0; i < front->scenario->num_orders; i++)
        if (front->orders[i].is_given && !front->orders[i].is_answered)
            return DIFFERS("order %d was never answered", i);
    return OK;
}
