#include "proto/model/hf_tokenizer.h"

#include "proto/model/json_field.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_TOKENIZER_BYTES = 128 << 20,
    MAX_SMALL_BYTES = 8 << 20, /* of the other files */
};
#define TOKENIZER  "tokenizer.json"
#define CONFIG     "tokenizer_config.json"
#define GENERATION "generation_config.json"

#define META_SPACE "\xe2\x96\x81" /* U+2581 */

struct reading {
    const json_t *root, *model, *vocab, *added; /* of tokenizer.json */
    const json_t *config, *generation;          /* NULL: there is none */
    struct arena *arena;
    struct vocabulary *out;
    struct text_view *tokens; /* [num_tokens] */
    int32_t *types;           /* [num_tokens] */
    bool *is_normalized;      /* [num_tokens] */
    bool is_byte_level;
};

static struct text_view view_of(const json_t *text)
{
    return (struct text_view){json_string_value(text), json_string_length(text)};
}

static struct text_view keep(struct arena *arena, const char *text, size_t size)
{
    return (struct text_view){arena_strndup(arena, text, size), size};
}

static bool is_type(const json_t *part, const char *type)
{
    const char *name = json_string_value(field_find(part, "type"));

    return name && strcmp(name, type) == 0;
}

static bool is_text(const json_t *value, const char *text)
{
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static bool has_id(const struct reading *reading, int32_t id)
{
    return reading->types[id] != TOKEN_UNUSED;
}

/* false: it has no weights, and is left out. */
static bool is_in_range(const struct reading *reading, const json_t *id)
{
    return json_integer_value(id) < reading->out->num_tokens;
}

static enum status check_id(const char *token, const json_t *id)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
        return fail(ERR_CORRUPT, "token \"%.64s\" has no number from 0 on as its id", token);
    return OK;
}

static void set_token(struct reading *reading, int32_t id, const char *text, size_t size, enum token_type type)
{
    reading->tokens[id] = keep(reading->arena, text, size);
    reading->types[id] = type;
}

static enum status read_vocab(struct reading *reading)
{
    const char *text;
    json_t *id;

    json_object_foreach((json_t *)reading->vocab, text, id) {
        TRY(check_id(text, id));
        if (!is_in_range(reading, id))
            continue;
        if (has_id(reading, (int32_t)json_integer_value(id)))
            return fail(ERR_CORRUPT, "two tokens have the id %lld, one is \"%.64s\"", json_integer_value(id), text);
        set_token(reading, (int32_t)json_integer_value(id), text, strlen(text), TOKEN_NORMAL);
    }
    return OK;
}

/* Takes white space, or whole words alone: nothing here does so. */
static enum status refuse_wide(const json_t *token, const char *text)
{
    static const char *const switches[] = {"lstrip", "rstrip", "single_word"};

    for (size_t i = 0; i < COUNT_OF(switches); i++) {
        bool is_on = false;

        TRY(field_bool(token, switches[i], &is_on));
        if (is_on)
            return fail(ERR_UNSUPPORTED, "added token \"%.64s\": %s is true; false is supported", text,
                        switches[i]);
    }
    return OK;
}

static enum status read_added_token(struct reading *reading, const json_t *token)
{
    const json_t *content = field_find(token, "content"), *id = field_find(token, "id");
    const char *text = json_string_value(content);
    bool is_special = false, is_normalized = false;

    if (!text || !*text)
        return fail(ERR_CORRUPT, "added_tokens has one without content");
    TRY(check_id(text, id));
    TRY(field_bool(token, "special", &is_special));
    TRY(field_bool(token, "normalized", &is_normalized));
    if (!is_in_range(reading, id))
        return OK;
    TRY(refuse_wide(token, text));
    set_token(reading, (int32_t)json_integer_value(id), text, json_string_length(content),
              is_special ? TOKEN_CONTROL : TOKEN_USER_DEFINED);
    reading->is_normalized[json_integer_value(id)] = is_normalized;
    return OK;
}

