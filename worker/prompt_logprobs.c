#include "worker/prompt_logprobs.h"

/* Entries that ranks exchange at once: whole vocabularies are large. */
enum { MAX_PIECE_LOGPROBS = 1 << 20 };

struct prompt_logprobs {
    struct prompt_logprobs_options options;
    /* A piece while it grows: [max_rows]. */
    int32_t *rows;
    struct logprob_query *queries;
    struct sampler_result *results;
    int32_t num_rows;
    int64_t num_logprobs; /* of the piece */
};

/* The columns of the answer while they grow. */
struct columns {
    int32_t *slots, *positions, *lengths;
    int32_t *ranks, *counts;
    int32_t *token_ids;
    float *logprobs;
    int32_t num_tokens, num_logprobs;
};

struct prompt_logprobs *prompt_logprobs_new(const struct prompt_logprobs_options *options)
{
    struct prompt_logprobs *scorer = mem_new(struct prompt_logprobs);

    ASSERT(options->max_rows > 0);
    scorer->options = *options;
    scorer->rows = mem_new_array(int32_t, options->max_rows);
    scorer->queries = mem_new_array(struct logprob_query, options->max_rows);
    scorer->results = mem_new_array(struct sampler_result, options->max_rows);
    return scorer;
}

void prompt_logprobs_free(struct prompt_logprobs *scorer)
{
    if (!scorer)
        return;
    mem_free(scorer->rows);
    mem_free(scorer->queries);
    mem_free(scorer->results);
    mem_free(scorer);
}

/* Of one token: its own, and so many likeliest. */
static int32_t num_logprobs_of(const struct prompt_logprobs *scorer, int32_t slot)
{
    int32_t k = input_batch_params(scorer->options.batch, slot)->prompt_logprobs;

    return 1 + MIN(k, scorer->options.vocab_size);
}

static void make_columns(const struct prompt_logprobs *scorer, const struct staged_step *staged,
                         struct arena *arena, struct columns *out)
{
    size_t num_runs = (size_t)staged->num_prompt_runs, num_tokens = 0, num_logprobs = 0;

    for (int32_t i = 0; i < staged->num_prompt_runs; i++) {
        const struct staged_prompt_run *run = &staged->prompt_runs[i];
        size_t length = (size_t)run->length;

        num_tokens += length;
        num_logprobs += length * (size_t)num_logprobs_of(scorer, run->slot);
    }
    *out = (struct columns){
        .slots = arena_alloc(arena, num_runs * sizeof *out->slots),
        .positions = arena_alloc(arena, num_runs * sizeof *out->positions),
        .lengths = arena_alloc(arena, num_runs * sizeof *out->lengths),
        .ranks = arena_alloc(arena, num_tokens * sizeof *out->ranks),
        .counts = arena_alloc(arena, num_tokens * sizeof *out->counts),
        .token_ids = arena_alloc(arena, num_logprobs * sizeof *out->token_ids),
        .logprobs = arena_alloc(arena, num_logprobs * sizeof *out->logprobs),
    };
    for (int32_t i = 0; i < staged->num_prompt_runs; i++) {
        out->slots[i] = staged->prompt_runs[i].slot;
        out->positions[i] = staged->prompt_runs[i].position;
        out->lengths[i] = staged->prompt_runs[i].length;
    }
}

static void add_token(struct columns *columns, const struct sampler_result *result)
{
    int32_t at = columns->num_logprobs, i = columns->num_tokens++;

    columns->ranks[i] = result->rank;
    columns->counts[i] = sampler_result_write(result, columns->token_ids + at, columns->logprobs + at);
    columns->num_logprobs += columns->counts[i];
}

/* columns: NULL where this rank tells nothing. */
static enum status run_piece(struct prompt_logprobs *scorer, struct columns *columns)
{
    const struct prompt_logprobs_options *options = &scorer->options;
    int32_t n = scorer->num_rows;

    scorer->num_rows = 0;
    scorer->num_logprobs = 0;
    TRY(model_logits(options->model, scorer->rows, n, (float *)options->logits->device));
    for (int32_t i = 0; i < n && !options->sampler; i++)
        scorer->results[i] = (struct sampler_result){.token = scorer->queries[i].token, .rank = 1};
    if (options->sampler) {
        TRY(device_mirror_pull(options->device, options->logits,
                               n * (int64_t)sizeof(float) * model_shard(options->model)->num_tokens));
        TRY(sampler_logprobs(options->sampler, (float *)options->logits->host, scorer->queries, n,
                             scorer->results));
    }
    for (int32_t i = 0; i < n && columns; i++)
        add_token(columns, &scorer->results[i]);
    return OK;
}

static enum status add_row(struct prompt_logprobs *scorer, int32_t row, int32_t token,
                           int32_t num_logprobs, struct columns *columns)
{
    if (scorer->num_rows == scorer->options.max_rows ||
        (scorer->num_rows > 0 && scorer->num_logprobs + num_logprobs > MAX_PIECE_LOGPROBS))
        TRY(run_piece(scorer, columns));
    scorer->rows[scorer->num_rows] = row;
    scorer->queries[scorer->num_rows++] = (struct logprob_query){token, num_logprobs - 1};
    scorer->num_logprobs += num_logprobs;
    return OK;
}

static enum status add_run(struct prompt_logprobs *scorer, const struct staged_prompt_run *run,
                           struct columns *columns)
{
    int32_t num_prompt, num_logprobs = num_logprobs_of(scorer, run->slot);
    const int32_t *prompt = input_batch_tokens(scorer->options.batch, run->slot, &num_prompt);

    for (int32_t i = 0; i < run->length; i++)
        TRY(add_row(scorer, run->row + i, prompt[run->position + i], num_logprobs, columns));
    return OK;
}

enum status prompt_logprobs_run(struct prompt_logprobs *scorer, const struct staged_step *staged,
                                struct arena *arena, struct model_runner_output *out)
{
    struct columns columns;

    if (staged->num_prompt_runs == 0)
        return OK;
    scorer->num_rows = 0;
    scorer->num_logprobs = 0;
    if (out)
        make_columns(scorer, staged, arena, &columns);
    for (int32_t i = 0; i < staged->num_prompt_runs; i++)
        TRY(add_run(scorer, &staged->prompt_runs[i], out ? &columns : NULL));
    TRY(run_piece(scorer, out ? &columns : NULL));
    if (!out)
        return OK;
    out->prompt_slots = columns.slots;
    out->num_prompt_runs = staged->num_prompt_runs;
    out->prompt_positions = columns.positions;
    out->prompt_lengths = columns.lengths;
    out->prompt_ranks = columns.ranks;
    out->num_prompt_tokens = columns.num_tokens;
    out->prompt_logprob_counts = columns.counts;
    out->prompt_logprob_token_ids = columns.token_ids;
    out->num_prompt_logprobs = columns.num_logprobs;
    out->prompt_logprobs = columns.logprobs;
    return OK;
}
