#include "tests/support/sample_messages.h"

#include <math.h>

#define INTS(...) (const int32_t[]){__VA_ARGS__}
#define BYTES_OF(...) (const uint8_t[]){__VA_ARGS__}

static const struct new_request new_requests[] = {
    {
        .slot = 2,
        .id = "cmpl-7 ü",
        .prompt_token_ids = INTS(1, 40000, 300, 2147483647),
        .num_prompt_token_ids = 4,
        .block_ids = INTS(9, 70000),
        .num_block_ids = 2,
        .sampling_params = {.n = 1,
                            .temperature = 0.7f,
                            .top_p = 0.9f,
                            .top_k = 40,
                            .seed = INT64_MIN,
                            .max_tokens = 16,
                            .stop_token_ids = INTS(2),
                            .num_stop_token_ids = 1,
                            .ignore_eos = true,
                            .logprobs = 5,
                            .prompt_logprobs = 2,
                            .repetition_penalty = 1,
                            .logit_bias_ids = INTS(17, 4),
                            .logit_bias_values = (const float[]){-100, 1.5f},
                            .num_logit_bias = 2,
                            .allowed_token_ids = INTS(3, 4, 9),
                            .num_allowed_token_ids = 3,
                            .bad_words_token_ids = INTS(1, 2, 3),
                            .num_bad_words_token_ids = 3,
                            .bad_words_counts = INTS(1, 2),
                            .num_bad_words_counts = 2},
    },
    {.slot = 0, .id = "b", .output_token_ids = INTS(7), .num_output_token_ids = 1},
};

static const struct scheduler_output scheduler_output = {
    .finished_slots = INTS(5),
    .num_finished_slots = 1,
    .new_requests = new_requests,
    .num_new_requests = 2,
    .num_rows = 4,
    .slots = INTS(3, 1, 2, 0),
    .num_computed_tokens = INTS(70000, 12, 0, 0),
    .num_scheduled_tokens = INTS(1, 3, 4, 1),
    .samples = BYTES_OF(1, 1, 0, 1),
    .needs_bitmask = BYTES_OF(0, 1, 0, 0),
    .new_block_counts = INTS(0, 2, 0, 0),
    .new_block_ids = INTS(11, 12),
    .num_new_block_ids = 2,
    .prompt_logprob_rows = INTS(1, 2),
    .num_prompt_logprob_rows = 2,
    .prompt_logprob_lengths = INTS(1, 3),
    .total_num_scheduled_tokens = 9,
};

static const struct scheduler_output nothing_to_do = {0};
static const struct grammar_output grammar_output = {
    .slots = INTS(3, 5, 6),
    .num_rows = 3,
    .positions = INTS(17, 2, 90),
    .bitmask_rows = INTS(1, 0, 1),
    .num_bitmask_rows = 2,
    .words_per_row = 3,
    .bitmask = BYTES_OF(255, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                        21, 22, 23),
    .num_bitmask_bytes = 24,
};
static const struct model_runner_output model_runner_output = {
    .rank = 0,
    .num_rows = 4,
    .slots = INTS(3, 1, 0),
    .num_sampled = 3,
    .positions = INTS(12, 70000, 1),
    .sampled_token_ids = INTS(100, 49151, 2),
    .logprob_counts = INTS(0, 2, 0),
    .sampled_token_ranks = INTS(0, 1, 0),
    .logprob_token_ids = INTS(49151, 8),
    .num_logprobs = 2,
    .logprobs = (const float[]){-0.25f, -INFINITY},
    .prompt_slots = INTS(1, 2),
    .num_prompt_runs = 2,
    .prompt_positions = INTS(13, 1),
    .prompt_lengths = INTS(1, 2),
    .prompt_ranks = INTS(1, 40000, 2),
    .num_prompt_tokens = 3,
    .prompt_logprob_counts = INTS(2, 1, 1),
    .prompt_logprob_token_ids = INTS(8, 9, 49151, 7),
    .num_prompt_logprobs = 4,
    .prompt_logprobs = (const float[]){-0.5f, -0.25f, -13, -1},
    .prepare_ns = 1000,
    .execute_ns = 5000000000,
    .sample_ns = 70000,
};
static const struct hello hello = {
    .rank = 1, .world = 2, .pid = 4711, .host = "h", .boot_id = "b-1", .build_id = "00ff"};
static const struct welcome welcome = {.refusal = "", .config = "{\"tp\": 2}"};
static const struct ready ready = {.rank = 1,
                                   .fingerprint = "xxh3:1234",
                                   .weights_bytes = 1LL << 40,
                                   .step_weights_bytes = 1LL << 39,
                                   .free_bytes = 3,
                                   .kv_block_bytes = 4,
                                   .max_num_blocks = 5,
                                   .max_position = 8192,
                                   .vocab_size = 49152,
                                   .first_token = 24576,
                                   .num_tokens = 24576,
                                   .load_ms = 12.5};
static const struct call call = {.id = 9, .name = "init_kv_cache", .args = "{\"num_blocks\": 7}"};
static const struct reply reply = {.id = 9, .rank = 1, .status = OK, .text = "{}"};
static const struct fault fault = {.rank = 1, .code = ERR_NO_MEMORY, .text = "no memory"};
static const struct heartbeat heartbeat = {.rank = 1,
                                           .seq = 3,
                                           .step = -1,
                                           .ms_in_step = 0,
                                           .progress = 70,
                                           .waits_for = 2,
                                           .memory = {.weights_bytes = 3000000000,
                                                      .kv_cache_bytes = 5000000000,
                                                      .workspace_bytes = 70000000,
                                                      .free_bytes = 900000000,
                                                      .total_bytes = 10000000000},
                                           .passes = {.recorded_first = 64,
                                                      .recorded_later = 1,
                                                      .replayed = 1LL << 40,
                                                      .launched = 9}};

static const struct control_request control_request = {
    .id = 5, .command = "config get", .args = "[\"log_level\"]"};
static const struct control_reply control_reply = {.id = 5, .status = OK, .text = "{}"};

static const struct sample_message samples[NUM_SAMPLE_MESSAGES] = {
    {&hello_type, &hello},
    {&welcome_type, &welcome},
    {&ready_type, &ready},
    {&scheduler_output_type, &scheduler_output},
    {&execute_model_type, ""},
    {&grammar_output_type, &grammar_output},
    {&model_runner_output_type, &model_runner_output},
    {&call_type, &call},
    {&reply_type, &reply},
    {&fault_type, &fault},
    {&heartbeat_type, &heartbeat},
    {&shutdown_type, ""},
    {&scheduler_output_type, &nothing_to_do},
    {&control_request_type, &control_request},
    {&control_reply_type, &control_reply},
};

const struct sample_message *sample_messages(void)
{
    return samples;
}
