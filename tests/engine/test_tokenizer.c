#include "tests/support/expect.h"

#include "engine/text/tokenizer.h"
#include "proto/base/clock.h"
#include "tests/support/small_vocabulary.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static struct tokenizer *tokenizer_of(struct vocabulary vocabulary)
{
    struct tokenizer *tokenizer = NULL;

    expect_ok(tokenizer_new(&vocabulary, &tokenizer));
    return tokenizer;
}

static void expect_list(const struct token_list *list, const token_id *ids, int32_t count)
{
    assert_int_equal(list->count, count);
    for (int32_t i = 0; i < count; i++)
        assert_int_equal(list->ids[i], ids[i]);
}

/* expect_tokens(tokenizer, text, parse_special, ids…) */
#define expect_tokens(tokenizer, text, parse_special, ...)                                         \
    do {                                                                                           \
        const token_id wanted_[] = {__VA_ARGS__};                                                  \
        AUTO_CLOSE(token_list) struct token_list list_ = {0};                                      \
        expect_ok(                                                                                 \
            tokenizer_encode((tokenizer), (text), strlen(text), (parse_special), false, &list_));  \
        expect_list(&list_, wanted_, COUNT_OF(wanted_));                                           \
    } while (0)

/* ---- both kinds --------------------------------------------------------------------------- */

static void merges_go_by_rank(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());

    expect_tokens(t, "hello", false, SMALL_HELLO);
    expect_tokens(t, "hello hello", false, SMALL_HELLO, SMALL_SPACE_HELLO);
    expect_tokens(t, "hellll", false, 258, 257); /* hell ll */
}

static void bytes_go_where_no_merge_does(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());

    expect_tokens(t, "\xc3\xa9\n", false, 0xc3, 0xa9, '\n');
}

static void a_byte_that_the_vocabulary_lacks_is_dropped(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_bpe_vocabulary();
    struct text_view tokens[SMALL_NUM_TOKENS];

    memcpy(tokens, vocabulary.tokens, sizeof tokens);
    tokens['#'].data = "nothing"; /* the token of '#' is called something else */
    tokens['#'].size = 7;
    vocabulary.tokens = tokens;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);

    expect_tokens(t, "a#b#", false, 'a', 'b');
}

static void scores_decide_and_the_leftmost_of_equals_goes_first(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_spm_vocabulary();
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);
    const token_id word = 3 + 256;

    expect_tokens(t, "hello", false, word + 10);
    expect_tokens(t, " hello", false, word + 11);
    expect_tokens(t, "lll", false, word + 8, word + 3); /* ll l */
}

static void a_word_may_reach_over_a_space(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_spm_vocabulary();
    AUTO_MEM struct text_view *tokens =
        mem_new_array(struct text_view, (size_t)vocabulary.num_tokens);
    const token_id word = 3 + 256;

    memcpy(tokens, vocabulary.tokens, (size_t)vocabulary.num_tokens * sizeof *tokens);
    tokens[word + 6] = (struct text_view){"o\xe2\x96\x81", 4};
    tokens[word + 7] = (struct text_view){"o\xe2\x96\x81h", 5};
    vocabulary.tokens = tokens;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);

    expect_tokens(t, "o h", false, word + 7);
    expect_tokens(t, "e h", false, word + 2, word, word + 1);
}

static void a_character_that_is_no_token_falls_back_to_bytes(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_spm_vocabulary());

    expect_tokens(t, "\xe2\x82\xac", false, 3 + 0xe2, 3 + 0x82, 3 + 0xac);
    expect_tokens(t, "ab", false, 3 + 256 + 6); /* though "a" is no token */
    expect_tokens(t, "a", false, 3 + 'a');
}

static void byte_and_control_tokens_are_never_made_of_text(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_spm_vocabulary());

    expect_tokens(t, "<s>", false, 3 + '<', 3 + 's', 3 + '>');
    expect_tokens(t, "<0x0A>", true, 3 + '<', 3 + '0', 3 + 'x', 3 + '0', 3 + 'A', 3 + '>');
}

