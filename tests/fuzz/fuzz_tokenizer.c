/*
 * fuzz_tokenizer: any text, whole vocabularies of both kinds: what is UTF-8 encodes and decodes to
 * itself, whole and streamed; what is not is refused. Then the bytes are taken for token ids.
 */
#include "engine/text/detokenizer.h"
#include "tests/support/small_vocabulary.h"

#include <string.h>

static struct tokenizer *tokenizers[2];

static void make_tokenizers(void)
{
    struct vocabulary vocabularies[2] = {small_bpe_vocabulary(), small_spm_vocabulary()};

    for (int i = 0; i < 2; i++) {
        enum status status = tokenizer_new(&vocabularies[i], &tokenizers[i]);

        ASSERT(status == OK, "%s", fail_text());
    }
}

static void check_same(const struct bytes *text, const void *data, size_t size)
{
    ASSERT(text->size == size && (size == 0 || memcmp(text->data, data, size) == 0));
}

static void check_round_trip(const struct tokenizer *tokenizer, const char *text, size_t size,
                             bool parse_special)
{
    AUTO_CLOSE(token_list) struct token_list list = {0};
    AUTO_CLOSE(bytes) struct bytes back = {0};

    if (tokenizer_encode(tokenizer, text, size, parse_special, false, &list) != OK) {
        ASSERT(list.count == 0 && strstr(fail_text(), "not UTF-8"));
        return;
    }
    tokenizer_decode(tokenizer, list.ids, list.count, true, &back);
    if (tokenizer == tokenizers[0] || !memmem(text, size, "\xe2\x96\x81", 3))
        check_same(&back, text, size); /* SentencePiece cannot tell U+2581 from a space */
}

static void check_stream(const struct tokenizer *tokenizer, const uint8_t *data, size_t size)
{
    const struct detokenizer_options options = {.show_special = true};
    AUTO_FREE(detokenizer) struct detokenizer *stream = detokenizer_new(tokenizer, &options);
    AUTO_CLOSE(token_list) struct token_list list = {0};
    AUTO_CLOSE(bytes) struct bytes whole = {0}, streamed = {0};

    for (size_t i = 0; i < size; i++) {
        token_list_add(&list, data[i] + (i & 1));
        detokenizer_push(stream, data[i] + (i & 1), &streamed);
    }
    detokenizer_finish(stream, &streamed);
    tokenizer_decode(tokenizer, list.ids, list.count, true, &whole);
    check_same(&whole, streamed.data, streamed.size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!tokenizers[0])
        make_tokenizers();
    for (int i = 0; i < 2; i++) {
        check_round_trip(tokenizers[i], (const char *)data, size, true);
        check_round_trip(tokenizers[i], (const char *)data, size, false);
        check_stream(tokenizers[i], data, size);
    }
    return 0;
}
