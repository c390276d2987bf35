#include "worker/sampler.h"

#include "worker/slice.h"

#include <math.h>
#include <string.h>

enum { MAX_CANDIDATES = 1024, FEW_CANDIDATES = 64 };

/* What is known of a row, on every rank alike. */
struct row_state {
    const struct sampler_row *row;
    const float *logits; /* [num_tokens] as the model gave them */
    float temperature;   /* that divides them; 1: greedy too */
    bool is_greedy, has_top_k, has_top_p, has_min_p;
    bool is_done;
    float max;            /* of logits / temperature */
    uint64_t weight;      /* of all that top_p chooses among */
    struct candidate cut; /* the last token that is kept */
    struct drawn drawn;
    int32_t num_logprobs; /* beside its own; -1: none */
    struct sampler_result result;

    /* stage 4 */
    uint32_t prefix; /* of the key at which the cut lies */
    uint64_t above;  /* weight of the keys above */
    int64_t num_above;
    struct bin at;      /* the keys that begin with prefix; in the end the tokens with one logit */
    int64_t num_own;    /* of these, in this rank's slice */
    int64_t num_at_cut; /* of these, kept */
};

/* What a thread needs to look through a row. */
struct workspace {
    struct logit_edits *edits;
    struct candidate *candidates; /* [num_candidates] */
    struct candidate *blocks;     /* [slice_num_blocks] */
};

struct sampler {
    struct sampler_options options;
    int32_t grid_bits;
    int32_t max_candidates;
    struct row_state *states;     /* [max_rows] */
    int32_t *needing;             /* [max_rows]: states that a stage is for */
    struct workspace *workspaces; /* [num_workspaces]: a thread's each; the first is the caller's */
    int32_t num_workspaces;
    struct candidate *candidates; /* the first workspace's: of one row, at a time */
    int64_t num_candidates;
    struct bytes sent, received;
    int64_t *received_bytes; /* [world] */
    int64_t *places;         /* [world] in what was received, while it is read */
    struct bytes bins;       /* struct bin, then doubles: stage 4's */
    struct bytes top_tokens, top_logprobs;
};

static void open_workspaces(struct sampler *sampler)
{
    const struct sampler_options *options = &sampler->options;
    int32_t num_blocks = slice_num_blocks(options->first_token, options->num_tokens);

    sampler->num_workspaces = options->device ? device_num_threads(options->device) : 1;
    sampler->workspaces = mem_new_array(struct workspace, sampler->num_workspaces);
    for (int32_t i = 0; i < sampler->num_workspaces; i++)
        sampler->workspaces[i] = (struct workspace){
            .edits = logit_edits_new(options->first_token, options->num_tokens),
            .candidates = mem_new_array(struct candidate, sampler->num_candidates),
            .blocks = mem_new_array(struct candidate, num_blocks),
        };
    sampler->candidates = sampler->workspaces[0].candidates;
}

struct sampler *sampler_new(const struct sampler_options *options)
{
    struct sampler *sampler = mem_new(struct sampler);

    ASSERT(options->num_tokens > 0 && options->max_rows > 0 && options->world > 0);
    sampler->options = *options;
    sampler->grid_bits = grid_bits_for(options->vocab_size);
    sampler->max_candidates = MAX_CANDIDATES;
    sampler->states = mem_new_array(struct row_state, options->max_rows);
    sampler->needing = mem_new_array(int32_t, options->max_rows);
    /* Logprobs may be wanted of the whole vocabulary. */
    sampler->num_candidates = MAX(options->vocab_size, (int64_t)options->world * MAX_CANDIDATES);
    open_workspaces(sampler);
    sampler->received_bytes = mem_new_array(int64_t, options->world);
    sampler->places = mem_new_array(int64_t, options->world);
    return sampler;
}

void sampler_free(struct sampler *sampler)
{
    if (!sampler)
        return;
    for (int32_t i = 0; i < sampler->num_workspaces; i++) {
        logit_edits_free(sampler->workspaces[i].edits);
        mem_free(sampler->workspaces[i].candidates);
        mem_free(sampler->workspaces[i].blocks);
    }
    mem_free(sampler->workspaces);
    mem_free(sampler->states);
    mem_free(sampler->needing);
    mem_free(sampler->received_bytes);
    mem_free(sampler->places);
    bytes_close(&sampler->sent);
    bytes_close(&sampler->received);
    bytes_close(&sampler->bins);
    bytes_close(&sampler->top_tokens);
    bytes_close(&sampler->top_logprobs);
    mem_free(sampler);
}

