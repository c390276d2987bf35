#include "engine/core/scheduler.h"

#include "engine/core/answer_check.h"
#include "engine/core/hit_rate.h"
#include "engine/core/kv_cache_manager.h"
#include "engine/core/output_builder.h"
#include "engine/core/pacing.h"
#include "engine/core/slot_table.h"
#include "engine/core/step_plan.h"
#include "engine/grammar/grammar.h"
#include "engine/token_logprobs.h"
#include "proto/base/clock.h"
#include "proto/base/map.h"

#include <stdio.h>
#include <string.h>
#include <xxhash.h>

/* Steps that are scheduled and have not come back. */
enum { MAX_IN_FLIGHT = 2 };

/* While requests come back whose ranks were lost: how long a step of their tokens is to take, and tokens that it has at
 * least, below which matmuls are slow. */
#define RESUME_STEP_NS 100e6
enum { RESUME_MIN_TOKENS = 256 };

/* The requests behind the rows of a plan. */
struct in_flight {
    struct request **rows; /* in the plan's arena */
    int32_t num_rows;
    int32_t num_decoding; /* of the rows */
    int32_t num_prompt_tokens;
};

struct scheduler {
    struct scheduler_options options;
    struct pacing pacing;
    struct kv_cache_manager kv_cache;
    struct slot_table slots;
    enum pause_state pause;
    int64_t num_prompt_tokens;
    struct cache_counts at_first, again; /* admissions */
    struct hit_rate recent;              /* first admissions */
    struct map by_id; /* every request that has not ended */
    struct wait_queue waiting;
    struct list_node running; /* in order of admission */
    int32_t num_running;
    int64_t num_preemptions;
    struct in_flight in_flight[MAX_IN_FLIGHT]; /* oldest first */
    int32_t num_in_flight;
    struct list_node deferred; /* wait for their grammars, or for masks, in order of arrival */
    int32_t num_deferred;
    int32_t num_set_aside; /* of them: were admitted, and wait for a mask */
    int32_t num_resuming;  /* of all: see request.h */
    int64_t num_late_masks;
    struct list_node leaving; /* finished, but a step in flight has a row for them */
};

struct scheduler *scheduler_new(const struct scheduler_options *options)
{
    struct scheduler *scheduler = mem_new(struct scheduler);

    ASSERT(options->max_num_seqs > 0 && options->max_num_batched_tokens > 0);
    scheduler->options = *options;
    /* Where a prompt is computed whole there is nothing to divide. */
    pacing_init(&scheduler->pacing, options->enable_chunked_prefill ? options->decode_slowdown : 0);
    kv_cache_manager_init(&scheduler->kv_cache, options->num_blocks, options->block_size,
                          options->enable_prefix_caching);
    slot_table_init(&scheduler->slots, num_slots_for(options->max_num_seqs));
    wait_queue_init(&scheduler->waiting, options->policy);
    list_init(&scheduler->running);
    list_init(&scheduler->deferred);
    list_init(&scheduler->leaving);
    return scheduler;
}

void scheduler_retune(struct scheduler *scheduler, const struct scheduler_tuning *tuning)
{
    struct scheduler_options *options = &scheduler->options;

    options->max_num_active_seqs = tuning->max_num_active_seqs;
    options->long_prefill_token_threshold = tuning->long_prefill_token_threshold;
    options->long_prefill_token_threshold_adaptive = tuning->long_prefill_token_threshold_adaptive;
    options->decode_slowdown = tuning->decode_slowdown;
    options->watermark = tuning->watermark;
    scheduler->pacing.slowdown = options->enable_chunked_prefill ? options->decode_slowdown : 0;
}

void scheduler_free(struct scheduler *scheduler)
{
    if (!scheduler)
        return;
    ASSERT(scheduler_num_unfinished(scheduler) == 0 && list_is_empty(&scheduler->leaving));
    wait_queue_close(&scheduler->waiting);
    map_close(&scheduler->by_id);
    kv_cache_manager_close(&scheduler->kv_cache);
    slot_table_close(&scheduler->slots);
    mem_free(scheduler);
}

/* The next that may be admitted, or NULL. A pause of newcomers is none for those that were admitted
 * before, and preempted since. */
static struct request *next_in_line(const struct scheduler *scheduler)
{
    switch (scheduler->pause) {
    case UNPAUSED:
        return wait_queue_first(&scheduler->waiting);
    case PAUSED_NEW:
        return wait_queue_first_begun(&scheduler->waiting);
    case PAUSED_ALL:
        break;
    }
    return NULL;
}

bool scheduler_has_work(const struct scheduler *scheduler)
{
    return (scheduler->num_running > 0 && scheduler->pause != PAUSED_ALL) ||
           next_in_line(scheduler);
}

bool scheduler_is_drained(const struct scheduler *scheduler)
{
    return scheduler->num_running == 0 && scheduler->waiting.num_begun == 0 &&
           scheduler->num_set_aside == 0;
}

int32_t scheduler_num_unfinished(const struct scheduler *scheduler)
{
    return (int32_t)scheduler->by_id.num_entries;
}

void scheduler_set_pause(struct scheduler *scheduler, enum pause_state pause)
{
    scheduler->pause = pause;
}

enum pause_state scheduler_pause(const struct scheduler *scheduler)
{
    return scheduler->pause;
}

int32_t scheduler_num_running(const struct scheduler *scheduler)
{
    return scheduler->num_running;
}

