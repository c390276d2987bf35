#include "engine/text/tokenizer.h"

#include "engine/text/special.h"
#include "engine/text/token_model.h"
#include "engine/text/utf8.h"

#include <string.h>
#include <utf8proc.h>

/* Symbols of a text are counted in 32 bits, and cost some 40 bytes each while it is encoded. */
enum { MAX_TEXT_BYTES = 256 << 20 };

static const struct token_model_ops *const models[] = {&bpe_ops, &spm_ops};

struct tokenizer {
    struct token_map tokens;
    struct special special;          /* are looked for in the text as it stands */
    struct special composed_special; /* in what is_nfc makes of it, between those */
    struct token_model *model;
    token_id bos, eos; /* -1: none */
    bool add_bos, add_eos;
    bool drops_first_space; /* decode undoes the space that encode put before the text */
    bool is_nfc; /* texts are encoded in Unicode's form C */
    token_id stop_ids[2 + VOCABULARY_MORE_EOS];
    int32_t num_stop_ids;
};

/* ---- lists of tokens ---------------------------------------------------------------------- */

void token_list_add(struct token_list *list, token_id id)
{
    if (list->count == list->capacity) {
        ASSERT(list->capacity <= INT32_MAX / 2);
        list->capacity = MAX(64, 2 * list->capacity);
        list->ids = mem_resize(list->ids, (size_t)list->capacity * sizeof *list->ids);
    }
    list->ids[list->count++] = id;
}

void token_list_close(struct token_list *list)
{
    mem_free(list->ids);
    *list = (struct token_list){0};
}

/* ---- life --------------------------------------------------------------------------------- */

static const struct token_model_ops *find_model(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(models); i++)
        if (strcmp(models[i]->name, name) == 0)
            return models[i];
    return NULL;
}

static enum status check_ids(const struct vocabulary *vocabulary)
{
    const struct {
        const char *name;
        token_id id;
    } ids[] = {
        {"bos", vocabulary->bos_id},         {"eos", vocabulary->eos_id},
        {"eot", vocabulary->eot_id},         {"unknown", vocabulary->unknown_id},
        {"padding", vocabulary->padding_id},
    };

    for (size_t i = 0; i < COUNT_OF(ids); i++)
        if (ids[i].id < -1 || ids[i].id >= vocabulary->num_tokens)
            return fail(ERR_CORRUPT, "the %s token is %d, the vocabulary has %d tokens",
                        ids[i].name, ids[i].id, vocabulary->num_tokens);
    ASSERT(vocabulary->num_more_eos_ids <= VOCABULARY_MORE_EOS);
    return OK;
}

static void normalize(const struct token_model_ops *ops, const char *text, size_t size,
                      struct bytes *out)
{
    if (ops->normalize)
        ops->normalize(text, size, out);
    else
        bytes_append(out, text, size);
}

/* Is there anything to compose? And no more marks on one letter than Unicode's stream-safe texts have, twice: those
 * are sorted in the square of the time. Of a text that is UTF-8. */
static bool can_be_composed(const char *text, size_t size)
{
    enum { MOST_MARKS = 60 };
    utf8proc_ssize_t bytes;
    int num_marks = 0;
    bool is_ascii = true;

    for (size_t at = 0; at < size; at += (size_t)bytes) {
        utf8proc_int32_t c = 0;

        bytes = utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &c);
        ASSERT(bytes > 0, "at %zu of %zu bytes", at, size);
        is_ascii = is_ascii && c < 0x80;
        num_marks = c >= 0x80 && utf8proc_get_property(c)->combining_class ? num_marks + 1 : 0;
        if (num_marks > MOST_MARKS)
            return false;
    }
    return !is_ascii;
}

