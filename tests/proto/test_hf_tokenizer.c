#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "proto/model/hf_tokenizer.h"

enum { VOCAB_SIZE = 300 };

static struct arena arena;

static struct text_view view(const char *text)
{
    return (struct text_view){text, text ? strlen(text) : 0};
}

static enum status read_words(const char *tokenizer, const char *config, const char *generation,
                              struct vocabulary *out)
{
    return hf_tokenizer_read(&(struct hf_tokenizer_files){.tokenizer = view(tokenizer),
                                                          .config = view(config),
                                                          .generation = view(generation)},
                             VOCAB_SIZE, &arena, out);
}

static struct vocabulary words_of(const char *tokenizer, const char *config, const char *generation)
{
    struct vocabulary vocabulary;

    expect_ok(read_words(tokenizer, config, generation, &vocabulary));
    return vocabulary;
}

static void expect_refusal(const char *tokenizer, enum status status, const char *sentence)
{
    struct vocabulary vocabulary;

    expect_fails(read_words(tokenizer, NULL, NULL, &vocabulary), status, sentence);
}

static void expect_token(const struct vocabulary *vocabulary, int32_t id, const char *text, enum token_type type)
{
    assert_int_equal(vocabulary->tokens[id].size, strlen(text));
    assert_memory_equal(vocabulary->tokens[id].data, text, strlen(text));
    assert_int_equal(vocabulary->types[id], type);
}

#define ADDED                                                                                                \
    "\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true},"                                     \
    "{\"id\":5,\"content\":\"</s>\",\"special\":true},{\"id\":6,\"content\":\"<tool>\",\"special\":false},"  \
    "{\"id\":300,\"content\":\"<image>\",\"special\":true}]"
