#include "tests/support/expect.h"

#include "engine/front/openai.h"
#include "tests/support/small_vocabulary.h"

#include <stdio.h>

/* A model that takes 32 tokens, whose template says who speaks. */
static struct tokenizer *tokenizer;
static struct template *chat_template;
static struct openai_model model;

static int open_model(void **state)
{
    static const char source[] = "{{ bos_token }}{% for m in messages %}"
                                 "{% if m.role == 'nobody' %}{{ raise_exception('no such role') }}"
                                 "{% endif %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
                                 "{% if add_generation_prompt %}a:{% endif %}{{ mood }}";
    struct vocabulary vocabulary = small_bpe_vocabulary();

    (void)state;
    if (tokenizer_new(&vocabulary, &tokenizer) != OK ||
        template_new(source, strlen(source), &chat_template) != OK)
        return -1;
    model = (struct openai_model){"small", tokenizer, chat_template, 32, -1, 20};
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    template_free(chat_template);
    tokenizer_free(tokenizer);
    return 0;
}

static enum status read_body(enum openai_endpoint endpoint, const char *body, size_t size,
                             struct generation **out, const char **param)
{
    static char param_kept[64];
    json_t *json;
    enum status status;

    *param = NULL;
    TRY(openai_decode(body, size, 1, &json));
    status = openai_read(&model, endpoint, json, out, param);
    if (*param) {
        snprintf(param_kept, sizeof param_kept, "%s", *param);
        *param = param_kept;
    }
    json_decref(json);
    return status;
}

static struct generation *generation_of(enum openai_endpoint endpoint, const char *body)
{
    struct generation *generation = NULL;
    const char *param;

    expect_ok(read_body(endpoint, body, strlen(body), &generation, &param));
    return generation;
}

static void expect_prompt(const struct generation *generation, int32_t i, const char *text)
{
    AUTO_CLOSE(bytes) struct bytes decoded = {0};
    const struct token_list *tokens = &generation->prompts[i].tokens;

    tokenizer_decode(tokenizer, tokens->ids, tokens->count, true, &decoded);
    assert_string_equal(bytes_text(&decoded), text);
}

/* ---- what is read ---------------------------------------------------------------------------- */

static void a_completion_has_openais_defaults(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_COMPLETIONS, "{\"prompt\": \"hello\", \"model\": \"small\"}");

    assert_int_equal(g->num_sequences, 1);
    expect_prompt(g, 0, "<s>hello");
    assert_int_equal(g->params.max_tokens, 16);
    assert_true(g->params.temperature == 1.0f);
    assert_int_equal(g->params.logprobs, -1);
    assert_false(g->stream);
    assert_memory_equal(g->id, "cmpl-", 5);
}

static void prompts_come_in_five_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        int32_t count;
        const char *first, *last;
    } rows[] = {
        {"{\"prompt\": \"hello\"}", 1, "<s>hello", "<s>hello"},
        {"{\"prompt\": [\"a\", \"\", \"hello\"]}", 3, "<s>a", "<s>hello"},
        {"{\"prompt\": [97, 259]}", 1, "ahello", "ahello"},
        {"{\"prompt\": [[97], [259, 98]]}", 2, "a", "hellob"},
        {"{\"prompt_token_ids\": [259]}", 1, "hello", "hello"},
        {"{\"prompt\": \"hello\", \"add_special_tokens\": false}", 1, "hello", "hello"},
        {"{\"prompt\": \"<s>\", \"add_special_tokens\": false, \"user\": \"u\"}", 1, "<s>", "<s>"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_FREE(generation)
        struct generation *g = generation_of(OPENAI_COMPLETIONS, rows[i].body);

        assert_int_equal(g->num_prompts, rows[i].count);
        expect_prompt(g, 0, rows[i].first);
        expect_prompt(g, g->num_prompts - 1, rows[i].last);
    }
}

static void a_chat_goes_through_the_template(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g = generation_of(
        OPENAI_EITHER,
        "{\"messages\": [{\"role\": \"system\", \"content\": \"\"},"
        " {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"x\"},"
        "                                    {\"type\": \"text\", \"text\": \"y\"}]}],"
        " \"logprobs\": true, \"top_logprobs\": 3, \"tools\": [], \"tool_choice\": \"auto\","
        " \"chat_template_kwargs\": {\"mood\": \"!\"}, \"response_format\": {\"type\": \"text\"}}");

    assert_int_equal(g->endpoint, OPENAI_CHAT);
    expect_prompt(g, 0, "<s>s:\nu:x\ny\na:!");
    assert_int_equal(g->params.max_tokens, -1); /* as many as fit */
    assert_int_equal(g->params.logprobs, 3);
    assert_memory_equal(g->id, "chatcmpl-", 9);
}

static void a_chat_may_leave_the_answer_open(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}],"
                                   " \"add_generation_prompt\": false}");

    expect_prompt(g, 0, "<s>u:x\n");
}

static void sequences_have_seeds_of_their_own(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_COMPLETIONS,
                      "{\"prompt\": [\"a\", \"b\"], \"n\": 3, \"seed\": 7,"
                      " \"cache_salt\": \"mine\", \"stop_token_ids\": [5]}");
    struct submission submission;
    struct sampling_params params;

    assert_int_equal(g->num_sequences, 6);
    for (int32_t i = 0; i < 6; i++) {
        generation_submission(g, i, tokenizer, &submission, &params);
        assert_int_equal(submission.params->seed, 7 + i % 3);
        assert_int_equal(submission.params->n, 1);
        assert_int_equal(submission.params->num_stop_token_ids, 1);
        assert_int_equal(submission.prompt[1], i < 3 ? 'a' : 'b');
        assert_string_equal(submission.cache_salt, "mine");
        assert_int_equal(submission.num_eos_ids, 1);
        assert_int_equal(submission.eos_ids[0], SMALL_EOS);
    }
}

