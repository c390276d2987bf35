/* fuzz_openai: any bytes as the body of a request, and what becomes of the ones that are taken. */
#include "engine/front/openai.h"
#include "tests/support/small_vocabulary.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct openai_model open_model(void)
{
    static const char source[] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    struct vocabulary vocabulary = small_bpe_vocabulary();
    struct tokenizer *tokenizer = NULL;
    struct template *chat_template = NULL;

    ASSERT(tokenizer_new(&vocabulary, &tokenizer) == OK, "%s", fail_text());
    ASSERT(template_new(source, strlen(source), &chat_template) == OK, "%s", fail_text());
    return (struct openai_model){"small", tokenizer, chat_template, 256, -1, -1};
}

/* An answer is JSON whatever was asked. */
static void answer(const struct openai_model *model, struct generation *generation)
{
    const struct top_logprob top = {0xc3, -1};
    const struct token_logprobs logprobs[2] = {{-0.5f, 1, 1, &top}, {-2, 2, 1, &top}};
    const struct engine_event event = {
        .num_tokens = 2,
        .tokens = (token_id[]){SMALL_HELLO, 0xc3},
        .logprobs = generation->params.logprobs >= 0 ? logprobs : NULL,
        .finish = FINISH_LENGTH,
        .stop_token = -1,
    };
    AUTO_CLOSE(bytes) struct bytes whole = {0}, stream = {0};
    json_t *json;

    openai_stream_start(model, generation, &stream);
    for (int32_t i = 0; i < generation->num_sequences; i++) {
        (void)!output_processor_push(&generation->outputs[i], &event);
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
