/*
 * spm: SentencePiece-style BPE. Spaces are written U+2581; there is no pre-tokeniser; two
 * neighbours become one token where their joined text is a token, the best score first; a
 * character that is no token falls back to its bytes, "<0xE2>" and so on.
 */
#include "engine/text/token_model.h"
#include "engine/text/utf8.h"

#include <stdio.h>
#include <string.h>

#define META_SPACE "\xe2\x96\x81" /* U+2581 */
enum { META_SPACE_BYTES = 3 };

struct spm {
    struct token_model model;
    const struct token_map *tokens;
    uint32_t *priorities;   /* [num_tokens] ascending as scores descend, owns */
    token_id byte_ids[256]; /* -1: the vocabulary lacks this byte */
    bool joins_space[256];  /* whether some word has this byte right before a U+2581 */
    token_id unknown_id;    /* -1: none */
    bool add_space_prefix, prefix_is_once;
};

static struct spm *spm_of(const struct token_model *model)
{
    return CONTAINER_OF(model, struct spm, model);
}

static void normalize(const char *text, size_t size, struct bytes *out)
{
    const char *end = text + size, *space;

    bytes_reserve(out, size);
    while ((space = memchr(text, ' ', (size_t)(end - text)))) {
        bytes_append(out, text, (size_t)(space - text));
        bytes_append(out, META_SPACE, META_SPACE_BYTES);
        text = space + 1;
    }
    bytes_append(out, text, (size_t)(end - text));
}

/* ---- decode ------------------------------------------------------------------------------- */

/* Which byte a token of type byte stands for; -1: its text is not of the form "<0x0A>". */
static int byte_of(const struct spm *spm, token_id id)
{
    for (int byte = 0; byte < 256; byte++)
        if (spm->byte_ids[byte] == id)
            return byte;
    return -1;
}

static void piece(const struct token_model *model, token_id id, struct bytes *out)
{
    const struct spm *spm = spm_of(model);
    const char *text = token_map_text(spm->tokens, id);
    const char *end = text + token_map_bytes(spm->tokens, id);
    int byte = token_map_type(spm->tokens, id) == TOKEN_BYTE ? byte_of(spm, id) : -1;

    if (byte >= 0) {
        bytes_append(out, &(uint8_t){(uint8_t)byte}, 1);
        return;
    }
    while (text < end) {
        const char *space = memmem(text, (size_t)(end - text), META_SPACE, META_SPACE_BYTES);
        const char *stop = space ? space : end;

        bytes_append(out, text, (size_t)(stop - text));
        if (space)
            bytes_append(out, " ", 1);
        text = space ? space + META_SPACE_BYTES : end;
    }
}

/* ---- encode ------------------------------------------------------------------------------- */

struct encoding {
    const struct spm *spm;
    const char *text;
};

/* Only words take part: the text "<0x41>" or "<bos>" never becomes that token by merging. */
static token_id find_word(const struct spm *spm, const char *text, size_t size)
{
    token_id id = token_map_find(spm->tokens, text, size);

    if (id < 0)
        return -1;

    enum token_type type = token_map_type(spm->tokens, id);

    return type == TOKEN_NORMAL || type == TOKEN_USER_DEFINED ? id : -1;
}

static bool find_merge(const void *context, const struct merge_symbol *left,
                       const struct merge_symbol *right, uint32_t *priority_out, token_id *id_out)
{
    const struct encoding *e = context;

    *id_out = find_word(e->spm, e->text + left->start, left->size + right->size);
    if (*id_out < 0)
        return false;
    *priority_out = e->spm->priorities[*id_out];
    return true;
}

static void add_bytes(const struct spm *spm, const char *text, size_t size, struct token_list *out)
{
    for (size_t i = 0; i < size; i++)
        if (spm->byte_ids[(uint8_t)text[i]] < 0) { /* no byte tokens: one unknown for all of it */
            if (spm->unknown_id >= 0)
                token_list_add(out, spm->unknown_id);
            return;
        }
    for (size_t i = 0; i < size; i++)
        token_list_add(out, spm->byte_ids[(uint8_t)text[i]]);
}

/* No word reaches over the end of a segment, so each can be merged by itself: most are a space
 * and a word, and the merging stays in the cache however long the text. */
static size_t segment_bytes(const struct spm *spm, const char *text, size_t size)
{
    const char *at = text + 1;

    while ((at = memmem(at, size - (size_t)(at - text), META_SPACE, META_SPACE_BYTES))) {
        if (!spm->joins_space[(uint8_t)at[-1]])
            return (size_t)(at - text);
        at += META_SPACE_BYTES;
    }
    return size;
}

static void encode_segment(const struct spm *spm, const char *text, size_t size,
                           struct merge *merge, struct token_list *out)
{
    struct encoding e = {spm, text};
    uint32_t char_bytes;