static void a_priority_needs_its_policy(void **state)
{
    (void)state;
    struct openai_model by_priority = model;
    AUTO_FREE(generation) struct generation *g = NULL;
    json_auto_t *body = json_pack("{s:s, s:i}", "prompt", "a", "priority", 2);
    struct submission submission;
    struct sampling_params params;
    const char *param;

    expect_fails(openai_read(&model, OPENAI_COMPLETIONS, body, &g, &param), ERR_INVALID,
                 "Got priority 2 but Priority scheduling is not enabled; "
                 "--scheduling-policy priority enables it.");
    assert_string_equal(param, "priority");
    by_priority.serves_by_priority = true;
    expect_ok(openai_read(&by_priority, OPENAI_COMPLETIONS, body, &g, &param));
    generation_submission(g, 0, tokenizer, &submission, &params);
    assert_int_equal(submission.priority, 2);
}

static void a_seed_that_is_not_given_is_random(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *a = generation_of(OPENAI_EITHER, "{\"prompt\": \"a\"}");
    AUTO_FREE(generation)
    struct generation *b = generation_of(OPENAI_EITHER, "{\"prompt\": \"a\"}");

    assert_true(a->params.seed >= 0);
    assert_true(a->params.seed != b->params.seed); /* fails once in 2^53 runs */
    assert_string_not_equal(a->id, b->id);
}

static void bad_words_are_forbidden_where_a_text_and_where_a_word_begins(void **state)
{
    (void)state;
    /* "hello" is another token behind a space; "x" is a token behind a space token. */
    AUTO_FREE(generation)
    struct generation *g = generation_of(
        OPENAI_COMPLETIONS, "{\"prompt\": \"a\", \"bad_words\": [\"  hello\", \"x\", \"hello!\"]}");
    static const int32_t ids[] = {SMALL_HELLO, SMALL_SPACE_HELLO, 'x',
                                  SMALL_HELLO, '!', SMALL_SPACE_HELLO, '!'};
    static const int32_t counts[] = {1, 1, 1, 2, 2};

    assert_int_equal(g->params.num_bad_words_token_ids, COUNT_OF(ids));
    assert_memory_equal(g->params.bad_words_token_ids, ids, sizeof ids);
    assert_int_equal(g->params.num_bad_words_counts, COUNT_OF(counts));
    assert_memory_equal(g->params.bad_words_counts, counts, sizeof counts);
}

static void bad_words_become_so_many_lists_at_most(void **state)
{
    (void)state;
    for (int count = 64; count <= 65; count++) {
        AUTO_CLOSE(bytes) struct bytes body = {0};
        AUTO_FREE(generation) struct generation *generation = NULL;
        const char *param;
        enum status status;

        bytes_printf(&body, "{\"prompt\": \"a\", \"bad_words\": [\"hello\"");
        for (int i = 1; i < count; i++)
            bytes_printf(&body, ", \"hello\"");
        bytes_printf(&body, "]}");
        status = read_body(OPENAI_COMPLETIONS, bytes_text(&body), body.size, &generation, &param);
        if (count == 64) {
            expect_ok(status);
            assert_int_equal(generation->params.num_bad_words_counts, 128);
        } else {
            expect_fails(status, ERR_INVALID,
                         "bad_words become 130 lists of 130 tokens; 128 of 65536 are the most.");
            assert_string_equal(param, "bad_words");
        }
    }
}

/* ---- what is refused ----------------------------------------------------------------------------
 */

#define CHAT(fields) "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]" fields "}"
#define TEXT(fields) "{\"prompt\": \"x\"" fields "}"