/* `text` becomes what is_nfc makes of it, in `composed` if that is another. */
static void compose(const char **text, size_t *size, struct bytes *composed)
{
    utf8proc_uint8_t *made = NULL;
    utf8proc_ssize_t bytes;

    if (!can_be_composed(*text, *size))
        return;
    bytes = utf8proc_map((const utf8proc_uint8_t *)*text, (utf8proc_ssize_t)*size, &made,
                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    ASSERT(bytes >= 0, "%zu bytes: %s", *size, utf8proc_errmsg(bytes));
    composed->size = 0;
    bytes_append(composed, made, (size_t)bytes);
    free(made);
    *text = (const char *)composed->data;
    *size = composed->size;
}

static bool is_special_type(enum token_type type)
{
    return type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
}

/* They are looked for in normalised text, so they are kept in that form too. */
static void collect_special(struct tokenizer *tokenizer, const bool *is_normalized)
{
    AUTO_CLOSE(bytes) struct bytes composed = {0}, text = {0};

    for (token_id id = 0; id < tokenizer->tokens.num_tokens; id++) {
        enum token_type type = token_map_type(&tokenizer->tokens, id);
        const char *stored = token_map_text(&tokenizer->tokens, id);
        size_t size = token_map_bytes(&tokenizer->tokens, id);
        bool is_composed = tokenizer->is_nfc && is_normalized && is_normalized[id];

        if (type != TOKEN_USER_DEFINED && !is_special_type(type))
            continue;
        if (utf8_valid_bytes(stored, size) != size)
            continue; /* it must not cut a character of the text in two */
        if (is_composed)
            compose(&stored, &size, &composed);
        text.size = 0;
        normalize(tokenizer->model->ops, stored, size, &text);
        special_add(is_composed ? &tokenizer->composed_special : &tokenizer->special,
                    (const char *)text.data, text.size, id, is_special_type(type));
    }
}

static void collect_stops(struct tokenizer *tokenizer, const struct vocabulary *vocabulary)
{
    if (vocabulary->eos_id >= 0)
        tokenizer->stop_ids[tokenizer->num_stop_ids++] = vocabulary->eos_id;
    if (vocabulary->eot_id >= 0 && vocabulary->eot_id != vocabulary->eos_id)
        tokenizer->stop_ids[tokenizer->num_stop_ids++] = vocabulary->eot_id;
    for (int32_t i = 0; i < vocabulary->num_more_eos_ids; i++)
        tokenizer->stop_ids[tokenizer->num_stop_ids++] = vocabulary->more_eos_ids[i];
}

enum status tokenizer_new(const struct vocabulary *vocabulary, struct tokenizer **out)
{
    AUTO_FREE(tokenizer) struct tokenizer *tokenizer = mem_new(struct tokenizer);
    const struct token_model_ops *ops = find_model(vocabulary->model);

    if (!ops)
        return fail(ERR_UNSUPPORTED,
                    "tokenizer model '%.32s' is not known; known are gpt2 and llama",
                    vocabulary->model);
    TRY(token_map_init(&tokenizer->tokens, vocabulary));
    TRY(check_ids(vocabulary));
    TRY(ops->create(vocabulary, &tokenizer->tokens, &tokenizer->model));
    tokenizer->bos = vocabulary->bos_id;
    tokenizer->eos = vocabulary->eos_id;
    tokenizer->add_bos = vocabulary->add_bos && vocabulary->bos_id >= 0;
    tokenizer->add_eos = vocabulary->add_eos && vocabulary->eos_id >= 0;
    tokenizer->is_nfc = vocabulary->is_nfc;
    tokenizer->drops_first_space = ops == &spm_ops && vocabulary->add_space_prefix;
    collect_special(tokenizer, vocabulary->is_normalized);
    collect_stops(tokenizer, vocabulary);
    *out = give(tokenizer);
    return OK;
}

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    if (tokenizer->model)
        tokenizer->model->ops->free(tokenizer->model);
    special_close(&tokenizer->special);
    special_close(&tokenizer->composed_special);
    token_map_close(&tokenizer->tokens);
    mem_free(tokenizer);
}

/* ---- encode ------------------------------------------------------------------------------- */

static enum status check_text(const char *text, size_t size)
{
    if (size > MAX_TEXT_BYTES)
        return fail(ERR_INVALID, "the text has %zu bytes, %d at most can be encoded", size,
                    MAX_TEXT_BYTES);

    size_t valid = utf8_valid_bytes(text, size);

    if (valid < size)
        return fail(ERR_INVALID, "the text is not UTF-8 at byte %zu (0x%02x)", valid,
                    (unsigned)(uint8_t)text[valid]);
    return OK;
}

struct encoding {
    const struct tokenizer *tokenizer;
    bool parse_special;
    struct merge *scratch;
    struct token_list *out;
};

/* is_start: no special token was before the part. */
typedef enum status encode_part(const struct encoding *e, const char *text, size_t size,
                                bool is_start);

