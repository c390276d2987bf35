#include "engine/text/template_internal.h"

enum status template_new(const char *source, size_t size, struct template **out)
{
    AUTO_FREE(template) struct template *t = mem_new(struct template);
    AUTO_CLOSE(token_array) struct token_array tokens = {0};

    TRY(template_lex(source, size, &t->arena, &tokens));
    TRY(template_parse(&tokens, &t->arena, &t->body));
    *out = give(t);
    return OK;
}

void template_free(struct template *t)
{
    if (!t)
        return;
    arena_close(&t->arena);
    mem_free(t);
}

static struct template_limits with_defaults(const struct template_limits *limits)
{
    struct template_limits l = limits ? *limits : (struct template_limits){0};

    l.max_steps = l.max_steps > 0 ? l.max_steps : 10000000;
    l.max_depth = l.max_depth > 0 ? MIN(l.max_depth, 1000) : 100;
    l.max_output_bytes = l.max_output_bytes > 0 ? l.max_output_bytes : 64 << 20;
    return l;
}

static enum status render(struct render *r, const struct template *t, const json_t *context)
{
    struct scope globals = {0};
    struct value v;

    if (!json_is_object(context))
        return fail(ERR_INVALID, "the context of a template must be a JSON object");
    TRY(value_from_json(r, context, 0, &v));
    r->context = v.dict;
    r->scope = &globals;
    return render_body(r, t->body);
}

enum status template_render(const struct template *t, const json_t *context,
                            const struct template_limits *limits, struct bytes *out)
{
    struct render r = {.limits = with_defaults(limits), .out = out};
    size_t size = out->size;
    enum status status;

    r.steps_left = r.limits.max_steps;
    r.bytes_left = r.limits.max_output_bytes;
    status = render(&r, t, context);
    if (status != OK)
        out->size = size;
    arena_close(&r.arena);
    return status;
}
