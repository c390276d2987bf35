#include "tests/support/expect.h"

#include "engine/text/detokenizer.h"
#include "tests/support/small_vocabulary.h"

struct stream {
    struct tokenizer *tokenizer;
    struct detokenizer *detokenizer;
    struct bytes out;
};

static struct stream open_with(const struct detokenizer_options *options)
{
    struct vocabulary vocabulary = small_bpe_vocabulary();
    struct stream stream = {0};

    expect_ok(tokenizer_new(&vocabulary, &stream.tokenizer));
    stream.detokenizer = detokenizer_new(stream.tokenizer, options);
    return stream;
}

static struct stream stream_open(const char *const *stop, int32_t num_stop, bool include_stop)
{
    return open_with(&(struct detokenizer_options){stop, num_stop, include_stop});
}

static void stream_close(struct stream *stream)
{
    detokenizer_free(stream->detokenizer);
    tokenizer_free(stream->tokenizer);
    bytes_close(&stream->out);
}

/* Pushes one token; what came out since the last call must be `text`. */
static void expect_out(struct stream *stream, token_id id, int32_t stopped_by, const char *text)
{
    stream->out.size = 0;
    assert_int_equal(detokenizer_push(stream->detokenizer, id, &stream->out), stopped_by);
    assert_string_equal(bytes_text(&stream->out), text);
}

static void expect_rest(struct stream *stream, const char *text)
{
    stream->out.size = 0;
    detokenizer_finish(stream->detokenizer, &stream->out);
    assert_string_equal(bytes_text(&stream->out), text);
}

static void a_character_comes_out_whole(void **state)
{
    (void)state;
    AUTO_CLOSE(stream) struct stream s = stream_open(NULL, 0, false);

    expect_out(&s, 0xf0, -1, "");
    expect_out(&s, 0x9f, -1, "");
    expect_out(&s, 0x98, -1, "");
    expect_out(&s, 0x80, -1, "\xf0\x9f\x98\x80");
    expect_out(&s, SMALL_SPACE_HELLO, -1, " hello");
    expect_rest(&s, "");
}

static void hopeless_bytes_become_one_replacement_as_soon_as_they_are_known(void **state)
{
    (void)state;
    AUTO_CLOSE(stream) struct stream s = stream_open(NULL, 0, false);

    expect_out(&s, 0x80, -1, "\ufffd");
    expect_out(&s, 0xe2, -1, "");
    expect_out(&s, 0x82, -1, "");
    expect_out(&s, 'a', -1, "\ufffda");
    expect_out(&s, 0xe2, -1, "");
    expect_out(&s, 0xc3, -1, "\ufffd");
    expect_rest(&s, "\ufffd");
}

static void control_tokens_are_silent_and_ids_out_of_range_too(void **state)
{
    (void)state;
    AUTO_CLOSE(stream) struct stream s = stream_open(NULL, 0, false);

    expect_out(&s, SMALL_EOS, -1, "");
    expect_out(&s, -5, -1, "");
    expect_out(&s, 1 << 30, -1, "");
    expect_out(&s, SMALL_TOOL, -1, "<tool>");
}

static void a_stop_string_across_tokens_never_shows(void **state)
{
    (void)state;
    static const char *const stop[] = {"\n\nUser:"};
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 1, false);

    expect_out(&s, 'a', -1, "a");
    expect_out(&s, '\n', -1, "");
    expect_out(&s, '\n', -1, "");
    expect_out(&s, '\n', -1, "\n"); /* the first one can no longer belong to it */
    expect_out(&s, 'U', -1, "");
    expect_out(&s, 's', -1, "");
    expect_out(&s, 'e', -1, "");
    expect_out(&s, 'r', -1, "");
    expect_out(&s, ':', 0, "");
    expect_out(&s, 'x', -1, ""); /* nothing after a stop */
    expect_rest(&s, "");
}

static void held_text_comes_out_when_it_was_no_stop(void **state)
{
    (void)state;
    static const char *const stop[] = {"hello!"};
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 1, false);

    expect_out(&s, SMALL_SPACE_HELLO, -1, " ");
    expect_out(&s, SMALL_SPACE_HELLO, -1, "hello ");
    expect_out(&s, '?', -1, "hello?");
    expect_out(&s, SMALL_HELLO, -1, "");
    expect_rest(&s, "hello");
}