int32_t scheduler_num_waiting(const struct scheduler *scheduler)
{
    return scheduler->waiting.num_requests;
}

int32_t scheduler_num_free_blocks(const struct scheduler *scheduler)
{
    return block_pool_num_free(scheduler->kv_cache.pool);
}

void scheduler_get_stats(const struct scheduler *scheduler, struct scheduler_stats *out)
{
    *out = (struct scheduler_stats){
        .num_running = scheduler->num_running,
        .num_waiting = scheduler->waiting.num_requests,
        .num_deferred = scheduler->num_deferred,
        .num_free_blocks = block_pool_num_free(scheduler->kv_cache.pool),
        .num_preemptions = scheduler->num_preemptions,
        .num_late_masks = scheduler->num_late_masks,
        .num_prompt_tokens = scheduler->num_prompt_tokens,
        .at_first = scheduler->at_first,
        .again = scheduler->again,
        .recent_queries = scheduler->recent.queries,
        .recent_hits = scheduler->recent.hits,
        .prompt_limit = scheduler->pacing.limit,
        .decode_ns = (int64_t)scheduler->pacing.decode_ns,
    };
}

static void defer(struct scheduler *scheduler, struct request *request)
{
    list_push_back(&scheduler->deferred, &request->link);
    scheduler->num_deferred++;
    scheduler->num_set_aside += request->awaits_mask;
}

static void leave_deferred(struct scheduler *scheduler, struct request *request)
{
    list_remove(&request->link);
    scheduler->num_deferred--;
    scheduler->num_set_aside -= request->awaits_mask;
}

void scheduler_add(struct scheduler *scheduler, struct request *request)
{
    ASSERT(kv_cache_manager_blocks_for(&scheduler->kv_cache, request_max_computed(request)) <=
           scheduler->options.num_blocks);
    map_put(&scheduler->by_id, (uint64_t)request->id, request);
    /* For all that are inside: one that is preempted must not make the queue grow. */
    wait_queue_reserve(&scheduler->waiting, scheduler_num_unfinished(scheduler));
    if (request->awaits_grammar)
        defer(scheduler, request);
    else
        wait_queue_add(&scheduler->waiting, request);
}

/* ---- out of the running ---------------------------------------------------------------------- */

/* Out of the running; the slot stays while the workers use it. */
static void leave_running(struct scheduler *scheduler, struct request *request)
{
    list_remove(&request->link);
    scheduler->num_running--;
    kv_cache_manager_drop(&scheduler->kv_cache, request);
    if (request->num_in_flight == 0)
        slot_table_drop(&scheduler->slots, request);
}

/* Back to where it came from: it keeps its tokens, and is computed again. */
static void send_back(struct scheduler *scheduler, struct request *request)
{
    leave_running(scheduler, request);
    request->num_preempted++;
    scheduler->num_preemptions++;
    wait_queue_add(&scheduler->waiting, request);
}

/*
 * Its next mask is not there in time, and the others are not to wait: it gives its place up until the
 * mask has come, as if it had been preempted. What a step in flight draws for it is drawn without the mask.
 */
static void set_aside(struct scheduler *scheduler, struct request *request)
{
    leave_running(scheduler, request);
    request->state = REQUEST_WAITING;
    request->drops_in_flight = request->num_in_flight > 0;
    request->awaits_mask = true;
    request->num_preempted++;
    defer(scheduler, request);
}

void scheduler_recall(struct scheduler *scheduler)
{
    struct request *request;

    if (scheduler->num_set_aside == 0)
        return;
    LIST_FOR_EACH (request, &scheduler->deferred, link) {
        if (!request->awaits_mask || request->num_in_flight > 0 ||
            !grammar_is_ready(request->grammar))
            continue;
        leave_deferred(scheduler, request);
        request->awaits_mask = false;
        wait_queue_add(&scheduler->waiting, request);
    }
}

bool scheduler_reset_prefix_cache(struct scheduler *scheduler, bool reset_running)
{
    struct request *request;

    if (reset_running) {
        LIST_FOR_EACH (request, &scheduler->running, link)
            send_back(scheduler, request);
        /* What is on its way comes of the KV that is to be forgotten. */
        WAIT_QUEUE_FOR_EACH (request, &scheduler->waiting)
            request->drops_in_flight = request->num_in_flight > 0;
    }
    if (!block_pool_reset_cache(scheduler->kv_cache.pool))
        return false;
    hit_rate_clear(&scheduler->recent);
    return true;
}

/* ---- schedule ------------------------------------------------------------------------------- */

/* The request that gives way: the last admitted, or the one the policy puts last. */
static struct request *choose_victim(const struct scheduler *scheduler)
{
    struct request *victim = LIST_LAST(&scheduler->running, struct request, link), *request;

    if (scheduler->options.policy == POLICY_PRIORITY)
        LIST_FOR_EACH (request, &scheduler->running, link)
            if (wait_queue_is_before(&scheduler->waiting, victim, request))
                victim = request;
    return victim;
}

static void preempt(struct scheduler *scheduler, struct step_plan *plan, struct request *victim)
{
    step_plan_remove(plan, victim);
    send_back(scheduler, victim);
}

