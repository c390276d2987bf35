#include "tests/support/expect.h"
#include "tests/support/sample_messages.h"

#include "proto/base/build_id.h"
#include "proto/base/clock.h"

#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>

static int append(void *bytes, const char *data, size_t size)
{
    bytes_append(bytes, data, size);
    return 0;
}

/* A frame whose header is right and whose body the test packs. */
static msgpack_packer begin_frame(struct bytes *frame, int32_t type, size_t num_body_fields)
{
    msgpack_packer packer;

    msgpack_packer_init(&packer, frame, append);
    msgpack_pack_array(&packer, 5 + num_body_fields);
    msgpack_pack_int32(&packer, type);
    msgpack_pack_int32(&packer, PROTOCOL_VERSION);
    msgpack_pack_uint64(&packer, build_id_hash());
    msgpack_pack_uint32(&packer, 1);
    msgpack_pack_int64(&packer, -1);
    return packer;
}

static void every_message_comes_out_as_it_went_in(void **state)
{
    (void)state;
    const struct sample_message *samples = sample_messages();
    AUTO_CLOSE(arena) struct arena arena = {0};

    for (int i = 0; i < NUM_SAMPLE_MESSAGES; i++) {
        AUTO_CLOSE(bytes) struct bytes frame = {0};
        struct message message;

        expect_ok(message_encode(samples[i].type, 7, 1 << 20, samples[i].body, &frame));
        expect_ok(message_decode(frame.data, frame.size, &arena, &message));
        assert_ptr_equal(message.type, samples[i].type);
        assert_int_equal(message.header.epoch, 7);
        assert_int_equal(message.header.step, 1 << 20);
        assert_true(message_equal(message.type, samples[i].body, message.body));
        expect_ok(message_check_place(&message, 7));
    }
}

static void every_message_survives_json(void **state)
{
    (void)state;
    const struct sample_message *samples = sample_messages();
    AUTO_CLOSE(arena) struct arena arena = {0};

    for (int i = 0; i < NUM_SAMPLE_MESSAGES; i++) {
        struct message in = {.type = samples[i].type, .body = (void *)samples[i].body}, out;
        json_t *json = message_to_json(&in);
        char *text = json_dumps(json, 0);
        json_t *again = json_loads(text, 0, NULL);

        expect_ok(message_from_json(again, &arena, &out));
        assert_true(message_equal(in.type, in.body, out.body));
        json_decref(json);
        json_decref(again);
        mem_free(text);
    }
}

static void a_cut_frame_is_refused_at_every_length(void **state)
{
    (void)state;
    const struct sample_message *samples = sample_messages();
    AUTO_CLOSE(arena) struct arena arena = {0};

    for (int i = 0; i < NUM_SAMPLE_MESSAGES; i++) {
        AUTO_CLOSE(bytes) struct bytes frame = {0};
        struct message message;

        expect_ok(message_encode(samples[i].type, 7, 3, samples[i].body, &frame));
        for (size_t size = 0; size < frame.size; size++)
            assert_int_not_equal(message_decode(frame.data, size, &arena, &message), OK);
        bytes_append(&frame, "", 1);
        expect_fails(message_decode(frame.data, frame.size, &arena, &message), ERR_CORRUPT,
                     "is followed by 1 more bytes");
    }
}

static void missing_and_extra_fields_are_refused_by_name(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_CLOSE(bytes) struct bytes missing = {0}, extra = {0}, wrong = {0};
    struct message message;
    msgpack_packer packer = begin_frame(&missing, MESSAGE_HEARTBEAT, 2);

    msgpack_pack_int32(&packer, 0);
    msgpack_pack_int64(&packer, 1);
    expect_fails(message_decode(missing.data, missing.size, &arena, &message), ERR_CORRUPT,
                 "heartbeat.step is missing: 2 fields of 11 came");

    packer = begin_frame(&extra, MESSAGE_SHUTDOWN, 1);
    msgpack_pack_nil(&packer);
    expect_fails(message_decode(extra.data, extra.size, &arena, &message), ERR_CORRUPT,
                 "shutdown has 0 fields, 1 came");

    packer = begin_frame(&wrong, MESSAGE_FAULT, 3);
    msgpack_pack_int64(&packer, 1LL << 40);
    msgpack_pack_nil(&packer);
    msgpack_pack_nil(&packer);
    expect_fails(message_decode(wrong.data, wrong.size, &arena, &message), ERR_CORRUPT,
                 "fault.rank: an integer is out of range at byte");
}

