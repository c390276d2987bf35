#include "engine/core/step_replay.h"

#include "engine/core/answer_check.h"
#include "engine/core/scheduler.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- failures -------------------------------------------------------------------------------- */

/* What may differ from run to run: "(process 4711)", and "12.6 s". */
static const char *skip_volatile(const char *text)
{
    static const char process[] = "(process ";
    const char *end = text;

    if (strncmp(text, process, strlen(process)) == 0)
        return text + strlen(process) + strspn(text + strlen(process), "0123456789");
    while (isdigit((unsigned char)*end) || *end == '.')
        end++;
    return end > text && strncmp(end, " s", 2) == 0 ? end : text;
}

/* Behind "rank 0: ". */
static const char *skip_rank(const char *text)
{
    int end = 0;

    (void)sscanf(text, "rank %*d: %n", &end);
    return text + end;
}

static bool names_rank(const char *text)
{
    return skip_rank(text) > text;
}

bool same_failure(enum status a_status, const char *a, enum status b_status, const char *b)
{
    if (a_status != b_status)
        return false;
    if (names_rank(a) != names_rank(b)) { /* uniproc's is the only one, and goes without saying */
        a = skip_rank(a);
        b = skip_rank(b);
    }
    for (;; a++, b++) {
        a = skip_volatile(a);
        b = skip_volatile(b);
        if (*a != *b)
            return false;
        if (*a == '\0')
            return true;
    }
}

/* ---- what the ranks knew --------------------------------------------------------------------- */

/* Deals the rows of `before` out to steps. */
struct warm_up {
    const struct scheduler_output *before;
    int32_t row;      /* the first that is not computed whole */
    int32_t num_done; /* tokens of it that are */
    int32_t max_tokens, max_rows;
    struct arena arena; /* of the step in hand */
};

static void warm_up_close(struct warm_up *warm_up)
{
    arena_close(&warm_up->arena);
}

/* The next step; false: all is computed. */
static bool next_warm_up_step(struct warm_up *warm_up, struct scheduler_output *out)
{
    const struct scheduler_output *before = warm_up->before;
    int32_t most = MIN(warm_up->max_rows, before->num_rows - warm_up->row), n = 0;
    struct arena *arena = &warm_up->arena;

    if (most == 0)
        return false;
    arena_reset(arena);

    int32_t *slots = arena_new_array(arena, int32_t, (size_t)most);
    int32_t *num_computed = arena_new_array(arena, int32_t, (size_t)most);
    int32_t *num_scheduled = arena_new_array(arena, int32_t, (size_t)most);
    struct new_request *requests = arena_new_array(arena, struct new_request, (size_t)most);

    *out = (struct scheduler_output){.new_requests = requests};
    for (int32_t budget = warm_up->max_tokens; n < most && budget > 0; n++) {
        int32_t row = warm_up->row;
        int32_t count = MIN(budget, before->num_scheduled_tokens[row] - warm_up->num_done);

        slots[n] = before->slots[row];
        num_computed[n] = warm_up->num_done;
        num_scheduled[n] = count;
        if (warm_up->num_done == 0)
            requests[out->num_new_requests++] = *scheduler_output_find_new(before, slots[n]);
        budget -= count;
        out->total_num_scheduled_tokens += count;
        warm_up->num_done += count;
        if (warm_up->num_done == before->num_scheduled_tokens[row]) {
            warm_up->row++;
            warm_up->num_done = 0;
        }
    }
    out->num_rows = n;
    out->slots = slots;
    out->num_computed_tokens = num_computed;
    out->num_scheduled_tokens = num_scheduled;
    out->samples = out->needs_bitmask = arena_new_array(arena, uint8_t, (size_t)most);
    out->new_block_counts = arena_new_array(arena, int32_t, (size_t)most);
    return true;
}

static int64_t count_warm_up_steps(struct warm_up warm_up)
{
    struct scheduler_output plan;
    int64_t n = 0;

    warm_up.arena = (struct arena){0};
    while (next_warm_up_step(&warm_up, &plan))
        n++;
    warm_up_close(&warm_up);
    return n;
}

