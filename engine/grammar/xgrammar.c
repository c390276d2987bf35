/*
 * xgrammar: the backend of EBNF and structural tags, and the other one for JSON schemas, regular
 * expressions and choices, through TVM-FFI.
 *
 * It warns on stderr in words that may hold what a client sent: its process has no stderr of ours.
 */
#include "engine/grammar/backend.h"
#include "engine/grammar/limits.h"
#include "engine/grammar/schema.h"
#include "engine/grammar/token_set.h"
#include "engine/grammar/tvm_ffi.h"
#include "engine/grammar/xgrammar_schema.h"
#include "engine/text/json_text.h"

/* ---- the library's interface ----------------------------------------------------------------- */

enum {
    NEW_TOKENIZER,
    NEW_COMPILER,
    COMPILE_SCHEMA,
    COMPILE_REGEX,
    COMPILE_EBNF,
    COMPILE_STRUCTURAL_TAG,
    NEW_MATCHER,
    FILL,
    ACCEPT,
    IS_COMPLETED,
    NUM_METHODS
};

#define XG "xgrammar.tvm_ffi_binding."
static const struct ffi_method methods[NUM_METHODS] = {
    [NEW_TOKENIZER] = {XG "TokenizerInfo", "__ffi_init__", 5},
    [NEW_COMPILER] = {XG "GrammarCompiler", "__ffi_init__", 4},
    [COMPILE_SCHEMA] = {XG "GrammarCompiler", "compile_json_schema", 8},
    [COMPILE_REGEX] = {XG "GrammarCompiler", "compile_regex", 2},
    [COMPILE_EBNF] = {XG "GrammarCompiler", "compile_grammar_from_strings", 3},
    [COMPILE_STRUCTURAL_TAG] = {XG "GrammarCompiler", "compile_structural_tag", 2},
    [NEW_MATCHER] = {XG "GrammarMatcher", "__ffi_init__", 5},
    [FILL] = {XG "GrammarMatcher", "fill_next_token_bitmask", 4},
    [ACCEPT] = {XG "GrammarMatcher", "accept_token", 3},
    [IS_COMPLETED] = {XG "GrammarMatcher", "is_completed", 1},
};
#undef XG

/* Alike in every backend: found in the libraries, which are loaded once. */
static void *functions[NUM_METHODS];

static enum status call(int method, const struct ffi_any *args, enum status refusal,
                        struct ffi_any *ret)
{
    return tvm_ffi_call(functions[method], args, methods[method].num_args, refusal, ret);
}

/* ---- a vocabulary ---------------------------------------------------------------------------- */

struct backend {
    struct ffi_any tokenizer, compiler;
    struct token_set tokens;
};

static void close_backend(struct backend *backend)
{
    if (!backend)
        return;
    tvm_ffi_drop(&backend->compiler);
    tvm_ffi_drop(&backend->tokenizer);
    token_set_close(&backend->tokens);
    mem_free(backend);
}
/* So that a scope can close it. */
#define backend_free close_backend
DEFINE_AUTO_FREE(backend)

static enum status make_token_list(const struct backend *backend,
                                   const struct grammar_vocabulary *vocabulary, struct ffi_any *out)
{
    AUTO_MEM struct ffi_bytes *texts =
        mem_new_array(struct ffi_bytes, (size_t)vocabulary->num_tokens);
    AUTO_MEM struct ffi_any *args = mem_new_array(struct ffi_any, (size_t)vocabulary->num_tokens);

    for (int32_t t = 0; t < vocabulary->num_tokens; t++) {
        /* Without text it is never allowed; else a control token's spelling could be produced. */
        if (token_set_is_text(&backend->tokens, t))
            texts[t] =
                (struct ffi_bytes){vocabulary->tokens[t].bytes, (size_t)vocabulary->tokens[t].size};
        else
            texts[t] = (struct ffi_bytes){"", 0};
        args[t] = (struct ffi_any){.type = FFI_BYTES_VIEW, .p = &texts[t]};
    }
    return tvm_ffi_call_global("ffi.Array", args, vocabulary->num_tokens, out);
}

static enum status make_stop_list(const struct grammar_vocabulary *vocabulary, struct ffi_any *out)
{
    AUTO_MEM struct ffi_any *args =
        mem_new_array(struct ffi_any, (size_t)vocabulary->num_stop_tokens);

    for (int32_t i = 0; i < vocabulary->num_stop_tokens; i++)
        args[i] = ffi_int(vocabulary->stop_tokens[i]);
    return tvm_ffi_call_global("ffi.Array", args, vocabulary->num_stop_tokens, out);
}

