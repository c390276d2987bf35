#include "engine/core/answer_check.h"

static enum status check_prompt_runs(const struct scheduler_output *plan,
                                     const struct model_runner_output *output, int32_t vocab_size)
{
    if (output->num_prompt_runs != plan->num_prompt_logprob_rows)
        return fail(ERR_MISMATCH, "the answer has the logprobs of %d prompts, the plan wants %d",
                    output->num_prompt_runs, plan->num_prompt_logprob_rows);
    for (int32_t i = 0; i < output->num_prompt_runs; i++) {
        int32_t row = plan->prompt_logprob_rows[i];
        int32_t position = plan->num_computed_tokens[row] + 1;

        if (output->prompt_slots[i] != plan->slots[row] ||
            output->prompt_positions[i] != position ||
            output->prompt_lengths[i] != plan->prompt_logprob_lengths[i])
            return fail(ERR_MISMATCH,
                        "the answer has the logprobs of %d prompt tokens from %d on of slot %d, due "
                        "are %d from %d on of slot %d",
                        output->prompt_lengths[i], output->prompt_positions[i],
                        output->prompt_slots[i], plan->prompt_logprob_lengths[i], position,
                        plan->slots[row]);
    }
    for (int32_t i = 0; i < output->num_prompt_logprobs; i++)
        if (output->prompt_logprob_token_ids[i] < 0 ||
            output->prompt_logprob_token_ids[i] >= vocab_size)
            return fail(ERR_MISMATCH,
                        "the answer has a logprob of token %d, the vocabulary %d tokens",
                        output->prompt_logprob_token_ids[i], vocab_size);
    return OK;
}

enum status answer_check(const struct scheduler_output *plan,
                         const struct model_runner_output *output, int32_t vocab_size)
{
    int32_t num_sampled = 0;

    TRY(model_runner_output_check(output));
    if (output->num_rows != plan->num_rows)
        return fail(ERR_MISMATCH, "the answer is about %d rows, the plan has %d", output->num_rows,
                    plan->num_rows);
    for (int32_t row = 0; row < plan->num_rows; row++) {
        if (!plan->samples[row])
            continue;
        if (num_sampled == output->num_sampled || output->slots[num_sampled] != plan->slots[row])
            return fail(ERR_MISMATCH, "the answer lacks the token of row %d, slot %d", row,
                        plan->slots[row]);

        int32_t position = plan->num_computed_tokens[row] + plan->num_scheduled_tokens[row];

        if (output->positions[num_sampled] != position)
            return fail(ERR_MISMATCH, "the answer has a token for position %d of slot %d, due is %d",
                        output->positions[num_sampled], plan->slots[row], position);
        if (output->sampled_token_ids[num_sampled] >= vocab_size)
            return fail(ERR_MISMATCH, "the answer has token %d for slot %d, the vocabulary %d tokens",
                        output->sampled_token_ids[num_sampled], plan->slots[row], vocab_size);
        num_sampled++;
    }
    if (num_sampled != output->num_sampled)
        return fail(ERR_MISMATCH, "the answer has %d tokens, %d rows were to sample",
                    output->num_sampled, num_sampled);
    return check_prompt_runs(plan, output, vocab_size);
}