static void refusals_name_the_field_and_the_reason(void **state)
{
    (void)state;
    static const struct {
        const char *body;
        enum status status;
        const char *param; /* NULL: none */
        const char *text;
    } rows[] = {
        /* no JSON */
        {"", ERR_INVALID, NULL, "Invalid JSON at line 1, column 0"},
        {"{\"prompt\": \"x\",\n \"n\" 2}", ERR_INVALID, NULL, "at line 2, column 6"},
        {"{\"prompt\": \"\xff\"}", ERR_INVALID, NULL, 
         "Invalid UTF-8 at line 1, column 13: byte 0xff."},
        {"{\"prompt\":\n \"é\xe2\x82", ERR_INVALID, NULL,
         "Invalid UTF-8 at line 2, column 4: byte 0xe2."},
        {"{\"prompt\": \"\\ud800\"}", ERR_INVALID, NULL, "at line 1"},
        {"{\"n\": 1, \"n\": 2}", ERR_INVALID, NULL, "duplicate"},
        {"[]", ERR_INVALID, NULL, "an object is expected"},
        {"{\"prompt\": \"x\", \"seed\": 99999999999999999999}", ERR_INVALID, NULL,
         "too big integer"},
        /* fields */
        {TEXT(", \"temprature\": 1"), ERR_INVALID, "temprature",
         "Unknown field `temprature`; did you mean `temperature`?"},
        {TEXT(", \"max_token\": 1"), ERR_INVALID, "max_token", "did you mean `max_tokens`?"},
        {TEXT(", \"xyzzy\": 1"), ERR_INVALID, "xyzzy", "Unknown field `xyzzy`."},
        {TEXT(", \"xyzzy\": null"), ERR_INVALID, "xyzzy", "Unknown field `xyzzy`."},
        {TEXT(", \"messages\": []"), ERR_INVALID, "prompt", "`prompt` is a field of completions"},
        {TEXT(", \"suffix\": \"y\""), ERR_UNSUPPORTED, "suffix", "`suffix` is not supported yet"},
        {TEXT(", \"best_of\": 2"), ERR_UNSUPPORTED, "best_of", "best_of other than n"},
        {TEXT(", \"stream\": true, \"prompt_logprobs\": 1"), ERR_INVALID, "prompt_logprobs",
         "`prompt_logprobs` are not available when `stream=True`."},
        {TEXT(", \"stream\": true, \"prompt_logprobs\": -1"), ERR_INVALID, "prompt_logprobs",
         "`prompt_logprobs` are not available when `stream=True`."},
        {TEXT(", \"prompt_logprobs\": 21"), ERR_INVALID, NULL,
         "Requested prompt logprobs of 21, which is greater than max allowed: 20"},
        {TEXT(", \"echo\": true, \"max_tokens\": -1"), ERR_INVALID, "max_tokens",
         "must be at least 1, got -1"},
        {TEXT(", \"stream\": 1"), ERR_INVALID, "stream", "stream must be true or false"},
        {TEXT(", \"stream_options\": {}"), ERR_INVALID, "stream_options", "`stream=True`"},
        {TEXT(", \"stream\": true, \"stream_options\": {\"x\": 1}"), ERR_INVALID, "stream_options",
         "Unknown field `x` in stream_options"},
        {TEXT(", \"model\": \"big\""), ERR_NOT_FOUND, "model", "The model `big` does not exist"},
        {TEXT(", \"priority\": 3000000000"), ERR_INVALID, "priority", "32 bits"},
        {TEXT(", \"cache_salt\": \"\""), ERR_INVALID, "cache_salt",
         "Parameter 'cache_salt' must be a non-empty string if provided."},
        {TEXT(", \"cache_salt\": 1"), ERR_INVALID, "cache_salt", "non-empty string"},
        {CHAT(", \"tools\": [{}]"), ERR_UNSUPPORTED, "tools", "`tools` is not supported yet"},
        {CHAT(", \"tool_choice\": \"required\""), ERR_UNSUPPORTED, "tool_choice", "not supported"},
        {CHAT(", \"response_format\": {\"type\": \"xml\"}"), ERR_INVALID, "response_format",
         "whose type is text, json_object"},
        {CHAT(", \"modalities\": [\"audio\"]"), ERR_UNSUPPORTED, "modalities", "not supported yet"},
        {CHAT(", \"echo\": true"), ERR_INVALID, "echo", "`echo` is a field of completions"},
        {CHAT(", \"stream_interval\": 4"), ERR_UNSUPPORTED, "stream_interval", "not supported yet"},
        {TEXT(", \"vllm_xargs\": {\"x\": 1}"), ERR_UNSUPPORTED, "vllm_xargs", "not supported yet"},
        {CHAT(", \"chat_template_kwargs\": 1"), ERR_INVALID, "chat_template_kwargs", "an object"},
        /* sampling parameters, in vLLM's words */
        {TEXT(", \"temperature\": 2.5"), ERR_INVALID, "temperature", "must be in [0, 2], got 2.5"},
        {TEXT(", \"top_p\": 0"), ERR_INVALID, "top_p", "top_p must be in (0, 1], got 0"},
        {TEXT(", \"max_tokens\": 0"), ERR_INVALID, "max_tokens", "must be at least 1, got 0"},
        {TEXT(", \"n\": 2, \"temperature\": 0"), ERR_INVALID, NULL,
         "n must be 1 when using greedy sampling, got 2"},
        {TEXT(", \"logprobs\": 21"), ERR_INVALID, NULL,
         "Requested sample logprobs of 21, which is greater than max allowed: 20"},
        {CHAT(", \"top_logprobs\": 2"), ERR_INVALID, "top_logprobs", "`logprobs` must be set"},
        {TEXT(", \"stop\": \"\""), ERR_INVALID, "stop", "stop cannot contain an empty string"},
        {TEXT(", \"bad_words\": [\" \\t\"]"), ERR_INVALID, "bad_words",
         "bad_words cannot contain a text of nothing but space."},
        {TEXT(", \"stop_token_ids\": [265]"), ERR_INVALID, NULL, "Vocabulary size: 265"},
        /* prompts */
        {"{}", ERR_INVALID, "prompt", "The field `prompt` is required"},
        {"{\"prompt\": []}", ERR_INVALID, "prompt", "The decoder prompt cannot be empty"},
        {"{\"prompt\": [[]]}", ERR_INVALID, "prompt", "The decoder prompt cannot be empty"},
        {"{\"prompt\": \"\", \"add_special_tokens\": false}", ERR_INVALID, "prompt",
         "The decoder prompt cannot be empty"},
        {"{\"prompt\": {}}", ERR_INVALID, "prompt", "prompt must be a string, an array"},
        {"{\"prompt\": [\"a\", 1]}", ERR_INVALID, "prompt", "element 1 does not fit"},
        {"{\"prompt\": [1, \"a\"]}", ERR_INVALID, "prompt", "prompt[1] must be a token id"},
        {"{\"prompt\": [265]}", ERR_INVALID, "prompt",
         "Token id 265 is out of vocabulary (size 265)"},
        {"{\"prompt\": [-1]}", ERR_INVALID, "prompt", "Token id -1 is out of vocabulary"},
        {"{\"prompt\": [true]}", ERR_INVALID, "prompt", "element 0 does not fit"},
        {"{\"prompt\": \"a\", \"prompt_token_ids\": [1]}", ERR_INVALID, "prompt_token_ids",
         "cannot both be given"},
        {"{\"prompt_token_ids\": \"a\"}", ERR_INVALID, "prompt_token_ids", "array of token ids"},
        {"{\"prompt\": \"a234567890b234567890c234567890d234567890\"}", ERR_INVALID, "prompt",
         "The decoder prompt (length 41) is longer than the maximum model length of 32."},
        {"{\"prompt\": \"a234567890b234567890c234567890d\"}", ERR_INVALID, "prompt",
         "(length 32) leaves no room for an answer within the maximum model length of 32."},
        {TEXT(", \"max_tokens\": 31"), ERR_INVALID, "max_tokens", "(31 > 32 - 2)"},
        {"{\"prompt\": [[1], [2]], \"n\": 9000}", ERR_INVALID, "prompt", "more than 16384 answers"},
        {"{\"messages\": []}", ERR_INVALID, "messages", "at least one message"},
        {"{\"messages\": [1]}", ERR_INVALID, "messages", "messages[0] must be an object"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": 1}]}", ERR_INVALID, "messages",
         "messages[0].content must be"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
         ERR_UNSUPPORTED, "messages", "only text is supported"},
        {"{\"messages\": [{\"role\": \"nobody\", \"content\": \"x\"}]}", ERR_INVALID, "messages",
         "no such role"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct generation *generation = NULL;
        const char *param;

        expect_fails(
            read_body(OPENAI_EITHER, rows[i].body, strlen(rows[i].body), &generation, &param),
            rows[i].status, rows[i].text);
        assert_null(generation);
        if (!rows[i].param != !param || (param && strcmp(param, rows[i].param) != 0))
            fail_msg("%s: the field at fault is %s", rows[i].body, param ? param : "none");
    }
}

static void fields_that_ask_for_nothing_are_read(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        CHAT(", \"echo\": false, \"return_prompt_text\": false, \"media_io_kwargs\": {}"),
        CHAT(", \"logprob_token_ids\": null, \"request_id\": null, \"session_id\": \"s\""),
        TEXT(", \"add_generation_prompt\": false, \"echo\": false, \"truncation_side\": null"),
        TEXT(", \"stream_interval\": 1, \"thinking_token_budget\": -1, \"vllm_xargs\": {}"),
        TEXT(", \"repetition_detection\": null, \"ec_transfer_params\": null"),
        TEXT(", \"watermarking\": false, \"routed_experts_prompt_start\": 0"),
        TEXT(", \"return_token_offsets\": false, \"return_mm_kwargs\": true, \"priority\": 0"),
    };

    for (size_t i = 0; i < COUNT_OF(bodies); i++)
        generation_free(generation_of(OPENAI_EITHER, bodies[i]));
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes body = {0};
    struct generation *generation;
    const char *param;

    bytes_printf(&body, "{\"prompt\": ");
    for (int i = 0; i < 100000; i++)
        bytes_append(&body, "[", 1);
    expect_fails(read_body(OPENAI_EITHER, (char *)body.data, body.size, &generation, &param),
                 ERR_INVALID, "depth");
}

