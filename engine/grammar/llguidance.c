/*
 * llguidance: JSON schemas, regular expressions, Lark and choices, through llguidance's C API.
 *
 * The library comes from a Python wheel (deploy/fetch-grammars) and asks for Python's symbols when it
 * is loaded, though nothing of the C API uses them: libpystub.so defines them, and is loaded first. A
 * library that needs none (libllguidance.so of the system) is taken where there is one.
 *
 * The declarations below are those of its header parser/llguidance.h, versions 1.8 and 1.9.
 */
#include "engine/grammar/backend.h"

#include "engine/text/json_text.h"
#include "proto/base/memory.h"

#include <dlfcn.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

struct LlgTokenizer;
struct LlgMatcher;

struct llg_limits {
    size_t max_items_in_row;
    uint64_t initial_lexer_fuel, step_lexer_fuel;
    size_t step_max_items, max_lexer_states, max_grammar_size;
    bool precompute_large_lexemes, verbose_errors;
};

struct llg_constraint_init {
    const struct LlgTokenizer *tokenizer;
    uint32_t log_buffer_level, log_stderr_level;
    bool ff_tokens_ok, backtrack_ok;
    struct llg_limits limits;
    char room[256]; /* for what later versions append */
};

struct llg_tokenizer_init {
    size_t struct_size;
    uint32_t vocab_size, tok_eos;
    const uint32_t *token_lens;
    const uint8_t *token_bytes;
    const char *tokenizer_json;
    bool tokenize_assumes_string;
    size_t (*tokenize_fn)(const void *, const uint8_t *, size_t, uint32_t *, size_t);
    bool use_approximate_greedy_tokenize_fn;
    const void *tokenize_user_data;
    const char *const *slices;
    const uint32_t *tok_eos_extra;
    uint32_t num_tok_eos_extra;
};

#define FUNCTIONS(X)                                                                               \
    X(struct LlgTokenizer *, new_tokenizer_v2, (const struct llg_tokenizer_init *, char *, size_t)) \
    X(void, constraint_init_set_defaults,                                                          \
      (struct llg_constraint_init *, const struct LlgTokenizer *))                                 \
    X(struct LlgMatcher *, new_matcher,                                                            \
      (const struct llg_constraint_init *, const char *, const char *))                            \
    X(struct LlgMatcher *, clone_matcher, (const struct LlgMatcher *))                             \
    X(void, free_matcher, (struct LlgMatcher *))                                                   \
    X(const char *, matcher_get_error, (struct LlgMatcher *))                                      \
    X(int32_t, matcher_compute_mask_into, (struct LlgMatcher *, uint32_t *, size_t))               \
    X(int32_t, matcher_consume_token, (struct LlgMatcher *, uint32_t))                             \
    X(int32_t, matcher_validate_tokens, (struct LlgMatcher *, const uint32_t *, size_t))           \
    X(bool, matcher_is_accepting, (struct LlgMatcher *))

struct backend {
    struct LlgTokenizer *tokenizer;
    int32_t num_tokens, num_stop_tokens;
    token_id *stop_tokens;
#define X(result, name, parameters) result(*name) parameters;
    FUNCTIONS(X)
#undef X
};

struct compiled_grammar {
    struct backend *backend;
    struct LlgMatcher *first; /* what outputs begin as clones of */
};

struct matcher {
    const struct backend *backend;
    struct LlgMatcher *matcher;
    bool is_stopped; /* a stop token was taken: the library would refuse it where it has stopped itself */
};

/* ---- the library ------------------------------------------------------------------------------ */

/* Sentences of the library are several lines long, and may quote the grammar. */
static enum status fail_with(enum status status, const char *what, const char *text)
{
    char line[480];
    size_t n = 0;

    for (; text && *text && n + 1 < sizeof line; text++) {
        bool is_blank = (unsigned char)*text <= ' ';

        if (!is_blank || (n > 0 && line[n - 1] != ' '))
            line[n++] = is_blank ? ' ' : *text;
    }
    while (n > 0 && line[n - 1] == ' ')
        n--;
    line[n] = '\0';
    return fail(status, "%s%s", what, n > 0 ? line : "no reason was given");
}

static enum status open_library(const char *folder, void **out)
{
    AUTO_MEM char *path = mem_printf("%s/libllguidance.so", folder);
    AUTO_MEM char *stub = mem_printf("%s/libpystub.so", folder);

    (void)dlopen(stub, RTLD_NOW | RTLD_GLOBAL); /* a build without Python in it needs none */
    *out = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!*out)
        *out = dlopen("libllguidance.so", RTLD_NOW | RTLD_LOCAL);
    if (!*out)
        return fail(ERR_NOT_FOUND,
                    "structured outputs need libllguidance.so, which is not in %s: "
                    "deploy/fetch-grammars brings it", folder);
    return OK;
}