/* Tokens of one request in a step at most. A request that is alone takes nobody's turn. */
static int32_t chunk_limit(const struct scheduler *scheduler)
{
    const struct scheduler_options *options = &scheduler->options;
    int32_t budget = options->max_num_batched_tokens;
    int32_t num_requests = scheduler->num_running + scheduler->waiting.num_requests;

    if (num_requests == 1 || !options->enable_chunked_prefill ||
        options->long_prefill_token_threshold == 0)
        return budget;
    return options->long_prefill_token_threshold_adaptive
               ? MAX(options->long_prefill_token_threshold, budget / num_requests)
               : options->long_prefill_token_threshold;
}

/* The last token that it may generate is on its way. */
static bool is_at_end(const struct request *request)
{
    return request->num_placeholders > 0 &&
           request_num_expected(request) - request->num_prompt >= request->max_tokens;
}

/* Tokens of a prompt, or of one that was preempted, are still to be computed. */
static bool is_behind(const struct request *request)
{
    return !request_decodes(request) && request->num_computed < request_num_expected(request);
}

/* How many tokens of the request this step may compute; 0: none is missing, or its last is on its way. */
static int32_t tokens_wanted(const struct scheduler *scheduler, const struct request *request,
                             int32_t budget)
{
    int32_t missing = request_num_expected(request) - request->num_computed;
    int32_t wanted = MIN(missing, chunk_limit(scheduler));

    return is_at_end(request) ? 0 : MIN(wanted, budget);
}

/* Waiting requests that a pause lets in. */
static int32_t num_in_line(const struct scheduler *scheduler)
{
    return scheduler->pause == UNPAUSED ? scheduler->waiting.num_requests
                                        : scheduler->waiting.num_begun;
}

/* Nobody is slowed down for another where all have lost the same; but a step is short enough for those that are back to
 * go on, one after the other. */
static int32_t resume_limit(const struct scheduler *scheduler)
{
    double token_ns = scheduler->pacing.token_ns;

    return token_ns > 0 ? (int32_t)MAX(MIN(RESUME_STEP_NS / token_ns, 1e9), (double)RESUME_MIN_TOKENS)
                        : 2 * RESUME_MIN_TOKENS;
}

/* Sets how many tokens of prompts this step may compute, and leaves room for those that decode. */
static void set_prompt_budget(struct scheduler *scheduler, struct step_plan *plan)
{
    const struct request *request;
    int32_t num_to_come = 0, num_behind = num_in_line(scheduler), limit;

    LIST_FOR_EACH (request, &scheduler->running, link) {
        num_to_come += request_decodes(request) && !is_at_end(request);
        num_behind += is_behind(request);
    }
    limit = scheduler->num_resuming > 0
                ? resume_limit(scheduler)
                : pacing_limit(&scheduler->pacing, plan->num_decoding + num_to_come, num_behind);
    plan->prompt_budget = MIN(limit, MAX(plan->budget - num_to_come, 1));
}

/* What is left of it. A step that only decodes does not ask. */
static int32_t prompt_budget(struct scheduler *scheduler, struct step_plan *plan)
{
    if (plan->prompt_budget < 0)
        set_prompt_budget(scheduler, plan);
    return MIN(plan->prompt_budget, plan->budget);
}

static int32_t budget_for(struct scheduler *scheduler, struct step_plan *plan,
                          const struct request *request)
{
    return is_behind(request) ? prompt_budget(scheduler, plan) : plan->budget;
}

/* true: a request was preempted for another. */
static bool schedule_running(struct scheduler *scheduler, struct step_plan *plan)
{
    bool preempted = false;
    struct list_node *at = scheduler->running.next;

    while (at != &scheduler->running && plan->budget > 0) {
        struct request *request = LIST_ITEM(at, struct request, link), *victim;
        int32_t num_tokens =
            tokens_wanted(scheduler, request, budget_for(scheduler, plan, request));
        int32_t num_blocks = request->num_blocks;

        at = at->next;
        if (num_tokens == 0 || !step_plan_has_room_for_scores(plan, request, num_tokens))
            continue;
        while (kv_cache_manager_grow(&scheduler->kv_cache, request,
                                     request->num_computed + num_tokens) != OK) {
            preempted = true;
            victim = choose_victim(scheduler);
            if (at == &victim->link)
                at = at->next;
            preempt(scheduler, plan, victim);
            if (victim == request)
                break;
        }
        if (request->state == REQUEST_RUNNING)
            step_plan_add(plan, request, num_tokens, request->num_blocks - num_blocks, false);
    }
    return preempted;
}

static void count_query(struct cache_counts *counts, int32_t queries, int32_t hits)
{
    counts->requests++;
    counts->queries += queries;
    counts->hits += hits;
}

/* Once an admission, however often it was looked up before there was room. */
static void count_admission(struct scheduler *scheduler, struct request *request,
                            int32_t num_cached)
{
    bool is_first = request->scheduled_ns == 0;

    if (is_first) {
        request->scheduled_ns = clock_now_ns();
        request->num_cached = num_cached;
        scheduler->num_prompt_tokens += request->num_prompt;
    }
    if (!scheduler->kv_cache.cache || request_wants_scores(request))
        return;
    count_query(is_first ? &scheduler->at_first : &scheduler->again, request->num_tokens,
                num_cached);
    if (is_first)
        hit_rate_observe(&scheduler->recent, request->num_tokens, num_cached);
}