static void a_model_without_template_has_no_chat(void **state)
{
    (void)state;
    struct openai_model plain = {"small", tokenizer, NULL, 32, -1, 20};
    struct generation *generation;
    const char *param;
    json_t *body;

    expect_ok(openai_decode(CHAT(""), strlen(CHAT("")), 1, &body));
    expect_fails(openai_read(&plain, OPENAI_CHAT, body, &generation, &param), ERR_UNSUPPORTED,
                 "no chat template");
    json_decref(body);
}

/* ---- what is answered
 * ----------------------------------------------------------------------------- */

/* Gives a sequence two tokens, "hello" and half of "é", and an end. */
static void generate_into(struct generation *generation, int32_t sequence,
                          enum finish_reason finish)
{
    const struct top_logprob top[] = {{SMALL_HELLO, -0.5f}, {0xc3, -1.1f}};
    struct token_logprobs logprobs[] = {{-0.5f, 1, 2, top}, {-1.1f, 2, 2, top}};
    const token_id tokens[] = {SMALL_HELLO, 0xc3};
    struct engine_event event = {
        .num_tokens = 2,
        .tokens = tokens,
        .logprobs = generation->params.logprobs >= 0 ? logprobs : NULL,
        .finish = finish,
        .stop_token = finish == FINISH_STOP ? 0xc3 : -1,
        .error = finish == FINISH_ERROR ? ERR_CLOSED : OK,
        .error_text = "rank 1 died",
        .num_cached_tokens = 1,
    };

    assert_false(output_processor_push(&generation->outputs[sequence], &event));
}

/* The answer with its id, time and random seed replaced by "-". */
static void expect_answer(struct bytes *answer, const struct generation *generation,
                          const char *wanted)
{
    AUTO_CLOSE(bytes) struct bytes plain = {0};
    AUTO_MEM char *created = mem_printf("\"created\":%lld", (long long)generation->created);
    const char *at = bytes_text(answer), *hit;

    while ((hit = strstr(at, generation->id))) {
        bytes_append(&plain, at, (size_t)(hit - at));
        bytes_printf(&plain, "ID");
        at = strstr(hit, created);
        assert_non_null(at);
        bytes_append(&plain, hit + strlen(generation->id),
                     (size_t)(at - hit) - strlen(generation->id));
        bytes_printf(&plain, "\"created\":0");
        at += strlen(created);
    }
    bytes_append(&plain, at, strlen(at));
    assert_string_equal(bytes_text(&plain), wanted);
}