static void a_space_is_put_before_the_text_where_the_model_asks(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_spm_vocabulary();

    vocabulary.add_space_prefix = true;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);
    const token_id space_hello = 3 + 256 + 11;
    AUTO_CLOSE(bytes) struct bytes text = {0};

    expect_tokens(t, "hello", false, space_hello);
    expect_tokens(t, "<s>hello", true, 1, space_hello);
    tokenizer_decode(t, &space_hello, 1, true, &text);
    assert_string_equal(bytes_text(&text), "hello"); /* and decoding takes it away again */
}

static void a_space_may_be_put_at_the_start_alone(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_spm_vocabulary();

    vocabulary.add_space_prefix = vocabulary.space_prefix_is_once = true;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);
    const token_id hello = 3 + 256 + 10, space_hello = hello + 1;

    expect_tokens(t, "hello", false, space_hello);
    expect_tokens(t, " hello", false, space_hello);
    expect_tokens(t, "<s>hello", true, 1, hello);
    expect_tokens(t, "hello<s>hello", true, space_hello, 1, hello);
}

/* ---- special tokens ----------------------------------------------------------------------- */

static void control_tokens_are_recognised_only_when_asked(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());

    expect_tokens(t, "<s>hello</s>", true, SMALL_BOS, SMALL_HELLO, SMALL_EOS);
    expect_tokens(t, "<s>", false, '<', 's', '>');
}

static void user_defined_tokens_are_always_recognised_longest_first(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());
    AUTO_FREE(tokenizer) struct tokenizer *spm = tokenizer_of(small_spm_vocabulary());
    const token_id two = 3 + 256 + 13, four = two + 1;

    expect_tokens(t, "<tool><set>", false, SMALL_TOOL_SET);
    expect_tokens(t, "<tool><tool>", true, SMALL_TOOL, SMALL_TOOL);
    expect_tokens(t, "<tool", true, '<', 't', 'o', 'o', 'l');
    expect_tokens(spm, "       ", false, four, two, 3 + 256); /* seven spaces: 4 2 1 */
}

static void bos_and_eos_are_added_where_the_model_asks(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_bpe_vocabulary();

    vocabulary.add_eos = true;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);
    AUTO_CLOSE(token_list) struct token_list list = {0};

    expect_ok(tokenizer_encode(t, "hello", 5, false, true, &list));
    expect_list(&list, (const token_id[]){SMALL_BOS, SMALL_HELLO, SMALL_EOS}, 3);
    expect_ok(tokenizer_encode(t, "", 0, false, true, &list));
    assert_int_equal(list.count, 5);
}

static void stop_ids_are_eos_and_eot_once_each(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_bpe_vocabulary();
    int32_t count;

    vocabulary.eot_id = SMALL_TOOL;
    AUTO_FREE(tokenizer) struct tokenizer *both = tokenizer_of(vocabulary);

    assert_int_equal(tokenizer_stop_ids(both, &count)[1], SMALL_TOOL);
    assert_int_equal(count, 2);
    vocabulary.eot_id = SMALL_EOS;
    AUTO_FREE(tokenizer) struct tokenizer *same = tokenizer_of(vocabulary);

    assert_int_equal(tokenizer_stop_ids(same, &count)[0], SMALL_EOS);
    assert_int_equal(count, 1);
}

/* ---- decode ------------------------------------------------------------------------------- */

static void more_than_two_tokens_may_end_an_answer(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_bpe_vocabulary();
    int32_t count;

    vocabulary.more_eos_ids[0] = SMALL_TOOL;
    vocabulary.more_eos_ids[1] = SMALL_BOS;
    vocabulary.num_more_eos_ids = 2;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);
    const token_id *ids = tokenizer_stop_ids(t, &count);

    assert_int_equal(count, 3);
    assert_true(ids[0] == SMALL_EOS && ids[1] == SMALL_TOOL && ids[2] == SMALL_BOS);
}