static enum status read_added_tokens(struct reading *reading)
{
    if (reading->added && !json_is_array(reading->added))
        return field_wrong(ERR_CORRUPT, "added_tokens", reading->added, "an array is needed");
    for (size_t i = 0; i < json_array_size(reading->added); i++)
        TRY(read_added_token(reading, json_array_get(reading->added, i)));
    return OK;
}

/* -1: there is none of this text. Added tokens come first. */
static int32_t find_token(const struct reading *reading, const char *text)
{
    const json_t *id = json_object_get(reading->vocab, text);

    for (size_t i = 0; i < json_array_size(reading->added); i++) {
        const json_t *token = json_array_get(reading->added, i);

        if (is_text(field_find(token, "content"), text))
            id = field_find(token, "id");
    }
    return id && is_in_range(reading, id) ? (int32_t)json_integer_value(id) : -1;
}

/* "<0x0A>" is a byte where characters that are no token become bytes. */
static void mark_bytes(struct reading *reading)
{
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        const json_t *id;

        snprintf(text, sizeof text, "<0x%02X>", (unsigned)byte);
        id = json_object_get(reading->vocab, text);
        if (id && is_in_range(reading, id) && reading->types[json_integer_value(id)] == TOKEN_NORMAL)
            reading->types[json_integer_value(id)] = TOKEN_BYTE;
    }
}

static enum status read_tokens(struct reading *reading)
{
    size_t n = (size_t)reading->out->num_tokens;

    reading->tokens = arena_alloc(reading->arena, n * sizeof *reading->tokens);
    reading->types = arena_alloc(reading->arena, n * sizeof *reading->types);
    reading->is_normalized = arena_alloc(reading->arena, n * sizeof *reading->is_normalized);
    for (size_t i = 0; i < n; i++) {
        reading->tokens[i] = (struct text_view){"", 0};
        reading->types[i] = TOKEN_UNUSED;
        reading->is_normalized[i] = false;
    }
    TRY(read_vocab(reading));
    TRY(read_added_tokens(reading));
    if (!reading->is_byte_level)
        mark_bytes(reading);
    reading->out->tokens = reading->tokens;
    reading->out->types = reading->types;
    if (reading->out->is_nfc)
        reading->out->is_normalized = reading->is_normalized;
    return OK;
}

/* ---- how a text is cut ----------------------------------------------------------------------- */

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CL100K(digits)                                                                                       \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" SPACES
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define BY_CASE(ending, digits)                                                                              \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" ending "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" ending \
    "|\\p{N}" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define DEEPSEEK_V3                                                                                          \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"      \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES

/* A pattern that matches all of a text isolates its matches, or removes what is between them: nothing. */
#define BY_ALL_OF(pattern, ignores_merges, pre)                                                              \
    {"Split by " pattern ", ByteLevel", ignores_merges, pre},                                                \
    {"Split into " pattern ", ByteLevel", ignores_merges, pre}

/* tokenizer.ggml.pre for a chain of parts; a word that is a token is taken as one, whatever the merges say, where
 * `ignores_merges`. */
static const struct {
    const char *parts;
    bool ignores_merges;
    const char *pre;
} splits[] = {
    {"ByteLevel with its pattern", false, "gpt-2"},
    {"Digits one by one, ByteLevel with its pattern", false, "smollm"},
    BY_ALL_OF(CL100K("{1,3}"), true, "llama-bpe"),
    BY_ALL_OF(CL100K("{1,3}"), false, "dbrx"),
    BY_ALL_OF(CL100K(""), false, "qwen2"),
    BY_ALL_OF(BY_CASE("", ""), true, "tekken"),
    BY_ALL_OF(BY_CASE(CONTRACTION "?", "{1,3}"), false, "gpt-4o"),
    {"Split by \\p{N}{1,3}, Split by [\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+, Split by " DEEPSEEK_V3 ", ByteLevel",
     false, "deepseek-v3"},
};

static enum status describe_byte_level(const json_t *part, struct bytes *out)
{
    bool adds_space = true, has_pattern = true;

    TRY(field_bool(part, "add_prefix_space", &adds_space));
    TRY(field_bool(part, "use_regex", &has_pattern));
    bytes_printf(out, "ByteLevel%s%s", has_pattern ? " with its pattern" : "",
                 adds_space ? " and a space before" : "");
    return OK;
}