static void a_completion_is_answered_whole(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g = generation_of(
        OPENAI_COMPLETIONS, "{\"prompt\": \"x\", \"n\": 2, \"logprobs\": 1, \"seed\": 5}");
    AUTO_CLOSE(bytes) struct bytes answer = {0};

    generate_into(g, 0, FINISH_LENGTH);
    generate_into(g, 1, FINISH_STOP);
    openai_response(&model, g, &answer);
#define COLUMNS                                                                                    \
    "\"logprobs\":{\"text_offset\":[0,5],\"token_logprobs\":[-0.5,-1.10000002],"                   \
    "\"tokens\":[\"hello\",\"bytes:\\\\xc3\"],"                                                    \
    "\"top_logprobs\":[{\"hello\":-0.5,\"bytes:\\\\xc3\":-1.10000002},"                            \
    "{\"hello\":-0.5,\"bytes:\\\\xc3\":-1.10000002}]}"
    expect_answer(&answer, g,
                  "{\"id\":\"ID\",\"object\":\"text_completion\",\"created\":0,\"model\":\"small\","
                  "\"seed\":5,\"choices\":["
                  "{\"index\":0,\"text\":\"hello\xef\xbf\xbd\"," COLUMNS
                  ",\"finish_reason\":\"length\",\"stop_reason\":null},"
                  "{\"index\":1,\"text\":\"hello\"," COLUMNS
                  ",\"finish_reason\":\"stop\",\"stop_reason\":195}],"
                  "\"usage\":{\"prompt_tokens\":2,\"total_tokens\":6,\"completion_tokens\":4,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":1}}}");
}

static void a_chat_is_answered_whole(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g = generation_of(
        OPENAI_CHAT, CHAT(", \"temperature\": 0, \"logprobs\": true, \"top_logprobs\": 1,"
                          " \"return_token_ids\": true"));
    AUTO_CLOSE(bytes) struct bytes answer = {0};

    generate_into(g, 0, FINISH_LENGTH);
    openai_response(&model, g, &answer);
#define HELLO "{\"token\":\"hello\",\"logprob\":-0.5,\"bytes\":[104,101,108,108,111]"
#define HALF  "{\"token\":\"\xef\xbf\xbd\",\"logprob\":-1.10000002,\"bytes\":[195]"
#define TOPS  ",\"top_logprobs\":[" HELLO "}," HALF "}]}"
    expect_answer(&answer, g,
                  "{\"id\":\"ID\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"small\","
                  "\"prompt_token_ids\":[261,117,58,120,10,97,58],"
                  "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                  "\"content\":\"hello\xef\xbf\xbd\",\"refusal\":null},"
                  "\"logprobs\":{\"content\":[" HELLO TOPS "," HALF TOPS "]},"
                  "\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":[259,195]}],"
                  "\"usage\":{\"prompt_tokens\":7,\"total_tokens\":9,\"completion_tokens\":2,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":1}}}");
}

static void echo_gives_the_prompt_back(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g = generation_of(
        OPENAI_COMPLETIONS, "{\"prompt\": [\"a\", \"b\"], \"echo\": true, \"temperature\": 0}");
    AUTO_CLOSE(bytes) struct bytes answer = {0}, stream = {0};

    generate_into(g, 0, FINISH_LENGTH);
    generate_into(g, 1, FINISH_LENGTH);
    openai_response(&model, g, &answer);
    assert_non_null(strstr(bytes_text(&answer), "\"text\":\"ahello"));
    assert_non_null(strstr(bytes_text(&answer), "\"text\":\"bhello"));
    openai_stream_start(&model, g, &stream);
    assert_non_null(strstr(bytes_text(&stream), "\"index\":0,\"text\":\"a\""));
    assert_non_null(strstr(bytes_text(&stream), "\"index\":1,\"text\":\"b\""));
}

/* Of the prompt "<s>hello!": its second and third token. */
static const struct token_logprobs prompt_logprobs[] = {
    {-0.5f, 1, 2, (const struct top_logprob[]){{SMALL_HELLO, -0.5f}, {0xc3, -1}}},
    {-3, 7, 2, (const struct top_logprob[]){{'?', -0.25f}, {SMALL_HELLO, -1}}},
};
#define PROMPT "\"prompt\": \"hello!\""

static void generate_behind_prompt(struct generation *generation, int32_t sequence)
{
    struct engine_event event = {
        .num_tokens = 1,
        .tokens = (const token_id[]){SMALL_HELLO},
        .logprobs = generation->params.logprobs >= 0 ? &prompt_logprobs[0] : NULL,
        .prompt_logprobs =
            sequence % generation->params.n == 0 && generation->params.prompt_logprobs >= 0
                ? prompt_logprobs
                : NULL,
        .finish = FINISH_LENGTH,
        .stop_token = -1,
    };

    assert_false(output_processor_push(&generation->outputs[sequence], &event));
}

#define OFFSETS(more)  "\"text_offset\":[0,3,8" more "]"
#define LOGPROBS(more) "\"token_logprobs\":[null,-0.5,-3.0" more "]"
#define TOKENS(more)   "\"tokens\":[\"<s>\",\"hello\",\"!\"" more "]"
#define TOP(more)      "\"top_logprobs\":[null,{\"hello\":-0.5},{\"?\":-0.25,\"!\":-3.0}" more "]"

/* more: fields of the body. Returns what max_tokens has become. */
static int32_t expect_echo(const char *more, const char *answer_text)
{
    AUTO_MEM char *body = mem_printf("{" PROMPT ", \"echo\": true, \"logprobs\": 1%s, "
                                     "\"temperature\": 0}", more);
    AUTO_FREE(generation) struct generation *g = generation_of(OPENAI_COMPLETIONS, body);
    AUTO_CLOSE(bytes) struct bytes answer = {0};

    assert_int_equal(g->params.prompt_logprobs, 1);
    generate_behind_prompt(g, 0);
    openai_response(&model, g, &answer);
    expect_answer(&answer, g, answer_text);
    return g->params.max_tokens;
}

