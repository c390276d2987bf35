#include "engine/text/template_internal.h"

#include <string.h>

const struct builtin *builtin_find(const struct builtin *rows, size_t count, struct value name)
{
    for (size_t i = 0; i < count; i++)
        if (value_is_text(name, rows[i].name))
            return &rows[i];
    return NULL;
}

/* ---- arguments ------------------------------------------------------------------------------- */

/* The index of a name in "a b c", -1 if it is not there; its length through `name`. */
static int parameter_index(const char *parameters, struct value name)
{
    int index = 0;

    for (const char *p = parameters; *p; index++) {
        size_t n = strcspn(p, " ");

        if (n == name.size && memcmp(p, name.text, n) == 0)
            return index;
        p += n + (p[n] == ' ');
    }
    return -1;
}

static int num_parameters(const char *parameters)
{
    int n = *parameters != '\0';

    for (const char *p = parameters; *p; p++)
        n += *p == ' ';
    return n;
}

static enum status bind(const struct render *r, const struct builtin *builtin,
                        struct arguments *args)
{
    if (args->count > num_parameters(builtin->parameters))
        return render_fail(r, "%s takes %d arguments, %d given", builtin->name,
                           num_parameters(builtin->parameters), args->count);
    for (int32_t i = 0; i < MAX_PARAMETERS; i++)
        args->bound[i] = i < args->count ? args->values[i] : (struct value){0};
    for (int32_t i = 0; i < args->num_keywords; i++) {
        const struct keyword *keyword = &args->keywords[i];
        int index = parameter_index(builtin->parameters, keyword->name);

        if (index < 0 || args->bound[index].kind != VALUE_MISSING)
            return render_fail(r, "%s has no place for the argument \"%.*s\"", builtin->name,
                               (int)MIN(keyword->name.size, 100u), keyword->name.text);
        args->bound[index] = keyword->value;
    }
    return OK;
}

enum status builtin_call(struct render *r, const struct builtin *builtin, struct value self,
                         const struct arguments *args, struct value *out)
{
    struct arguments own = *args;

    TRY(render_spend(r, 1));
    if (builtin->parameters)
        TRY(bind(r, builtin, &own));
    return builtin->run(r, self, &own, out);
}

enum status argument_string(struct render *r, const struct arguments *args, int index,
                            const char *fallback, struct value *out)
{
    struct value v = args->bound[index];

    if (v.kind == VALUE_MISSING && fallback) {
        *out = value_string(fallback, strlen(fallback));
        return OK;
    }
    TRY(value_must_be_defined(r, v));
    if (v.kind != VALUE_STRING)
        return render_fail(r, "argument %d must be str, not %s", index + 1,
                           value_kind_names[v.kind]);
    *out = v;
    return OK;
}

enum status argument_int(struct render *r, const struct arguments *args, int index,
                         int64_t fallback, int64_t *out)
{
    struct value v = args->bound[index];

    *out = fallback;
    if (v.kind == VALUE_MISSING || v.kind == VALUE_NONE)
        return OK;
    TRY(value_must_be_defined(r, v));
    if (v.kind != VALUE_INT && v.kind != VALUE_BOOL)
        return render_fail(r, "argument %d must be int, not %s", index + 1,
                           value_kind_names[v.kind]);
    *out = value_integer(v);
    return OK;
}

bool argument_flag(const struct arguments *args, int index)
{
    return value_is_true(args->bound[index]);
}
