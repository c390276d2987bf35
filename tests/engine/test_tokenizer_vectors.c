/* Whole vocabularies against what other implementations make of the same texts. */
#include "tests/support/expect.h"

#include "engine/text/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static void expect_row(const struct tokenizer *tokenizer, const json_t *row, bool parse_special)
{
    AUTO_CLOSE(token_list) struct token_list list = {0};
    AUTO_CLOSE(bytes) struct bytes decoded = {0};
    const json_t *text = json_object_get(row, "text"), *ids = json_object_get(row, "ids");
    const json_t *back = json_object_get(row, "decoded");
    bool is_equal;

    expect_ok(tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                               parse_special, false, &list));
    is_equal = (size_t)list.count == json_array_size(ids);
    for (int32_t i = 0; is_equal && i < list.count; i++)
        is_equal = list.ids[i] == json_integer_value(json_array_get(ids, (size_t)i));
    if (!is_equal)
        fail_msg("row %s: other ids, parse_special %d",
                 json_string_value(json_object_get(row, "id")), parse_special);
    back = back ? back : text;
    tokenizer_decode(tokenizer, list.ids, list.count, true, &decoded);
    assert_int_equal(decoded.size, json_string_length(back));
    if (decoded.size)
        assert_memory_equal(decoded.data, json_string_value(back), decoded.size);
}

static void run_reference(const char *model, const char *vectors)
{
    AUTO_MEM char *path = mem_printf("%s/%s", getenv("TANDEM_TEST_MODELS"), model);
    AUTO_MEM char *rows = mem_printf("%s/tokenizer/%s", getenv("TANDEM_TEST_DATA"), vectors);
    AUTO_FREE(model_file) struct model_file *file = NULL;
    AUTO_FREE(tokenizer) struct tokenizer *t = NULL;
    FILE *lines = fopen(rows, "r");
    char *line = NULL;
    size_t capacity = 0;
    int count = 0;

    assert_non_null(lines);
    expect_ok(model_file_open(path, &file));
    expect_ok(tokenizer_new(model_file_vocabulary(file), &t));
    while (getline(&line, &capacity, lines) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        const json_t *parse_special = json_object_get(row, "parse_special");

        assert_non_null(row);
        if (!parse_special || json_is_true(parse_special))
            expect_row(t, row, true);
        if (!parse_special || json_is_false(parse_special))
            expect_row(t, row, false);
        json_decref(row);
        count++;
    }
    free(line);
    fclose(lines);
    assert_true(count >= 500);
}

static void smollm2_encodes_as_the_references_do(void **state)
{
    (void)state;
    run_reference("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.jsonl");
}

static void gemma3_encodes_as_the_references_do(void **state)
{
    (void)state;
    run_reference("gemma-3-270m-q4_k_m.gguf", "gemma3.jsonl");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(smollm2_encodes_as_the_references_do),
    cmocka_unit_test(gemma3_encodes_as_the_references_do),
};
TEST_MAIN_WITH_MODELS(tests)