static void echo_brings_the_prompts_logprobs(void **state)
{
    (void)state;
    expect_echo(
        "",
        "{\"id\":\"ID\",\"object\":\"text_completion\",\"created\":0,\"model\":\"small\","
        "\"choices\":[{\"index\":0,\"text\":\"hello!hello\",\"logprobs\":{" OFFSETS(",9") "," LOGPROBS(
            ",-0.5") "," TOKENS(",\"hello\"") "," TOP(",{\"hello\":-0.5,\"bytes:\\\\xc3\":-1.0}")
        "},\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":3,"
        "\"total_tokens\":4,\"completion_tokens\":1,\"prompt_tokens_details\":{"
        "\"cached_tokens\":0}}}");
}

static void an_echo_of_no_tokens_is_the_prompt_alone(void **state)
{
    int32_t max_tokens = expect_echo(
        ", \"max_tokens\": 0",
        "{\"id\":\"ID\",\"object\":\"text_completion\",\"created\":0,\"model\":\"small\","
        "\"choices\":[{\"index\":0,\"text\":\"hello!\",\"logprobs\":{" OFFSETS("") "," LOGPROBS(
            "") "," TOKENS("") "," TOP("")
        "},\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":3,"
        "\"total_tokens\":3,\"completion_tokens\":0,\"prompt_tokens_details\":{"
        "\"cached_tokens\":0}}}");

    (void)state;
    assert_int_equal(max_tokens, 1);
}

static void a_streamed_echo_waits_for_its_logprobs(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_COMPLETIONS, "{" PROMPT ", \"echo\": true, \"logprobs\": 1, \"n\": 2,"
                                          " \"stream\": true, \"seed\": 5}");
    AUTO_CLOSE(bytes) struct bytes stream = {0};

    openai_stream_start(&model, g, &stream);
    openai_stream_delta(&model, g, 0, &stream);
    generate_behind_prompt(g, 1);
    openai_stream_delta(&model, g, 1, &stream); /* the first of them has them, and lags behind */
    assert_int_equal(stream.size, 0);
    generate_behind_prompt(g, 0);
    openai_stream_delta(&model, g, 1, &stream);
#define ECHO_CHUNK(body)                                                                           \
    "data: {\"id\":\"ID\",\"object\":\"text_completion\",\"created\":0,\"model\":\"small\","       \
    "\"seed\":5,\"choices\":[{\"index\":1," body "]}\n\n"
    expect_answer(&stream, g,
                  ECHO_CHUNK("\"text\":\"hello!\",\"logprobs\":{" OFFSETS("") "," LOGPROBS(
                      "") "," TOKENS("") "," TOP("") "},\"finish_reason\":null,\"stop_reason\":null}")
                      ECHO_CHUNK("\"text\":\"hello\",\"logprobs\":{\"text_offset\":[9],"
                                 "\"token_logprobs\":[-0.5],\"tokens\":[\"hello\"],"
                                 "\"top_logprobs\":[{\"hello\":-0.5,\"bytes:\\\\xc3\":-1.0}]},"
                                 "\"finish_reason\":null,\"stop_reason\":null}")
                          ECHO_CHUNK("\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\","
                                     "\"stop_reason\":null}"));
}

static int count_of(struct bytes *text, const char *part)
{
    int count = 0;

    for (const char *at = bytes_text(text); (at = strstr(at, part)); at++)
        count++;
    return count;
}

static void a_prompts_token_ids_are_told_once_for_each_choice(void **state)
{
    (void)state;
#define IDS        "\"prompt_token_ids\":[261,259,33]"
#define ALONE      "\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null"
#define RETURN_IDS ", \"return_token_ids\": true"
    static const struct {
        const char *body;
        const char *whole, *first; /* what they stand with, in an answer and in a stream */
        int times;
    } rows[] = {
        {"{" PROMPT RETURN_IDS ", \"n\": 2}", "\"token_ids\":[259,195,259]," IDS "}",
         "\"text\":\"hello\"," ALONE "," IDS ",\"token_ids\":[259,195]}", 2},
        {"{" PROMPT RETURN_IDS ", \"n\": 2, \"echo\": true}", "\"token_ids\":[259,195,259]," IDS "}",
         "\"text\":\"hello!\"," ALONE "," IDS "}", 2},
        {"{" PROMPT RETURN_IDS ", \"echo\": true, \"logprobs\": 1}", "\"token_ids\":[259,195,259]," IDS "}",
         TOP("") "},\"finish_reason\":null,\"stop_reason\":null," IDS "}", 1},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_FREE(generation)
        struct generation *g = generation_of(OPENAI_COMPLETIONS, rows[i].body);
        AUTO_CLOSE(bytes) struct bytes stream = {0}, whole = {0};

        openai_stream_start(&model, g, &stream);
        for (int32_t k = 0; k < g->num_sequences; k++) {
            generate_into(g, k, FINISH_NONE);
            openai_stream_delta(&model, g, k, &stream);
            generate_behind_prompt(g, k);
            openai_stream_delta(&model, g, k, &stream);
        }
        openai_response(&model, g, &whole);
        assert_int_equal(count_of(&stream, rows[i].first), rows[i].times);
        assert_int_equal(count_of(&stream, "prompt_token_ids"), rows[i].times);
        assert_int_equal(count_of(&whole, rows[i].whole), rows[i].times);
        assert_int_equal(count_of(&whole, "prompt_token_ids"), rows[i].times);
    }
}

