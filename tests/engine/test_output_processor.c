#include "tests/support/expect.h"

#include "engine/front/output_processor.h"
#include "tests/support/small_vocabulary.h"

static struct tokenizer *tokenizer;

static int make_tokenizer(void **state)
{
    struct vocabulary vocabulary = small_bpe_vocabulary();

    (void)state;
    return tokenizer_new(&vocabulary, &tokenizer) == OK ? 0 : -1;
}

static int free_tokenizer(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

static void init(struct output_processor *output, const char *stop, bool include_stop)
{
    output_processor_init(output, &(struct output_options){
                                      .tokenizer = tokenizer,
                                      .text = {.stop = &stop,
                                               .num_stop = stop ? 1 : 0,
                                               .include_stop = include_stop},
                                      .num_prompt_tokens = 3,
                                  });
}

/* push(&output, finish, stop_token, ids…) */
#define push(output, finish_, stop_token_, ...)                                                    \
    ({                                                                                             \
        const token_id ids_[] = {__VA_ARGS__};                                                     \
        output_processor_push((output), &(struct engine_event){                                    \
                                            .id = 1,                                               \
                                            .num_tokens = COUNT_OF(ids_),                          \
                                            .tokens = ids_,                                        \
                                            .finish = (finish_),                                   \
                                            .stop_token = (stop_token_),                           \
                                        });                                                        \
    })

#define expect_text(output, text_) assert_string_equal(bytes_text(&(output)->text), (text_))

static void text_and_tokens_pile_up(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;

    init(&output, NULL, false);
    assert_false(push(&output, FINISH_NONE, -1, SMALL_HELLO));
    assert_false(push(&output, FINISH_LENGTH, -1, SMALL_SPACE_HELLO, '!'));
    expect_text(&output, "hello hello!");
    assert_int_equal(output.num_tokens, 3);
    assert_int_equal(output.tokens[1], SMALL_SPACE_HELLO);
    assert_int_equal(output.finish, FINISH_LENGTH);
    assert_int_equal(output.num_prompt_tokens, 3);
}

static void half_a_character_waits_for_the_other_half(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;

    init(&output, NULL, false);
    assert_false(push(&output, FINISH_NONE, -1, 0xc3));
    expect_text(&output, "");
    assert_false(push(&output, FINISH_NONE, -1, 0xa9));
    expect_text(&output, "é");
    assert_false(push(&output, FINISH_LENGTH, -1, 0xc3)); /* never comes: U+FFFD */
    expect_text(&output, "é\xef\xbf\xbd");
}

static void eos_is_a_token_and_no_text(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;

    init(&output, NULL, false);
    assert_false(push(&output, FINISH_STOP, SMALL_EOS, SMALL_HELLO, SMALL_EOS));
    expect_text(&output, "hello");
    assert_int_equal(output.num_tokens, 2);
    assert_int_equal(output.tokens[1], SMALL_EOS);
    assert_int_equal(output.stop_token, -1); /* vLLM's stop_reason of EOS is null */
}

static void a_stop_token_shows_only_if_asked_for(void **state)
{
    (void)state;
    for (int include = 0; include <= 1; include++) {
        AUTO_CLOSE(output_processor) struct output_processor output;

        init(&output, NULL, include);
        assert_false(push(&output, FINISH_STOP, '!', SMALL_HELLO, '!'));
        expect_text(&output, include ? "hello!" : "hello");
        assert_int_equal(output.stop_token, '!');
    }
}

static void a_stop_string_ends_the_sequence_once(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;

    init(&output, "b!", false);
    assert_false(push(&output, FINISH_NONE, -1, 'a', 'b'));
    expect_text(&output, "a"); /* the b may belong to the stop string */
    assert_true(push(&output, FINISH_NONE, -1, '!', 'c'));
    expect_text(&output, "a");
    assert_int_equal(output.finish, FINISH_STOP);
    assert_string_equal(output.stop_string, "b!");
    assert_int_equal(output.num_tokens, 3); /* with the one that completed it, not the next */

    assert_false(push(&output, FINISH_ABORT, -1, 'd')); /* the engine obeys */
    assert_int_equal(output.finish, FINISH_STOP);
    assert_int_equal(output.num_tokens, 3);
}

static void what_cuts_a_grammar_short_is_no_stop(void **state)
{
    struct output_options options = {
        .tokenizer = tokenizer,
        .text = {.stop = &(const char *){"!"}, .num_stop = 1},
        .has_grammar = true,
    };
    struct engine_event whole = {
        .num_tokens = 1,
        .tokens = &(token_id){SMALL_HELLO},
        .finish = FINISH_STOP,
        .stop_token = SMALL_HELLO,
        .grammar_is_complete = true,
    };

    (void)state;
    for (int i = 0; i < 3; i++) {
        AUTO_CLOSE(output_processor) struct output_processor output;

        output_processor_init(&output, &options);
        if (i == 0) { /* the grammar's own end */
            assert_false(output_processor_push(&output, &whole));
            assert_int_equal(output.finish, FINISH_STOP);
            assert_int_equal(output.stop_token, -1);
        } else if (i == 1) { /* one of the stop_token_ids */
            assert_false(push(&output, FINISH_STOP, SMALL_HELLO, SMALL_HELLO));
            assert_int_equal(output.finish, FINISH_LENGTH);
            assert_int_equal(output.stop_token, SMALL_HELLO);
        } else {
            assert_true(push(&output, FINISH_NONE, -1, SMALL_HELLO, '!'));
            assert_int_equal(output.finish, FINISH_LENGTH);
            assert_string_equal(output.stop_string, "!");
        }
    }
}

static void a_stop_string_in_the_last_step_needs_no_abort(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;

    init(&output, "!", true);
    assert_false(push(&output, FINISH_LENGTH, -1, 'a', '!'));
    assert_int_equal(output.finish, FINISH_STOP);
    expect_text(&output, "a!");
}

static void what_was_held_back_comes_out_at_the_end(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;

    init(&output, "b!", false);
    assert_false(push(&output, FINISH_NONE, -1, 'a', 'b'));
    assert_false(push(&output, FINISH_ABORT, -1, 'b'));
    expect_text(&output, "abb");
}

static void logprobs_are_copied(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;
    struct top_logprob top[2] = {{'a', -0.25f}, {'b', -1.5f}};
    struct token_logprobs of_token = {.logprob = -1.5f, .rank = 2, .num_top = 2, .top = top};
    struct engine_event event = {
        .num_tokens = 1, .tokens = (token_id[]){'b'}, .logprobs = &of_token, .stop_token = -1};

    init(&output, NULL, false);
    for (int i = 0; i < 40; i++)
        assert_false(output_processor_push(&output, &event));
    top[0] = top[1] = (struct top_logprob){0};
    assert_int_equal(output.num_tokens, 40);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(output.logprobs[i].top[0].token, 'a');
        assert_true(output.logprobs[i].top[1].logprob == -1.5f);
        assert_int_equal(output.logprobs[i].rank, 2);
    }
}