static void a_column_that_is_shorter_than_its_neighbours_is_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct message message;
    msgpack_packer packer = begin_frame(&frame, MESSAGE_PREPARE_INPUTS, 12);

    msgpack_pack_nil(&packer);
    msgpack_pack_array(&packer, 0);
    msgpack_pack_bin(&packer, 4);
    msgpack_pack_bin_body(&packer, "\1\1\2\3", 4); /* slots 1 2 3 */
    msgpack_pack_bin(&packer, 5);
    msgpack_pack_bin_body(&packer, "\2\0\1\0\1", 5); /* two in 16 bits */
    for (int i = 0; i < 9; i++)
        msgpack_pack_nil(&packer);
    expect_fails(message_decode(frame.data, frame.size, &arena, &message), ERR_CORRUPT,
                 "num_computed_tokens has 2 elements where the columns before it have 3");
}

static void a_count_takes_no_memory_before_its_bytes_are_there(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct message message;
    msgpack_packer packer = begin_frame(&frame, MESSAGE_PREPARE_INPUTS, 12);

    msgpack_pack_nil(&packer);
    msgpack_pack_array(&packer, 60); /* requests, of at least 7 bytes each */
    for (int i = 0; i < 100; i++)
        msgpack_pack_nil(&packer);
    expect_fails(message_decode(frame.data, frame.size, &arena, &message), ERR_CORRUPT,
                 "new_requests has 60 elements and 100 bytes for them");
}

static void another_protocol_build_or_epoch_is_refused_with_both_values(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct message message;

    expect_ok(message_encode(&shutdown_type, 3, -1, "", &frame));
    expect_ok(message_decode(frame.data, frame.size, &arena, &message));
    expect_fails(message_check_place(&message, 4), ERR_MISMATCH,
                 "shutdown belongs to epoch 3, this one is 4");
    message.header.build ^= 1;
    expect_fails(message_check_place(&message, 3), ERR_MISMATCH, "shutdown comes from build ");
    frame.data[2] = PROTOCOL_VERSION + 1;
    expect_fails(message_decode(frame.data, frame.size, &arena, &message), ERR_MISMATCH,
                 "a message of protocol version 2 came; this side speaks 1");
    frame.data[2] = PROTOCOL_VERSION;
    frame.data[1] = 99;
    expect_fails(message_decode(frame.data, frame.size, &arena, &message), ERR_MISMATCH,
                 "unknown type 99");
    assert_int_equal(strlen(build_id_text()), 40);
    assert_true(build_id_hash() != 0);
}

static void text_that_is_not_utf8_is_mended_when_sent_and_refused_when_received(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_CLOSE(bytes) struct bytes frame = {0}, raw = {0};
    struct fault fault = {.text = "a\xff\xc3\xa9\xed\xa0\x80z"};
    struct message message;

    expect_ok(message_encode(&fault_type, 1, 1, &fault, &frame));
    expect_ok(message_decode(frame.data, frame.size, &arena, &message));
    assert_string_equal(((struct fault *)message.body)->text, "a?\xc3\xa9???z");

    msgpack_packer packer = begin_frame(&raw, MESSAGE_FAULT, 3);
    msgpack_pack_int32(&packer, 0);
    msgpack_pack_int32(&packer, 0);
    msgpack_pack_str(&packer, 3);
    msgpack_pack_str_body(&packer, "ab\xc3", 3);
    expect_fails(message_decode(raw.data, raw.size, &arena, &message), ERR_CORRUPT,
                 "fault.text is not UTF-8 at its byte 2");
}

static void a_field_over_its_limit_is_not_sent(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct call call = {.name = mem_alloc(2000), .args = ""};

    memset((char *)call.name, 'x', 1999);
    expect_fails(message_encode(&call_type, 1, 1, &call, &frame), ERR_INVALID,
                 "call.name has 1999 bytes, at most 1024 may be sent");
    assert_int_equal(frame.size, 0);
    mem_free((char *)call.name);
}