static void texts_are_composed_where_the_model_asks(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_bpe_vocabulary();
    AUTO_CLOSE(bytes) struct bytes marks = {0};
    AUTO_CLOSE(token_list) struct token_list list = {0};

    vocabulary.is_nfc = true;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);

    expect_tokens(t, "xe\xcc\x81", false, 'x', 0xc3, 0xa9);     /* U+0301 */
    expect_tokens(t, "\xe1\x84\x80\xe1\x85\xa1", false, 0xea, 0xb0, 0x80); /* Hangul */
    expect_tokens(t, "\xe2\x84\xab", false, 0xc3, 0x85); /* the sign of angstrom is a letter */

    /* Marks of two classes in turn, which must be sorted. */
    for (int i = 0; i < 200000; i++)
        bytes_append(&marks, i % 2 ? "\xcc\x81" : "\xcc\xa3", 2);
    expect_ok(tokenizer_encode(t, bytes_text(&marks), marks.size, false, false, &list));
    assert_int_equal(list.count, 400000);
}

static void a_mark_behind_a_special_token_leaves_it_whole(void **state)
{
    (void)state;
    struct vocabulary vocabulary = small_bpe_vocabulary();
    struct text_view tokens[SMALL_NUM_TOKENS];
    bool is_normalized[SMALL_NUM_TOKENS] = {false};

    memcpy(tokens, vocabulary.tokens, sizeof tokens);
    tokens[SMALL_TOOL_SET] = (struct text_view){"caf\u00e9", 5};
    vocabulary.tokens = tokens;
    vocabulary.is_nfc = true;
    AUTO_FREE(tokenizer) struct tokenizer *as_it_stands = tokenizer_of(vocabulary);

    /* U+0338 makes one letter of itself and ">". */
    expect_tokens(as_it_stands, "<s>\u0338", true, SMALL_BOS, 0xcc, 0xb8);
    expect_tokens(as_it_stands, "<tool>\u0338e\u0301", false, SMALL_TOOL, 0xcc, 0xb8, 0xc3, 0xa9);
    expect_tokens(as_it_stands, "<s>\u0338", false, '<', 's', 0xe2, 0x89, 0xaf);
    expect_tokens(as_it_stands, "cafe\u0301", false, 'c', 'a', 'f', 0xc3, 0xa9);

    is_normalized[SMALL_TOOL] = is_normalized[SMALL_TOOL_SET] = true;
    vocabulary.is_normalized = is_normalized;
    AUTO_FREE(tokenizer) struct tokenizer *composed = tokenizer_of(vocabulary);

    expect_tokens(composed, "<tool>\u0338", false, '<', 't', 'o', 'o', 'l', 0xe2, 0x89, 0xaf);
    expect_tokens(composed, "<s>\u0338cafe\u0301<tool>", true, SMALL_BOS, 0xcc, 0xb8, SMALL_TOOL_SET,
                  SMALL_TOOL);

    tokens[SMALL_TOOL_SET] = (struct text_view){"cafe\u0301", 6};
    AUTO_FREE(tokenizer) struct tokenizer *stored_otherwise = tokenizer_of(vocabulary);

    expect_tokens(stored_otherwise, "caf\u00e9", false, SMALL_TOOL_SET);
}

static void decode_shows_control_tokens_only_when_asked(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());
    const token_id ids[] = {SMALL_BOS, SMALL_SPACE_HELLO, SMALL_TOOL, SMALL_EOS, -1, 100000};
    AUTO_CLOSE(bytes) struct bytes hidden = {0}, shown = {0};

    tokenizer_decode(t, ids, COUNT_OF(ids), false, &hidden);
    tokenizer_decode(t, ids, COUNT_OF(ids), true, &shown);
    assert_string_equal(bytes_text(&hidden), " hello<tool>");
    assert_string_equal(bytes_text(&shown), "<s> hello<tool></s>");
}

static void decode_replaces_each_hopeless_part_once(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());
    const token_id ids[] = {'a', 0xe2, 0x82, 'b', 0xff, 0xff, 0xed, 0xa0, 0xe2};
    AUTO_CLOSE(bytes) struct bytes text = {0};

    tokenizer_decode(t, ids, COUNT_OF(ids), false, &text);
    assert_string_equal(bytes_text(&text), "a\ufffdb\ufffd\ufffd\ufffd\ufffd\ufffd");
}

