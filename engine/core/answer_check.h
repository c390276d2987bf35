/*
 * answer_check: does what the ranks answer fit the plan of the step?
 *
 * It is asked before anything is done with an answer, so that one which does not fit changes nothing. Whether its
 * columns add up is model_runner_output_check's to say, which is asked here too.
 *
 * Thread: any.
 */
#ifndef ENGINE_CORE_ANSWER_CHECK_H
#define ENGINE_CORE_ANSWER_CHECK_H

#include "proto/wire/messages.h"

/*
 * Does it name the rows of the plan that were to sample, and no others, in order, at their positions, with tokens of
 * the vocabulary (or a negative one: none can be sampled)? And the runs of prompts whose logprobs the plan wants,
 * likewise? ERR_MISMATCH says what differs.
 */
MUST_USE enum status answer_check(const struct scheduler_output *plan,
                                  const struct model_runner_output *output, int32_t vocab_size);

#endif