static void json_that_does_not_fit_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *body, *words;
    } rows[] = {
        {"{\"rank\": 0, \"code\": 1}", "fault.text is missing"},
        {"{\"rank\": 0, \"code\": 1, \"text\": \"\", \"more\": 1}", "fault has no field 'more'"},
        {"{\"rank\": 5000000000, \"code\": 1, \"text\": \"\"}", "rank must be a 32-bit integer"},
        {"[]", "fault must be an object"},
    };
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct message message;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_MEM char *text = mem_printf("{\"message\": \"fault\", \"epoch\": 1, \"step\": 2, "
                                         "\"build\": \"0x0\", \"body\": %s}", rows[i].body);
        json_t *json = json_loads(text, 0, NULL);

        expect_fails(message_from_json(json, &arena, &message), ERR_INVALID, rows[i].words);
        json_decref(json);
    }
}

static void print_shows_every_field_and_no_users_tokens(void **state)
{
    (void)state;
    const struct sample_message *plan = &sample_messages()[3];
    struct message message = {.header = {.epoch = 2, .step = 9},
                              .type = plan->type,
                              .body = (void *)plan->body};
    AUTO_CLOSE(bytes) struct bytes out = {0};

    message_print(&message, &out);
    const char *text = bytes_text(&out);
    assert_non_null(strstr(text, "prepare_inputs: epoch 2, step 9\n"));
    assert_non_null(strstr(text, "  slots (4): 3 1 2 0\n"));
    assert_non_null(strstr(text, "  new_requests[0]:\n    slot: 2\n    id: \"cmpl-7 ü\"\n"));
    assert_non_null(strstr(text, "    prompt_token_ids (4):\n"));
    assert_non_null(strstr(text, "      temperature: 0.699999988\n"));
    assert_non_null(strstr(text, "  samples (4): 01010001\n"));
}

static void memory_that_no_device_has_is_refused(void **state)
{
    (void)state;
    struct heartbeat beat = {.memory = {.weights_bytes = (int64_t)1 << 50}};

    expect_ok(heartbeat_check(&beat));
    beat.memory.weights_bytes++;
    expect_fails(heartbeat_check(&beat), ERR_MISMATCH,
                 "weights_bytes of a heartbeat is 1125899906842625; 0 to 1125899906842624 can be");
    expect_fails(heartbeat_check(&(struct heartbeat){.memory = {.free_bytes = -1}}), ERR_MISMATCH,
                 "free_bytes of a heartbeat is -1; 0 to 1125899906842624 can be");
}

static void steps_that_do_not_add_up_are_refused(void **state)
{
    (void)state;
    struct scheduler_output plan = *(const struct scheduler_output *)sample_messages()[3].body;
    struct model_runner_output output =
        *(const struct model_runner_output *)sample_messages()[6].body;

    expect_ok(scheduler_output_check(&plan, 8, 16));
    expect_fails(scheduler_output_check(&plan, 3, 16), ERR_MISMATCH,
                 "row 0 has slot 3; slots are 0 to 2");
    expect_fails(scheduler_output_check(&plan, 8, 8), ERR_MISMATCH,
                 "the step has 9 tokens, at most 8 fit");
    plan.num_new_block_ids = 1;
    expect_fails(scheduler_output_check(&plan, 8, 16), ERR_MISMATCH,
                 "the rows have 2 new blocks, the step 1");
    expect_ok(model_runner_output_check(&output));
    output.num_logprobs = 1;
    expect_fails(model_runner_output_check(&output), ERR_MISMATCH, "2 logprobs, the step 1");
}