static void admit(struct scheduler *scheduler, struct request *request, int32_t num_cached_blocks)
{
    wait_queue_remove(&scheduler->waiting, request);
    list_push_back(&scheduler->running, &request->link);
    scheduler->num_running++;
    request->state = REQUEST_RUNNING;
    slot_table_take(&scheduler->slots, request);
    kv_cache_manager_take_prefix(&scheduler->kv_cache, request, num_cached_blocks);
    count_admission(scheduler, request, num_cached_blocks * scheduler->options.block_size);
}

static int32_t blocks_promised(const struct scheduler *scheduler)
{
    const struct request *request;
    int32_t n = 0;

    LIST_FOR_EACH (request, &scheduler->running, link)
        n += kv_cache_manager_blocks_missing(&scheduler->kv_cache, request);
    return n;
}

/* Free blocks that a newcomer leaves to those that run: their outputs grow. */
static int32_t watermark_blocks(const struct scheduler *scheduler)
{
    return scheduler->num_running > 0
               ? (int32_t)(scheduler->options.watermark * scheduler->options.num_blocks)
               : 0;
}

static int32_t max_active(const struct scheduler *scheduler)
{
    const struct scheduler_options *options = &scheduler->options;

    return options->max_num_active_seqs > 0
               ? MIN(options->max_num_active_seqs, options->max_num_seqs)
               : options->max_num_seqs;
}

static void schedule_waiting(struct scheduler *scheduler, struct step_plan *plan)
{
    struct kv_cache_manager *kv_cache = &scheduler->kv_cache;
    struct request *request;
    int32_t promised = -1; /* not counted yet: mostly nobody waits */

    while (plan->budget > 0 && scheduler->num_running < max_active(scheduler) &&
           (request = next_in_line(scheduler))) {
        if (request->num_in_flight > 0)
            return; /* preempted a moment ago: its token, and its slot, are still to come back */
        if (prompt_budget(scheduler, plan) == 0)
            return;
        if (!step_plan_has_room_for_scores(plan, request, plan->budget))
            return;

        int32_t num_cached_blocks = kv_cache_manager_find_prefix(kv_cache, request);
        int32_t num_missing =
            request->num_tokens - num_cached_blocks * scheduler->options.block_size;

        if (!scheduler->options.enable_chunked_prefill && num_missing > plan->budget)
            return;
        /* Admitted only if all that it has to compute fits, beside what those before it were
         * promised: else two half-computed prompts could wait for each other's blocks. */
        if (promised < 0)
            promised = blocks_promised(scheduler);
        if (kv_cache_manager_blocks_wanted(kv_cache, request, num_cached_blocks) + promised +
                watermark_blocks(scheduler) >
            block_pool_num_free(kv_cache->pool))
            return;

        admit(scheduler, request, num_cached_blocks);

        int32_t num_tokens = tokens_wanted(scheduler, request, prompt_budget(scheduler, plan));

        if (kv_cache_manager_grow(kv_cache, request, request->num_computed + num_tokens) != OK)
            ASSERT(false, "%s", fail_text()); /* they were free a moment ago */
        promised += kv_cache_manager_blocks_missing(kv_cache, request);
        step_plan_add(plan, request, num_tokens, request->num_blocks, true);
        /* Known at once: the next in line can share what this one computes. */
        kv_cache_manager_cache_blocks(kv_cache, request);
    }
}

void scheduler_schedule(struct scheduler *scheduler, struct arena *arena,
                        struct scheduler_output *plan_out)
{
    const struct scheduler_options *options = &scheduler->options;
    struct step_plan plan;

    step_plan_init(&plan, options->max_num_seqs, options->vocab_size, arena);
    plan.budget = scheduler->pause == PAUSED_ALL ? 0 : options->max_num_batched_tokens;
    plan.prompt_budget = scheduler->pacing.slowdown > 0 ? -1 : INT32_MAX;

    bool preempted = schedule_running(scheduler, &plan);

    /* Only now is it certain which of these rows will be computed. */
    for (int32_t row = 0; row < plan.num_rows; row++)
        kv_cache_manager_cache_blocks(&scheduler->kv_cache, plan.rows[row]);
    /* What was just preempted would be the first to be admitted again. */
    if (!preempted)
        schedule_waiting(scheduler, &plan);
    *plan_out = (struct scheduler_output){0};
    if (plan.num_rows == 0)
        return; /* nobody will see it: the slots that are free are told with the next one */
    step_plan_write(&plan, arena, plan_out);
    slot_table_tell(&scheduler->slots, arena, plan_out);
    ASSERT(scheduler->num_in_flight < MAX_IN_FLIGHT);
    scheduler->in_flight[scheduler->num_in_flight++] = (struct in_flight){
        .rows = plan.rows,
        .num_rows = plan.num_rows,
        .num_decoding = plan.num_decoding,
        .num_prompt_tokens = plan_out->total_num_scheduled_tokens - plan.num_decoding,
    };
}

void scheduler_observe(struct scheduler *scheduler, int64_t took_ns)
{
    const struct in_flight *step = &scheduler->in_flight[0];

    ASSERT(scheduler->num_in_flight > 0);
    pacing_observe(&scheduler->pacing, step->num_decoding, step->num_prompt_tokens, took_ns);
}

/* ---- the end of a request ------------------------------------------------------------------- */

static void stop_resuming(struct scheduler *scheduler, struct request *request)
{
    scheduler->num_resuming -= request->is_resuming;
    request->is_resuming = false;
}

