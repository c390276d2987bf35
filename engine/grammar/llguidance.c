/*
 * llguidance: the backend of JSON schemas, regular expressions, choices and Lark, through the
 * library's own C interface (1.8 and 1.9).
 */
#include "engine/grammar/backend.h"
#include "engine/grammar/limits.h"
#include "engine/grammar/schema.h"
#include "engine/grammar/token_set.h"
#include "engine/grammar/words.h"
#include "engine/text/json_text.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

/* ---- the library's interface ----------------------------------------------------------------- */

struct llg_tokenizer;
struct llg_matcher;

struct llg_limits {
    size_t max_items_in_row;     /* items that a byte leads to */
    uint64_t initial_lexer_fuel; /* of compiling; 50000 take about 1 ms */
    uint64_t step_lexer_fuel;    /* of a mask; 14000 take about 1 ms */
    size_t step_max_items;       /* of a mask; 20000 take about 1 ms */
    size_t max_lexer_states;     /* 1 to 2 KB each */
    size_t max_grammar_size;     /* symbols */
    bool precompute_large_lexemes, verbose_errors;
};

struct llg_constraint_init {
    const struct llg_tokenizer *tokenizer;
    uint32_t log_buffer_level, log_stderr_level;
    bool has_forced_tokens, has_backtracking;
    struct llg_limits limits;
    char room[256]; /* for what later versions append: it has no size of its own */
};

struct llg_tokenizer_init {
    size_t struct_size;
    uint32_t vocab_size, eos_token;
    const uint32_t *token_sizes;
    const uint8_t *token_bytes;
    const char *tokenizer_json;
    bool tokenize_assumes_string;
    size_t (*tokenize)(const void *user, const uint8_t *bytes, size_t size, uint32_t *tokens,
                       size_t max);
    bool tokenizes_greedily;
    const void *user;
    const char *const *slices;
    const uint32_t *more_eos_tokens;
    uint32_t num_more_eos_tokens;
};

static struct {
    struct llg_tokenizer *(*new_tokenizer)(const struct llg_tokenizer_init *init, char *error,
                                           size_t error_bytes);
    void (*free_tokenizer)(struct llg_tokenizer *tokenizer);
    void (*set_defaults)(struct llg_constraint_init *init, const struct llg_tokenizer *tokenizer);
    struct llg_matcher *(*new_matcher)(const struct llg_constraint_init *init, const char *kind,
                                       const char *text);
    struct llg_matcher *(*clone_matcher)(const struct llg_matcher *matcher);
    void (*free_matcher)(struct llg_matcher *matcher);
    const char *(*get_error)(struct llg_matcher *matcher);
    int32_t (*compute_mask)(struct llg_matcher *matcher, uint32_t *words, size_t bytes);
    int32_t (*consume)(struct llg_matcher *matcher, uint32_t token);
    int32_t (*validate)(struct llg_matcher *matcher, const uint32_t *tokens, size_t num_tokens);
    bool (*is_accepting)(struct llg_matcher *matcher);
    bool is_open;
} llg;

static const struct {
    const char *name;
    void *at;
} symbols[] = {
    {"llg_new_tokenizer_v2", &llg.new_tokenizer},
    {"llg_free_tokenizer", &llg.free_tokenizer},
    {"llg_constraint_init_set_defaults", &llg.set_defaults},
    {"llg_new_matcher", &llg.new_matcher},
    {"llg_clone_matcher", &llg.clone_matcher},
    {"llg_free_matcher", &llg.free_matcher},
    {"llg_matcher_get_error", &llg.get_error},
    {"llg_matcher_compute_mask_into", &llg.compute_mask},
    {"llg_matcher_consume_token", &llg.consume},
    {"llg_matcher_validate_tokens", &llg.validate},
    {"llg_matcher_is_accepting", &llg.is_accepting},
};

/* In the folder, with the stub of Python's symbols that the wheel's library wants; or the
 * system's. */
static enum status find_library(const char *folder, void **out)
{
    AUTO_MEM char *path = mem_printf("%s/libllguidance.so", folder);
    AUTO_MEM char *stub = mem_printf("%s/libpystub.so", folder);

    if (access(path, R_OK) != 0) {
        *out = dlopen("libllguidance.so", RTLD_NOW | RTLD_LOCAL);
        return *out ? OK
                    : fail(ERR_NOT_FOUND, "there is no %s (deploy/fetch-grammars brings it)", path);
    }
    if (access(stub, R_OK) == 0 && !dlopen(stub, RTLD_NOW | RTLD_GLOBAL))
        return fail(ERR_UNSUPPORTED, "%s", dlerror());
    *out = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    return *out ? OK : fail(ERR_UNSUPPORTED, "%s", dlerror());
}

