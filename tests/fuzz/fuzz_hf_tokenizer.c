/*
 * fuzz_hf_tokenizer: any bytes as a tokenizer.json, those behind a NUL as a tokenizer_config.json, those behind
 * another as a generation_config.json: refused with a sentence, or a vocabulary of which a tokeniser can be made,
 * and a text goes through it and back; and parameters that a request may have.
 */
#include "engine/front/generation_config.h"
#include "engine/text/tokenizer.h"
#include "proto/model/hf_tokenizer.h"

#include <string.h>

enum { VOCAB_SIZE = 320 };

static void check(const struct vocabulary *vocabulary)
{
    static const char text[] = "hello the 12 <s>";
    AUTO_FREE(tokenizer) struct tokenizer *tokenizer = NULL;
    AUTO_CLOSE(token_list) struct token_list list = {0};
    AUTO_CLOSE(bytes) struct bytes back = {0};

    ASSERT(vocabulary->num_tokens == VOCAB_SIZE && vocabulary->tokens && vocabulary->types);
    if (tokenizer_new(vocabulary, &tokenizer) != OK) { /* merges of tokens that are not there */
        ASSERT(fail_text()[0] != '\0');
        return;
    }
    ASSERT(tokenizer_encode(tokenizer, text, strlen(text), true, true, &list) == OK, "%s", fail_text());
    for (int32_t i = 0; i < list.count; i++)
        ASSERT(list.ids[i] >= 0 && list.ids[i] < VOCAB_SIZE);
    tokenizer_decode(tokenizer, list.ids, list.count, true, &back);
}

static void read_generation(struct text_view text)
{
    AUTO_CLOSE(bytes) struct bytes told = {0};
    struct generation_config config;
    enum status status = generation_config_read(text, &config, &told);

    if (status != OK) {
        ASSERT(fail_text()[0] != '\0' && told.size == 0);
        return;
    }
    ASSERT(config.most_tokens == -1 || config.most_tokens > 0);
    ASSERT(sampling_params_validate(&config.params, VOCAB_SIZE, 1000, 20) == OK, "%s", fail_text());
}

/* What is before the next NUL. */
static struct text_view next_part(const uint8_t **data, size_t *size)
{
    const uint8_t *start = *data, *nul = *size ? memchr(start, 0, *size) : NULL;
    size_t length = nul ? (size_t)(nul - start) : *size;

    *data = nul ? nul + 1 : NULL;
    *size -= nul ? length + 1 : length;
    return (struct text_view){(const char *)start, length};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct hf_tokenizer_files files = {0};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct vocabulary vocabulary;

    if (size == 0)
        return 0;
    files.tokenizer = next_part(&data, &size);
    files.config = next_part(&data, &size);
    files.generation = next_part(&data, &size);
    read_generation(files.generation);
    if (hf_tokenizer_read(&files, VOCAB_SIZE, &arena, &vocabulary) == OK)
        check(&vocabulary);
    else
        ASSERT(fail_text()[0] != '\0');
    return 0;
}