static enum status find_functions(void *library, struct backend *backend)
{
#define X(result, name, parameters)                                                                \
    if (!(*(void **)&backend->name = dlsym(library, "llg_" #name)))                                \
        return fail(ERR_UNSUPPORTED, "libllguidance.so has no llg_" #name "; 1.9 is known");
    FUNCTIONS(X)
#undef X
    return OK;
}

/* Control tokens are marked by a byte that no text has. */
enum { CONTROL_MARK = 0xff };

static enum status make_tokenizer(struct backend *backend,
                                  const struct grammar_vocabulary *vocabulary)
{
    size_t n = (size_t)vocabulary->num_tokens;
    AUTO_MEM uint32_t *sizes = mem_new_array(uint32_t, n);
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    char sentence[256] = "";

    for (size_t i = 0; i < n; i++) {
        const struct grammar_token *token = &vocabulary->tokens[i];

        if (token->is_control)
            bytes_append(&bytes, &(uint8_t){CONTROL_MARK}, 1);
        bytes_append(&bytes, token->bytes, (size_t)token->size);
        sizes[i] = (uint32_t)token->size + token->is_control;
    }
    backend->tokenizer = backend->new_tokenizer_v2(
        &(struct llg_tokenizer_init){
            .struct_size = sizeof(struct llg_tokenizer_init),
            .vocab_size = (uint32_t)n,
            .tok_eos = (uint32_t)vocabulary->stop_tokens[0],
            .token_lens = sizes,
            .token_bytes = (const uint8_t *)bytes.data,
            .use_approximate_greedy_tokenize_fn = true,
            .tok_eos_extra = (const uint32_t *)vocabulary->stop_tokens + 1,
            .num_tok_eos_extra = (uint32_t)vocabulary->num_stop_tokens - 1,
        },
        sentence, sizeof sentence);
    if (!backend->tokenizer)
        return fail_with(ERR_UNSUPPORTED, "llguidance can't use this vocabulary: ", sentence);
    return OK;
}

static enum status llguidance_open(const char *folder, const struct grammar_vocabulary *vocabulary,
                                   struct backend **out)
{
    AUTO_MEM struct backend *backend = mem_new(struct backend);
    void *library;

    ASSERT(vocabulary->num_stop_tokens > 0);
    TRY(open_library(folder, &library)); /* never closed: it keeps threads' data */
    TRY(find_functions(library, backend));
    TRY(make_tokenizer(backend, vocabulary));
    backend->num_tokens = vocabulary->num_tokens;
    backend->num_stop_tokens = vocabulary->num_stop_tokens;
    backend->stop_tokens = mem_new_array(token_id, (size_t)vocabulary->num_stop_tokens);
    memcpy(backend->stop_tokens, vocabulary->stop_tokens,
           sizeof(token_id) * (size_t)vocabulary->num_stop_tokens);
    *out = give(backend);
    return OK;
}

/* ---- grammars --------------------------------------------------------------------------------- */

/* The library takes what else there is to say of a schema inside of it. */
static enum status schema_text(const struct grammar_spec *spec, char **out)
{
    const char *text = spec->kind == GRAMMAR_JSON_OBJECT ? "{\"type\":\"object\"}" : spec->text;
    json_error_t error;
    json_t *schema = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    json_t *more;

    if (!schema)
        return fail(ERR_INVALID, "the schema is no JSON at line %d, column %d: %s", error.line,
                    error.column, error.text);
    if (json_is_object(schema)) {
        more = json_object();
        if (spec->disable_any_whitespace)
            json_object_set_new(more, "whitespace_flexible", json_false());
        if (spec->whitespace_pattern)
            json_object_set_new(more, "whitespace_pattern", json_string(spec->whitespace_pattern));
        if (spec->lenient)
            json_object_set_new(more, "lenient", json_true());
        if (json_object_size(more) > 0)
            json_object_set(schema, "x-guidance", more);
        json_decref(more);
    }
    AUTO_CLOSE(bytes) struct bytes whole = {0};

    json_text(schema, JSON_TIGHT, &whole);
    json_decref(schema);
    *out = mem_strdup(bytes_text(&whole));
    return OK;
}

/* ["a", "b"] to start: "a" | "b", for Lark's strings are JSON's. */
static enum status choice_text(const struct grammar_spec *spec, char **out)
{
    json_error_t error;
    json_t *choices = json_loads(spec->text, 0, &error), *choice;
    AUTO_CLOSE(bytes) struct bytes lark = {0};
    size_t i;

    bytes_printf(&lark, "start: ");
    json_array_foreach(choices, i, choice) {
        char *text = json_dumps(choice, JSON_ENCODE_ANY);

        bytes_printf(&lark, "%s%s", i ? " | " : "", text);
        free(text);
    }
    json_decref(choices);
    *out = mem_strdup(bytes_text(&lark));
    return OK;
}

static enum status copy_text(const struct grammar_spec *spec, char **out)
{
    *out = mem_strndup(spec->text, spec->size);
    return OK;
}

static const struct {
    const char *type;
    enum status (*text)(const struct grammar_spec *spec, char **out);
} kinds[NUM_GRAMMAR_KINDS] = {
    [GRAMMAR_JSON_OBJECT] = {"json", schema_text},
    [GRAMMAR_JSON_SCHEMA] = {"json", schema_text},
    [GRAMMAR_REGEX] = {"regex", copy_text},
    [GRAMMAR_CHOICE] = {"lark", choice_text},
    [GRAMMAR_LARK] = {"lark", copy_text},
};

static enum status llguidance_compile(struct backend *backend, const struct grammar_spec *spec,
                                      struct compiled_grammar **out)
{
    struct llg_constraint_init init = {0};
    AUTO_MEM char *text = NULL;
    struct LlgMatcher *matcher;
    const char *error;

    TRY(kinds[spec->kind].text(spec, &text));
    backend->constraint_init_set_defaults(&init, backend->tokenizer);
    init.log_stderr_level = 0;
    init.limits.verbose_errors = false;
    matcher = backend->new_matcher(&init, kinds[spec->kind].type, text);
    error = backend->matcher_get_error(matcher);
    if (error) {
        enum status status = fail_with(ERR_INVALID, "", error);

        backend->free_matcher(matcher);
        return status;
    }
    *out = mem_new(struct compiled_grammar);
    **out = (struct compiled_grammar){backend, matcher};
    return OK;
}

static void llguidance_free_compiled(struct compiled_grammar *compiled)
{
    compiled->backend->free_matcher(compiled->first);
    mem_free(compiled);
}

/* ---- outputs ---------------------------------------------------------------------------------- */

static enum status llguidance_start(struct compiled_grammar *compiled, struct matcher **out)
{
    *out = mem_new(struct matcher);
    **out = (struct matcher){.backend = compiled->backend,
                             .matcher = compiled->backend->clone_matcher(compiled->first)};
    return OK;
}

static void llguidance_free_matcher(struct matcher *matcher)
{
    matcher->backend->free_matcher(matcher->matcher);
    mem_free(matcher);
}

static bool llguidance_is_complete(struct matcher *matcher)
{
    return matcher->is_stopped || matcher->backend->matcher_is_accepting(matcher->matcher);
}

static bool is_stop_token(const struct backend *backend, token_id token)
{
    for (int32_t i = 0; i < backend->num_stop_tokens; i++)
        if (backend->stop_tokens[i] == token)
            return true;
    return false;
}

static enum status llguidance_accept(struct matcher *matcher, token_id token)
{
    const struct backend *backend = matcher->backend;
    uint32_t id = (uint32_t)token;

    if (matcher->is_stopped || token < 0 || token >= backend->num_tokens)
        return fail(ERR_MISMATCH, "token %d is not allowed here", token);
    if (is_stop_token(backend, token)) {
        if (!llguidance_is_complete(matcher))
            return fail(ERR_MISMATCH, "stop token %d is not allowed here", token);
        matcher->is_stopped = true;
        return OK;
    }
    /* A token that it consumes and does not allow would break it for good. */
    if (backend->matcher_validate_tokens(matcher->matcher, &id, 1) != 1)
        return fail(ERR_MISMATCH, "token %d is not allowed here", token);
    if (backend->matcher_consume_token(matcher->matcher, id) != 0)
        return fail_with(ERR_FULL, "", backend->matcher_get_error(matcher->matcher));
    return OK;
}

static enum status llguidance_fill(struct matcher *matcher, uint32_t *words, int32_t num_words)
{
    ASSERT(!matcher->is_stopped);
    if (matcher->backend->matcher_compute_mask_into(matcher->matcher, words,
                                                    (size_t)num_words * sizeof *words) != 0)
        return fail_with(ERR_FULL, "", matcher->backend->matcher_get_error(matcher->matcher));
    return OK;
}

const struct backend_ops backend_llguidance = {
    .name = "llguidance",
    .kinds = 1 << GRAMMAR_JSON_OBJECT | 1 << GRAMMAR_JSON_SCHEMA | 1 << GRAMMAR_REGEX |
             1 << GRAMMAR_CHOICE | 1 << GRAMMAR_LARK,
    .open = llguidance_open,
    .compile = llguidance_compile,
    .free_compiled = llguidance_free_compiled,
    .start = llguidance_start,
    .free_matcher = llguidance_free_matcher,
    .accept = llguidance_accept,
    .fill = llguidance_fill,
    .is_complete = llguidance_is_complete,
};