#define BYTE_LEVEL(pattern) "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":" pattern "}"
#define VOCAB               "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"c\":3,\"<s>\":4,\"far\":301}"
#define MODEL(rest)                                                                                          \
    "\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":[[\"a\",\"b\"],[\"ab\",\"c\"]]" rest "}"
#define BPE(pre, rest)      "{" ADDED ",\"pre_tokenizer\":" pre "," MODEL("") rest "}"
#define GPT2(rest)          BPE(BYTE_LEVEL("true"), rest)

#define SPM_VOCAB                                                                                            \
    "\"vocab\":{\"<unk>\":0,\"<0x41>\":1,\"a\":2,\"b\":3,\"\u2581\":4,\"ab\":5,\"\u2581a\":6,\"\u2581ab\":7,\"bb\":8}"
#define SPM(normalizer, merges)                                                                              \
    "{\"normalizer\":" normalizer ",\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"                     \
    "\"unk_token\":\"<unk>\"," SPM_VOCAB ",\"merges\":" merges "}}"
#define TO_META_SPACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}"

/* ---- tokens ---------------------------------------------------------------------------------- */

static void tokens_have_their_ids_and_types(void **state)
{
    struct vocabulary vocabulary = words_of(GPT2(""), NULL, NULL);

    (void)state;
    assert_string_equal(vocabulary.model, "gpt2");
    assert_int_equal(vocabulary.num_tokens, VOCAB_SIZE);
    expect_token(&vocabulary, 2, "ab", TOKEN_NORMAL);
    expect_token(&vocabulary, 4, "<s>", TOKEN_CONTROL);
    expect_token(&vocabulary, 6, "<tool>", TOKEN_USER_DEFINED);
    expect_token(&vocabulary, 7, "", TOKEN_UNUSED);
    expect_token(&vocabulary, 299, "", TOKEN_UNUSED); /* and 300 and 301, which have no weights, are left out */
    assert_int_equal(vocabulary.num_merges, 2);
    assert_memory_equal(vocabulary.merges[1].data, "ab c", 4);
    assert_int_equal(vocabulary.merges[1].size, 4);
    assert_null(vocabulary.scores);
    assert_true(vocabulary.bos_id == -1 && vocabulary.eos_id == -1 && vocabulary.unknown_id == -1);
    assert_true(!vocabulary.add_bos && !vocabulary.add_eos && !vocabulary.is_nfc);
}

static void what_is_looked_for_in_form_c_is_seen(void **state)
{
    static const char file[] =
        "{\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"normalized\":false},"
        "{\"id\":5,\"content\":\"cafe\",\"normalized\":true}],\"normalizer\":%s,"
        "\"pre_tokenizer\":" BYTE_LEVEL("true") "," MODEL("") "}";
    AUTO_MEM char *nfc = mem_printf(file, "{\"type\":\"NFC\"}"), *none = mem_printf(file, "null");
    struct vocabulary vocabulary = words_of(nfc, NULL, NULL);

    (void)state;
    assert_true(vocabulary.is_nfc);
    assert_true(!vocabulary.is_normalized[0] && !vocabulary.is_normalized[4] && vocabulary.is_normalized[5]);
    vocabulary = words_of(none, NULL, NULL);
    assert_null(vocabulary.is_normalized); /* there is no other form */
}

static void ranks_of_merges_are_scores(void **state)
{
    static const char *const rows[] = {
        SPM(TO_META_SPACE, "[[\"a\",\"b\"],[\"\u2581\",\"a\"],[\"\u2581\",\"ab\"],[\"\u2581a\",\"b\"]]"),
        SPM(TO_META_SPACE, "[\"a b\",\"\u2581 a\",\"\u2581 ab\",\"\u2581a b\"]"),
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct vocabulary vocabulary = words_of(rows[i], NULL, NULL);

        assert_string_equal(vocabulary.model, "llama");
        assert_int_equal(vocabulary.num_merges, 0);
        assert_true(vocabulary.scores[5] == 0 && vocabulary.scores[6] == -1 && vocabulary.scores[7] == -2);
        assert_true(vocabulary.scores[2] == -4); /* none makes it */
        expect_token(&vocabulary, 0, "<unk>", TOKEN_UNKNOWN);
        expect_token(&vocabulary, 1, "<0x41>", TOKEN_BYTE);
        expect_token(&vocabulary, 4, "\u2581", TOKEN_NORMAL);
        expect_token(&vocabulary, 7, "\u2581ab", TOKEN_NORMAL);
        expect_token(&vocabulary, 8, "bb", TOKEN_UNUSED); /* b and b are no merge */
        assert_int_equal(vocabulary.unknown_id, 0);
        assert_false(vocabulary.add_space_prefix);
    }
}

static void a_space_before_the_text_is_seen(void **state)
{
    static const struct {
        const char *parts;
        bool is_added, is_once;
    } rows[] = {
        {"\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"},"
         TO_META_SPACE "]}", true},
        {"\"normalizer\":" TO_META_SPACE ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},"
         "\"behavior\":\"MergedWithPrevious\"}", false},
        {"\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\u2581\","
         "\"prepend_scheme\":\"first\",\"split\":false}", true, true},
        {"\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"never\",\"split\":false}", false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_MEM char *text = mem_printf("{%s,\"model\":{\"byte_fallback\":true," SPM_VOCAB ",\"merges\":[]}}",
                                         rows[i].parts);
        struct vocabulary vocabulary = words_of(text, NULL, NULL);

        assert_true(vocabulary.add_space_prefix == rows[i].is_added);
        assert_true(vocabulary.space_prefix_is_once == rows[i].is_once);
    }
}

/* ---- how a text is cut --------------------------------------------------------------------------- */

#define SPLIT_AS(regex, how)                                                                                 \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"},\"behavior\":" how "}"
#define ISOLATED     "\"Isolated\",\"invert\":false"
#define REMOVED      "\"Removed\",\"invert\":true"
#define CHAIN(parts) "{\"type\":\"Sequence\",\"pretokenizers\":[" parts "," BYTE_LEVEL("false") "]}"
#define SPLIT(regex) CHAIN(SPLIT_AS(regex, ISOLATED))
#define CL100K(digits)                                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}" digits                   \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define DEEPSEEK_V3(how, cr, lf)                                                                                 \
    CHAIN(SPLIT_AS("\\\\p{N}{1,3}", how) ","                                                                     \
          SPLIT_AS("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", ISOLATED) ","                                   \
          SPLIT_AS("[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+"                           \
                   "|[^" cr lf "\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[" cr lf "]*" \
                   "|\\\\s*[" cr lf "]+|\\\\s+(?!\\\\S)|\\\\s+", ISOLATED))

static void known_chains_have_a_name(void **state)
{
    static const struct {
        const char *pre_tokenizer, *more, *pre;
    } rows[] = {
        {BYTE_LEVEL("true"), "", "gpt-2"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL("true") "]}", "", "gpt-2"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},"
         BYTE_LEVEL("true") "]}", "", "smollm"},
        {SPLIT(CL100K("{1,3}")), ",\"ignore_merges\":true", "llama-bpe"},
        {SPLIT(CL100K("{1,3}")), "", "dbrx"},
        {SPLIT(CL100K("")), "", "qwen2"},
        {CHAIN(SPLIT_AS(CL100K(""), REMOVED)), "", "qwen2"},
        {DEEPSEEK_V3(ISOLATED, "\\r", "\\n"), "", "deepseek-v3"}, /* the two characters */
        {DEEPSEEK_V3(ISOLATED, "\\\\r", "\\\\n"), "", "deepseek-v3"}, /* their escapes */
    };
    static const struct {
        const char *pre_tokenizer, *more, *sentence;
    } unknown[] = {
        {"{\"type\":\"ByteLevel\"}", "",
         "pre_tokenizer is \"ByteLevel with its pattern and a space before\", which is not one that is known here"},
        {BYTE_LEVEL("true"), ",\"ignore_merges\":true", "\"ByteLevel with its pattern\" with ignore_merges"},
        {DEEPSEEK_V3(REMOVED, "\\r", "\\n"), "", "\"Split into \\p{N}{1,3}, Split by"}, /* loses words */
        {SPLIT("\\\\w+"), "", "pre_tokenizer is \"Split by \\w+, ByteLevel\""},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithNext\"}", "",
         "pre_tokenizer is \"Split as MergedWithNext\""},
        {"{\"type\":\"Whitespace\"}", "", "pre_tokenizer is \"Whitespace\""},
        {"{\"type\":\"Sequence\"}", "", "pre_tokenizer is \"\""},
        {"7", "", "pre_tokenizer is \"no type\""},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_MEM char *text =
            mem_printf("{\"pre_tokenizer\":%s," MODEL("%s") "}", rows[i].pre_tokenizer, rows[i].more);
        struct vocabulary vocabulary = words_of(text, NULL, NULL);

        assert_string_equal(vocabulary.pre, rows[i].pre);
    }
    for (size_t i = 0; i < COUNT_OF(unknown); i++) {
        AUTO_MEM char *text =
            mem_printf("{\"pre_tokenizer\":%s," MODEL("%s") "}", unknown[i].pre_tokenizer, unknown[i].more);

        expect_refusal(text, ERR_UNSUPPORTED, unknown[i].sentence);
    }
}