static void prompts_with_logprobs_are_rows_of_the_plan_and_runs_of_the_answer(void **state)
{
    (void)state;
    const struct scheduler_output *plan = sample_messages()[3].body;
    const struct model_runner_output *output = sample_messages()[6].body;
    static const struct {
        int32_t rows[2], lengths[2];
        const char *words;
    } plans[] = {
        {{1, 1}, {1, 1}, "row 1 comes after row 1 of 4"},
        {{1, 4}, {1, 1}, "row 4 comes after row 1 of 4"},
        {{-1, 2}, {1, 1}, "row -1 comes after row -1 of 4"},
        {{1, 2}, {0, 1}, "row 1 schedules 3 tokens, the logprobs of 0 are wanted"},
        {{1, 2}, {3, 5}, "row 2 schedules 4 tokens, the logprobs of 5 are wanted"},
    };
    static const struct {
        int32_t lengths[2], counts[3];
        const char *words;
    } outputs[] = {
        {{0, 3}, {2, 1, 1}, "the answer has the logprobs of 0 prompt tokens of slot 1"},
        {{2, 2}, {2, 1, 1}, "the rows have 4 prompt tokens with logprobs, the step 3"},
        {{1, 2}, {4, 0, 0}, "prompt token 1 has 0 logprobs"},
        {{1, 2}, {2, 2, 1}, "the rows have 5 prompt logprobs, the step 4"},
    };

    for (size_t i = 0; i < COUNT_OF(plans); i++) {
        struct scheduler_output bad = *plan;

        bad.prompt_logprob_rows = plans[i].rows;
        bad.prompt_logprob_lengths = plans[i].lengths;
        expect_fails(scheduler_output_check(&bad, 8, 16), ERR_MISMATCH, plans[i].words);
    }
    for (size_t i = 0; i < COUNT_OF(outputs); i++) {
        struct model_runner_output bad = *output;

        bad.prompt_lengths = outputs[i].lengths;
        bad.prompt_logprob_counts = outputs[i].counts;
        expect_fails(model_runner_output_check(&bad), ERR_MISMATCH, outputs[i].words);
    }
}

static void masks_fit_their_rows_and_the_vocabulary(void **state)
{
    (void)state;
    struct grammar_output grammar = *(const struct grammar_output *)sample_messages()[5].body;
    const int32_t wrong_row[] = {0, 2, 0};

    expect_ok(grammar_output_check(&grammar, 0, 70));
    expect_ok(grammar_output_check(&grammar, 0, 96));
    expect_ok(grammar_output_check(&grammar, 31, 34)); /* from a last bit to a first */
    expect_fails(grammar_output_check(&grammar, 0, 64), ERR_MISMATCH,
                 "the bitmask has 3 words a row, 64 tokens from 0 on need 2");
    grammar.bitmask_rows = wrong_row;
    expect_fails(grammar_output_check(&grammar, 0, 70), ERR_MISMATCH, "slot 5 has mask 2 of 2");
    grammar.num_bitmask_rows = 4;
    expect_fails(grammar_output_check(&grammar, 0, 70), ERR_MISMATCH, "4 masks for 3 rows");
    grammar.num_bitmask_rows = 1;
    expect_fails(grammar_output_check(&grammar, 0, 70), ERR_MISMATCH, "24 bytes, 1 rows");
}

static void a_rank_gets_the_words_of_its_slice(void **state)
{
    (void)state;
    static const uint8_t second_words[] = {4, 5, 6, 7, 16, 17, 18, 19};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct grammar_output grammar = *(const struct grammar_output *)sample_messages()[5].body;
    struct grammar_output slice;

    expect_ok(grammar_output_slice(&grammar, 33, 30, &arena, &slice));
    expect_ok(grammar_output_check(&slice, 33, 30));
    assert_int_equal(slice.words_per_row, 1);
    assert_int_equal(slice.num_rows, 3);
    assert_memory_equal(slice.bitmask, second_words, sizeof second_words);
    expect_ok(grammar_output_slice(&grammar, 31, 40, &arena, &slice));
    assert_int_equal(slice.words_per_row, 3);
    assert_memory_equal(slice.bitmask, grammar.bitmask, 24);
    expect_fails(grammar_output_slice(&grammar, 64, 64, &arena, &slice), ERR_MISMATCH,
                 "a rank needs words 2 to 4");
}

static void write_corpus(const char *folder)
{
    for (int i = 0; i < NUM_SAMPLE_MESSAGES; i++) {
        const struct sample_message *sample = &sample_messages()[i];
        AUTO_MEM char *path = mem_printf("%s/%02d-%s", folder, i, sample->type->name);
        AUTO_CLOSE(bytes) struct bytes frame = {0};
        FILE *file = fopen(path, "wb");

        assert_non_null(file);
        expect_ok(message_encode(sample->type, 7, 12, sample->body, &frame));
        assert_int_equal(fwrite(frame.data, 1, frame.size, file), frame.size);
        fclose(file);
    }
}