static void a_nul_byte_in_the_middle_of_text_survives(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());
    AUTO_CLOSE(token_list) struct token_list list = {0};
    AUTO_CLOSE(bytes) struct bytes text = {0};

    expect_ok(tokenizer_encode(t, "a\0b", 3, true, false, &list));
    expect_list(&list, (const token_id[]){'a', 0, 'b'}, 3);
    tokenizer_decode(t, list.ids, list.count, false, &text);
    assert_int_equal(text.size, 3);
    assert_memory_equal(text.data, "a\0b", 3);
}

/* ---- pre-tokenisers ----------------------------------------------------------------------- */

/* With no merges but those of digits and spaces, tokens show where a text was cut. */
static void expect_pieces(const char *pre, const char *text, const char *const *pieces, int count)
{
    /* "1 2" and so on are merges, so a number is one token exactly when it is one piece. */
    static const struct text_view merges[] = {
        {"1 2", 3},  {"12 3", 4},       {"123 4", 5},      {"a b", 3}, {"\xc4\xa0 \xc4\xa0", 5},
        {"ab c", 4}, {". \xc4\x8a", 4}, {"\xc4\xb0 .", 4},
    };
    static const char *const extra[] = {"12",  "123",       "1234",     "ab", "\xc4\xa0\xc4\xa0",
                                        "abc", ".\xc4\x8a", "\xc4\xb0."};
    struct text_view tokens[256 + COUNT_OF(extra)];
    struct vocabulary vocabulary = small_bpe_vocabulary();
    AUTO_CLOSE(token_list) struct token_list list = {0};

    memcpy(tokens, vocabulary.tokens, 256 * sizeof *tokens);
    for (size_t i = 0; i < COUNT_OF(extra); i++)
        tokens[256 + i] = (struct text_view){extra[i], strlen(extra[i])};
    vocabulary.num_tokens = COUNT_OF(tokens);
    vocabulary.tokens = tokens;
    vocabulary.types = NULL;
    vocabulary.merges = merges;
    vocabulary.num_merges = COUNT_OF(merges);
    vocabulary.bos_id = vocabulary.eos_id = -1;
    snprintf(vocabulary.pre, sizeof vocabulary.pre, "%s", pre);
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);

    expect_ok(tokenizer_encode(t, text, strlen(text), false, false, &list));
    assert_int_equal(list.count, count);
    for (int i = 0; i < count; i++) {
        AUTO_CLOSE(bytes) struct bytes piece = {0};

        tokenizer_piece(t, list.ids[i], false, &piece);
        assert_string_equal(bytes_text(&piece), pieces[i]);
    }
}

#define expect_cut(pre, text, ...)                                                                 \
    do {                                                                                           \
        const char *const pieces_[] = {__VA_ARGS__};                                               \
        expect_pieces((pre), (text), pieces_, COUNT_OF(pieces_));                                  \
    } while (0)

static void each_pre_tokeniser_cuts_in_its_way(void **state)
{
    (void)state;
    expect_cut("gpt-2", "1234", "1234");
    expect_cut("smollm", "1234", "1", "2", "3", "4");
    expect_cut("llama-bpe", "1234", "123", "4");
    expect_cut("qwen2", "1234", "1", "2", "3", "4");
    expect_cut("default", "1234", "123", "4");
    expect_cut("gpt-4o", "1234", "123", "4");
    expect_cut("deepseek-v3", "1234", "123", "4");
    expect_cut("gpt-2", ".\n", ".", "\n");
    expect_cut("llama-bpe", ".\n", ".\n");
    expect_cut("tekken", "abAbc", "ab", "A", "b", "c");
    expect_cut("gpt-2", "   ab", "  ", " ", "ab"); /* the last space goes with the word */
    expect_cut("gpt-2", "ab  ", "ab", "  ");
}

static void a_separator_that_unicode_took_back_is_no_space(void **state)
{
    (void)state;
    /* U+180E: a format character since Unicode 6.3, though PCRE2's \s has it. The merge of its last
     * byte and "." shows that both are in one piece. */
    expect_cut("gpt-2", "\xe1\xa0\x8e.\n", "\xe1", "\xa0", "\x8e.", "\n");
}

/* ---- refusals ----------------------------------------------------------------------------- */