/* ---- special tokens ------------------------------------------------------------------------------ */

#define TEMPLATE(single) ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[" single "]}"
#define PIECE(token)     "{\"SpecialToken\":{\"id\":\"" token "\",\"type_id\":0}}"
#define TEXT             "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}"
#define NAMES                                                                                                \
    "\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},"                                                \
    "\"model_max_length\":1000000000000000019884624838656"

static void what_stands_around_a_text_is_seen(void **state)
{
    static const struct {
        const char *tokenizer, *config;
        int32_t bos_id;
        bool adds_bos, adds_eos;
    } rows[] = {
        {GPT2(""), "{" NAMES "}", 4, false, false},
        {GPT2(TEMPLATE(PIECE("<s>") "," TEXT)), "{" NAMES "}", 4, true, false},
        {GPT2(TEMPLATE(PIECE("<s>") "," TEXT "," PIECE("</s>"))), "{" NAMES "}", 4, true, true},
        {GPT2(TEMPLATE(PIECE("<s>") "," TEXT)), "{}", 4, true, false},
        {GPT2(TEMPLATE(PIECE("<s>") "," TEXT)), "{\"add_bos_token\":false," NAMES "}", 4, false, false},
        {GPT2(TEMPLATE(TEXT)), "{\"add_bos_token\":true," NAMES "}", 4, true, false},
        {GPT2(""), "{\"add_bos_token\":true,\"add_eos_token\":true,\"bos_token\":\"none\"}", -1, false, false},
        {GPT2(",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
              "{\"type\":\"TemplateProcessing\",\"single\":[" PIECE("<s>") "," TEXT "]}]}"),
         "{" NAMES "}", 4, true, false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct vocabulary vocabulary = words_of(rows[i].tokenizer, rows[i].config, NULL);

        assert_int_equal(vocabulary.bos_id, rows[i].bos_id);
        assert_int_equal(vocabulary.add_bos, rows[i].adds_bos);
        assert_int_equal(vocabulary.add_eos, rows[i].adds_eos);
    }
}

static void several_tokens_may_end_an_answer(void **state)
{
    struct vocabulary vocabulary = words_of(GPT2(""), "{" NAMES "}", "{\"eos_token_id\":[4,5,6,999]}");

    (void)state;
    assert_int_equal(vocabulary.eos_id, 5);
    assert_int_equal(vocabulary.num_more_eos_ids, 2);
    assert_true(vocabulary.more_eos_ids[0] == 4 && vocabulary.more_eos_ids[1] == 6);

    vocabulary = words_of(GPT2(""), NULL, "{\"bos_token_id\":4,\"eos_token_id\":6}");
    assert_true(vocabulary.bos_id == 4 && vocabulary.eos_id == 6 && vocabulary.num_more_eos_ids == 0);
}

static void the_chat_template_has_three_places(void **state)
{
    struct vocabulary vocabulary = words_of(GPT2(""), "{\"chat_template\":\"one\"}", NULL);

    (void)state;
    assert_memory_equal(vocabulary.chat_template.data, "one", vocabulary.chat_template.size);
    vocabulary = words_of(GPT2(""), "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"a\"},"
                                    "{\"name\":\"default\",\"template\":\"two\"}]}", NULL);
    assert_memory_equal(vocabulary.chat_template.data, "two", 3);
    assert_int_equal(vocabulary.chat_template.size, 3);
    expect_ok(hf_tokenizer_read(&(struct hf_tokenizer_files){.tokenizer = view(GPT2("")),
                                                             .config = view("{\"chat_template\":\"one\"}"),
                                                             .chat_template = view("three")},
                                VOCAB_SIZE, &arena, &vocabulary));
    assert_memory_equal(vocabulary.chat_template.data, "three", vocabulary.chat_template.size);
}

/* ---- refusals -------------------------------------------------------------------------------------- */

#define OF_VOCAB(vocab)                                                                                      \
    "{\"pre_tokenizer\":" BYTE_LEVEL("true") ",\"model\":{\"vocab\":" vocab ",\"merges\":[]}}"
#define OF_ADDED(tokens) "{\"added_tokens\":" tokens ",\"pre_tokenizer\":" BYTE_LEVEL("true") "," MODEL("") "}"

static void what_is_not_known_is_refused_by_name(void **state)
{
    static const struct {
        const char *tokenizer;
        enum status status;
        const char *sentence;
    } rows[] = {
        {"[", ERR_CORRUPT, "tokenizer.json: line 1"},
        {"{}", ERR_CORRUPT, "tokenizer.json: model.vocab, an object, is missing"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",-1.5]]}}", ERR_UNSUPPORTED,
         "model.type is \"Unigram\"; \"BPE\" is supported"},
        {"{\"model\":{\"type\":\"WordPiece\"}}", ERR_UNSUPPORTED,
         "model.type is \"WordPiece\"; \"BPE\" is supported"},
        {BPE("null", ""), ERR_CORRUPT, "tokenizer.json: pre_tokenizer is missing"},
        {"{" MODEL("") "}", ERR_CORRUPT, "tokenizer.json: pre_tokenizer is missing"},
        {"{\"model\":{\"dropout\":0.1,\"vocab\":{}}}", ERR_UNSUPPORTED, "model.dropout is 0.1; 0 is supported"},
        {"{\"model\":{\"end_of_word_suffix\":\"</w>\",\"vocab\":{}}}", ERR_UNSUPPORTED,
         "model.end_of_word_suffix is \"</w>\"; none is supported"},
        {GPT2(",\"normalizer\":{\"type\":\"Lowercase\"}"), ERR_UNSUPPORTED,
         "normalizer is {\"type\":\"Lowercase\"}; NFC or none is supported"},
        {SPM("null", "[]"), ERR_CORRUPT, "normalizer is missing"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"split\":false},"
         "\"model\":{\"byte_fallback\":true,\"vocab\":{}}}",
         ERR_UNSUPPORTED, "prepend_scheme is \"always\"; \"first\" and \"never\" are supported"},
        {SPM("{\"type\":\"NFC\"}", "[]"), ERR_UNSUPPORTED, "spaces to U+2581 is supported"},
        {SPM(TO_META_SPACE, "[[\"a\",\"a\"]]"), ERR_CORRUPT, "merge 0 makes \"aa\", which is no token"},
        {SPM(TO_META_SPACE, "[[\"a\"]]"), ERR_CORRUPT, "merge 0 is [\"a\"]; two tokens are needed"},
        {SPM(TO_META_SPACE, "[\"ab\"]"), ERR_CORRUPT, "merge 0 is \"ab\"; two tokens are needed"},
        {SPM(TO_META_SPACE, "{}"), ERR_CORRUPT, "model.merges is missing"},
        {OF_VOCAB("{\"a\":0,\"b\":0}"), ERR_CORRUPT,
         "two tokens have the id 0, one is \"b\""},
        {OF_VOCAB("{\"a\":-1}"), ERR_CORRUPT,
         "token \"a\" has no number from 0 on as its id"},
        {OF_VOCAB("{\"a\":\"0\"}"), ERR_CORRUPT,
         "token \"a\" has no number from 0 on as its id"},
        {OF_ADDED("[{\"id\":7,\"content\":\"<mask>\",\"lstrip\":true}]"), ERR_UNSUPPORTED,
         "added token \"<mask>\": lstrip is true; false is supported"},
        {OF_ADDED("[{\"id\":7}]"), ERR_CORRUPT, "added_tokens has one without content"},
        {OF_ADDED("7"), ERR_CORRUPT, "added_tokens is 7; an array is needed"},
        {GPT2(",\"post_processor\":{\"type\":\"BertProcessing\"}"), ERR_UNSUPPORTED,
         "TemplateProcessing is supported"},
        {GPT2(TEMPLATE(PIECE("<s>") "," PIECE("<tool>") "," TEXT)), ERR_UNSUPPORTED,
         "bos_token before and eos_token behind a text is supported"},
        {GPT2(TEMPLATE(TEXT "," PIECE("</s>"))), ERR_UNSUPPORTED,
         "bos_token before and eos_token behind a text is supported"},
    };
    struct vocabulary vocabulary;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_refusal(rows[i].tokenizer, rows[i].status, rows[i].sentence);
    expect_fails(read_words(GPT2(""), "{", NULL, &vocabulary), ERR_CORRUPT, "tokenizer_config.json: line 1");
    expect_fails(read_words(GPT2(""), NULL, "[", &vocabulary), ERR_CORRUPT, "generation_config.json: line 1");
    expect_fails(read_words(GPT2(""), NULL, "{\"eos_token_id\":\"</s>\"}", &vocabulary), ERR_CORRUPT,
                 "generation_config.json: eos_token_id is \"</s>\"; the ids of tokens, from 0 on, are needed");
    expect_fails(read_words(GPT2(""), NULL, "{\"eos_token_id\":[5,-1]}", &vocabulary), ERR_CORRUPT,
                 "generation_config.json: eos_token_id is [5,-1]; the ids");
    expect_fails(read_words(GPT2(""), NULL, "{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14]}", &vocabulary),
                 ERR_UNSUPPORTED, "generation_config.json: eos_token_id has 15 tokens; 14 are supported");
}

static int close_arena(void **state)
{
    (void)state;
    arena_close(&arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tokens_have_their_ids_and_types),
        cmocka_unit_test(what_is_looked_for_in_form_c_is_seen),
        cmocka_unit_test(ranks_of_merges_are_scores),
        cmocka_unit_test(a_space_before_the_text_is_seen),
        cmocka_unit_test(known_chains_have_a_name),
        cmocka_unit_test(what_stands_around_a_text_is_seen),
        cmocka_unit_test(several_tokens_may_end_an_answer),
        cmocka_unit_test(the_chat_template_has_three_places),
        cmocka_unit_test(what_is_not_known_is_refused_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, close_arena);
}
