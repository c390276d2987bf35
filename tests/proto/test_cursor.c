#include "tests/support/expect.h"

#include "proto/wire/cursor.h"

#define CURSOR(...)                                                                                \
    ({                                                                                             \
        static const uint8_t bytes_[] = {__VA_ARGS__};                                             \
        struct cursor cursor_;                                                                     \
        cursor_init(&cursor_, bytes_, sizeof bytes_);                                              \
        cursor_;                                                                                   \
    })

static void integers_of_every_form_are_read(void **state)
{
    (void)state;
    struct cursor c = CURSOR(0x7f, 0xff, 0xcc, 0xff, 0xcd, 1, 0, 0xd0, 0x80, 0xd1, 0xff, 0, 0xd3, 0x80,
                             0, 0, 0, 0, 0, 0, 0, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff);

    assert_int_equal(cursor_int(&c, 0, 127), 127);
    assert_int_equal(cursor_int(&c, -1, 0), -1);
    assert_int_equal(cursor_int(&c, 0, 255), 255);
    assert_int_equal(cursor_int(&c, 0, 256), 256);
    assert_int_equal(cursor_int(&c, -128, 0), -128);
    assert_int_equal(cursor_int(&c, -256, 0), -256);
    assert_true(cursor_int(&c, INT64_MIN, INT64_MAX) == INT64_MIN);
    assert_true(cursor_uint(&c, UINT64_MAX) == UINT64_MAX);
    expect_ok(cursor_status(&c));
    assert_int_equal(cursor_left(&c), 0);
}

static void a_value_out_of_range_is_refused_with_its_byte(void **state)
{
    (void)state;
    struct cursor c = CURSOR(1, 0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff);
    struct cursor negative = CURSOR(0xff);

    assert_int_equal(cursor_int(&c, 0, 1), 1);
    assert_int_equal(cursor_int(&c, INT64_MIN, INT64_MAX), 0);
    expect_fails(cursor_status(&c), ERR_CORRUPT, "an integer is out of range at byte 1");
    cursor_uint(&negative, UINT64_MAX);
    expect_fails(cursor_status(&negative), ERR_CORRUPT, "out of range");
}

static void the_first_error_stays_and_later_reads_are_zero(void **state)
{
    (void)state;
    struct cursor c = CURSOR(0xc0, 5, 6);
    size_t size;

    cursor_bool(&c);
    assert_int_equal(cursor_int(&c, 0, 9), 0);
    assert_string_equal(cursor_text(&c, &size), "");
    assert_int_equal(cursor_enter_array(&c), 0);
    expect_fails(cursor_status(&c), ERR_CORRUPT, "true or false was expected at byte 0");
}

static void a_length_is_believed_only_as_far_as_bytes_are_there(void **state)
{
    (void)state;
    struct cursor array = CURSOR(0xdd, 0xff, 0xff, 0xff, 0xff, 1, 2);
    struct cursor bin = CURSOR(0xc6, 0xff, 0xff, 0xff, 0xff, 1, 2);
    struct cursor text = CURSOR(0xa5, 'a', 'b'), cut = CURSOR(0xce, 1, 2), nothing;
    size_t size;

    assert_int_equal(cursor_enter_array(&array), 0);
    expect_fails(cursor_status(&array), ERR_CORRUPT, "the bytes end too early");
    cursor_bin(&bin, &size);
    assert_int_equal(size, 0);
    expect_fails(cursor_status(&bin), ERR_CORRUPT, "the bytes end too early");
    cursor_text(&text, &size);
    expect_fails(cursor_status(&text), ERR_CORRUPT, "the bytes end too early");
    cursor_int(&cut, 0, INT64_MAX);
    expect_fails(cursor_status(&cut), ERR_CORRUPT, "the bytes end too early");
    cursor_init(&nothing, NULL, 0);
    cursor_f64(&nothing);
    expect_fails(cursor_status(&nothing), ERR_CORRUPT, "the bytes end too early");
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    struct cursor c = CURSOR(0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91);

    for (int i = 0; i < CURSOR_MAX_DEPTH; i++)
        assert_int_equal(cursor_enter_array(&c), 1);
    expect_ok(cursor_status(&c));
    assert_int_equal(cursor_enter_array(&c), 0);
    expect_fails(cursor_status(&c), ERR_CORRUPT, "nested too deep at byte 8");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(integers_of_every_form_are_read),
    cmocka_unit_test(a_value_out_of_range_is_refused_with_its_byte),
    cmocka_unit_test(the_first_error_stays_and_later_reads_are_zero),
    cmocka_unit_test(a_length_is_believed_only_as_far_as_bytes_are_there),
    cmocka_unit_test(nesting_is_bounded),
};
TEST_MAIN(tests)
