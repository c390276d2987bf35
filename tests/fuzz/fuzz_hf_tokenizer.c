/*
 * fuzz_hf_tokenizer: any bytes as a tokenizer.json, and the rest of them, behind a NUL, as a tokenizer_config.json:
 * refused with a sentence, or a vocabulary of which a tokeniser can be made, and a text goes through it and back.
 */
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    struct hf_tokenizer_files files = {.tokenizer = {(const char *)data, nul ? (size_t)(nul - data) : size}};
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct vocabulary vocabulary;

    if (nul)
        files.config = (struct text_view){(const char *)nul + 1, size - files.tokenizer.size - 1};
    if (size == 0)
        return 0;
    if (hf_tokenizer_read(&files, VOCAB_SIZE, &arena, &vocabulary) == OK)
        check(&vocabulary);
    else
        ASSERT(fail_text()[0] != '\0');
    return 0;
}