/* The request is over; its last event has been added before. */
static void end(struct scheduler *scheduler, struct request *request)
{
    stop_resuming(scheduler, request);
    if (request->state == REQUEST_RUNNING)
        leave_running(scheduler, request);
    else if (request->awaits_grammar || request->awaits_mask)
        leave_deferred(scheduler, request);
    else
        wait_queue_remove(&scheduler->waiting, request);
    request->state = REQUEST_FINISHED;
    map_remove(&scheduler->by_id, (uint64_t)request->id);
    if (request->num_in_flight > 0) {
        list_push_back(&scheduler->leaving, &request->link);
        return;
    }
    slot_table_drop(&scheduler->slots, request);
    request_free(request);
}

static void end_with(struct scheduler *scheduler, struct request *request,
                     enum finish_reason reason, struct output_builder *events)
{
    output_builder_add(events, request)->finish = reason;
    end(scheduler, request);
}

static void end_with_error(struct scheduler *scheduler, struct request *request,
                           enum status status, const char *text, struct output_builder *events)
{
    struct engine_event *event = output_builder_add(events, request);

    event->finish = FINISH_ERROR;
    event->error = status;
    event->error_text = arena_strndup(output_builder_arena(events), text, strlen(text));
    end(scheduler, request);
}

/* ---- grammar_bitmask ------------------------------------------------------------------------ */

int32_t scheduler_num_masks(const struct scheduler_output *plan)
{
    int32_t n = 0;

    for (int32_t row = 0; row < plan->num_rows; row++)
        n += plan->needs_bitmask[row];
    return n;
}

/* One that has finished since, or that was set aside, is sampled all the same, and its token thrown
 * away. */
static bool wants_mask(const struct request *request)
{
    return request->state != REQUEST_FINISHED && !request->drops_in_flight;
}

bool scheduler_masks_are_ready(const struct scheduler *scheduler,
                               const struct scheduler_output *plan)
{
    for (int32_t row = 0; row < plan->num_rows; row++) {
        const struct request *request = scheduler->in_flight[0].rows[row];

        if (plan->needs_bitmask[row] && wants_mask(request) && !grammar_is_ready(request->grammar))
            return false;
    }
    return true;
}

static bool has_bits(const uint32_t *words, int32_t num_words)
{
    for (int32_t i = 0; i < num_words; i++)
        if (words[i])
            return true;
    return false;
}

/* min_tokens is kept here, for workers leave masked rows alone: where the grammar lets the output go on, it
 * does; where it is at its end, it ends. */
static void forbid_early_stop(const struct request *request, struct arena *arena, uint32_t *words,
                              int32_t num_words)
{
    const struct sampling_params *params = &request->params;
    size_t bytes = (size_t)num_words * sizeof *words;
    uint32_t *others;

    if (request_num_output(request) >= params->min_tokens)
        return;
    others = memcpy(arena_alloc(arena, bytes), words, bytes);
    for (int32_t i = 0; i < params->num_all_stop_token_ids; i++) {
        token_id token = params->all_stop_token_ids[i];

        others[token / 32] &= ~((uint32_t)1 << (token % 32));
    }
    if (has_bits(others, num_words))
        memcpy(words, others, bytes);
}

static void fill_mask(struct scheduler *scheduler, struct request *request, struct arena *arena,
                      uint32_t *words, int32_t num_words, struct output_builder *events)
{
    size_t bytes = (size_t)num_words * sizeof *words;
    enum status status = OK;

    if (!wants_mask(request)) {
        memset(words, 0xff, bytes);
        return;
    }
    if (grammar_is_ready(request->grammar)) {
        status = grammar_fill_bitmask(request->grammar, words, num_words);
        if (status == OK && !has_bits(words, num_words))
            status = fail(ERR_INVALID, "the grammar is at a dead end: it allows no token behind output "
                          "token %d", request_num_output(request));
        if (status == OK) {
            forbid_early_stop(request, arena, words, num_words);
            return;
        }
    }
    memset(words, 0, bytes); /* nothing is drawn unmasked */
    if (status != OK) {
        end_with_error(scheduler, request, status, fail_text(), events);
    } else if (request->state == REQUEST_RUNNING) {
        scheduler->num_late_masks++;
        set_aside(scheduler, request);
    }
}

void scheduler_fill_times(const struct scheduler *scheduler, const struct scheduler_output *plan,
                          int64_t *begin_ns_out, int64_t *end_ns_out)
{
    *begin_ns_out = INT64_MAX;
    *end_ns_out = 0;
    for (int32_t row = 0; row < plan->num_rows; row++) {
        const struct request *request = scheduler->in_flight[0].rows[row];
        int64_t begin_ns, end_ns;

        if (!plan->needs_bitmask[row] || !wants_mask(request) ||
            !grammar_fill_times(request->grammar, &begin_ns, &end_ns))
            continue;
        *begin_ns_out = MIN(*begin_ns_out, begin_ns);
        *end_ns_out = MAX(*end_ns_out, end_ns);
    }
}

/* Masks of a step that are the same are one: many requests are at one place of one grammar. */
struct masks {
    uint32_t *words;  /* [num_rows, num_words] */
    uint64_t *hashes; /* [num_rows] */
    int32_t num_rows, num_words;
};