static void a_chats_token_ids_stand_beside_its_choices(void **state)
{
    (void)state;
#define CHAT_IDS "\"prompt_token_ids\":[261,117,58,120,10,97,58]"
    AUTO_FREE(generation)
    struct generation *g = generation_of(OPENAI_CHAT, CHAT(RETURN_IDS ", \"n\": 2"));
    AUTO_CLOSE(bytes) struct bytes stream = {0}, whole = {0};

    openai_stream_start(&model, g, &stream);
    for (int32_t k = 0; k < g->num_sequences; k++) {
        generate_into(g, k, FINISH_LENGTH);
        openai_stream_delta(&model, g, k, &stream);
    }
    openai_response(&model, g, &whole);
    assert_int_equal(count_of(&whole, "," CHAT_IDS ",\"choices\":["), 1);
    assert_int_equal(count_of(&whole, "prompt_token_ids"), 1);
    assert_int_equal(count_of(&stream, "\"content\":\"\"}," ALONE "}]," CHAT_IDS "}\n\n"), 2);
    assert_int_equal(count_of(&stream, "prompt_token_ids"), 2);
}

static void prompt_logprobs_are_told_as_vllm_does(void **state)
{
    (void)state;
    static const char *const wanted =
        "\"prompt_logprobs\":[null,"
        "{\"259\":{\"logprob\":-0.5,\"rank\":1,\"decoded_token\":\"hello\"},"
        "\"195\":{\"logprob\":-1.0,\"rank\":2,\"decoded_token\":\"\xef\xbf\xbd\"}},"
        "{\"33\":{\"logprob\":-3.0,\"rank\":7,\"decoded_token\":\"!\"},"
        "\"63\":{\"logprob\":-0.25,\"rank\":1,\"decoded_token\":\"?\"},"
        "\"259\":{\"logprob\":-1.0,\"rank\":2,\"decoded_token\":\"hello\"}}]}";
    AUTO_FREE(generation)
    struct generation *text = generation_of(
        OPENAI_COMPLETIONS, "{" PROMPT ", \"prompt_logprobs\": 2, \"n\": 2, \"logprobs\": 1}");
    AUTO_CLOSE(bytes) struct bytes answer = {0};
    struct submission submission;
    struct sampling_params params;

    /* Each choice has them; one sequence computes them. */
    for (int32_t i = 0; i < 2; i++) {
        generation_submission(text, i, tokenizer, &submission, &params);
        assert_int_equal(params.prompt_logprobs, i == 0 ? 2 : -1);
        generate_behind_prompt(text, i);
    }
    openai_response(&model, text, &answer);
    const char *first = strstr(bytes_text(&answer), wanted);

    assert_non_null(first);
    assert_non_null(strstr(first + 1, wanted));

    AUTO_FREE(generation) struct generation *chat = generation_of(
        OPENAI_CHAT, CHAT(", \"prompt_logprobs\": 0, \"temperature\": 0"));
    static const struct token_logprobs certain[6];
    struct engine_event event = {.num_tokens = 1,
                                 .tokens = (const token_id[]){SMALL_HELLO},
                                 .prompt_logprobs = certain,
                                 .finish = FINISH_LENGTH,
                                 .stop_token = -1};

    assert_false(output_processor_push(&chat->outputs[0], &event));
    answer.size = 0;
    openai_response(&model, chat, &answer);
    assert_non_null(strstr(bytes_text(&answer),
                           ",\"prompt_logprobs\":[null,{\"117\":{\"logprob\":0.0,\"rank\":0,"
                           "\"decoded_token\":\"u\"}},"));
}

#define CHUNK(choice, usage)                                                                       \
    "data: {\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":0,"                     \
    "\"model\":\"small\",\"choices\":[" choice "]" usage "}\n\n"
#define NO_USAGE ",\"usage\":null"
#define OPEN     "\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}"

static void a_chat_streams_role_deltas_end_usage_done(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_CHAT, CHAT(", \"temperature\": 0, \"stream\": true,"
                                        " \"stream_options\": {\"include_usage\": true}"));
    AUTO_CLOSE(bytes) struct bytes stream = {0};
    struct engine_event hello = {
        .num_tokens = 1, .tokens = (token_id[]){SMALL_HELLO}, .stop_token = -1};

    openai_stream_start(&model, g, &stream);
    openai_stream_delta(&model, g, 0, &stream); /* nothing yet, nothing said */
    assert_false(output_processor_push(&g->outputs[0], &hello));
    openai_stream_delta(&model, g, 0, &stream);
    openai_stream_delta(&model, g, 0, &stream);
    generate_into(g, 0, FINISH_STOP);
    openai_stream_delta(&model, g, 0, &stream);
    openai_stream_delta(&model, g, 0, &stream);
    openai_stream_end(g, &stream);
    expect_answer(
        &stream, g,
        CHUNK("{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}," OPEN, NO_USAGE)
            CHUNK("{\"index\":0,\"delta\":{\"content\":\"hello\"}," OPEN, NO_USAGE)
                CHUNK("{\"index\":0,\"delta\":{\"content\":\"hello\"}," OPEN, NO_USAGE)
                    CHUNK("{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\","
                          "\"stop_reason\":195}",
                          NO_USAGE) CHUNK("", ",\"usage\":{\"prompt_tokens\":7,\"total_tokens\":10,"
                                              "\"completion_tokens\":3,\"prompt_tokens_details\":{"
                                              "\"cached_tokens\":1}}") "data: [DONE]\n\n");
}

