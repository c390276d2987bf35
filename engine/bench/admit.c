/* bench admit: a request's way into the batch. */
#include "engine/bench/bench.h"
#include "engine/bench/decode_load.h"
#include "engine/bench/samples.h"
#include "proto/base/clock.h"

enum { NUM_REQUESTS = 300, OUTPUT_TOKENS = 256 };

struct admit_settings {
    int32_t prompt_tokens;
};

/* Room for a few such requests: what they leave in the cache is evicted by those that follow. */
static struct scheduler *make_scheduler(int32_t max_model_len)
{
    return scheduler_new(&(struct scheduler_options){
        .max_num_seqs = 1,
        .max_num_batched_tokens = max_model_len,
        .enable_prefix_caching = true,
        .enable_chunked_prefill = true,
        .max_model_len = max_model_len,
        .num_blocks = 4 * (max_model_len / LOAD_BLOCK_SIZE + 1),
        .block_size = LOAD_BLOCK_SIZE,
        .vocab_size = MADE_UP_VOCAB,
    });
}

/* Copy, hash, add, schedule: its time. */
static int64_t admit(struct scheduler *scheduler, request_id id,
                     const struct submission *submission, int32_t max_model_len,
                     struct arena *arena)
{
    struct scheduler_output plan;
    int64_t start_ns = clock_now_ns(), taken_ns;

    scheduler_add(scheduler, request_new(id, submission, max_model_len, LOAD_BLOCK_SIZE));
    scheduler_schedule(scheduler, arena, &plan);
    taken_ns = clock_now_ns() - start_ns;
    ASSERT(plan.total_num_scheduled_tokens == submission->num_prompt);
    return taken_ns;
}

/* The request goes as it came. */
static void end(struct scheduler *scheduler)
{
    struct output_builder events = {0};

    scheduler_forget_in_flight(scheduler);
    scheduler_end_all(scheduler, ERR_ABORTED, "", &events);
    engine_output_free(&output_builder_take(&events)->output);
}

static enum status run(const void *settings, double *figures_out)
{
    int32_t num_prompt = ((const struct admit_settings *)settings)->prompt_tokens;
    int32_t max_model_len = num_prompt + OUTPUT_TOKENS;
    AUTO_FREE(scheduler) struct scheduler *scheduler = make_scheduler(max_model_len);
    AUTO_MEM token_id *prompt = mem_new_array(token_id, (size_t)num_prompt);
    AUTO_CLOSE(samples) struct samples samples = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct sampling_params params;

    sampling_params_init(&params);
    params.max_tokens = OUTPUT_TOKENS;
    for (int32_t i = 0; i < NUM_REQUESTS; i++) {
        struct submission submission = {
            .prompt = prompt, .num_prompt = num_prompt, .params = &params};

        make_up_prompt(i, num_prompt, prompt);
        arena_reset(&arena);
        samples_add(&samples, admit(scheduler, i + 1, &submission, max_model_len, &arena));
        end(scheduler);
    }
    figures_out[0] = samples_median_us(&samples);
    return OK;
}

static const struct option options[] = {
    OPTION(struct admit_settings, prompt_tokens, OPTION_I32, "8192", "of each request", .least = 1,
           .most = 1 << 20),
};

static const struct figure figures[] = {
    {"us", 2, "from a decoded submission to its first step"},
};

const struct bench bench_admit = {
    .name = "admit",
    .help = "a request copied, hashed, added and scheduled once",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct admit_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