static void text_that_is_not_utf8_is_refused_and_nothing_is_added(void **state)
{
    (void)state;
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(small_bpe_vocabulary());
    AUTO_CLOSE(token_list) struct token_list list = {0};

    token_list_add(&list, 7);
    expect_fails(tokenizer_encode(t, "ok \xff", 4, false, true, &list), ERR_INVALID,
                 "not UTF-8 at byte 3 (0xff)");
    expect_fails(tokenizer_encode(t, "\xe2\x82", 2, false, true, &list), ERR_INVALID, "at byte 0");
    expect_fails(tokenizer_encode(t, "\xed\xa0\x80", 3, false, true, &list), ERR_INVALID, "byte 0");
    assert_int_equal(list.count, 1);
}

static void expect_refused(struct vocabulary vocabulary, enum status status, const char *part)
{
    struct tokenizer *tokenizer = NULL;

    expect_fails(tokenizer_new(&vocabulary, &tokenizer), status, part);
    assert_null(tokenizer);
}

static void vocabularies_that_do_not_hold_together_are_refused(void **state)
{
    (void)state;
    const struct text_view no_space = {"hello", 5}, stranger = {"x yz", 4};
    struct vocabulary v;
    int32_t types[SMALL_NUM_TOKENS] = {0};

    v = small_bpe_vocabulary(), strcpy(v.model, "bert");
    expect_refused(v, ERR_UNSUPPORTED, "tokenizer model 'bert'");
    v = small_bpe_vocabulary(), strcpy(v.pre, "unheard-of");
    expect_refused(v, ERR_UNSUPPORTED,
                   "pre-tokeniser 'unheard-of' is not known; known are default");
    v = small_bpe_vocabulary(), v.merges = &no_space, v.num_merges = 1;
    expect_refused(v, ERR_CORRUPT, "merge 0 has no space");
    v = small_bpe_vocabulary(), v.merges = &stranger, v.num_merges = 1;
    expect_refused(v, ERR_CORRUPT, "'x yz', names a token that the vocabulary lacks");
    v = small_bpe_vocabulary(), v.types = types;
    expect_refused(v, ERR_CORRUPT, "token 0 is of type 0");
    v = small_bpe_vocabulary(), v.bos_id = SMALL_NUM_TOKENS;
    expect_refused(v, ERR_CORRUPT, "the bos token is 265, the vocabulary has 265 tokens");
    v = small_bpe_vocabulary(), v.num_tokens = 0;
    expect_refused(v, ERR_CORRUPT, "a vocabulary of 0 tokens");
    v = small_spm_vocabulary(), v.scores = NULL;
    expect_refused(v, ERR_CORRUPT, "without scores");
}

/* ---- time --------------------------------------------------------------------------------- */

static double encode_ms(const struct tokenizer *tokenizer, const char *unit, size_t bytes)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    AUTO_CLOSE(token_list) struct token_list list = {0};

    while (text.size < bytes)
        bytes_append(&text, unit, strlen(unit));

    int64_t start_ns = clock_now_ns();

    expect_ok(tokenizer_encode(tokenizer, (const char *)text.data, text.size, true, false, &list));
    return clock_ms(clock_now_ns() - start_ns);
}

static void hostile_texts_take_no_quadratic_time(void **state)
{
    (void)state;
    static const char *const units[] = {"l", " ",     "\n",   " l",      "7",
                                        "<", "<tool", "hell", "\xcc\x81"};
    AUTO_FREE(tokenizer) struct tokenizer *bpe = tokenizer_of(small_bpe_vocabulary());
    AUTO_FREE(tokenizer) struct tokenizer *spm = tokenizer_of(small_spm_vocabulary());

    /* Some 0.05 s each; 10^11 steps would be minutes. The bound leaves room for a sanitizer on a
     * busy machine. */
    for (size_t i = 0; i < COUNT_OF(units); i++) {
        assert_true(encode_ms(bpe, units[i], 1 << 19) < 20000);
        assert_true(encode_ms(spm, units[i], 1 << 19) < 20000);
    }
}

/* ---- a trained vocabulary ----------------------------------------------------------------- */