static enum status open_backend(const char *folder, const struct grammar_vocabulary *vocabulary,
                                struct backend **out)
{
    AUTO_FREE(backend) struct backend *backend = mem_new(struct backend);
    AUTO_DROP struct ffi_any texts = {0}, stops = {0};

    TRY(tvm_ffi_open(folder, "libxgrammar_bindings.so"));
    TRY(tvm_ffi_find(methods, NUM_METHODS, functions));
    TRY(token_set_init(vocabulary, &backend->tokens));
    TRY(make_token_list(backend, vocabulary, &texts));
    TRY(make_stop_list(vocabulary, &stops));
    /* texts are raw bytes (0), ids up to the vocabulary's size, no space is put before the first */
    TRY(call(NEW_TOKENIZER,
             (struct ffi_any[]){texts, ffi_int(0), ffi_int(vocabulary->num_tokens), stops,
                                ffi_bool(false)},
             ERR_INTERNAL, &backend->tokenizer));
    /* one thread, no cache (which would keep what failed, uncounted) */
    TRY(call(NEW_COMPILER,
             (struct ffi_any[]){backend->tokenizer, ffi_int(1), ffi_bool(false), ffi_int(-1)},
             ERR_INTERNAL, &backend->compiler));
    *out = give(backend);
    return OK;
}

/* ---- compiling ------------------------------------------------------------------------------- */

struct compiled_grammar {
    const struct backend *backend;
    struct ffi_any grammar;
};

static void free_compiled(struct compiled_grammar *compiled)
{
    if (!compiled)
        return;
    tvm_ffi_drop(&compiled->grammar);
    mem_free(compiled);
}

static enum status compile_schema(const struct backend *backend, const struct grammar_spec *spec,
                                  json_t *given, struct ffi_any *out)
{
    json_auto_t *schema = given ? json_incref(given) : json_pack("{s:s}", "type", "object");
    AUTO_DROP struct ffi_any text = {0}, separators = {0}, comma = {0}, colon = {0};
    AUTO_CLOSE(bytes) struct bytes words = {0};

    if (spec->disable_additional_properties)
        TRY(schema_close_objects(schema));
    if (!spec->lenient)
        TRY(xgrammar_check_schema(schema));
    if (spec->disable_any_whitespace) {
        TRY(tvm_ffi_string(",", 1, &comma));
        TRY(tvm_ffi_string(":", 1, &colon));
        TRY(tvm_ffi_call_global("ffi.Array", (struct ffi_any[]){comma, colon}, 2, &separators));
    }
    json_text(schema, JSON_TIGHT, &words);
    TRY(tvm_ffi_string((char *)words.data, words.size, &text));
    /* the schema, any whitespace, indent, separators, strict (which closes arrays too), the most of
     * whitespace, properties in any order (which forgets what is required) */
    return call(COMPILE_SCHEMA,
                (struct ffi_any[]){backend->compiler, text, ffi_bool(!spec->disable_any_whitespace),
                                   ffi_none(), separators, ffi_bool(false), ffi_none(),
                                   ffi_bool(false)},
                ERR_INVALID, out);
}

static enum status compile_ebnf(const struct backend *backend, const char *grammar, size_t size,
                                struct ffi_any *out)
{
    AUTO_DROP struct ffi_any text = {0}, root = {0};

    TRY(tvm_ffi_string(grammar, size, &text));
    TRY(tvm_ffi_string("root", 4, &root));
    return call(COMPILE_EBNF, (struct ffi_any[]){backend->compiler, text, root}, ERR_INVALID, out);
}

static enum status compile_choice(const struct backend *backend, json_t *choice,
                                  struct ffi_any *out)
{
    AUTO_CLOSE(bytes) struct bytes grammar = {0};
    json_t *item;
    size_t i;

    bytes_printf(&grammar, "root ::= ");
    json_array_foreach (choice, i, item) {
        bytes_printf(&grammar, "%s", i > 0 ? " | " : "");
        json_text(item, JSON_TIGHT, &grammar); /* EBNF escapes as JSON does */
    }
    return compile_ebnf(backend, (char *)grammar.data, grammar.size, out);
}

static enum status compile_whole_text(const struct backend *backend,
                                      const struct grammar_spec *spec, int method,
                                      struct ffi_any *out)
{
    AUTO_DROP struct ffi_any text = {0};

    TRY(tvm_ffi_string(spec->text, spec->size, &text));
    return call(method, (struct ffi_any[]){backend->compiler, text}, ERR_INVALID, out);
}