void sampler_limit_candidates(struct sampler *sampler, int32_t max_candidates)
{
    ASSERT(max_candidates >= 1 && max_candidates <= MAX_CANDIDATES);
    sampler->max_candidates = max_candidates;
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void begin_row(const struct sampler *sampler, struct row_state *state,
                      const struct sampler_row *row, const float *logits)
{
    const struct sampling_params *params = row->params;
    bool is_greedy = sampling_params_is_greedy(params);

    *state = (struct row_state){
        .row = row,
        .logits = logits,
        .is_greedy = is_greedy,
        .temperature = is_greedy ? 1 : fmaxf(params->temperature, LEAST_TEMPERATURE),
        .has_top_k = !is_greedy && params->top_k > 0 && params->top_k < sampler->options.vocab_size,
        .has_top_p = !is_greedy && params->top_p < 1,
        .has_min_p = !is_greedy && params->min_p > 0,
        .max = -INFINITY,
        .cut = KEEP_ALL,
        .drawn = {-INFINITY, -1},
        .num_logprobs = params->logprobs,
        .result = {.token = -1},
    };
}

/* Valid until the next one is made in this workspace. */
static struct slice slice_of(const struct sampler *sampler, struct workspace *workspace,
                             const struct row_state *state)
{
    return (struct slice){
        .logits = logit_edits_apply(workspace->edits, state->logits, state->row),
        .first_token = sampler->options.first_token,
        .num_tokens = sampler->options.num_tokens,
        .temperature = state->temperature,
    };
}

static struct slice raw_slice_of(const struct sampler *sampler, const struct row_state *state)
{
    return (struct slice){
        .logits = state->logits,
        .first_token = sampler->options.first_token,
        .num_tokens = sampler->options.num_tokens,
        .temperature = 1,
    };
}

static struct drawn draw_from_slice(const struct sampler *sampler, struct workspace *workspace,
                                    const struct row_state *state)
{
    struct slice slice = slice_of(sampler, workspace, state);

    return slice_draw(&slice, state->cut, (uint64_t)state->row->params->seed, state->row->position);
}

static void take_max(struct row_state *state, float max)
{
    state->max = max;
    if (state->has_min_p)
        state->cut = keep_from(least_of_min_p(state->row->params->min_p, max));
}

static bool has_enough(const struct row_state *state, uint64_t kept, uint64_t weight)
{
    return is_enough(state->row->params->top_p, kept, weight);
}

/* ---- exchanges ------------------------------------------------------------------------------ */

static void *make_room(struct bytes *bytes, size_t size)
{
    bytes->size = 0;
    return bytes_reserve(bytes, size);
}

/* Tells the others `bytes` of sampler->sent, which has been made `stride` long. */
static enum status exchange(struct sampler *sampler, int64_t bytes, int64_t stride)
{
    work_count_add(sampler->options.work);
    make_room(&sampler->received, (size_t)(stride * sampler->options.world));
    return comm_all_gather(sampler->options.comm, sampler->sent.data, bytes, stride,
                           sampler->received.data, sampler->received_bytes);
}

/* Records of one size, as many from every rank. */
static enum status exchange_records(struct sampler *sampler, int32_t count, size_t record_bytes)
{
    int64_t bytes = (int64_t)record_bytes * count;

    TRY(exchange(sampler, bytes, bytes));
    for (int32_t rank = 0; rank < sampler->options.world; rank++)
        if (sampler->received_bytes[rank] != bytes)
            return fail(ERR_MISMATCH,
                        "rank %d tells %lld bytes of %d rows, not %lld: the ranks are "
                        "not at one step",
                        rank, (long long)sampler->received_bytes[rank], count, (long long)bytes);
    return OK;
}

/* What rank `rank` told. */
static const void *received_from(const struct sampler *sampler, int32_t rank, int64_t stride)
{
    return sampler->received.data + rank * stride;
}

/* ---- stages where each rank finds one thing a row ---------------------------------------------
 */

/* Of one row: on one rank, then of all. */
struct found {
    struct drawn drawn;
    uint64_t weight;
    float max;
};

/* find: on any of the device's threads, several at a time. */
struct stage {
    bool (*needs)(const struct row_state *state);
    void (*find)(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                 struct found *out);
    void (*take)(struct row_state *state, const struct found *of_all);
};

static const struct found NOTHING = {.drawn = {-INFINITY, -1}, .max = -INFINITY};

static struct found found_by_all(const struct sampler *sampler, int32_t n, int32_t i)
{
    struct found all = NOTHING;

    for (int32_t rank = 0; rank < sampler->options.world; rank++) {
        const struct found *found =
            (const struct found *)received_from(sampler, rank, (int64_t)sizeof *found * n) + i;

        if (drawn_is_better(found->drawn, all.drawn))
            all.drawn = found->drawn;
        all.weight += found->weight;
        all.max = fmaxf(all.max, found->max);
    }
    return all;
}

/* Returns how many of the rows a stage is for: which, in sampler->needing. */
static int32_t list_needing(struct sampler *sampler, int32_t num_rows, bool (*needs)(const struct row_state *state))
{
    int32_t n = 0;

    for (int32_t i = 0; i < num_rows; i++)
        if (needs(&sampler->states[i]))
            sampler->needing[n++] = i;
    return n;
}

static void share_out(struct sampler *sampler, int32_t count,
                      void (*part)(void *args, int64_t first, int64_t end, int32_t thread), void *args)
{
    if (sampler->options.device)
        device_share_out(sampler->options.device, count, part, args);
    else
        part(args, 0, count, 0);
}

struct finding {
    const struct sampler *sampler;
    const struct stage *stage;
    struct found *found; /* of the rows that need the stage */
};

static void find_some(void *args, int64_t first, int64_t end, int32_t thread)
{
    const struct finding *finding = args;
    const struct sampler *sampler = finding->sampler;

    for (int64_t i = first; i < end; i++) {
        finding->found[i] = NOTHING;
        finding->stage->find(sampler, &sampler->workspaces[thread], &sampler->states[sampler->needing[i]],
                             &finding->found[i]);
    }
}

static enum status run_stage(struct sampler *sampler, int32_t num_rows, const struct stage *stage)
{
    struct found *sent = make_room(&sampler->sent, sizeof *sent * (size_t)num_rows);
    int32_t n = list_needing(sampler, num_rows, stage->needs);

    if (n == 0)
        return OK;
    share_out(sampler, n, find_some, &(struct finding){sampler, stage, sent});
    TRY(exchange_records(sampler, n, sizeof *sent));
    for (int32_t i = 0; i < n; i++) {
        struct found all = found_by_all(sampler, n, i);

        stage->take(&sampler->states[sampler->needing[i]], &all);
    }
    return OK;
}

static void finish(struct row_state *state, struct drawn drawn)
{
    state->drawn = drawn;
    state->is_done = true;
}

static void draw(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                 struct found *out)
{
    out->drawn = draw_from_slice(sampler, workspace, state);
}

static void take_drawn(struct row_state *state, const struct found *of_all)
{
    finish(state, of_all->drawn);
}

/* 1: greedy and plain rows are done; the others learn the max. */
static bool needs_best(const struct row_state *state)
{
    return !state->has_top_k;
}

static bool is_plain(const struct row_state *state)
{
    return !state->has_top_k && !state->has_top_p && !state->has_min_p;
}

static void find_best(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                      struct found *out)
{
    if (is_plain(state) && !state->is_greedy) {
        draw(sampler, workspace, state, out);
        return;
    }
    struct slice slice = slice_of(sampler, workspace, state);
    struct candidate best = slice_best(&slice);

    out->drawn = (struct drawn){best.logit, best.token};
    out->max = best.logit;
}

static void take_best(struct row_state *state, const struct found *of_all)
{
    if (is_plain(state) || of_all->drawn.token < 0)
        finish(state, of_all->drawn);
    take_max(state, of_all->max);
}

/* 2: rows with min_p alone are done; the others learn what there is to choose among. */
static bool needs_weight(const struct row_state *state)
{
    return !state->is_done && !state->has_top_k;
}

static void find_weight(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                        struct found *out)
{
    if (!state->has_top_p) {
        draw(sampler, workspace, state, out);
        return;
    }
    struct slice slice = slice_of(sampler, workspace, state);

    out->weight = slice_sum(&slice, state->cut.logit, state->max, sampler->grid_bits);
}

static void take_weight(struct row_state *state, const struct found *of_all)
{
    state->weight = of_all->weight;
    if (!state->has_top_p)
        finish(state, of_all->drawn);
}

static bool is_left(const struct row_state *state)
{
    return !state->is_done;
}

static const struct stage best_stage = {needs_best, find_best, take_best};
static const struct stage weight_stage = {needs_weight, find_weight, take_weight};
static const struct stage last_stage = {is_left, draw, take_drawn};

/* ---- stages where each rank tells its first in order ------------------------------------------
 */

/* What a rank tells of a row; its candidates follow. */
struct list {
    uint64_t weight; /* of all tokens; logprobs' */
    int32_t num_above;
    float unsent; /* no token that it does not tell is larger, or matters; -inf: none matters */
    int32_t count;
};

struct list_stage {
    bool (*needs)(const struct row_state *state);
    /* Candidates that a rank tells at most: the same on all. */
    int32_t (*limit)(const struct sampler *sampler, const struct row_state *state);
    /* Fills in the head; the candidates are the first of the workspace's. On any thread, as in struct stage. */
    void (*find)(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                 struct list *out);
    /* All ranks' candidates are the first of sampler->candidates, in no order. */
    void (*take)(struct sampler *sampler, struct row_state *state, const struct list *of_all);
};

static size_t list_bytes(int32_t count)
{
    return sizeof(struct list) + sizeof(struct candidate) * (size_t)count;
}

struct listing {
    struct sampler *sampler;
    const struct list_stage *stage;
    char *lists; /* each with as much room as its limit wants */
};

static void list_some(void *args, int64_t first, int64_t end, int32_t thread)
{
    const struct listing *listing = args;
    const struct sampler *sampler = listing->sampler;
    struct workspace *workspace = &sampler->workspaces[thread];
    size_t at = 0;

    for (int64_t i = 0; i < end; i++) {
        const struct row_state *state = &sampler->states[sampler->needing[i]];

        if (i >= first) {
            struct list list = {.unsent = -INFINITY};

            listing->stage->find(sampler, workspace, state, &list);
            memcpy(listing->lists + at, &list, sizeof list);
            memcpy(listing->lists + at + sizeof list, workspace->candidates, list_bytes(list.count) - sizeof list);
        }
        at += list_bytes(listing->stage->limit(sampler, state));
    }
}

/* Moves n lists together; returns their bytes. */
static int64_t close_up(const struct listing *listing, int32_t n)
{
    const struct sampler *sampler = listing->sampler;
    size_t from = 0, to = 0;

    for (int32_t i = 0; i < n; i++) {
        struct list list;

        memcpy(&list, listing->lists + from, sizeof list);
        memmove(listing->lists + to, listing->lists + from, list_bytes(list.count));
        from += list_bytes(listing->stage->limit(sampler, &sampler->states[sampler->needing[i]]));
        to += list_bytes(list.count);
    }
    return (int64_t)to;
}

/* Reads every rank's next list and moves on. places: [world] bytes. */
static struct list lists_of_all(struct sampler *sampler, int64_t stride, int64_t *places)
{
    struct list all = {.unsent = -INFINITY};

    for (int32_t rank = 0; rank < sampler->options.world; rank++) {
        const char *from = (const char *)received_from(sampler, rank, stride) + places[rank];
        struct list list;

        memcpy(&list, from, sizeof list);
        ASSERT(all.count + list.count <= sampler->num_candidates);
        memcpy(sampler->candidates + all.count, from + sizeof list,
               sizeof *sampler->candidates * (size_t)list.count);
        places[rank] += (int64_t)list_bytes(list.count);
        all.weight += list.weight;
        all.num_above += list.num_above;
        all.unsent = fmaxf(all.unsent, list.unsent);
        all.count += list.count;
    }
    return all;
}

static enum status run_list_stage(struct sampler *sampler, int32_t num_rows,
                                  const struct list_stage *stage)
{
    int32_t n = list_needing(sampler, num_rows, stage->needs);
    struct listing listing = {.sampler = sampler, .stage = stage};
    size_t stride = 0;

    if (n == 0)
        return OK;
    for (int32_t i = 0; i < n; i++)
        stride += list_bytes(stage->limit(sampler, &sampler->states[sampler->needing[i]]));
    listing.lists = make_room(&sampler->sent, stride);
    share_out(sampler, n, list_some, &listing);
    TRY(exchange(sampler, close_up(&listing, n), (int64_t)stride));
    memset(sampler->places, 0, sizeof *sampler->places * (size_t)sampler->options.world);
    for (int32_t i = 0; i < n; i++) {
        struct list all = lists_of_all(sampler, (int64_t)stride, sampler->places);

        stage->take(sampler, &sampler->states[sampler->needing[i]], &all);
    }
    return OK;
}

/* ---- 3: the first in order --------------------------------------------------------------------
 */

static int32_t limit_first(const struct sampler *sampler, const struct row_state *state)
{
    return state->has_top_k ? MIN(state->row->params->top_k, sampler->max_candidates)
                            : sampler->max_candidates;
}

static uint64_t weigh(const struct sampler *sampler, const struct row_state *state,
                      struct candidate c)
{
    return weight_of(c.logit, state->max, sampler->grid_bits);
}

/* Of n candidates those that top_p may keep if all others are on other ranks and smaller; the first
 * of the array afterwards. Without them all, out->unsent stays as it is. */
static void drop_behind_top_p(const struct sampler *sampler, struct candidate *candidates,
                              const struct row_state *state, struct list *out)
{
    int32_t n = out->count, kept = 0;
    uint64_t larger = 0;

    candidates_heapify(candidates, n);
    while (kept < n && (kept == 0 || !has_enough(state, larger, state->weight)))
        larger += weigh(sampler, state, candidates_pop(candidates, n - kept++));
    if (kept > 0 && has_enough(state, larger, state->weight))
        out->unsent = -INFINITY;
    memmove(candidates, candidates + n - kept, sizeof *candidates * (size_t)kept);
    out->count = kept;
}

/* Of the first `limit`: what matters of them. */
static void find_first_of(const struct sampler *sampler, struct workspace *workspace,
                          const struct row_state *state, int32_t limit, struct list *out)
{
    struct slice slice = slice_of(sampler, workspace, state);

    /* One more than is told: the largest of those that are not. */
    out->count = slice_top(&slice, state->cut, limit + 1, workspace->candidates, workspace->blocks);
    out->unsent = -INFINITY;
    if (out->count > limit) {
        candidates_select(workspace->candidates, out->count, limit);
        out->unsent = workspace->candidates[limit].logit;
        out->count = limit;
    }
    if (!state->has_top_k)
        drop_behind_top_p(sampler, workspace->candidates, state, out);
}

static void find_first(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                       struct list *out)
{
    int32_t limit = limit_first(sampler, state);

    /* top_p mostly keeps few. */
    if (!state->has_top_k && limit > FEW_CANDIDATES) {
        find_first_of(sampler, workspace, state, FEW_CANDIDATES, out);
        if (out->unsent == -INFINITY)
            return;
    }
    find_first_of(sampler, workspace, state, limit, out);
}

/* Pops what top_k leaves of a heap, ties with the k-th too; the last one becomes the cut. */
static int32_t pop_top_k(struct row_state *state, struct candidate *heap, int32_t n)
{
    int32_t top_k = state->row->params->top_k, kept = 0;
    struct candidate cut = state->cut;

    while (kept < n && is_kept(heap[0], cut) &&
           (kept < top_k || heap[0].logit == state->cut.logit)) {
        state->cut = candidates_pop(heap, n - kept);
        kept++;
    }
    return kept;
}

/* Are all tokens known that top_k leaves, of which `kept` are? */
static bool has_all_of_top_k(const struct row_state *state, int32_t kept, struct candidate cut,
                             float unsent)
{
    float least = kept < state->row->params->top_k ? cut.logit : state->cut.logit;

    return unsent == -INFINITY || unsent < least;
}

/* Of `kept` candidates before `end`, in order from the last: those that top_p keeps. */
static int32_t keep_top_p(const struct sampler *sampler, struct row_state *state,
                          const struct candidate *end, int32_t kept)
{
    uint64_t larger = 0;
    int32_t i = 0;

    state->weight = 0;
    for (int32_t j = 1; j <= kept; j++)
        state->weight += weigh(sampler, state, end[-j]);
    for (; i < kept && (i == 0 || !has_enough(state, larger, state->weight)); i++)
        larger += weigh(sampler, state, end[-1 - i]);
    state->cut = end[-i];
    return i;
}

/* Returns how many at the end of the array are kept; 0: that can't be said yet. */
static int32_t resolve_top_k(const struct sampler *sampler, struct row_state *state,
                             const struct list *all)
{
    struct candidate *heap = sampler->candidates, cut;
    int32_t kept;

    take_max(state, heap[0].logit);
    cut = state->cut;
    kept = pop_top_k(state, heap, all->count);
    if (!has_all_of_top_k(state, kept, cut, all->unsent)) {
        state->cut = cut;
        return 0;
    }
    return state->has_top_p ? keep_top_p(sampler, state, heap + all->count, kept) : kept;
}

static int32_t resolve_top_p(const struct sampler *sampler, struct row_state *state,
                             const struct list *all)
{
    struct candidate *heap = sampler->candidates, cut = state->cut;
    int32_t n = all->count, kept = 0;
    uint64_t larger = 0;

    while (kept < n && heap[0].logit > all->unsent) {
        state->cut = candidates_pop(heap, n - kept++);
        larger += weigh(sampler, state, state->cut);
        if (has_enough(state, larger, state->weight))
            return kept;
    }
    if (kept == n && all->unsent == -INFINITY)
        return kept;
    state->cut = cut;
    return 0;
}

static void take_first(struct sampler *sampler, struct row_state *state, const struct list *all)
{
    int32_t kept;

    if (all->count == 0) {
        finish(state, NOTHING.drawn);
        return;
    }
    candidates_heapify(sampler->candidates, all->count);
    kept =
        state->has_top_k ? resolve_top_k(sampler, state, all) : resolve_top_p(sampler, state, all);
    if (kept > 0)
        finish(state, candidates_draw(sampler->candidates + all->count - kept, kept,
                                      (uint64_t)state->row->params->seed, state->row->position));
}

static const struct list_stage first_stage = {is_left, limit_first, find_first, take_first};

/* ---- 4: rounds ------------------------------------------------------------------------------ */

enum {
    BIN_DOUBLES = 3
}; /* the count, and two halves of the weight, each exact in a sum of doubles */

static void put_bin(const struct bin *bin, double *out)
{
    out[0] = (double)bin->count;
    out[1] = (double)(bin->weight & UINT32_MAX);
    out[2] = (double)(bin->weight >> 32);
}

static struct bin get_bin(const double *sums)
{
    return (struct bin){
        .count = (int64_t)sums[0],
        .weight = (uint64_t)sums[1] + ((uint64_t)sums[2] << 32),
    };
}

/* Of rows that are not done: those with top_k by count, then those with top_p by weight. */
static bool takes_rounds(const struct row_state *state, bool by_weight)
{
    return !state->is_done && (by_weight ? state->has_top_p : state->has_top_k);
}

/* Is the cut in the bin that comes next? */
static bool cuts_in(const struct row_state *state, const struct bin *bin, bool by_weight)
{
    if (bin->count == 0)
        return false;
    return by_weight ? has_enough(state, state->above + bin->weight, state->weight)
                     : state->num_above + bin->count >= state->row->params->top_k;
}

/* Goes down to the bin in which the cut lies, or to the last with tokens. own: this rank's bins. */
static void descend(struct row_state *state, const double *sums, const struct bin *own,
                    int32_t shift, bool by_weight)
{
    uint32_t chosen = 0;

    state->at = (struct bin){0};
    for (uint32_t b = NUM_BINS; b-- > 0;) {
        struct bin bin = get_bin(sums + b * BIN_DOUBLES);

        if (bin.count == 0)
            continue;
        state->above += state->at.weight;
        state->num_above += state->at.count;
        state->at = bin;
        state->num_own = own[b].count;
        chosen = b;
        if (cuts_in(state, &bin, by_weight))
            break;
    }
    state->prefix |= chosen << shift;
}

static enum status run_round(struct sampler *sampler, int32_t num_rows, bool by_weight,
                             int32_t shift)
{
    size_t row_bytes = NUM_BINS * (sizeof(struct bin) + BIN_DOUBLES * sizeof(double));
    struct bin *bins = make_room(&sampler->bins, row_bytes * (size_t)num_rows);
    double *sums = (double *)(bins + (size_t)num_rows * NUM_BINS);
    int32_t n = 0;

    for (int32_t i = 0; i < num_rows; i++) {
        struct row_state *state = &sampler->states[i];

        if (!takes_rounds(state, by_weight))
            continue;
        struct slice slice = slice_of(sampler, &sampler->workspaces[0], state);
        struct bin *own = bins + (size_t)n * NUM_BINS;

        memset(own, 0, sizeof *own * NUM_BINS);
        slice_count_bins(&slice, state->cut.logit, state->prefix, shift, state->max,
                         sampler->grid_bits, own);
        for (int32_t b = 0; b < NUM_BINS; b++)
            put_bin(&own[b], sums + ((size_t)n * NUM_BINS + (size_t)b) * BIN_DOUBLES);
        n++;
    }
    work_count_add(sampler->options.work);
    TRY(comm_all_reduce_f64(sampler->options.comm, sums, (int64_t)n * NUM_BINS * BIN_DOUBLES));
    n = 0;
    for (int32_t i = 0; i < num_rows; i++)
        if (takes_rounds(&sampler->states[i], by_weight)) {
            descend(&sampler->states[i], sums + (size_t)n * NUM_BINS * BIN_DOUBLES,
                    bins + (size_t)n * NUM_BINS, shift, by_weight);
            n++;
        }
    return OK;
}

/* All with the logit that was found stay. */
static void end_top_k(struct row_state *state)
{
    state->weight = state->above + state->at.weight;
    state->cut = keep_from(logit_of_key(state->prefix));
}

/* Of those with the logit that was found the first do, by their ids. */
static void end_top_p(struct row_state *state)
{
    uint64_t each = state->at.weight / (uint64_t)state->at.count, kept = state->above;

    state->num_at_cut = 0;
    do {
        kept += each;
        state->num_at_cut++;
    } while (state->num_at_cut < state->at.count && !has_enough(state, kept, state->weight));
}

static enum status run_rounds(struct sampler *sampler, int32_t num_rows, bool by_weight)
{
    int32_t n = 0;

    for (int32_t i = 0; i < num_rows; i++) {
        struct row_state *state = &sampler->states[i];

        state->prefix = 0;
        state->above = 0;
        state->num_above = 0;
        n += takes_rounds(state, by_weight);
    }
    if (n == 0)
        return OK;
    for (int32_t shift = 24; shift >= 0; shift -= 8)
        TRY(run_round(sampler, num_rows, by_weight, shift));
    for (int32_t i = 0; i < num_rows; i++)
        if (takes_rounds(&sampler->states[i], by_weight))
            (by_weight ? end_top_p : end_top_k)(&sampler->states[i]);
    return OK;
}

/* The ranks before this one keep their tokens at the cut first. */
static enum status share_cuts(struct sampler *sampler, int32_t num_rows)
{
    int64_t *sent = make_room(&sampler->sent, sizeof *sent * (size_t)num_rows);
    int32_t n = 0, at = 0;

    for (int32_t i = 0; i < num_rows; i++)
        if (takes_rounds(&sampler->states[i], true))
            sent[n++] = sampler->states[i].num_own;
    if (n == 0)
        return OK;
    TRY(exchange_records(sampler, n, sizeof *sent));
    for (int32_t i = 0; i < num_rows; i++) {
        struct row_state *state = &sampler->states[i];

        if (!takes_rounds(state, true))
            continue;
        int64_t before = 0;

        for (int32_t rank = 0; rank < sampler->options.rank; rank++)
            before +=
                ((const int64_t *)received_from(sampler, rank, (int64_t)sizeof *sent * n))[at];
        at++;
        int64_t own = MAX(MIN(state->num_at_cut - before, state->num_own), (int64_t)0);
        struct slice slice = slice_of(sampler, &sampler->workspaces[0], state);
        float logit = logit_of_key(state->prefix);

        state->cut = (struct candidate){logit, slice_nth_equal(&slice, logit, (int32_t)own)};
    }
    return OK;
}

static enum status find_cuts(struct sampler *sampler, int32_t num_rows)
{
    TRY(run_rounds(sampler, num_rows, false));
    TRY(run_rounds(sampler, num_rows, true));
    TRY(share_cuts(sampler, num_rows));
    return run_stage(sampler, num_rows, &last_stage);
}

/* ---- logprobs ------------------------------------------------------------------------------- */

static bool wants_logprobs(const struct row_state *state)
{
    return state->num_logprobs >= 0;
}

/* The max of all raw logits, and that of the token that was drawn, or asked about, which one rank knows. */
static void find_raw(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                     struct found *out)
{
    struct slice slice = raw_slice_of(sampler, state);
    int32_t at = state->drawn.token - sampler->options.first_token;

    (void)workspace;
    out->max = slice_best(&slice).logit;
    if (state->drawn.token >= 0 && at >= 0 && at < sampler->options.num_tokens)
        out->drawn = (struct drawn){slice.logits[at], state->drawn.token};
}

static void take_raw(struct row_state *state, const struct found *of_all)
{
    state->max = of_all->max;
    state->drawn.value = of_all->drawn.value;
}

static int32_t limit_top(const struct sampler *sampler, const struct row_state *state)
{
    return MIN(state->num_logprobs, sampler->options.vocab_size);
}

static void find_top(const struct sampler *sampler, struct workspace *workspace, const struct row_state *state,
                     struct list *out)
{
    struct slice slice = raw_slice_of(sampler, state);
    int32_t limit = limit_top(sampler, state);

    out->weight = slice_sum(&slice, -INFINITY, state->max, sampler->grid_bits);
    out->num_above = slice_count_above(&slice, (float)state->drawn.value);
    out->count =
        limit > 0 ? slice_top(&slice, KEEP_ALL, limit, workspace->candidates, workspace->blocks) : 0;
}

static void take_top(struct sampler *sampler, struct row_state *state, const struct list *all)
{
    double total = state->max + log(ldexp((double)all->weight, -sampler->grid_bits));
    int32_t n = MIN(state->num_logprobs, all->count);

    state->result.logprob = (float)(state->drawn.value - total);
    state->result.rank = 1 + all->num_above;
    state->result.num_top = n;
    candidates_heapify(sampler->candidates, all->count);
    for (int32_t i = 0; i < n; i++) {
        struct candidate c = candidates_pop(sampler->candidates, all->count - i);
        float logprob = (float)(c.logit - total);

        bytes_append(&sampler->top_tokens, &c.token, sizeof c.token);
        bytes_append(&sampler->top_logprobs, &logprob, sizeof logprob);
    }
}

static const struct stage raw_stage = {wants_logprobs, find_raw, take_raw};
static const struct list_stage top_stage = {wants_logprobs, limit_top, find_top, take_top};

/* The last stage: all results are there, and are handed out. */
static enum status find_logprobs(struct sampler *sampler, int32_t num_rows,
                                 struct sampler_result *results)
{
    int32_t at = 0;

    sampler->top_tokens.size = sampler->top_logprobs.size = 0;
    TRY(run_stage(sampler, num_rows, &raw_stage));
    TRY(run_list_stage(sampler, num_rows, &top_stage));
    for (int32_t i = 0; i < num_rows; i++) { /* the lists no longer move */
        results[i] = sampler->states[i].result;
        results[i].top_tokens = (const int32_t *)sampler->top_tokens.data + at;
        results[i].top_logprobs = (const float *)sampler->top_logprobs.data + at;
        at += results[i].num_top;
    }
    return OK;
}

int32_t sampler_result_write(const struct sampler_result *result, int32_t *tokens_out,
                             float *logprobs_out)
{
    tokens_out[0] = result->token;
    logprobs_out[0] = result->logprob;
    for (int32_t i = 0; i < result->num_top; i++) {
        tokens_out[1 + i] = result->top_tokens[i];
        logprobs_out[1 + i] = result->top_logprobs[i];
    }
    return 1 + result->num_top;
}

/* ---- the whole ------------------------------------------------------------------------------ */

enum status sampler_run(struct sampler *sampler, const float *logits,
                        const struct sampler_row *rows, int32_t num_rows,
                        struct sampler_result *results)
{
    ASSERT(num_rows <= sampler->options.max_rows, "%d rows", num_rows);
    for (int32_t i = 0; i < num_rows; i++)
        begin_row(sampler, &sampler->states[i], &rows[i],
                  logits + (int64_t)i * sampler->options.num_tokens);
    TRY(run_stage(sampler, num_rows, &best_stage));
    TRY(run_stage(sampler, num_rows, &weight_stage));
    TRY(run_list_stage(sampler, num_rows, &first_stage));
    TRY(find_cuts(sampler, num_rows));
    for (int32_t i = 0; i < num_rows; i++)
        sampler->states[i].result.token = sampler->states[i].drawn.token;
    return find_logprobs(sampler, num_rows, results);
}

enum status sampler_logprobs(struct sampler *sampler, const float *logits,
                             const struct logprob_query *queries, int32_t num_rows,
                             struct sampler_result *results)
{
    ASSERT(num_rows <= sampler->options.max_rows, "%d rows", num_rows);
    for (int32_t i = 0; i < num_rows; i++)
        sampler->states[i] = (struct row_state){
            .logits = logits + (int64_t)i * sampler->options.num_tokens,
            .drawn = {-INFINITY, queries[i].token},
            .num_logprobs = queries[i].num_top,
            .result = {.token = queries[i].token},
        };
    return find_logprobs(sampler, num_rows, results);
}

void sampler_kept(struct sampler *sampler, int32_t i, float *out)
{
    const struct row_state *state = &sampler->states[i];
    struct slice slice = slice_of(sampler, &sampler->workspaces[0], state);

    for (int32_t t = 0; t < slice.num_tokens; t++) {
        struct candidate c = {slice.logits[t] / slice.temperature, slice.first_token + t};

        out[t] = c.logit > -INFINITY && is_kept(c, state->cut) ? c.logit : -INFINITY;
    }
}