static void a_stop_inside_a_token_cuts_it(void **state)
{
    (void)state;
    static const char *const stop[] = {"zzz", "el"};
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 2, false);

    expect_out(&s, SMALL_SPACE_HELLO, 1, " h");
}

static void the_stop_can_be_part_of_the_text(void **state)
{
    (void)state;
    static const char *const stop[] = {"el"};
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 1, true);

    expect_out(&s, SMALL_SPACE_HELLO, 0, " hel");
}

static void of_stops_that_end_together_the_first_listed_wins(void **state)
{
    (void)state;
    static const char *const stop[] = {"lo", "hello"};
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 2, false);

    expect_out(&s, SMALL_SPACE_HELLO, 0, " hel");
}

static void a_stop_is_found_behind_a_false_start(void **state)
{
    (void)state;
    static const char *const stop[] = {"aab"};
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 1, false);

    expect_out(&s, 'a', -1, "");
    expect_out(&s, 'a', -1, "");
    expect_out(&s, 'a', -1, "a");
    expect_out(&s, 'b', 0, "");
}

static void a_stop_that_shares_first_bytes_holds_whole_characters(void **state)
{
    (void)state;
    static const char *const stop[] = {"\xc3\xa9!"}; /* é! */
    AUTO_CLOSE(stream) struct stream s = stream_open(stop, 1, false);

    expect_out(&s, 0xc3, -1, "");
    expect_out(&s, 0xa8, -1, "\xc3\xa8"); /* è begins with the same byte */
    expect_out(&s, 0xc3, -1, "");
    expect_out(&s, 0xa9, -1, "");
    expect_out(&s, '?', -1, "\xc3\xa9?");
}

/* Pieces in any order add up to what decode says of the whole. */
static void a_stop_before_min_tokens_is_passed_over(void **state)
{
    (void)state;
    const char *const stop[] = {"aba"};
    AUTO_CLOSE(stream) struct stream s = open_with(
        &(struct detokenizer_options){.stop = stop, .num_stop = 1, .min_tokens = 3});

    expect_out(&s, 'a', -1, "");
    expect_out(&s, 'b', -1, "");
    expect_out(&s, 'a', -1, "ab"); /* complete and too early; its last letter may begin another */
    expect_out(&s, 'b', -1, "");
    expect_out(&s, 'a', 0, "");
}

static void the_stream_is_what_decode_says(void **state)
{
    (void)state;
    AUTO_CLOSE(stream) struct stream s = stream_open(NULL, 0, false);
    AUTO_CLOSE(bytes) struct bytes whole = {0};
    token_id ids[5000];
    uint32_t random = 1;

    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        random = random * 1664525 + 1013904223;
        ids[i] = (token_id)((random >> 8) % SMALL_NUM_TOKENS);
        detokenizer_push(s.detokenizer, ids[i], &s.out);
    }
    detokenizer_finish(s.detokenizer, &s.out);
    tokenizer_decode(s.tokenizer, ids, COUNT_OF(ids), false, &whole);
    assert_int_equal(s.out.size, whole.size);
    assert_memory_equal(s.out.data, whole.data, whole.size);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_character_comes_out_whole),
    cmocka_unit_test(hopeless_bytes_become_one_replacement_as_soon_as_they_are_known),
    cmocka_unit_test(control_tokens_are_silent_and_ids_out_of_range_too),
    cmocka_unit_test(a_stop_string_across_tokens_never_shows),
    cmocka_unit_test(held_text_comes_out_when_it_was_no_stop),
    cmocka_unit_test(a_stop_inside_a_token_cuts_it),
    cmocka_unit_test(the_stop_can_be_part_of_the_text),
    cmocka_unit_test(of_stops_that_end_together_the_first_listed_wins),
    cmocka_unit_test(a_stop_is_found_behind_a_false_start),
    cmocka_unit_test(a_stop_that_shares_first_bytes_holds_whole_characters),
    cmocka_unit_test(a_stop_before_min_tokens_is_passed_over),
    cmocka_unit_test(the_stream_is_what_decode_says),
};
TEST_MAIN(tests)