static enum status compile_kind(const struct backend *backend, const struct grammar_spec *spec,
                                json_t *json, struct ffi_any *out)
{
    switch (spec->kind) {
    case GRAMMAR_JSON_OBJECT:
    case GRAMMAR_JSON_SCHEMA:
        return compile_schema(backend, spec, json, out);
    case GRAMMAR_REGEX:
        return compile_whole_text(backend, spec, COMPILE_REGEX, out);
    case GRAMMAR_CHOICE:
        return compile_choice(backend, json, out);
    case GRAMMAR_EBNF:
        return compile_ebnf(backend, spec->text, spec->size, out);
    case GRAMMAR_STRUCTURAL_TAG:
        TRY(xgrammar_check_structural_tag(json, spec->lenient));
        return compile_whole_text(backend, spec, COMPILE_STRUCTURAL_TAG, out);
    default:
        return fail(ERR_UNSUPPORTED, "xgrammar does not compile this kind of grammar");
    }
}

static enum status compile(struct backend *backend, const struct grammar_spec *spec,
                           struct compiled_grammar **out)
{
    json_auto_t *json = NULL;
    struct ffi_any grammar;

    if (spec->whitespace_pattern)
        return fail(ERR_UNSUPPORTED, "xgrammar does not know whitespace_pattern; llguidance does");
    TRY(limits_check(spec, &json));
    TRY(compile_kind(backend, spec, json, &grammar));
    *out = mem_new(struct compiled_grammar);
    **out = (struct compiled_grammar){backend, grammar};
    return OK;
}

/* ---- matching -------------------------------------------------------------------------------- */

struct matcher {
    const struct backend *backend;
    struct ffi_any at;
    bool has_stopped;
};

static enum status start(struct compiled_grammar *compiled, struct matcher **out)
{
    struct ffi_any at;

    /* the compiled one, other stop tokens, whether it ends without one, how far back (unused),
     * temperature */
    TRY(call(
        NEW_MATCHER,
        (struct ffi_any[]){compiled->grammar, ffi_none(), ffi_bool(false), ffi_int(-1), ffi_none()},
        ERR_INTERNAL, &at));
    *out = mem_new(struct matcher);
    **out = (struct matcher){.backend = compiled->backend, .at = at};
    return OK;
}

static void free_matcher(struct matcher *matcher)
{
    if (!matcher)
        return;
    tvm_ffi_drop(&matcher->at);
    mem_free(matcher);
}

static bool is_complete(struct matcher *matcher)
{
    struct ffi_any ret;

    return matcher->has_stopped ||
           (call(IS_COMPLETED, &matcher->at, ERR_INTERNAL, &ret) == OK && ret.i != 0);
}

static enum status accept(struct matcher *matcher, token_id token)
{
    const struct token_set *tokens = &matcher->backend->tokens;
    struct ffi_any ret = {0};

    if (matcher->has_stopped)
        return fail(ERR_MISMATCH, "token %d comes after a stop token", token);
    if (token_set_is_stop(tokens, token)) {
        if (!is_complete(matcher))
            return fail(ERR_MISMATCH, "stop token %d comes before the grammar's end", token);
        matcher->has_stopped = true;
        return OK;
    }
    if (token_set_is_text(tokens, token))
        TRY(call(ACCEPT, (struct ffi_any[]){matcher->at, ffi_int(token), ffi_bool(false)},
                 ERR_INTERNAL, &ret));
    return ret.i ? OK : fail(ERR_MISMATCH, "the grammar does not allow token %d here", token);
}

static enum status fill(struct matcher *matcher, uint32_t *words, int32_t num_words)
{
    const struct token_set *tokens = &matcher->backend->tokens;
    int64_t shape = num_words;
    struct ffi_tensor tensor = {
        .data = words, .device = {1, 0}, .num_dims = 1, .element = {0, 32, 1}, .shape = &shape};
    struct ffi_any ret, view = {.type = FFI_TENSOR, .p = &tensor};

    ASSERT(!matcher->has_stopped && num_words == tokens->num_words);
    TRY(call(FILL, (struct ffi_any[]){matcher->at, view, ffi_int(0), ffi_bool(false)}, ERR_INTERNAL,
             &ret));
    token_set_apply(tokens, words, is_complete(matcher));
    return OK;
}

const struct backend_ops backend_xgrammar = {
    .name = "xgrammar",
    .kinds = 1u << GRAMMAR_JSON_OBJECT | 1u << GRAMMAR_JSON_SCHEMA | 1u << GRAMMAR_REGEX |
             1u << GRAMMAR_CHOICE | 1u << GRAMMAR_EBNF | 1u << GRAMMAR_STRUCTURAL_TAG,
    .open = open_backend,
    .close = close_backend,
    .compile = compile,
    .free_compiled = free_compiled,
    .start = start,
    .free_matcher = free_matcher,
    .accept = accept,
    .fill = fill,
    .is_complete = is_complete,
};
