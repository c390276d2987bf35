#include "tests/support/expect.h"

#include "engine/executor/flight_recorder.h"
#include "proto/wire/messages.h"

#include <unistd.h>

static void append(void *list, const json_t *message)
{
    json_array_append_new(list, json_deep_copy(message));
}

static json_t *all_of(const struct flight_recorder *recorder)
{
    json_t *list = json_array();

    flight_recorder_each(recorder, append, list);
    return list;
}

static void add(struct flight_recorder *recorder, int64_t step, int32_t num_rows)
{
    AUTO_CLOSE(bytes) struct bytes frame = {0};
    int32_t *tokens = mem_new_array(int32_t, (size_t)num_rows);
    struct model_runner_output output = {.num_rows = num_rows,
                                         .num_sampled = num_rows,
                                         .slots = tokens,
                                         .sampled_token_ids = tokens,
                                         .logprob_counts = tokens,
                                         .sampled_token_ranks = tokens};

    for (int32_t i = 0; i < num_rows; i++)
        tokens[i] = i % 2 ? 70000 : 0; /* 4 bytes each on the wire */
    output.logprob_counts = output.sampled_token_ranks = NULL;
    expect_ok(message_encode(&model_runner_output_type, 1, step, &output, &frame));
    flight_recorder_add(recorder, step % 2 == 0, (int32_t)(step % 3), frame.data, frame.size);
    mem_free(tokens);
}

static int64_t step_of(const json_t *entry)
{
    return json_integer_value(json_object_get(json_object_get(entry, "message"), "step"));
}

static void the_last_messages_are_told_oldest_first(void **state)
{
    AUTO_FREE(flight_recorder) struct flight_recorder *recorder = flight_recorder_new(1 << 20, 60);

    (void)state;
    for (int64_t step = 0; step < 10; step++)
        add(recorder, step, 3);

    json_auto_t *list = all_of(recorder);

    assert_int_equal(json_array_size(list), 10);
    for (size_t i = 0; i < 10; i++) {
        const json_t *entry = json_array_get(list, i);

        assert_int_equal(step_of(entry), i);
        assert_int_equal(json_integer_value(json_object_get(entry, "rank")), i % 3);
        assert_string_equal(json_string_value(json_object_get(entry, "direction")),
                            i % 2 ? "received" : "sent");
        assert_true(json_real_value(json_object_get(entry, "ms")) <= 0);
    }
}

static void the_ring_holds_the_newest_however_long_it_turns(void **state)
{
    AUTO_FREE(flight_recorder)
    struct flight_recorder *recorder = flight_recorder_new(2 * FLIGHT_LARGEST, 60);
    int64_t last = 3000;

    (void)state;
    for (int64_t step = 0; step <= last; step++)
        add(recorder, step, 1 + (int32_t)(step * 7 % 200));

    json_auto_t *list = all_of(recorder);
    size_t n = json_array_size(list);

    assert_true(n > 50 && n < 1000);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(step_of(json_array_get(list, i)), last + 1 - (int64_t)(n - i));
}

static void of_a_large_message_the_size_is_kept(void **state)
{
    AUTO_FREE(flight_recorder) struct flight_recorder *recorder = flight_recorder_new(1 << 20, 60);
    static uint8_t large[FLIGHT_LARGEST + 1];

    (void)state;
    flight_recorder_add(recorder, true, FLIGHT_ALL_RANKS, large, sizeof large);
    flight_recorder_add(recorder, false, 2, "no message", 10);

    json_auto_t *list = all_of(recorder);
    const json_t *first = json_array_get(list, 0), *second = json_array_get(list, 1);

    assert_int_equal(json_integer_value(json_object_get(first, "bytes")), sizeof large);
    assert_string_equal(json_string_value(json_object_get(first, "left_out")), "too large");
    assert_int_equal(json_integer_value(json_object_get(first, "rank")), -1);
    assert_null(json_object_get(second, "message"));
    assert_true(strlen(json_string_value(json_object_get(second, "left_out"))) > 0);
}

static void what_is_too_old_is_not_told(void **state)
{
    AUTO_FREE(flight_recorder)
    struct flight_recorder *recorder = flight_recorder_new(1 << 20, 0.01);

    (void)state;
    add(recorder, 1, 1);
    usleep(20000);

    json_auto_t *list = all_of(recorder);

    assert_int_equal(json_array_size(list), 0);
}

static void none_is_fine(void **state)
{
    json_auto_t *list = all_of(NULL);

    (void)state;
    assert_int_equal(json_array_size(list), 0);
    assert_null(flight_recorder_new(0, 10));
    flight_recorder_add(NULL, true, 0, "x", 1);
    flight_recorder_free(NULL);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_last_messages_are_told_oldest_first),
    cmocka_unit_test(the_ring_holds_the_newest_however_long_it_turns),
    cmocka_unit_test(of_a_large_message_the_size_is_kept),
    cmocka_unit_test(what_is_too_old_is_not_told),
    cmocka_unit_test(none_is_fine),
};
TEST_MAIN(tests)