static int32_t read_views(const json_t *strings, struct text_view *views, size_t capacity)
{
    size_t n = json_array_size(strings);

    assert_in_range(n, 1, capacity);
    for (size_t i = 0; i < n; i++) {
        const json_t *string = json_array_get(strings, i);

        views[i] = (struct text_view){json_string_value(string), json_string_length(string)};
    }
    return (int32_t)n;
}

static void expect_case(const struct tokenizer *tokenizer, const json_t *row)
{
    AUTO_CLOSE(token_list) struct token_list list = {0};
    const char *text = json_string_value(json_object_get(row, "text"));
    const json_t *ids = json_object_get(row, "ids");

    expect_ok(tokenizer_encode(tokenizer, text, strlen(text), true, false, &list));
    assert_int_equal(list.count, json_array_size(ids));
    for (int32_t i = 0; i < list.count; i++)
        assert_int_equal(list.ids[i], json_integer_value(json_array_get(ids, (size_t)i)));
}

static void a_trained_vocabulary_encodes_as_hugging_face_does(void **state)
{
    (void)state;
    AUTO_MEM char *path = mem_printf("%s/tokenizer/small.json", getenv("TANDEM_TEST_DATA"));
    json_t *file = json_load_file(path, 0, NULL);
    const json_t *cases = json_object_get(file, "cases");
    struct text_view tokens[512], merges[512];
    struct vocabulary vocabulary = {
        .model = "gpt2",
        .pre = "gpt-2",
        .tokens = tokens,
        .merges = merges,
        .bos_id = -1,
        .eos_id = -1,
        .eot_id = -1,
        .unknown_id = -1,
        .padding_id = -1,
    };

    vocabulary.num_tokens = read_views(json_object_get(file, "tokens"), tokens, COUNT_OF(tokens));
    vocabulary.num_merges = read_views(json_object_get(file, "merges"), merges, COUNT_OF(merges));
    AUTO_FREE(tokenizer) struct tokenizer *t = tokenizer_of(vocabulary);

    assert_int_equal(json_array_size(cases), 2);
    for (size_t i = 0; i < 2; i++)
        expect_case(t, json_array_get(cases, i));
    json_decref(file);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(merges_go_by_rank),
    cmocka_unit_test(bytes_go_where_no_merge_does),
    cmocka_unit_test(a_byte_that_the_vocabulary_lacks_is_dropped),
    cmocka_unit_test(scores_decide_and_the_leftmost_of_equals_goes_first),
    cmocka_unit_test(a_word_may_reach_over_a_space),
    cmocka_unit_test(a_character_that_is_no_token_falls_back_to_bytes),
    cmocka_unit_test(byte_and_control_tokens_are_never_made_of_text),
    cmocka_unit_test(a_space_is_put_before_the_text_where_the_model_asks),
    cmocka_unit_test(a_space_may_be_put_at_the_start_alone),
    cmocka_unit_test(control_tokens_are_recognised_only_when_asked),
    cmocka_unit_test(user_defined_tokens_are_always_recognised_longest_first),
    cmocka_unit_test(bos_and_eos_are_added_where_the_model_asks),
    cmocka_unit_test(stop_ids_are_eos_and_eot_once_each),
    cmocka_unit_test(more_than_two_tokens_may_end_an_answer),
    cmocka_unit_test(texts_are_composed_where_the_model_asks),
    cmocka_unit_test(a_mark_behind_a_special_token_leaves_it_whole),
    cmocka_unit_test(decode_shows_control_tokens_only_when_asked),
    cmocka_unit_test(decode_replaces_each_hopeless_part_once),
    cmocka_unit_test(a_nul_byte_in_the_middle_of_text_survives),
    cmocka_unit_test(each_pre_tokeniser_cuts_in_its_way),
    cmocka_unit_test(a_separator_that_unicode_took_back_is_no_space),
    cmocka_unit_test(text_that_is_not_utf8_is_refused_and_nothing_is_added),
    cmocka_unit_test(vocabularies_that_do_not_hold_together_are_refused),
    cmocka_unit_test(a_trained_vocabulary_encodes_as_hugging_face_does),
    cmocka_unit_test(hostile_texts_take_no_quadratic_time),
};
TEST_MAIN(tests)