static enum status describe_digits(const json_t *part, struct bytes *out)
{
    bool is_each = false;

    TRY(field_bool(part, "individual_digits", &is_each));
    bytes_printf(out, "Digits%s", is_each ? " one by one" : "");
    return OK;
}

/* Some files have the two characters themselves where others have their escapes. */
static void describe_regex(const char *regex, struct bytes *out)
{
    for (; *regex; regex++)
        if (*regex == '\r' || *regex == '\n')
            bytes_append(out, *regex == '\r' ? "\\r" : "\\n", 2);
        else
            bytes_append(out, regex, 1);
}

static enum status describe_split(const json_t *part, struct bytes *out)
{
    const json_t *pattern = field_find(part, "pattern");
    const char *regex = NULL, *behavior = "";
    bool inverts = false;

    TRY(field_text(pattern, "Regex", &regex));
    TRY(field_text(part, "behavior", &behavior));
    TRY(field_bool(part, "invert", &inverts));
    if (strcmp(behavior, inverts ? "Removed" : "Isolated") != 0 || !regex) {
        bytes_printf(out, "Split as %s%s", behavior, inverts ? ", inverted" : "");
        return OK;
    }
    bytes_printf(out, "Split %s ", inverts ? "into" : "by");
    describe_regex(regex, out);
    return OK;
}

static enum status describe_part(const json_t *part, struct bytes *out)
{
    const char *type = "no type";

    TRY(field_text(part, "type", &type));
    if (strcmp(type, "ByteLevel") == 0)
        return describe_byte_level(part, out);
    if (strcmp(type, "Digits") == 0)
        return describe_digits(part, out);
    if (strcmp(type, "Split") == 0)
        return describe_split(part, out);
    bytes_printf(out, "%.32s", type);
    return OK;
}

/* A part, or the parts of a sequence: `list` is what it calls them. */
static size_t num_parts(const json_t *part, const char *list)
{
    return is_type(part, "Sequence") ? json_array_size(field_find(part, list)) : part ? 1 : 0;
}

static const json_t *part_at(const json_t *part, const char *list, size_t i)
{
    return is_type(part, "Sequence") ? json_array_get(field_find(part, list), i) : part;
}

static enum status read_split(const struct reading *reading, bool ignores_merges)
{
    const json_t *pre = field_find(reading->root, "pre_tokenizer");
    AUTO_CLOSE(bytes) struct bytes parts = {0};

    if (!pre)
        return field_missing("pre_tokenizer");
    for (size_t i = 0; i < num_parts(pre, "pretokenizers"); i++) {
        if (i > 0)
            bytes_printf(&parts, ", ");
        TRY(describe_part(part_at(pre, "pretokenizers", i), &parts));
    }
    for (size_t i = 0; i < COUNT_OF(splits); i++)
        if (splits[i].ignores_merges == ignores_merges && strcmp(splits[i].parts, bytes_text(&parts)) == 0) {
            snprintf(reading->out->pre, sizeof reading->out->pre, "%s", splits[i].pre);
            return OK;
        }
    return fail(ERR_UNSUPPORTED, "pre_tokenizer is \"%.300s\"%s, which is not one that is known here",
                bytes_text(&parts), ignores_merges ? " with ignore_merges" : "");
}

/* ---- what is made of a text before ------------------------------------------------------------ */

/* NFC is done by vocabulary.is_nfc; nothing else is known. */
static enum status read_byte_level_normalizer(const struct reading *reading)
{
    const json_t *normalizer = field_find(reading->root, "normalizer");

    for (size_t i = 0; i < num_parts(normalizer, "normalizers"); i++) {
        if (!is_type(part_at(normalizer, "normalizers", i), "NFC"))
            return field_wrong(ERR_UNSUPPORTED, "normalizer", normalizer, "NFC or none is supported");
        reading->out->is_nfc = true;
    }
    return OK;
}

static bool is_space_rule(const json_t *part)
{
    return is_type(part, "Replace") && is_text(field_find(field_find(part, "pattern"), "String"), " ") &&
           is_text(field_find(part, "content"), META_SPACE);
}