/* The last of them: is there one that is the same? Then it goes. Returns which row it is. */
static int32_t merge_last_mask(struct masks *masks)
{
    int32_t last = masks->num_rows - 1;
    size_t bytes = (size_t)masks->num_words * sizeof *masks->words;
    const uint32_t *words = masks->words + (int64_t)last * masks->num_words;

    masks->hashes[last] = XXH3_64bits(words, bytes);
    for (int32_t row = 0; row < last; row++)
        if (masks->hashes[row] == masks->hashes[last] &&
            memcmp(masks->words + (int64_t)row * masks->num_words, words, bytes) == 0) {
            masks->num_rows--;
            return row;
        }
    return last;
}

void scheduler_grammar_bitmask(struct scheduler *scheduler, const struct scheduler_output *plan,
                               struct arena *arena, struct grammar_output *out,
                               struct output_builder *events)
{
    int32_t num_masks = scheduler_num_masks(plan), i = 0;
    int32_t num_words = grammar_num_words(scheduler->options.vocab_size);
    size_t bytes = (size_t)num_masks * (size_t)num_words * sizeof(uint32_t);
    int32_t *slots = arena_alloc(arena, (size_t)num_masks * sizeof *slots);
    int32_t *positions = arena_alloc(arena, (size_t)num_masks * sizeof *positions);
    int32_t *bitmask_rows = arena_alloc(arena, (size_t)num_masks * sizeof *bitmask_rows);
    struct masks masks = {
        .words = arena_alloc(arena, bytes),
        .hashes = arena_alloc(arena, (size_t)num_masks * sizeof *masks.hashes),
        .num_words = num_words,
    };

    ASSERT(scheduler->num_in_flight == 1 && scheduler->in_flight[0].num_rows == plan->num_rows);
    ASSERT(bytes <= MAX_BITMASK_BYTES, "%zu bytes of masks", bytes);
    for (int32_t row = 0; row < plan->num_rows; row++) {
        struct request *request = scheduler->in_flight[0].rows[row];

        if (!plan->needs_bitmask[row])
            continue;
        slots[i] = plan->slots[row];
        positions[i] = plan->num_computed_tokens[row] + plan->num_scheduled_tokens[row];
        ASSERT(!wants_mask(request) || positions[i] == request->num_tokens);
        fill_mask(scheduler, request, arena,
                  masks.words + (int64_t)masks.num_rows++ * num_words, num_words, events);
        bitmask_rows[i++] = merge_last_mask(&masks);
    }
    *out = (struct grammar_output){
        .slots = slots,
        .num_rows = num_masks,
        .positions = positions,
        .bitmask_rows = bitmask_rows,
        .num_bitmask_rows = masks.num_rows,
        .words_per_row = num_words,
        .bitmask = (const uint8_t *)masks.words,
        .num_bitmask_bytes = (int32_t)((size_t)masks.num_rows * (size_t)num_words * 4),
    };
}

/* ---- update --------------------------------------------------------------------------------- */

/* The logprobs of sampled row i, whose entries begin at `first`; copied beside the event. */
static const struct token_logprobs *copy_logprobs(struct arena *arena,
                                                  const struct model_runner_output *output,
                                                  int32_t i, int32_t first)
{
    struct token_logprobs *logprobs = arena_alloc(arena, sizeof *logprobs);

    *logprobs = token_logprobs_read(output->sampled_token_ranks[i], output->logprob_counts[i],
                                    output->logprob_token_ids + first, output->logprobs + first,
                                    arena);
    return logprobs;
}

/* The sampled tokens, beside the events that will point to them. */
static const token_id *copy_tokens(const struct model_runner_output *output,
                                   struct output_builder *events)
{
    size_t bytes = (size_t)output->num_sampled * sizeof(token_id);

    if (bytes == 0)
        return NULL;
    output_builder_reserve(events, output->num_sampled);
    return memcpy(arena_alloc(output_builder_arena(events), bytes), output->sampled_token_ids,
                  bytes);
}

/* Bad words, an end that is yet to come and grammars exclude the last token only of a choice that is its client's. */
static bool chooses_tokens(const struct request *request)
{
    return request->params.num_allowed_token_ids > 0;
}

/* Sampled row i of the answer joins its request; `token` is its copy. */
static void take_token(struct scheduler *scheduler, struct request *request,
                       const struct model_runner_output *output, int32_t i, int32_t first_logprob,
                       const token_id *token, struct output_builder *events)
{
    token_id stop_token;

    if (*token < 0) {
        end_with_error(scheduler, request, chooses_tokens(request) ? ERR_INVALID : ERR_INTERNAL,
                       "no token can be sampled: all are excluded, or the logits are not numbers",
                       events);
        return;
    }
    if (request->grammar && !grammar_accept(request->grammar, *token)) {
        char text[96];

        snprintf(text, sizeof text, "the grammar does not allow token %d, output token %d, which was sampled",
                 *token, request_num_output(request));
        end_with_error(scheduler, request, ERR_INTERNAL, text, events);
        return;
    }

    enum finish_reason finish = request_append(request, *token, &stop_token);
    struct engine_event *event = output_builder_add(events, request);
    bool is_terminated = request->grammar && grammar_is_terminated(request->grammar);

    if (is_terminated) { /* also under ignore_eos: nothing may follow */
        finish = FINISH_STOP;
        stop_token = *token;
    }

    stop_resuming(scheduler, request);
    event->tokens = token;
    event->num_tokens = 1;
    event->finish = finish;
    event->stop_token = stop_token;
    event->grammar_is_complete = is_terminated;
    if (output->logprob_counts[i] > 0)
        event->logprobs = copy_logprobs(output_builder_arena(events), output, i, first_logprob);
    if (request->prompt_scores) {
        event->prompt_logprobs =
            prompt_scores_copy(request->prompt_scores, output_builder_arena(events));
        prompt_scores_free(give(request->prompt_scores));
    }
    if (request->state == REQUEST_RUNNING)
        kv_cache_manager_cache_blocks(&scheduler->kv_cache, request);
    if (finish != FINISH_NONE)
        end(scheduler, request);
    else if (request->grammar && request->state == REQUEST_RUNNING &&
             grammar_is_slow(request->grammar))
        set_aside(scheduler, request);
}