static enum status load_once(const char *folder)
{
    void *handle;

    TRY(find_library(folder, &handle));
    for (size_t i = 0; i < COUNT_OF(symbols); i++) {
        void *symbol = dlsym(handle, symbols[i].name);

        if (!symbol)
            return fail(ERR_UNSUPPORTED, "libllguidance.so lacks %s", symbols[i].name);
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    llg.is_open = true;
    return OK;
}

static enum status load(const char *folder)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    enum status status;

    pthread_mutex_lock(&lock);
    status = llg.is_open ? OK : load_once(folder);
    pthread_mutex_unlock(&lock);
    return status;
}

/* ---- a vocabulary ---------------------------------------------------------------------------- */

struct backend {
    struct llg_tokenizer *tokenizer;
    struct token_set tokens;
};

static void close_backend(struct backend *backend)
{
    if (!backend)
        return;
    if (backend->tokenizer)
        llg.free_tokenizer(backend->tokenizer);
    token_set_close(&backend->tokens);
    mem_free(backend);
}

static struct llg_tokenizer *make_tokenizer(const struct grammar_vocabulary *vocabulary,
                                            char *error, size_t error_bytes)
{
    static const uint8_t control_mark = 0xff;
    AUTO_MEM uint32_t *sizes = mem_new_array(uint32_t, (size_t)vocabulary->num_tokens);
    AUTO_CLOSE(bytes) struct bytes data = {0};

    for (int32_t t = 0; t < vocabulary->num_tokens; t++) {
        const struct grammar_token *token = &vocabulary->tokens[t];
        size_t begin = data.size;

        if (token->is_control) /* else its spelling could be produced as text */
            bytes_append(&data, &control_mark, 1);
        bytes_append(&data, token->bytes, (size_t)token->size);
        sizes[t] = (uint32_t)(data.size - begin);
    }
    return llg.new_tokenizer(
        &(struct llg_tokenizer_init){
            .struct_size = sizeof(struct llg_tokenizer_init),
            .vocab_size = (uint32_t)vocabulary->num_tokens,
            .eos_token = (uint32_t)vocabulary->stop_tokens[0],
            .token_sizes = sizes,
            .token_bytes = data.data,
            .tokenizes_greedily = true, /* only for forced tokens, which are not asked for */
            .more_eos_tokens = (const uint32_t *)vocabulary->stop_tokens + 1,
            .num_more_eos_tokens = (uint32_t)vocabulary->num_stop_tokens - 1,
        },
        error, error_bytes);
}

static enum status open_backend(const char *folder, const struct grammar_vocabulary *vocabulary,
                                struct backend **out)
{
    struct token_set tokens;
    struct backend *backend;
    char error[256] = "";

    TRY(load(folder));
    TRY(token_set_init(vocabulary, &tokens));
    backend = mem_new(struct backend);
    backend->tokens = tokens;
    backend->tokenizer = make_tokenizer(vocabulary, error, sizeof error);
    if (!backend->tokenizer) {
        close_backend(backend);
        return fail_in_words(ERR_INTERNAL, error, strlen(error));
    }
    *out = backend;
    return OK;
}

/* ---- a spec as one of its texts -------------------------------------------------------------- */

/* What it calls a kind. */
static const char *const kind_names[NUM_GRAMMAR_KINDS] = {
    [GRAMMAR_JSON_OBJECT] = "json", [GRAMMAR_JSON_SCHEMA] = "json", [GRAMMAR_REGEX] = "regex",
    [GRAMMAR_CHOICE] = "lark",      [GRAMMAR_LARK] = "lark",
};

static void write_choice(json_t *choice, struct bytes *out)
{
    json_t *item;
    size_t i;

    bytes_printf(out, "start: CHOICE\nCHOICE: "); /* one terminal: a rule has an item for each */
    json_array_foreach (choice, i, item) {
        bytes_printf(out, "%s", i > 0 ? " | " : "");
        json_text(item, JSON_TIGHT, out); /* Lark escapes as JSON does */
    }
    bytes_printf(out, "\n");
}

/* How JSON is written is said inside of the schema. */
static json_t *write_options(const struct grammar_spec *spec)
{
    json_t *options = json_object();

    if (spec->disable_any_whitespace)
        json_object_set_new(options, "whitespace_flexible", json_false());
    if (spec->whitespace_pattern)
        json_object_set_new(options, "whitespace_pattern", json_string(spec->whitespace_pattern));
    if (spec->lenient)
        json_object_set_new(options, "lenient", json_true());
    return options;
}

static enum status write_schema(const struct grammar_spec *spec, json_t *schema, struct bytes *out)
{
    json_auto_t *options = write_options(spec), *object = NULL;