/* Spaces become U+2581, and there may be one more before the text. */
static enum status read_space_normalizer(const struct reading *reading, const json_t *normalizer)
{
    size_t n = num_parts(normalizer, "normalizers");
    const json_t *first = part_at(normalizer, "normalizers", 0);
    bool prepends = n == 2 && is_type(first, "Prepend") && is_text(field_find(first, "prepend"), META_SPACE);

    if (!is_space_rule(part_at(normalizer, "normalizers", n - 1)) || (n != 1 && !prepends))
        return field_wrong(ERR_UNSUPPORTED, "normalizer", normalizer, "spaces to U+2581 is supported");
    reading->out->add_space_prefix = prepends;
    return OK;
}

/* The same, as newer files say it. */
static enum status read_metaspace(const struct reading *reading, const json_t *part)
{
    const char *scheme = "always", *replacement = META_SPACE;
    bool splits_words = true;

    TRY(field_text(part, "prepend_scheme", &scheme));
    TRY(field_text(part, "replacement", &replacement));
    TRY(field_bool(part, "split", &splits_words));
    if (splits_words || strcmp(replacement, META_SPACE) != 0)
        return field_wrong(ERR_UNSUPPORTED, "pre_tokenizer", part, "U+2581 without split is supported");
    reading->out->add_space_prefix = reading->out->space_prefix_is_once = strcmp(scheme, "first") == 0;
    if (strcmp(scheme, "first") == 0 || strcmp(scheme, "never") == 0)
        return OK;
    return fail(ERR_UNSUPPORTED, "prepend_scheme is \"%.32s\"; \"first\" and \"never\" are supported", scheme);
}

static enum status read_spaces(const struct reading *reading)
{
    const json_t *normalizer = field_find(reading->root, "normalizer");
    const json_t *pre = field_find(reading->root, "pre_tokenizer");

    if (is_type(pre, "Metaspace") && !normalizer)
        return read_metaspace(reading, pre);
    if (!normalizer)
        return field_missing("normalizer");
    /* No space is left that it could find. */
    if (pre && !(is_type(pre, "Split") && is_text(field_find(field_find(pre, "pattern"), "String"), " ")))
        return field_wrong(ERR_UNSUPPORTED, "pre_tokenizer", pre, "none is supported where spaces are U+2581");
    return read_space_normalizer(reading, normalizer);
}

/* ---- merges ---------------------------------------------------------------------------------- */

/* ["a", "b"] of newer files, "a b" of older ones. */
static bool read_merge(const json_t *merge, struct text_view *left_out, struct text_view *right_out)
{
    struct text_view text = view_of(merge);
    const char *space;

    if (json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
        json_is_string(json_array_get(merge, 1))) {
        *left_out = view_of(json_array_get(merge, 0));
        *right_out = view_of(json_array_get(merge, 1));
        return true;
    }
    space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
    if (!space)
        return false;
    *left_out = (struct text_view){text.data, (size_t)(space - text.data)};
    *right_out = (struct text_view){space + 1, text.size - left_out->size - 1};
    return true;
}

static enum status bad_merge(const json_t *merge, size_t rank)
{
    char key[32];

    snprintf(key, sizeof key, "merge %zu", rank);
    return field_wrong(ERR_CORRUPT, key, merge, "two tokens are needed");
}

static enum status keep_merges(const struct reading *reading, const json_t *merges)
{
    size_t n = json_array_size(merges);
    struct text_view *views = arena_alloc(reading->arena, n * sizeof *views);

    for (size_t i = 0; i < n; i++) {
        struct text_view left, right;
        char *text;

        if (!read_merge(json_array_get(merges, i), &left, &right))
            return bad_merge(json_array_get(merges, i), i);
        views[i].size = left.size + 1 + right.size;
        text = arena_alloc(reading->arena, views[i].size);
        memcpy(text, left.data, left.size);
        text[left.size] = ' ';
        memcpy(text + left.size + 1, right.data, right.size);
        views[i].data = text;
    }
    reading->out->merges = views;
    reading->out->num_merges = (int32_t)n;
    return OK;
}