static void times_are_the_events(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;
    struct engine_event event = {.tokens = (token_id[]){'b'}, .stop_token = -1, .queued_ns = 5,
                                 .scheduled_ns = 6, .now_ns = 7};

    init(&output, NULL, false);
    assert_false(output_processor_push(&output, &event)); /* a chunk of the prompt: no token */
    assert_int_equal(output.first_token_ns, 0);
    event.num_tokens = 1;
    for (event.now_ns = 10; event.now_ns <= 12; event.now_ns++)
        assert_false(output_processor_push(&output, &event));
    assert_int_equal(output.queued_ns, 5);
    assert_int_equal(output.scheduled_ns, 6);
    assert_int_equal(output.first_token_ns, 10);
    assert_int_equal(output.previous_ns, 11);
    assert_int_equal(output.latest_token_ns, 12);
}

static void a_failure_keeps_its_sentence(void **state)
{
    (void)state;
    AUTO_CLOSE(output_processor) struct output_processor output;
    char words[] = "rank 1 died";
    struct engine_event event = {
        .finish = FINISH_ERROR, .error = ERR_CLOSED, .error_text = words, .stop_token = -1};

    init(&output, NULL, false);
    assert_false(output_processor_push(&output, &event));
    words[0] = 'X';
    assert_int_equal(output.finish, FINISH_ERROR);
    assert_int_equal(output.error, ERR_CLOSED);
    assert_string_equal(output.error_text, "rank 1 died");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(text_and_tokens_pile_up),
    cmocka_unit_test(half_a_character_waits_for_the_other_half),
    cmocka_unit_test(eos_is_a_token_and_no_text),
    cmocka_unit_test(a_stop_token_shows_only_if_asked_for),
    cmocka_unit_test(a_stop_string_ends_the_sequence_once),
    cmocka_unit_test(what_cuts_a_grammar_short_is_no_stop),
    cmocka_unit_test(a_stop_string_in_the_last_step_needs_no_abort),
    cmocka_unit_test(what_was_held_back_comes_out_at_the_end),
    cmocka_unit_test(logprobs_are_copied),
    cmocka_unit_test(times_are_the_events),
    cmocka_unit_test(a_failure_keeps_its_sentence),
};

int main(void)
{
    return cmocka_run_group_tests(tests, make_tokenizer, free_tokenizer);
}
