#include "tests/support/expect.h"

#include "engine/server/query.h"

static enum status read_pause(const char *query, struct query_parameter *parameters)
{
    parameters[0] = (struct query_parameter){"mode", "abort"};
    parameters[1] = (struct query_parameter){"clear_cache", "true"};
    return query_read(query, parameters, 2);
}

static void what_is_not_given_has_its_default(void **state)
{
    static const struct {
        const char *query, *mode, *clear_cache;
    } rows[] = {
        {"", "abort", "true"},
        {"mode=wait", "wait", "true"},
        {"clear_cache=0&mode=keep", "keep", "0"},
        {"mode=wait&mode=keep&", "keep", "true"},
        {"mode", "", "true"},
        {"mode=", "", "true"},
        {"mode=a=b", "a=b", "true"},
        {"mode=12345678901234567890123456789012", "12345678901234567890123456789012", "true"},
    };
    struct query_parameter parameters[2];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        expect_ok(read_pause(rows[i].query, parameters));
        assert_string_equal(parameters[0].value, rows[i].mode);
        assert_string_equal(parameters[1].value, rows[i].clear_cache);
    }
}

static void what_is_not_known_is_refused_by_name(void **state)
{
    struct query_parameter parameters[2];

    (void)state;
    expect_fails(read_pause("mod=wait", parameters), ERR_INVALID, "Unknown query parameter `mod`.");
    expect_fails(read_pause("mode=wait&&", parameters), ERR_INVALID, "Unknown query parameter ``.");
    expect_fails(read_pause("=wait", parameters), ERR_INVALID, "Unknown query parameter ``.");
    expect_fails(read_pause("mode=123456789012345678901234567890123", parameters), ERR_INVALID,
                 "mode has 33 bytes, 32 are allowed.");
}

static void flags_are_true_or_false(void **state)
{
    static const struct {
        const char *value;
        bool flag;
    } rows[] = {{"true", true}, {"False", false}, {"1", true}, {"0", false}};
    struct query_parameter parameter = {"clear_cache", ""};
    bool flag;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        snprintf(parameter.value, sizeof parameter.value, "%s", rows[i].value);
        expect_ok(query_flag(&parameter, &flag));
        assert_int_equal(flag, rows[i].flag);
    }
    snprintf(parameter.value, sizeof parameter.value, "yes");
    expect_fails(query_flag(&parameter, &flag), ERR_INVALID,
                 "clear_cache must be true or false, not 'yes'.");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_not_given_has_its_default),
    cmocka_unit_test(what_is_not_known_is_refused_by_name),
    cmocka_unit_test(flags_are_true_or_false),
};
TEST_MAIN(tests)
