/* Which sizes of steps are recorded, and as what. */
#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "worker/models/recordings.h"

enum { MAX_ROWS = 256, MAX_POSITION = 4096 };

static struct recording_sizes rounded(const struct recordings *recordings, int32_t rows, int32_t position)
{
    struct recording_sizes sizes;

    assert_true(recordings_round_up(recordings, rows, position, &sizes));
    assert_true(sizes.rows >= rows && sizes.position >= position);
    return sizes;
}

static void sizes_are_rounded_up_and_end_at_the_largest(void **state)
{
    static const int32_t rows[][2] = {
        {1, 1}, {2, 2}, {3, 4}, {4, 4}, {5, 8}, {9, 16}, {241, 248}, {249, 250}, {250, 250},
    };
    static const int32_t positions[][2] = {
        {0, 255}, {255, 255}, {256, 511}, {512, 1023}, {1024, 2047}, {2048, 2999}, {2999, 2999},
    };
    struct recordings *recordings = recordings_new(NULL, 250, 3000);
    struct recording_sizes sizes;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(rounded(recordings, rows[i][0], 0).rows, rows[i][1]);
    for (size_t i = 0; i < COUNT_OF(positions); i++)
        assert_int_equal(rounded(recordings, 1, positions[i][0]).position, positions[i][1]);
    assert_false(recordings_round_up(recordings, 251, 0, &sizes));
    recordings_free(recordings);
}

static bool is_usual(const struct recordings *recordings, int32_t rows, int32_t position)
{
    struct recording_sizes sizes;

    for (int32_t i = 0; recordings_usual(recordings, i, &sizes); i++)
        if (sizes.rows == rows && sizes.position == position)
            return true;
    return false;
}

/* Each is one that a step may come to; returns how many there are. */
static int32_t check_usual(const struct recordings *recordings)
{
    struct recording_sizes sizes, other;
    int32_t n = 0;

    for (; recordings_usual(recordings, n, &sizes); n++) {
        other = rounded(recordings, sizes.rows, sizes.position);
        assert_memory_equal(&other, &sizes, sizeof sizes);
        for (int32_t i = 0; i < n; i++) {
            assert_true(recordings_usual(recordings, i, &other));
            assert_memory_not_equal(&other, &sizes, sizeof sizes);
        }
    }
    return n;
}

static void usual_sizes_are_as_many_as_there_is_room_for(void **state)
{
    struct recordings *recordings = recordings_new(NULL, MAX_ROWS, MAX_POSITION);

    (void)state;
    assert_int_equal(check_usual(recordings), 64);
    for (int32_t rows = 1; rows <= MAX_ROWS; rows *= 2)
        for (int32_t end = 256; end <= MAX_POSITION; end *= 2)
            assert_true(is_usual(recordings, rows, end - 1));
    assert_true(is_usual(recordings, 24, 255));
    recordings_free(recordings);
}

static void small_limits_have_all_of_their_sizes(void **state)
{
    struct recordings *recordings = recordings_new(NULL, 20, 300);

    (void)state;
    assert_int_equal(check_usual(recordings), 2 * 6);
    for (int32_t rows = 1; rows <= 20; rows++)
        for (int32_t position = 0; position < 300; position++) {
            struct recording_sizes sizes = rounded(recordings, rows, position);

            assert_true(is_usual(recordings, sizes.rows, sizes.position));
        }
    recordings_free(recordings);
    recordings = recordings_new(NULL, 1, 1);
    assert_int_equal(check_usual(recordings), 1);
    recordings_free(recordings);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_rounded_up_and_end_at_the_largest),
        cmocka_unit_test(usual_sizes_are_as_many_as_there_is_room_for),
        cmocka_unit_test(small_limits_have_all_of_their_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