static bool is_one_character(struct text_view text)
{
    size_t num = 0;

    for (size_t i = 0; i < text.size; i++)
        num += (text.data[i] & 0xc0) != 0x80;
    return num == 1;
}

/*
 * A file that was made of SentencePiece's has all merges of a token side by side, the tokens in order of their
 * scores: the rank of a token's first merge is as good as its score. What no merge makes is not made, though its
 * parts may stand side by side.
 */
static enum status score_merges(const struct reading *reading, const json_t *merges)
{
    int32_t num_tokens = reading->out->num_tokens;
    size_t n = json_array_size(merges);
    float *scores = arena_alloc(reading->arena, (size_t)num_tokens * sizeof *scores);
    AUTO_CLOSE(bytes) struct bytes joined = {0};

    for (int32_t i = 0; i < num_tokens; i++)
        scores[i] = -(float)n;
    for (size_t i = 0; i < n; i++) {
        struct text_view left, right;
        const json_t *id;

        if (!read_merge(json_array_get(merges, i), &left, &right))
            return bad_merge(json_array_get(merges, i), i);
        joined.size = 0;
        bytes_append(&joined, left.data, left.size);
        bytes_append(&joined, right.data, right.size);
        id = json_object_get(reading->vocab, bytes_text(&joined));
        if (!id)
            return fail(ERR_CORRUPT, "merge %zu makes \"%.64s\", which is no token", i, bytes_text(&joined));
        if (is_in_range(reading, id) && scores[json_integer_value(id)] == -(float)n)
            scores[json_integer_value(id)] = -(float)i;
    }
    for (int32_t i = 0; i < num_tokens; i++)
        if (reading->types[i] == TOKEN_NORMAL && scores[i] == -(float)n && !is_one_character(reading->tokens[i]))
            reading->types[i] = TOKEN_UNUSED;
    reading->out->scores = scores;
    return OK;
}

static enum status read_merges(const struct reading *reading)
{
    enum { MOST = 1 << 24 }; /* whole numbers that a float has */
    const json_t *merges = field_find(reading->model, "merges");

    if (!json_is_array(merges))
        return field_missing("model.merges");
    if (json_array_size(merges) > MOST)
        return fail(ERR_UNSUPPORTED, "has %zu merges; %d is the limit", json_array_size(merges), MOST);
    return reading->is_byte_level ? keep_merges(reading, merges) : score_merges(reading, merges);
}

/* ---- the kind of tokeniser ------------------------------------------------------------------- */

static enum status refuse_extras(const struct reading *reading)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *model = reading->model;
    const char *type = "BPE";
    float dropout = 0;

    TRY(field_text(model, "type", &type));
    if (strcmp(type, "BPE") != 0)
        return fail(ERR_UNSUPPORTED, "model.type is \"%.32s\"; \"BPE\" is supported", type);
    TRY(field_float(model, "dropout", 0, 1, &dropout));
    if (dropout != 0)
        return fail(ERR_UNSUPPORTED, "model.dropout is %g; 0 is supported", (double)dropout);
    for (size_t i = 0; i < COUNT_OF(affixes); i++) {
        const char *affix = "";

        TRY(field_text(model, affixes[i], &affix));
        if (*affix)
            return fail(ERR_UNSUPPORTED, "model.%s is \"%.32s\"; none is supported", affixes[i], affix);
    }
    return OK;
}

static enum status read_kind(struct reading *reading)
{
    bool falls_back = false, ignores_merges = false;

    TRY(field_bool(reading->model, "byte_fallback", &falls_back));
    TRY(field_bool(reading->model, "ignore_merges", &ignores_merges));
    reading->is_byte_level = !falls_back;
    snprintf(reading->out->model, sizeof reading->out->model, "%s", falls_back ? "llama" : "gpt2");
    if (reading->is_byte_level) {
        TRY(read_byte_level_normalizer(reading));
        return read_split(reading, ignores_merges);
    }
    if (ignores_merges)
        return fail(ERR_UNSUPPORTED, "has both byte_fallback and ignore_merges");
    return read_spaces(reading);
}

