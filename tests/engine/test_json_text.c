/* JSON back to text. */
#include "tests/support/expect.h"

#include "engine/text/json_text.h"

static void expect_text(const char *json_source, enum json_spacing spacing, const char *wanted)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    json_t *json = json_loads(json_source, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);

    assert_non_null(json);
    json_text(json, spacing, &text);
    assert_string_equal(bytes_text(&text), wanted);
    json_decref(json);
}

static void numbers_are_what_they_were(void **state)
{
    static const char *const same[] = {
        "0.1",   "99.99", "1e+300",  "-2.5e-10", "9007199254740993", "-9223372036854775808",
        "1.0",   "0.30000000000000004", "1.7976931348623157e+308", "-0.0",
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(same); i++)
        expect_text(same[i], JSON_TIGHT, same[i]);
    expect_text("1E2", JSON_TIGHT, "100.0");
}

static void order_and_texts_stay(void **state)
{
    const char *json = "{\"b\":[1,true,false,null,[],{}],\"a\":\"é \\\" \\\\ \\u0001 \\u0000\"}";

    (void)state;
    expect_text(json, JSON_TIGHT, json);
    expect_text("{\"b\":[1,2],\"\\u0001x\":{}}", JSON_SPACED, "{\"b\": [1, 2], \"\\u0001x\": {}}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_what_they_were),
        cmocka_unit_test(order_and_texts_stay),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
