/* Other weights with other words are refused, whatever it is that differs. */
#include "tests/support/expect.h"

#include "engine/core/vocabulary_check.h"
#include "tests/support/small_vocabulary.h"
#include "tests/support/tiny_model.h"

#include <unistd.h>

static void expect_refusal(const struct vocabulary *running, const struct vocabulary *other, const char *sentence)
{
    if (vocabulary_check_same(running, other) != ERR_MISMATCH)
        fail_msg("not refused: %s", sentence);
    assert_string_equal(fail_text(), sentence);
}

#define DIFFERS(change, sentence)                                                                              \
    do {                                                                                                       \
        other = running;                                                                                       \
        change;                                                                                                \
        expect_refusal(&running, &other, sentence);                                                            \
    } while (0)

static void all_that_makes_texts_into_ids_is_compared(void **state)
{
    struct vocabulary running = small_bpe_vocabulary(), other;

    (void)state;
    running.more_eos_ids[running.num_more_eos_ids++] = SMALL_TOOL;
    expect_ok(vocabulary_check_same(&running, &running));
    DIFFERS(strcpy(other.model, "llama"), "the tokenizer is gpt2 gpt-2 here, llama gpt-2 there");
    DIFFERS(strcpy(other.pre, "smollm"), "the tokenizer is gpt2 gpt-2 here, gpt2 smollm there");
    DIFFERS(other.num_tokens--, "num_tokens is 265 here, 264 there");
    DIFFERS(other.num_merges--, "num_merges is 5 here, 4 there");
    DIFFERS(other.bos_id = -1, "bos_id is 261 here, -1 there");
    DIFFERS(other.eos_id = SMALL_TOOL, "eos_id is 262 here, 263 there");
    DIFFERS(other.eot_id = 3, "eot_id is -1 here, 3 there");
    DIFFERS(other.unknown_id = 3, "unknown_id is -1 here, 3 there");
    DIFFERS(other.padding_id = 3, "padding_id is -1 here, 3 there");
    DIFFERS(other.num_more_eos_ids = 0, "num_more_eos_ids is 1 here, 0 there");
    DIFFERS(other.more_eos_ids[0] = 7, "token 263 ends an answer too here, token 7 there");
    DIFFERS(other.add_bos = !running.add_bos,
            running.add_bos ? "add_bos is true here, false there" : "add_bos is false here, true there");
    DIFFERS(other.add_eos = !running.add_eos,
            running.add_eos ? "add_eos is true here, false there" : "add_eos is false here, true there");
    DIFFERS(other.add_space_prefix = true, "add_space_prefix is false here, true there");
    DIFFERS(other.space_prefix_is_once = true, "space_prefix_is_once is false here, true there");
    DIFFERS(other.is_nfc = true, "is_nfc is false here, true there");
}

static void words_types_and_scores_are_compared_one_by_one(void **state)
{
    struct vocabulary running = small_bpe_vocabulary(), other;
    struct text_view tokens[SMALL_NUM_TOKENS], merges[5];
    int32_t types[SMALL_NUM_TOKENS];
    bool is_normalized[SMALL_NUM_TOKENS] = {[SMALL_TOOL] = true};
    float scores[SMALL_NUM_TOKENS] = {0}, other_scores[SMALL_NUM_TOKENS] = {[SMALL_HELLO] = -1};

    (void)state;
    memcpy(tokens, running.tokens, sizeof tokens);
    memcpy(merges, running.merges, sizeof merges);
    memcpy(types, running.types, sizeof types);
    tokens[SMALL_HELLO] = (struct text_view){"help", 4};
    merges[1] = (struct text_view){"e l", 3};
    types[SMALL_TOOL] = TOKEN_CONTROL;
    DIFFERS(other.tokens = tokens, "token 259 is 'hello' here, 'help' there");
    DIFFERS(other.merges = merges, "merge 1 is 'l l' here, 'e l' there");
    DIFFERS(other.types = types, "token 263 is of type 4 here, 3 there");
    DIFFERS(other.is_normalized = is_normalized,
            "token 263 is looked for in the text as it stands here, in the composed text there");
    DIFFERS(other.scores = scores, "tokens have no scores here, scores there");
    running.scores = scores;
    DIFFERS(other.scores = NULL, "tokens have scores here, none there");
    DIFFERS(other.scores = other_scores, "the score of token 259 is 0 here, -1 there");
}

static void no_types_are_normal_ones(void **state)
{
    struct vocabulary running = small_bpe_vocabulary(), other = running;
    int32_t types[SMALL_NUM_TOKENS];

    (void)state;
    for (int32_t i = 0; i < SMALL_NUM_TOKENS; i++)
        types[i] = TOKEN_NORMAL;
    running.types = NULL;
    other.types = types;
    expect_ok(vocabulary_check_same(&running, &other));
}

static enum status check(const struct vocabulary *running, const char *path)
{
    struct vocabulary_check *check;

    expect_ok(vocabulary_check_start(running, path, &check));
    while (!vocabulary_check_is_over(check))
        usleep(1000);
    return vocabulary_check_end(check);
}

static void the_file_is_opened_on_a_thread_and_named(void **state)
{
    struct vocabulary running = small_bpe_vocabulary();
    AUTO_FREE(model_file) struct model_file *file = NULL;
    AUTO_MEM char *path = mem_printf("/tmp/tandem-test-vocabulary-%d.gguf", (int)getpid());
    AUTO_MEM char *sentence = mem_printf("%s: the tokenizer is gpt2 gpt-2 here, gpt2 smollm there", path);
    struct vocabulary_check *unseen;

    (void)state;
    tiny_model_write(path, NULL);
    expect_ok(model_file_open(path, &file));
    expect_ok(check(model_file_vocabulary(file), path));
    assert_int_equal(check(&running, path), ERR_MISMATCH);
    assert_string_equal(fail_text(), sentence);
    expect_ok(vocabulary_check_start(&running, path, &unseen));
    assert_int_equal(vocabulary_check_end(unseen), ERR_MISMATCH); /* whoever gives up waits for it */
    unlink(path);
    assert_int_equal(check(&running, path), ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_that_makes_texts_into_ids_is_compared),
        cmocka_unit_test(words_types_and_scores_are_compared_one_by_one),
        cmocka_unit_test(no_types_are_normal_ones),
        cmocka_unit_test(the_file_is_opened_on_a_thread_and_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