enum status scheduler_update_from_output(struct scheduler *scheduler,
                                         const struct scheduler_output *plan,
                                         const struct model_runner_output *output,
                                         struct output_builder *events)
{
    int32_t i = 0, first_logprob = 0;
    struct prompt_place prompts = {0};

    ASSERT(scheduler->num_in_flight > 0 && scheduler->in_flight[0].num_rows == plan->num_rows);
    TRY(answer_check(plan, output, scheduler->options.vocab_size));

    struct request **rows = scheduler->in_flight[0].rows;
    const token_id *tokens = copy_tokens(output, events);

    scheduler->in_flight[0] = scheduler->in_flight[1];
    scheduler->num_in_flight--;
    for (int32_t row = 0; row < plan->num_rows; row++) {
        struct request *request = rows[row];
        bool samples = plan->samples[row], is_wanted = samples && !request->drops_in_flight;

        if (prompts.run < plan->num_prompt_logprob_rows &&
            plan->prompt_logprob_rows[prompts.run] == row)
            prompt_scores_take(request->drops_in_flight ? NULL : request->prompt_scores, output,
                               &prompts);
        request->num_in_flight--;
        request->num_placeholders -= samples;
        if (request->num_in_flight == 0 && request->state != REQUEST_RUNNING) {
            slot_table_drop(&scheduler->slots, request);
            request->drops_in_flight = false;
        }
        if (request->state != REQUEST_FINISHED) {
            if (is_wanted)
                take_token(scheduler, request, output, i, first_logprob, &tokens[i], events);
        } else if (request->num_in_flight == 0) {
            list_remove(&request->link);
            request_free(request);
        }
        if (samples)
            first_logprob += output->logprob_counts[i++];
    }
    return OK;
}

void scheduler_set_grammar(struct scheduler *scheduler, request_id id, struct grammar *grammar,
                           enum status status, const char *text, struct output_builder *events)
{
    struct request *request = map_get(&scheduler->by_id, (uint64_t)id);

    if (!request || !request->awaits_grammar) {
        grammar_free(grammar);
    } else if (status != OK) {
        end_with_error(scheduler, request, status, text, events);
    } else {
        leave_deferred(scheduler, request);
        request->awaits_grammar = false;
        request->grammar = grammar;
        wait_queue_add(&scheduler->waiting, request); /* where it would be had it come with it */
    }
}

void scheduler_abort(struct scheduler *scheduler, request_id id, struct output_builder *events)
{
    struct request *request = map_get(&scheduler->by_id, (uint64_t)id);

    if (request)
        end_with(scheduler, request, FINISH_ABORT, events);
}

static void end_for(struct scheduler *scheduler, struct request *request, enum status status,
                    const char *text, struct output_builder *events)
{
    if (status == ERR_ABORTED)
        end_with(scheduler, request, FINISH_ABORT, events);
    else
        end_with_error(scheduler, request, status, text, events);
}

void scheduler_end_all(struct scheduler *scheduler, enum status status, const char *text,
                       struct output_builder *events)
{
    struct request *request;

    LIST_FOR_EACH (request, &scheduler->running, link)
        end_for(scheduler, request, status, text, events);
    while ((request = wait_queue_first(&scheduler->waiting)))
        end_for(scheduler, request, status, text, events);
    LIST_FOR_EACH (request, &scheduler->deferred, link)
        end_for(scheduler, request, status, text, events);
}

void scheduler_forget_in_flight(struct scheduler *scheduler)
{
    struct request *request;

    for (int32_t step = 0; step < scheduler->num_in_flight; step++)
        for (int32_t row = 0; row < scheduler->in_flight[step].num_rows; row++)
            scheduler->in_flight[step].rows[row]->num_in_flight--;
    scheduler->num_in_flight = 0;
    LIST_FOR_EACH (request, &scheduler->leaving, link) {
        list_remove(&request->link);
        slot_table_drop(&scheduler->slots, request);
        request_free(request);
    }
}

/* What steps in flight were to bring it, and the slot that they used. */
static void forget_steps_of(struct scheduler *scheduler, struct request *request)
{
    request->num_placeholders = 0;
    request->drops_in_flight = false;
    slot_table_drop(&scheduler->slots, request);
}

void scheduler_start_over(struct scheduler *scheduler)
{
    struct request *request;

    scheduler_forget_in_flight(scheduler);
    LIST_FOR_EACH (request, &scheduler->running, link) {
        scheduler->num_resuming += !request->is_resuming;
        request->is_resuming = true;
        send_back(scheduler, request);
    }
    WAIT_QUEUE_FOR_EACH (request, &scheduler->waiting)
        forget_steps_of(scheduler, request);
    LIST_FOR_EACH (request, &scheduler->deferred, link)
        forget_steps_of(scheduler, request);
    slot_table_forget_finished(&scheduler->slots);
    if (!scheduler_reset_prefix_cache(scheduler, false))
        ASSERT(false, "blocks are in use, and nothing runs");
}

