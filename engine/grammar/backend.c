#include "engine/grammar/backend.h"

#include "proto/base/memory.h"

#include <string.h>

const struct backend_ops *const backends[] = {&backend_llguidance, NULL};

static const char *const kind_names[NUM_GRAMMAR_KINDS] = {
    [GRAMMAR_JSON_OBJECT] = "json_object", [GRAMMAR_JSON_SCHEMA] = "json",
    [GRAMMAR_REGEX] = "regex",             [GRAMMAR_CHOICE] = "choice",
    [GRAMMAR_EBNF] = "grammar",            [GRAMMAR_LARK] = "grammar",
    [GRAMMAR_STRUCTURAL_TAG] = "structural_tag",
};

const char *grammar_kind_name(enum grammar_kind kind)
{
    return kind_names[kind];
}

static bool has_kind(const struct backend_ops *row, enum grammar_kind kind)
{
    return row->kinds >> kind & 1;
}

static enum status refuse(const struct backend_ops *const *rows, const struct grammar_spec *spec)
{
    AUTO_CLOSE(bytes) struct bytes names = {0};

    for (; *rows; rows++)
        if (has_kind(*rows, spec->kind))
            bytes_printf(&names, "%s%s", names.size > 0 ? ", " : "", (*rows)->name);
    return fail(ERR_UNSUPPORTED, "%s does not compile %s grammars; those that do: %s",
                spec->backend ? spec->backend : "this build", grammar_kind_name(spec->kind),
                names.size > 0 ? bytes_text(&names) : "none");
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