    if (spec->disable_any_whitespace && spec->whitespace_pattern)
        return fail(ERR_INVALID,
                    "disable_any_whitespace and whitespace_pattern exclude each other");
    if (json_object_get(schema, "x-guidance"))
        return fail(ERR_INVALID, "the schema brings a keyword `x-guidance` of its own");
    if (json_is_false(schema))
        return fail(ERR_INVALID, "the schema `false` accepts nothing");
    if (json_object_size(options) == 0 && schema && !spec->disable_additional_properties) {
        bytes_append(out, spec->text, spec->size); /* as it is: numbers stay what they are */
        return OK;
    }
    if (json_is_object(schema))
        object = json_incref(schema);
    else /* options want an object to stand in */
        object = schema ? json_object() : json_pack("{s:s}", "type", "object");
    if (spec->disable_additional_properties)
        TRY(schema_close_objects(object));
    if (json_object_size(options) > 0)
        json_object_set(object, "x-guidance", options);
    json_text(object, JSON_TIGHT, out);
    return OK;
}

/* ---- compiling ------------------------------------------------------------------------------- */

struct compiled_grammar {
    const struct backend *backend;
    struct llg_matcher *first; /* at the start; never moves */
};

static void free_compiled(struct compiled_grammar *compiled)
{
    if (!compiled)
        return;
    llg.free_matcher(compiled->first);
    mem_free(compiled);
}

/* What it says, and what is said to a client instead; the rest of its line follows. */
static const struct {
    const char *its, *ours;
} phrases[] = {
    {"Unimplemented keys: ", "not enforced by llguidance are the keywords "},
    {"Unknown format: ", "not enforced by llguidance is the `format` "},
    {"oneOf constraints are not supported.",
     "llguidance cannot tell the schemas of `oneOf` apart; `anyOf` it "
     "takes"},
};

/* Where its words end: before " <non-verbose/>" and the lines "  12 | start: ...", which show the
 * grammar. */
static size_t size_of_words(const char *words)
{
    const char *mark = strstr(words, "<non-verbose/>");

    if (mark)
        return (size_t)(mark - words);
    for (const char *p = strchr(words, '\n'); p; p = strchr(p + 1, '\n')) {
        size_t blanks = strspn(p + 1, " "), digits = strspn(p + 1 + blanks, "0123456789");

        if (digits > 0 && strncmp(p + 1 + blanks + digits, " | ", 3) == 0)
            return (size_t)(p - words);
    }
    return strlen(words);
}

/* It says in words alone which of its limits was met. */
static enum status fail_as_it_says(struct llg_matcher *matcher, enum status otherwise)
{
    static const char *const limits[] = {"fuel",        "too large", "too big",
                                         "too complex", "too many",  "max is"};
    static const char regex_mark[] = "\nerror: ";
    const char *words = llg.get_error(matcher), *regex_words;
    AUTO_MEM char *sentence = NULL;
    int place_size = 0;

    if (!words)
        return fail(ERR_INTERNAL, "llguidance failed without a word");
    /* A regex is made a rule of Lark first, in which it has a place that its author never saw. */
    (void)!sscanf(words, "at 1(8): %n", &place_size);
    words += strncmp(words + place_size, "invalid regex", 13) == 0 ? place_size : 0;
    for (size_t i = 0; i < COUNT_OF(limits); i++)
        if (strcasestr(words, limits[i]))
            return fail_in_words(ERR_FULL, words, size_of_words(words));
    for (size_t i = 0; i < COUNT_OF(phrases); i++)
        if (strncmp(words, phrases[i].its, strlen(phrases[i].its)) == 0) {
            bool is_whole = phrases[i].its[strlen(phrases[i].its) - 1] == '.';

            sentence =
                mem_printf("%s%s", phrases[i].ours, is_whole ? "" : words + strlen(phrases[i].its));
            return fail_in_words(otherwise, sentence, strlen(sentence));
        }
    regex_words = strstr(words, regex_mark); /* below a picture of the place */
    if (regex_words)
        sentence = mem_printf("invalid regex: %s", regex_words + sizeof regex_mark - 1);
    else
        sentence = mem_strdup(words);
    return fail_in_words(otherwise, sentence, size_of_words(sentence));
}

/* A mask and an accept stay below about 20 and 40 ms with these, measured on hostile grammars and
 * 49152 tokens. The library's own defaults (2000 items, 50000, fuel for 14 ms) hold that for
 * regular expressions and schemas; of ambiguous rules, which only Lark can write, the time grows
 * with the square of the items. */
enum { MAX_LARK_ITEMS_IN_ROW = 500 };

static enum status compile_text(struct backend *backend, enum grammar_kind kind, const char *text,
                                struct compiled_grammar **out)
{
    struct llg_constraint_init init = {0};
    struct llg_matcher *matcher;
    enum status status;