/* Of a file: nothing in it is certain. */
static enum status check_before(const struct scheduler_output *before, int32_t max_slots)
{
    TRY(scheduler_output_check(before, max_slots, INT32_MAX));
    for (int32_t row = 0; row < before->num_rows; row++)
        if (!scheduler_output_find_new(before, before->slots[row]))
            return fail(ERR_MISMATCH, "slot %d, row %d of what was known before, is not described",
                        before->slots[row], row);
    return OK;
}

/* ---- running --------------------------------------------------------------------------------- */

struct replay {
    const struct step_replay_options *options;
    int64_t shift;
};

static void tell(const struct replay *replay, int64_t step, const struct scheduler_output *plan,
                 bool is_warm_up)
{
    if (replay->options->progress)
        replay->options->progress(replay->options->user, step, plan, is_warm_up);
}

static enum status launch(const struct replay *replay, int64_t step,
                          const struct scheduler_output *plan)
{
    TRY(executor_prepare_inputs(replay->options->executor, step, plan));
    return executor_execute_model(replay->options->executor, step);
}

static enum status sample(const struct replay *replay, const struct dumped_step *step)
{
    return executor_sample(replay->options->executor, step->id + replay->shift,
                           step->masks.num_rows > 0 ? &step->masks : NULL);
}

static enum status collect(const struct replay *replay, int64_t step,
                           const struct scheduler_output *plan)
{
    const struct model_runner_output *output;

    TRY(executor_collect(replay->options->executor, step, &output));
    return answer_check(plan, output, replay->options->vocab_size);
}

static enum status run_warm_up(const struct replay *replay, struct warm_up *warm_up, int64_t step)
{
    struct scheduler_output plan;

    for (; next_warm_up_step(warm_up, &plan); step++) {
        tell(replay, step, &plan, true);
        TRY(launch(replay, step, &plan));
        TRY(executor_sample(replay->options->executor, step, NULL));
        TRY(collect(replay, step, &plan));
    }
    return OK;
}

static bool can_sample(const struct dumped_step *step)
{
    return step->masks.num_rows >= scheduler_num_masks(&step->plan);
}

/* In the order of core_step and core_step_async. */
static enum status run_steps(const struct replay *replay)
{
    const struct step_dump *dump = replay->options->dump;
    const struct dumped_step *first = &dump->steps[0], *second = &dump->steps[1];
    bool has_second = dump->num_steps > 1;

    tell(replay, first->id + replay->shift, &first->plan, false);
    TRY(launch(replay, first->id + replay->shift, &first->plan));
    if (can_sample(first))
        TRY(sample(replay, first));
    if (has_second) {
        tell(replay, second->id + replay->shift, &second->plan, false);
        TRY(launch(replay, second->id + replay->shift, &second->plan));
        if (can_sample(second))
            TRY(sample(replay, second));
    }
    if (!can_sample(first))
        return OK; /* it failed before its masks were made, and does not fail now */
    TRY(collect(replay, first->id + replay->shift, &first->plan));
    return has_second && can_sample(second)
               ? collect(replay, second->id + replay->shift, &second->plan)
               : OK;
}

enum status step_replay_run(const struct step_replay_options *options,
                            struct step_replay_result *out)
{
    const struct step_dump *dump = options->dump;
    int32_t max_seqs = options->config->max_num_seqs;
    AUTO_CLOSE(warm_up)
    struct warm_up warm_up = {
        .before = &dump->before,
        .max_tokens = options->config->max_num_batched_tokens,
        .max_rows = max_seqs,
    };
    struct replay replay = {.options = options};
    int64_t first_step;
    enum status status;

    TRY(check_before(&dump->before, num_slots_for(max_seqs)));
    first_step = dump->steps[0].id - count_warm_up_steps(warm_up);
    replay.shift = first_step < 0 ? -first_step : 0;

    status = run_warm_up(&replay, &warm_up, first_step + replay.shift);
    if (status == OK)
        status = run_steps(&replay);
    *out = (struct step_replay_result){.status = status, .shift = replay.shift};
    out->outcome = REPLAY_NO_FAILURE;
    if (status == OK)
        return OK;
    snprintf(out->cause, sizeof out->cause, "%s", fail_text());
    out->outcome =
        same_failure(dump->status, dump->cause, status, out->cause) ? REPLAY_SAME : REPLAY_OTHER;
    return OK;
}
