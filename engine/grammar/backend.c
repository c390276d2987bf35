#include "engine/grammar/backend.h"

#include "engine/grammar/words.h"

#include <string.h>

const struct backend_ops *const backends[] = {&backend_llguidance, &backend_xgrammar, NULL};

static const char *const kind_names[NUM_GRAMMAR_KINDS] = {
    [GRAMMAR_JSON_OBJECT] = "json_object",
    [GRAMMAR_JSON_SCHEMA] = "json",
    [GRAMMAR_REGEX] = "regex",
    [GRAMMAR_CHOICE] = "choice",
    [GRAMMAR_EBNF] = "grammar",
    [GRAMMAR_LARK] = "grammar",
    [GRAMMAR_STRUCTURAL_TAG] = "structural_tag",
};

/* What is said of a kind that a backend lacks: the two of "grammar" are told apart. */
static const char *const kind_words[NUM_GRAMMAR_KINDS] = {
    [GRAMMAR_JSON_OBJECT] = "JSON objects",
    [GRAMMAR_JSON_SCHEMA] = "JSON schemas",
    [GRAMMAR_REGEX] = "regular expressions",
    [GRAMMAR_CHOICE] = "choices",
    [GRAMMAR_EBNF] = "EBNF grammars",
    [GRAMMAR_LARK] = "Lark grammars",
    [GRAMMAR_STRUCTURAL_TAG] = "structural tags",
};

const char *grammar_kind_name(enum grammar_kind kind)
{
    return kind_names[kind];
}

static bool has_kind(const struct backend_ops *backend, enum grammar_kind kind)
{
    return backend->kinds >> kind & 1;
}

/* Those with the kind, or all for NUM_GRAMMAR_KINDS. */
static const char *list_names(const struct backend_ops *const *rows, enum grammar_kind kind,
                              struct bytes *names)
{
    for (; *rows; rows++)
        if (kind == NUM_GRAMMAR_KINDS || has_kind(*rows, kind))
            bytes_printf(names, "%s%s", names->size > 0 ? ", " : "", (*rows)->name);
    return names->size > 0 ? bytes_text(names) : "none";
}

static enum status refuse(const struct backend_ops *const *rows, const struct grammar_spec *spec)
{
    AUTO_CLOSE(bytes) struct bytes names = {0};
    char asked[SHORT_NAME_BYTES];

    for (int32_t i = 0; spec->backend && rows[i]; i++)
        if (strcmp(rows[i]->name, spec->backend) == 0)
            return fail(ERR_UNSUPPORTED, "%s does not compile %s; those that do: %s", spec->backend,
                        kind_words[spec->kind], list_names(rows, spec->kind, &names));
    if (spec->backend)
        return fail(ERR_UNSUPPORTED, "there is no grammar backend '%s'; there are %s",
                    short_name(spec->backend, asked), list_names(rows, NUM_GRAMMAR_KINDS, &names));
    return fail(ERR_UNSUPPORTED, "no grammar backend compiles %s", kind_words[spec->kind]);
}

enum status backend_choose(const struct backend_ops *const *rows, const struct grammar_spec *spec,
                           int32_t *out)
{
    for (int32_t i = 0; rows[i]; i++) {
        if (!has_kind(rows[i], spec->kind) ||
            (spec->backend && strcmp(rows[i]->name, spec->backend) != 0))
            continue;
        *out = i;
        return OK;
    }
    return refuse(rows, spec);
}