    merge_reset(merge);
    for (size_t at = 0; at < size; at += char_bytes) {
        char_bytes = utf8_first(text + at, size - at).size;
        merge_add(merge, (uint32_t)at, char_bytes, -1);
    }
    merge_run(merge, find_merge, &e);
    for (int32_t i = 0; i >= 0; i = merge->symbols[i].next) {
        const struct merge_symbol *symbol = &merge->symbols[i];
        const char *part = text + symbol->start;
        token_id id = symbol->id >= 0 ? symbol->id : find_word(spm, part, symbol->size);

        if (id >= 0)
            token_list_add(out, id);
        else
            add_bytes(spm, part, symbol->size, out);
    }
}

static void encode_text(const struct spm *spm, const char *text, size_t size, struct merge *merge,
                        struct token_list *out)
{
    size_t bytes;

    for (size_t at = 0; at < size; at += bytes) {
        bytes = segment_bytes(spm, text + at, size - at);
        encode_segment(spm, text + at, bytes, merge, out);
    }
}

/* At the start and after a special token, as llama.cpp does, or as Hugging Face's "first" is. */
static bool wants_prefix(const struct spm *spm, const char *text, size_t size, bool is_start)
{
    bool has_space = size >= META_SPACE_BYTES && memcmp(text, META_SPACE, META_SPACE_BYTES) == 0;

    return spm->add_space_prefix && (!spm->prefix_is_once || (is_start && !has_space));
}

static enum status encode(const struct token_model *model, const char *text, size_t size, bool is_start,
                          struct merge *scratch, struct token_list *out)
{
    const struct spm *spm = spm_of(model);

    if (wants_prefix(spm, text, size, is_start)) {
        AUTO_CLOSE(bytes) struct bytes prefixed = {0};

        bytes_append(&prefixed, META_SPACE, META_SPACE_BYTES);
        bytes_append(&prefixed, text, size);
        encode_text(spm, (const char *)prefixed.data, prefixed.size, scratch, out);
    } else {
        encode_text(spm, text, size, scratch, out);
    }
    return OK;
}

/* ---- life --------------------------------------------------------------------------------- */

/* Maps scores to integers in the opposite order, so that the best has the lowest number. */
static uint32_t priority_of(float score)
{
    union {
        float number;
        uint32_t bits;
    } word = {.number = score + 0.0f}; /* -0 and 0 are equal */

    return word.bits & 0x80000000 ? word.bits : ~(word.bits | 0x80000000);
}

static void find_bytes(struct spm *spm)
{
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        int size = snprintf(text, sizeof text, "<0x%02X>", (unsigned)byte);
        token_id id = token_map_find(spm->tokens, text, (size_t)size);

        if (id >= 0 && token_map_type(spm->tokens, id) != TOKEN_BYTE)
            id = -1;
        spm->byte_ids[byte] = id;
    }
}

static void find_joins(struct spm *spm)
{
    const struct token_map *tokens = spm->tokens;

    for (token_id id = 0; id < tokens->num_tokens; id++) {
        const char *text = token_map_text(tokens, id), *end = text + token_map_bytes(tokens, id);

        for (const char *at = text + 1; end - at >= META_SPACE_BYTES; at++) /* few bytes: a call costs more */
            if (at[0] == META_SPACE[0] && memcmp(at, META_SPACE, META_SPACE_BYTES) == 0)
                spm->joins_space[(uint8_t)at[-1]] = true;
    }
}

static enum status create(const struct vocabulary *vocabulary, const struct token_map *tokens,
                          struct token_model **out)
{
    if (!vocabulary->scores)
        return fail(ERR_CORRUPT, "a vocabulary of model 'llama' without scores");

    struct spm *spm = mem_new(struct spm);

    spm->model.ops = &spm_ops;
    spm->tokens = tokens;
    spm->unknown_id = vocabulary->unknown_id;
    spm->add_space_prefix = vocabulary->add_space_prefix;
    spm->prefix_is_once = vocabulary->space_prefix_is_once;
    spm->priorities = mem_new_array(uint32_t, (size_t)tokens->num_tokens);
    for (int32_t i = 0; i < tokens->num_tokens; i++)
        spm->priorities[i] = priority_of(vocabulary->scores[i]);
    find_bytes(spm);
    find_joins(spm);
    *out = &spm->model;
    return OK;
}

static void free_model(struct token_model *model)
{
    struct spm *spm = spm_of(model);

    mem_free(spm->priorities);
    mem_free(spm);
}

const struct token_model_ops spm_ops = {
    .name = "llama",
    .create = create,
    .free = free_model,
    .normalize = normalize,
    .encode = encode,
    .piece = piece,
};