/* ---- describe ------------------------------------------------------------------------------- */

int32_t scheduler_num_in_flight(const struct scheduler *scheduler)
{
    return scheduler->num_in_flight;
}

/* Its blocks so far as its KV reaches: a request that has left since has dropped them, but its table
 * is not written to again while a step in flight has a row for it. */
static struct new_request describe_before(const struct scheduler *scheduler,
                                          const struct request *request, int32_t slot,
                                          int32_t num_computed)
{
    struct new_request description = request_describe(request);

    description.slot = slot;
    description.num_block_ids = kv_cache_manager_blocks_for(&scheduler->kv_cache, num_computed);
    return description;
}

void scheduler_describe_in_flight(const struct scheduler *scheduler,
                                  const struct scheduler_output *const *plans, int32_t num_plans,
                                  struct arena *arena, struct scheduler_output *out)
{
    int32_t most = 0, n = 0;

    ASSERT(num_plans == scheduler->num_in_flight);
    for (int32_t i = 0; i < num_plans; i++)
        most += plans[i]->num_rows;

    struct new_request *requests = arena_new_array(arena, struct new_request, (size_t)most);
    int32_t *slots = arena_new_array(arena, int32_t, (size_t)most);
    int32_t *num_scheduled = arena_new_array(arena, int32_t, (size_t)most);

    *out = (struct scheduler_output){0};
    for (int32_t i = 0; i < num_plans; i++)
        for (int32_t row = 0; row < plans[i]->num_rows; row++) {
            int32_t slot = plans[i]->slots[row], num_computed = plans[i]->num_computed_tokens[row];
            bool is_known = scheduler_output_find_new(plans[i], slot) ||
                            (i > 0 && scheduler_output_find_new(plans[0], slot));

            for (int32_t other = 0; other < n && !is_known; other++)
                is_known = slots[other] == slot;
            if (is_known)
                continue;
            requests[n] = describe_before(scheduler, scheduler->in_flight[i].rows[row], slot,
                                          num_computed);
            slots[n] = slot;
            num_scheduled[n++] = num_computed;
            out->total_num_scheduled_tokens += num_computed;
        }
    out->new_requests = requests;
    out->num_new_requests = out->num_rows = n;
    out->slots = slots;
    out->num_scheduled_tokens = num_scheduled;
    out->num_computed_tokens = out->new_block_counts = arena_new_array(arena, int32_t, (size_t)n);
    out->samples = out->needs_bitmask = arena_new_array(arena, uint8_t, (size_t)n);
}

/* ---- check ---------------------------------------------------------------------------------- */

void scheduler_check(const struct scheduler *scheduler)
{
    const struct request *request;
    int32_t num_running = 0, num_deferred = 0, num_set_aside = 0, num_slots = 0, num_resuming = 0;
    int64_t num_blocks = 0;

    block_pool_check(scheduler->kv_cache.pool);
    LIST_FOR_EACH (request, &scheduler->running, link) {
        ASSERT(request->state == REQUEST_RUNNING);
        ASSERT(scheduler->slots.requests[request->slot] == request);
        ASSERT(request->num_computed <= request_num_expected(request));
        ASSERT(request->num_blocks >=
               kv_cache_manager_blocks_for(&scheduler->kv_cache, request->num_computed));
        num_blocks += request->num_blocks;
        num_slots++;
        num_running++;
        num_resuming += request->is_resuming;
    }
    wait_queue_check(&scheduler->waiting);
    WAIT_QUEUE_FOR_EACH (request, &scheduler->waiting) {
        ASSERT(request->num_blocks == 0 && request->num_computed == 0);
        ASSERT((request->slot >= 0) == (request->num_in_flight > 0));
        num_slots += request->slot >= 0;
        num_resuming += request->is_resuming;
    }
    LIST_FOR_EACH (request, &scheduler->deferred, link) {
        ASSERT(request->awaits_grammar != request->awaits_mask && request->num_blocks == 0);
        ASSERT((request->slot >= 0) == (request->num_in_flight > 0));
        num_slots += request->slot >= 0;
        num_set_aside += request->awaits_mask;
        num_resuming += request->is_resuming;
        num_deferred++;
    }
    LIST_FOR_EACH (request, &scheduler->leaving, link) {
        ASSERT(request->state == REQUEST_FINISHED && request->num_in_flight > 0);
        ASSERT(request->num_blocks == 0);
        num_slots++;
    }
    ASSERT(num_running == scheduler->num_running);
    ASSERT(num_resuming == scheduler->num_resuming);
    ASSERT(num_running + scheduler->waiting.num_requests + num_deferred ==
           scheduler_num_unfinished(scheduler));
    ASSERT(num_deferred == scheduler->num_deferred);
    ASSERT(num_set_aside == scheduler->num_set_aside);
    ASSERT(num_slots + scheduler->slots.num_free ==
           num_slots_for(scheduler->options.max_num_seqs));
    ASSERT(num_blocks == block_pool_num_users(scheduler->kv_cache.pool));
}