/* Special tokens cut the text; what lies between them is for `part`. */
static enum status cut(const struct encoding *e, const struct special *special, const char *text,
                       size_t size, bool is_start, encode_part *part)
{
    size_t from = 0;

    while (from < size) {
        token_id id = -1;
        size_t bytes = 0;
        size_t at = special_find(special, text, size, from, e->parse_special, &id, &bytes);

        if (at > from)
            TRY(part(e, text + from, at - from, is_start && from == 0));
        if (at < size)
            token_list_add(e->out, id);
        from = at + bytes;
    }
    return OK;
}

static enum status encode_plain(const struct encoding *e, const char *text, size_t size,
                                bool is_start)
{
    const struct token_model *model = e->tokenizer->model;

    return model->ops->encode(model, text, size, is_start, e->scratch, e->out);
}

/* No mark behind a token that was found before is composed with it. */
static enum status encode_composed(const struct encoding *e, const char *text, size_t size,
                                   bool is_start)
{
    AUTO_CLOSE(bytes) struct bytes composed = {0};

    compose(&text, &size, &composed);
    return cut(e, &e->tokenizer->composed_special, text, size, is_start, encode_plain);
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                             bool parse_special, bool add_special, struct token_list *out)
{
    AUTO_CLOSE(merge) struct merge scratch = {0};
    AUTO_CLOSE(bytes) struct bytes normal = {0};
    const struct encoding e = {tokenizer, parse_special, &scratch, out};
    int32_t count_before = out->count;

    TRY(check_text(text, size));
    if (tokenizer->model->ops->normalize) {
        tokenizer->model->ops->normalize(text, size, &normal);
        text = (const char *)normal.data;
        size = normal.size;
    }
    if (add_special && tokenizer->add_bos)
        token_list_add(out, tokenizer->bos);

    enum status status = cut(&e, &tokenizer->special, text, size, true,
                             tokenizer->is_nfc ? encode_composed : encode_plain);

    if (status != OK) {
        out->count = count_before;
        return status;
    }
    if (add_special && tokenizer->add_eos)
        token_list_add(out, tokenizer->eos);
    return OK;
}

/* ---- decode ------------------------------------------------------------------------------- */

void tokenizer_piece(const struct tokenizer *tokenizer, token_id id, bool show_special,
                     struct bytes *out)
{
    if (id < 0 || id >= tokenizer->tokens.num_tokens)
        return;
    if (!tokenizer_is_special(tokenizer, id))
        tokenizer->model->ops->piece(tokenizer->model, id, out);
    else if (show_special)
        bytes_append(out, token_map_text(&tokenizer->tokens, id),
                     token_map_bytes(&tokenizer->tokens, id));
}

void tokenizer_decode(const struct tokenizer *tokenizer, const token_id *ids, int32_t count,
                      bool show_special, struct bytes *out)
{
    AUTO_CLOSE(bytes) struct bytes raw = {0};
    bool is_first_word = true;

    for (int32_t i = 0; i < count; i++) {
        size_t before = raw.size;

        tokenizer_piece(tokenizer, ids[i], show_special, &raw);
        if (tokenizer_is_special(tokenizer, ids[i]) || raw.size == before)
            continue;
        if (is_first_word && tokenizer->drops_first_space && raw.data[before] == ' ')
            memmove(raw.data + before, raw.data + before + 1, --raw.size - before);
        is_first_word = false;
    }
    utf8_repair((const char *)raw.data, raw.size, out);
}

/* ---- questions ---------------------------------------------------------------------------- */

int32_t tokenizer_vocab_size(const struct tokenizer *tokenizer)
{
    return tokenizer->tokens.num_tokens;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, token_id id)
{
    return id >= 0 && id < tokenizer->tokens.num_tokens &&
           is_special_type(token_map_type(&tokenizer->tokens, id));
}

token_id tokenizer_bos(const struct tokenizer *tokenizer)
{
    return tokenizer->bos;
}

token_id tokenizer_eos(const struct tokenizer *tokenizer)
{
    return tokenizer->eos;
}

const char *tokenizer_token_text(const struct tokenizer *tokenizer, token_id id, size_t *size_out)
{
    if (id < 0 || id >= tokenizer->tokens.num_tokens)
        return NULL;
    *size_out = token_map_bytes(&tokenizer->tokens, id);
    return token_map_text(&tokenizer->tokens, id);
}

const token_id *tokenizer_stop_ids(const struct tokenizer *tokenizer, int32_t *count_out)
{
    *count_out = tokenizer->num_stop_ids;
    return tokenizer->stop_ids;
}
