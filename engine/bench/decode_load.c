#include "engine/bench/decode_load.h"

enum { PROMPT_TOKENS = 512, LONGEST_PROMPT = PROMPT_TOKENS + LOAD_BLOCK_SIZE - 1 };

void make_up_prompt(int32_t seed, int32_t num_tokens, token_id *out)
{
    ASSERT(seed >= 0 && seed < MADE_UP_VOCAB);
    for (int32_t i = 0; i < num_tokens; i++)
        out[i] = (token_id)((seed + (int64_t)i * 31) % MADE_UP_VOCAB);
}

void make_up_answer(const struct scheduler_output *plan, struct arena *arena, int64_t *num_tokens,
                    struct model_runner_output *out)
{
    int32_t *slots = arena_new_array(arena, int32_t, (size_t)plan->num_rows);
    int32_t *positions = arena_new_array(arena, int32_t, (size_t)plan->num_rows);
    int32_t *tokens = arena_new_array(arena, int32_t, (size_t)plan->num_rows);

    *out = (struct model_runner_output){
        .num_rows = plan->num_rows,
        .slots = slots,
        .positions = positions,
        .sampled_token_ids = tokens,
        .logprob_counts = arena_new_array(arena, int32_t, (size_t)plan->num_rows),
        .sampled_token_ranks = arena_new_array(arena, int32_t, (size_t)plan->num_rows),
    };
    for (int32_t row = 0; row < plan->num_rows; row++)
        if (plan->samples[row]) {
            slots[out->num_sampled] = plan->slots[row];
            positions[out->num_sampled] =
                plan->num_computed_tokens[row] + plan->num_scheduled_tokens[row];
            tokens[out->num_sampled++] = (token_id)(++*num_tokens % MADE_UP_VOCAB);
        }
}

static struct request *make_request(int32_t number, int32_t max_tokens, int32_t max_model_len)
{
    token_id prompt[LONGEST_PROMPT];
    int32_t num_prompt = PROMPT_TOKENS + number % LOAD_BLOCK_SIZE;
    struct sampling_params params;

    make_up_prompt(number, num_prompt, prompt);
    sampling_params_init(&params);
    params.max_tokens = max_tokens;
    return request_new(number + 1,
                       &(struct submission){
                           .prompt = prompt, .num_prompt = num_prompt, .params = &params},
                       max_model_len, LOAD_BLOCK_SIZE);
}

enum status decode_load_open(int32_t num_running, int32_t num_steps, struct decode_load *out)
{
    /* The step that computes the prompts samples a token too; one is left when all is over. */
    int32_t max_tokens = num_steps + 2, max_model_len = LONGEST_PROMPT + max_tokens;

    *out = (struct decode_load){
        .scheduler = scheduler_new(&(struct scheduler_options){
            .max_num_seqs = num_running,
            .max_num_batched_tokens = num_running * LONGEST_PROMPT, /* all prompts in one step */
            .enable_prefix_caching = true,
            .enable_chunked_prefill = true,
            .max_model_len = max_model_len,
            .num_blocks = num_running * (max_model_len / LOAD_BLOCK_SIZE + 1),
            .block_size = LOAD_BLOCK_SIZE,
            .vocab_size = MADE_UP_VOCAB,
        }),
    };
    for (int32_t i = 0; i < num_running; i++)
        scheduler_add(out->scheduler, make_request(i, max_tokens, max_model_len));

    struct decode_step *step = decode_load_begin(out);

    scheduler_schedule(out->scheduler, &step->arena, &step->plan);
    ASSERT(step->plan.num_rows == num_running);
    decode_load_answer(out, step);
    TRY(scheduler_update_from_output(out->scheduler, &step->plan, &step->answer, &out->events));
    decode_load_drop_events(out);
    return OK;
}

void decode_load_close(struct decode_load *load)
{
    if (load->scheduler) {
        scheduler_forget_in_flight(load->scheduler);
        scheduler_end_all(load->scheduler, ERR_ABORTED, "", &load->events);
        decode_load_drop_events(load);
        scheduler_check(load->scheduler);
    }
    scheduler_free(load->scheduler);
    arena_close(&load->steps[0].arena);
    arena_close(&load->steps[1].arena);
}

struct decode_step *decode_load_begin(struct decode_load *load)
{
    struct decode_step *step = &load->steps[load->next_step & 1];

    arena_reset(&step->arena);
    step->id = load->next_step++;
    return step;
}

void decode_load_answer(struct decode_load *load, struct decode_step *step)
{
    make_up_answer(&step->plan, &step->arena, &load->num_tokens, &step->answer);
}

void decode_load_drop_events(struct decode_load *load)
{
    struct output_node *node = output_builder_take(&load->events);

    if (node)
        engine_output_free(&node->output);
}