/* ---- special tokens -------------------------------------------------------------------------- */

/* "<s>", or an object whose content it is; -1: the file has none, or no such token. */
static int32_t named_token(const struct reading *reading, const char *key)
{
    const json_t *value = field_find(reading->config, key);
    const char *text = json_string_value(json_is_object(value) ? field_find(value, "content") : value);

    return text ? find_token(reading, text) : -1;
}

/* One id, or several. */
static enum status check_generation_ids(const struct reading *reading, const char *key)
{
    const json_t *value = field_find(reading->generation, key);
    size_t n = json_is_array(value) ? json_array_size(value) : value ? 1 : 0;

    if (n > VOCABULARY_MORE_EOS)
        return fail(ERR_UNSUPPORTED, "%s has %zu tokens; %d are supported", key, n, VOCABULARY_MORE_EOS);
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;

        if (!json_is_integer(id) || json_integer_value(id) < 0)
            return field_wrong(ERR_CORRUPT, key, value, "the ids of tokens, from 0 on, are needed");
    }
    return OK;
}

static int32_t generation_id(const struct reading *reading, const char *key, size_t i)
{
    const json_t *value = field_find(reading->generation, key);
    const json_t *id = json_is_array(value) ? json_array_get(value, i) : i == 0 ? value : NULL;
    json_int_t number = json_integer_value(id);

    return json_is_integer(id) && number >= 0 && number < reading->out->num_tokens ? (int32_t)number : -1;
}

static void read_stops(const struct reading *reading)
{
    struct vocabulary *out = reading->out;

    for (size_t i = 0; i < VOCABULARY_MORE_EOS; i++) {
        int32_t id = generation_id(reading, "eos_token_id", i);

        if (id >= 0 && id != out->eos_id)
            out->more_eos_ids[out->num_more_eos_ids++] = id;
    }
}

static const json_t *find_template(const json_t *post)
{
    for (size_t i = 0; i < num_parts(post, "processors"); i++)
        if (is_type(part_at(post, "processors", i), "TemplateProcessing"))
            return part_at(post, "processors", i);
    return NULL;
}

/* -1: it is the text's place. */
static int32_t template_token(const struct reading *reading, const json_t *piece)
{
    const char *text = json_string_value(field_find(field_find(piece, "SpecialToken"), "id"));

    return text ? find_token(reading, text) : -1;
}

/* What is put around a text: one token before it, which is the first of all, and one behind it. */
static enum status read_post_processor(const struct reading *reading)
{
    const json_t *post = field_find(reading->root, "post_processor");
    const json_t *single = field_find(find_template(post), "single");
    struct vocabulary *out = reading->out;
    bool is_behind = false;

    for (size_t i = 0; i < num_parts(post, "processors"); i++)
        if (!is_type(part_at(post, "processors", i), "TemplateProcessing") &&
            !is_type(part_at(post, "processors", i), "ByteLevel"))
            return field_wrong(ERR_UNSUPPORTED, "post_processor", post, "TemplateProcessing is supported");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        int32_t id = template_token(reading, piece);

        if (field_find(piece, "Sequence")) {
            is_behind = true;
            continue;
        }
        if (!is_behind && i == 0 && out->bos_id < 0)
            out->bos_id = id;
        if (id < 0 || (is_behind ? id != out->eos_id : i > 0 || id != out->bos_id))
            return field_wrong(ERR_UNSUPPORTED, "post_processor", single,
                               "bos_token before and eos_token behind a text is supported");
        *(is_behind ? &out->add_eos : &out->add_bos) = true;
    }
    return OK;
}

static enum status read_specials(const struct reading *reading)
{
    struct vocabulary *out = reading->out;
    const char *unknown = NULL;