static void streamed_text_is_escaped_as_json_has_it(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_COMPLETIONS, "{\"prompt\": \"x\", \"stream\": true}");
    AUTO_CLOSE(bytes) struct bytes stream = {0};
    token_id tokens[130] = {0};
    char text[131] = {0};

    /* The small vocabulary has the bytes first. */
    for (int i = 0; i < 128; i++)
        tokens[i] = text[i] = (char)i;
    memcpy(text + 128, "\xc3\xa9", 2);
    tokens[128] = 0xc3;
    tokens[129] = 0xa9;

    struct engine_event event = {.num_tokens = 130, .tokens = tokens, .stop_token = -1};
    json_auto_t *wanted = json_stringn(text, 130);
    AUTO_MEM char *wanted_text = json_dumps(wanted, JSON_ENCODE_ANY);

    /* A name that looks like what the texts are cut by. */
    mem_free(g->model);
    g->model = mem_strdup("\x7f\x7f text \x7f\x7f");
    for (int i = 0; i < 2; i++) {
        stream.size = 0;
        assert_false(output_processor_push(&g->outputs[0], &event));
        openai_stream_delta(&model, g, 0, &stream);

        json_auto_t *json = json_loads(bytes_text(&stream) + strlen("data: "),
                                       JSON_DISABLE_EOF_CHECK | JSON_ALLOW_NUL, NULL);

        assert_non_null(json);
        assert_string_equal(json_string_value(json_object_get(json, "model")), g->model);
        assert_non_null(strstr(bytes_text(&stream), wanted_text));
    }
}

static void streamed_logprobs_go_on_where_they_were(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_COMPLETIONS, "{\"prompt\": \"x\", \"logprobs\": 0, \"stream\": true}");
    AUTO_CLOSE(bytes) struct bytes stream = {0};

    generate_into(g, 0, FINISH_NONE);
    openai_stream_delta(&model, g, 0, &stream);
    assert_non_null(strstr(bytes_text(&stream), "\"text_offset\":[0,5]"));
    stream.size = 0;
    generate_into(g, 0, FINISH_LENGTH);
    openai_stream_delta(&model, g, 0, &stream);
    assert_non_null(strstr(bytes_text(&stream), "\"text_offset\":[6,11]"));
    assert_null(strstr(bytes_text(&stream), "usage"));
}

static void a_failure_in_a_stream_is_told_once(void **state)
{
    (void)state;
    AUTO_FREE(generation)
    struct generation *g =
        generation_of(OPENAI_COMPLETIONS, "{\"prompt\": \"x\", \"stream\": true}");
    AUTO_CLOSE(bytes) struct bytes stream = {0};

    generate_into(g, 0, FINISH_ERROR);
    assert_ptr_equal(generation_failure(g), &g->outputs[0]);
    openai_stream_delta(&model, g, 0, &stream);
    openai_stream_delta(&model, g, 0, &stream);
    assert_non_null(strstr(bytes_text(&stream),
                           "data: {\"error\":{\"message\":\"rank 1 died\",\"type\":"
                           "\"ServiceUnavailableError\",\"param\":null,\"code\":503}}\n\n"));
    assert_null(strstr(strstr(bytes_text(&stream), "rank 1") + 1, "rank 1"));
}

static void errors_are_json_whatever_they_say(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes error = {0};

    openai_error(ERR_INVALID, "cut \"\xc3", "n", &error);
    assert_string_equal(
        bytes_text(&error),
        "{\"error\":{\"message\":\"cut \\\"\xef\xbf\xbd\",\"type\":\"BadRequestError\","
        "\"param\":\"n\",\"code\":400}}");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_completion_has_openais_defaults),
    cmocka_unit_test(prompts_come_in_five_shapes),
    cmocka_unit_test(a_chat_goes_through_the_template),
    cmocka_unit_test(a_chat_may_leave_the_answer_open),
    cmocka_unit_test(sequences_have_seeds_of_their_own),
    cmocka_unit_test(a_priority_needs_its_policy),
    cmocka_unit_test(a_seed_that_is_not_given_is_random),
    cmocka_unit_test(bad_words_are_forbidden_where_a_text_and_where_a_word_begins),
    cmocka_unit_test(bad_words_become_so_many_lists_at_most),
    cmocka_unit_test(refusals_name_the_field_and_the_reason),
    cmocka_unit_test(fields_that_ask_for_nothing_are_read),
    cmocka_unit_test(nesting_is_bounded),
    cmocka_unit_test(a_model_without_template_has_no_chat),
    cmocka_unit_test(a_completion_is_answered_whole),
    cmocka_unit_test(a_chat_is_answered_whole),
    cmocka_unit_test(echo_gives_the_prompt_back),
    cmocka_unit_test(echo_brings_the_prompts_logprobs),
    cmocka_unit_test(an_echo_of_no_tokens_is_the_prompt_alone),
    cmocka_unit_test(a_streamed_echo_waits_for_its_logprobs),
    cmocka_unit_test(a_prompts_token_ids_are_told_once_for_each_choice),
    cmocka_unit_test(a_chats_token_ids_stand_beside_its_choices),
    cmocka_unit_test(prompt_logprobs_are_told_as_vllm_does),
    cmocka_unit_test(a_chat_streams_role_deltas_end_usage_done),
    cmocka_unit_test(streamed_text_is_escaped_as_json_has_it),
    cmocka_unit_test(streamed_logprobs_go_on_where_they_were),
    cmocka_unit_test(a_failure_in_a_stream_is_told_once),
    cmocka_unit_test(errors_are_json_whatever_they_say),
};

int main(void)
{
    return cmocka_run_group_tests(tests, open_model, close_model);
}