/* A schema that changes leaves a corpus behind that tests nothing. */
static void the_fuzzers_corpus_still_decodes(void **state)
{
    (void)state;
    AUTO_MEM char *folder = mem_printf("%s/fuzz/message", getenv("TANDEM_TEST_DATA"));
    AUTO_CLOSE(arena) struct arena arena = {0};

    if (getenv("TANDEM_TEST_CORPUS"))
        write_corpus(getenv("TANDEM_TEST_CORPUS"));
    for (int i = 0; i < NUM_SAMPLE_MESSAGES; i++) {
        const struct sample_message *sample = &sample_messages()[i];
        AUTO_MEM char *path = mem_printf("%s/%02d-%s", folder, i, sample->type->name);
        uint8_t bytes[4096];
        struct message message;
        FILE *file = fopen(path, "rb");

        assert_non_null(file);
        size_t size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        expect_ok(message_decode(bytes, size, &arena, &message));
        assert_true(message_equal(sample->type, sample->body, message.body));
    }
}

/* 256 requests that decode: what a busy step is. */
static void a_decode_step_of_256_requests_is_small_and_quick(void **state)
{
    (void)state;
    enum { ROWS = 256, ROUNDS = 2000 };
    static int32_t slots[ROWS], computed[ROWS], scheduled[ROWS], block_counts[ROWS], blocks[ROWS];
    static uint8_t samples[ROWS];
    struct scheduler_output plan = {.num_rows = ROWS, .slots = slots, .num_computed_tokens = computed,
                                    .num_scheduled_tokens = scheduled, .samples = samples,
                                    .new_block_counts = block_counts, .new_block_ids = blocks,
                                    .total_num_scheduled_tokens = ROWS};
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    struct message message;

    for (int i = 0; i < ROWS; i++) {
        slots[i] = (i * 37) % ROWS;
        computed[i] = 500 + i;
        scheduled[i] = samples[i] = 1;
        if (i % 16 == 0) {
            block_counts[i] = 1;
            blocks[plan.num_new_block_ids++] = 10000 + i;
        }
    }
    expect_ok(message_encode(&scheduler_output_type, 1, 1, &plan, &frame));
    expect_ok(message_decode(frame.data, frame.size, &arena, &message));
    assert_true(message_equal(&scheduler_output_type, &plan, message.body));
    assert_in_range(frame.size, 1, 2047);

    int64_t encode_ns = INT64_MAX, decode_ns = INT64_MAX;

    for (int i = 0; i < ROUNDS; i++) { /* the best of many: others use this machine, too */
        int64_t start = clock_now_ns(), middle;

        frame.size = 0;
        expect_ok(message_encode(&scheduler_output_type, 1, i, &plan, &frame));
        middle = clock_now_ns();
        arena_reset(&arena);
        expect_ok(message_decode(frame.data, frame.size, &arena, &message));
        encode_ns = MIN(encode_ns, middle - start);
        int64_t end = clock_now_ns();
        decode_ns = MIN(decode_ns, end - middle);
    }
    printf("# 256 decode rows: %zu bytes, encode %.2f us, decode %.2f us\n", frame.size,
           (double)encode_ns / 1e3, (double)decode_ns / 1e3);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_message_comes_out_as_it_went_in),
    cmocka_unit_test(every_message_survives_json),
    cmocka_unit_test(a_cut_frame_is_refused_at_every_length),
    cmocka_unit_test(missing_and_extra_fields_are_refused_by_name),
    cmocka_unit_test(a_column_that_is_shorter_than_its_neighbours_is_refused),
    cmocka_unit_test(a_count_takes_no_memory_before_its_bytes_are_there),
    cmocka_unit_test(another_protocol_build_or_epoch_is_refused_with_both_values),
    cmocka_unit_test(text_that_is_not_utf8_is_mended_when_sent_and_refused_when_received),
    cmocka_unit_test(a_field_over_its_limit_is_not_sent),
    cmocka_unit_test(json_that_does_not_fit_is_refused_by_name),
    cmocka_unit_test(print_shows_every_field_and_no_users_tokens),
    cmocka_unit_test(steps_that_do_not_add_up_are_refused),
    cmocka_unit_test(memory_that_no_device_has_is_refused),
    cmocka_unit_test(prompts_with_logprobs_are_rows_of_the_plan_and_runs_of_the_answer),
    cmocka_unit_test(masks_fit_their_rows_and_the_vocabulary),
    cmocka_unit_test(a_rank_gets_the_words_of_its_slice),
    cmocka_unit_test(the_fuzzers_corpus_still_decodes),
    cmocka_unit_test(a_decode_step_of_256_requests_is_small_and_quick),
};
TEST_MAIN(tests)