    llg.set_defaults(&init, backend->tokenizer);
    init.log_stderr_level = 0;
    init.log_buffer_level = 0;
    init.limits.verbose_errors = false;
    if (kind == GRAMMAR_LARK)
        init.limits.max_items_in_row = MAX_LARK_ITEMS_IN_ROW;
    matcher = llg.new_matcher(&init, kind_names[kind], text);
    if (!matcher)
        return fail(ERR_INTERNAL, "llguidance made no matcher");
    if (llg.get_error(matcher)) {
        status = fail_as_it_says(matcher, ERR_INVALID);
        llg.free_matcher(matcher);
        return status;
    }
    *out = mem_new(struct compiled_grammar);
    **out = (struct compiled_grammar){.backend = backend, .first = matcher};
    return OK;
}

static enum status compile(struct backend *backend, const struct grammar_spec *spec,
                           struct compiled_grammar **out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    json_auto_t *json = NULL;

    TRY(limits_check(spec, &json));
    switch (spec->kind) {
    case GRAMMAR_JSON_OBJECT:
    case GRAMMAR_JSON_SCHEMA:
        TRY(write_schema(spec, json, &text));
        break;
    case GRAMMAR_CHOICE:
        write_choice(json, &text);
        break;
    case GRAMMAR_REGEX:
    case GRAMMAR_LARK:
        bytes_append(&text, spec->text, spec->size);
        break;
    default:
        return fail(ERR_UNSUPPORTED, "llguidance does not compile this kind of grammar");
    }
    return compile_text(backend, spec->kind, bytes_text(&text), out);
}

/* ---- matching -------------------------------------------------------------------------------- */

struct matcher {
    const struct backend *backend;
    struct llg_matcher *at;
    bool has_stopped; /* its own refuses a stop token where nothing else may follow */
    bool is_dead;     /* nothing can follow, and it is broken by having been asked */
};

static enum status start(struct compiled_grammar *compiled, struct matcher **out)
{
    struct llg_matcher *at = llg.clone_matcher(compiled->first);

    if (!at)
        return fail(ERR_INTERNAL, "llguidance made no matcher");
    *out = mem_new(struct matcher);
    **out = (struct matcher){.backend = compiled->backend, .at = at};
    return OK;
}

static void free_matcher(struct matcher *matcher)
{
    if (!matcher)
        return;
    llg.free_matcher(matcher->at);
    mem_free(matcher);
}

static bool is_complete(struct matcher *matcher)
{
    return matcher->has_stopped || (!matcher->is_dead && llg.is_accepting(matcher->at));
}

static enum status accept(struct matcher *matcher, token_id token)
{
    const struct token_set *tokens = &matcher->backend->tokens;
    uint32_t id = (uint32_t)token;
    int32_t num_valid;

    if (matcher->has_stopped)
        return fail(ERR_MISMATCH, "token %d comes after a stop token", token);
    if (token_set_is_stop(tokens, token)) {
        if (!is_complete(matcher))
            return fail(ERR_MISMATCH, "stop token %d comes before the grammar's end", token);
        matcher->has_stopped = true;
        return OK;
    }
    /* A token that is consumed and refused breaks the matcher for good: ask before. */
    num_valid = token_set_is_text(tokens, token) && !matcher->is_dead
                    ? llg.validate(matcher->at, &id, 1)
                    : 0;
    if (num_valid == 0)
        return fail(ERR_MISMATCH, "the grammar does not allow token %d here", token);
    if (num_valid < 0 || llg.consume(matcher->at, id) != 0)
        return fail_as_it_says(matcher->at, ERR_INTERNAL);
    return OK;
}

static enum status fill(struct matcher *matcher, uint32_t *words, int32_t num_words)
{
    const struct token_set *tokens = &matcher->backend->tokens;

    ASSERT(!matcher->has_stopped && num_words == tokens->num_words);
    if (!matcher->is_dead &&
        llg.compute_mask(matcher->at, words, (size_t)num_words * sizeof *words) != 0) {
        const char *error = llg.get_error(matcher->at);

        matcher->is_dead = error && strstr(error, "NoExtension");
        if (!matcher->is_dead)
            return fail_as_it_says(matcher->at, ERR_INTERNAL);
    }
    if (matcher->is_dead)
        memset(words, 0, (size_t)num_words * sizeof *words);
    token_set_apply(tokens, words, is_complete(matcher));
    return OK;
}

const struct backend_ops backend_llguidance = {
    .name = "llguidance",
    .kinds = 1u << GRAMMAR_JSON_OBJECT | 1u << GRAMMAR_JSON_SCHEMA | 1u << GRAMMAR_REGEX |
             1u << GRAMMAR_CHOICE | 1u << GRAMMAR_LARK,
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