    TRY(field_text(reading->model, "unk_token", &unknown));
    out->bos_id = named_token(reading, "bos_token");
    out->eos_id = named_token(reading, "eos_token");
    out->padding_id = named_token(reading, "pad_token");
    out->unknown_id = unknown ? find_token(reading, unknown) : named_token(reading, "unk_token");
    out->eot_id = -1;
    if (out->bos_id < 0)
        out->bos_id = generation_id(reading, "bos_token_id", 0);
    if (out->eos_id < 0)
        out->eos_id = generation_id(reading, "eos_token_id", 0);
    read_stops(reading);
    if (!reading->is_byte_level && out->unknown_id >= 0)
        reading->types[out->unknown_id] = TOKEN_UNKNOWN;
    return OK;
}

/* The settings come after the chain of parts, as when llama.cpp converts a model. */
static enum status read_additions(const struct reading *reading)
{
    struct vocabulary *out = reading->out;

    TRY(fail_in(CONFIG, field_bool(reading->config, "add_bos_token", &out->add_bos)));
    TRY(fail_in(CONFIG, field_bool(reading->config, "add_eos_token", &out->add_eos)));
    out->add_bos = out->add_bos && out->bos_id >= 0;
    out->add_eos = out->add_eos && out->eos_id >= 0;
    return OK;
}

/* ---- the chat template ----------------------------------------------------------------------- */

/* One, or several that have names. */
static const json_t *default_template(const json_t *templates)
{
    for (size_t i = 0; i < json_array_size(templates); i++)
        if (is_text(field_find(json_array_get(templates, i), "name"), "default"))
            return field_find(json_array_get(templates, i), "template");
    return templates;
}

static void read_chat_template(const struct reading *reading, struct text_view file)
{
    const json_t *of_config = default_template(field_find(reading->config, "chat_template"));
    struct text_view text = file.data ? file : view_of(of_config);

    if (text.data)
        reading->out->chat_template = keep(reading->arena, text.data, text.size);
}

/* ---- the files ------------------------------------------------------------------------------- */

static enum status read_tokenizer(struct reading *reading)
{
    reading->model = field_find(reading->root, "model");
    reading->vocab = field_find(reading->model, "vocab");
    reading->added = field_find(reading->root, "added_tokens");
    TRY(refuse_extras(reading)); /* each type has a vocab of its own form */
    if (!json_is_object(reading->vocab))
        return field_missing("model.vocab, an object,");
    TRY(read_kind(reading));
    TRY(read_tokens(reading));
    TRY(read_merges(reading));
    TRY(read_specials(reading));
    return read_post_processor(reading);
}

static enum status parse(const char *name, struct text_view text, size_t most, size_t flags, json_t **out)
{
    enum status status = text.data ? field_parse(text.data, text.size, most, flags, out) : OK;

    return fail_in(name, status);
}

static enum status check_generation(const struct reading *reading)
{
    TRY(check_generation_ids(reading, "bos_token_id"));
    return check_generation_ids(reading, "eos_token_id");
}

static enum status read_all(struct reading *reading, struct text_view chat_template)
{
    TRY(fail_in(GENERATION, check_generation(reading)));
    TRY(fail_in(TOKENIZER, read_tokenizer(reading)));
    TRY(read_additions(reading));
    read_chat_template(reading, chat_template);
    return OK;
}

enum status hf_tokenizer_read(const struct hf_tokenizer_files *files, int32_t vocab_size, struct arena *arena,
                              struct vocabulary *out)
{
    json_t *root = NULL, *config = NULL, *generation = NULL;
    struct vocabulary vocabulary = {.num_tokens = vocab_size};
    struct reading reading = {.arena = arena, .out = &vocabulary};
    enum status status = parse(TOKENIZER, files->tokenizer, MAX_TOKENIZER_BYTES, 0, &root);

    /* Its model_max_length is often 10^30, and nothing that is read of it is a number. */
    if (status == OK)
        status = parse(CONFIG, files->config, MAX_SMALL_BYTES, JSON_DECODE_INT_AS_REAL, &config);
    if (status == OK)
        status = parse(GENERATION, files->generation, MAX_SMALL_BYTES, 0, &generation);
    reading.root = root;
    reading.config = config;
    reading.generation = generation;
    if (status == OK)
        status = read_all(&reading, files->chat_template);
    json_decref(root);
    json_decref(config);
    json_decref(generation);
    if (status == OK)
        *out = vocabulary;
    return status;
}
