/* fuzz_openai: any bytes as the body of a request, and what becomes of the ones that are taken. */
#include "engine/front/openai.h"
#include "tests/support/small_vocabulary.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_MODEL_LEN = 256 };

static struct openai_model open_model(void)
{
    static const char source[] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    struct vocabulary vocabulary = small_bpe_vocabulary();
    struct tokenizer *tokenizer = NULL;
    struct template *chat_template = NULL;

    ASSERT(tokenizer_new(&vocabulary, &tokenizer) == OK, "%s", fail_text());
    ASSERT(template_new(source, strlen(source), &chat_template) == OK, "%s", fail_text());
    return (struct openai_model){"small", tokenizer, chat_template, MAX_MODEL_LEN, -1, -1};
}

/* What a sequence is told; logprobs: [num_prompt]. */
static void push(struct generation *generation, int32_t sequence, const struct token_logprobs *logprobs)
{
    const struct sampling_params *params = &generation->params;
    bool is_scored = params->prompt_logprobs >= 0 && sequence % params->n == 0;
    const struct engine_event event = {
        .num_tokens = 2,
        .tokens = (token_id[]){SMALL_HELLO, 0xc3},
        .logprobs = params->logprobs >= 0 ? logprobs : NULL,
        .prompt_logprobs = is_scored ? logprobs : NULL,
        .finish = FINISH_LENGTH,
        .stop_token = -1,
    };

    (void)!output_processor_push(&generation->outputs[sequence], &event);
}

/* An answer is JSON whatever was asked. */
static void answer(const struct openai_model *model, struct generation *generation)
{
    const struct top_logprob top = {0xc3, -1};
    struct token_logprobs logprobs[MAX_MODEL_LEN];
    AUTO_CLOSE(bytes) struct bytes whole = {0}, stream = {0};
    json_t *json;

    for (int i = 0; i < MAX_MODEL_LEN; i++)
        logprobs[i] = (struct token_logprobs){-0.5f * (float)i, 1 + i, 1, &top};
    openai_stream_start(model, generation, &stream);
    for (int32_t i = 0; i < generation->num_sequences; i++) {
        push(generation, i, logprobs);
        openai_stream_delta(model, generation, i, &stream);
    }
    openai_stream_end(generation, &stream);
    openai_response(model, generation, &whole);
    json = json_loadb((char *)whole.data, whole.size, JSON_ALLOW_NUL, NULL);
    ASSERT(json, "an answer is no JSON");
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct openai_model model;
    struct generation *generation = NULL;
    const char *param;
    json_t *body;

    if (!model.tokenizer)
        model = open_model();
    if (openai_decode((const char *)data, size, 1, &body) != OK)
        return 0;
    if (openai_read(&model, OPENAI_EITHER, body, &generation, &param) == OK &&
        generation->num_sequences <= 64)
        answer(&model, generation);
    generation_free(generation);
    json_decref(body);
    return 0;
}
