#include "engine/text/template_internal.h"

#include <string.h>

typedef enum status evaluate_function(struct render *r, const struct node *node, struct value *out);
typedef enum status execute_function(struct render *r, const struct node *node);

static enum status evaluate(struct render *r, const struct node *node, struct value *out);

/* ---- scopes ------------------------------------------------------------------------------------
 */

static struct variable *scope_variable(const struct scope *scope, struct value name)
{
    for (int32_t i = 0; i < scope->count; i++)
        if (value_same_text(scope->variables[i].name, name))
            return &scope->variables[i];
    return NULL;
}

static enum status scope_set(struct render *r, struct scope *scope, struct value name,
                             struct value v)
{
    struct variable *variable = scope_variable(scope, name);

    TRY(render_spend(r, 1 + scope->count / 16));
    if (!variable && scope->count == scope->capacity) {
        int32_t capacity = scope->capacity ? scope->capacity * 2 : 4;
        struct variable *variables;

        TRY(render_alloc(r, (size_t)capacity * sizeof *variables, &variables));
        if (scope->count)
            memcpy(variables, scope->variables, (size_t)scope->count * sizeof *variables);
        scope->variables = variables;
        scope->capacity = capacity;
    }
    if (!variable)
        variable = &scope->variables[scope->count++];
    *variable = (struct variable){name, v};
    return OK;
}

/* The caller puts r->scope back to what it was when it is done. */
static enum status scope_push(struct render *r, struct scope *parent)
{
    struct scope *scope;

    TRY(render_alloc(r, sizeof *scope, &scope));
    scope->parent = parent;
    r->scope = scope;
    return OK;
}

/* A macro keeps the scopes it was defined in. */
static void scope_capture(struct scope *scope)
{
    for (; scope && !scope->captured; scope = scope->parent)
        scope->captured = true;
}

/* ---- names and literals
 * ---------------------------------------------------------------------------- */

static enum status eval_literal(struct render *r, const struct node *node, struct value *out)
{
    (void)r;
    *out = node->value;
    return OK;
}

static enum status eval_captured(struct render *r, const struct node *node, struct value *out)
{
    (void)node;
    *out = r->captured;
    return OK;
}

static enum status eval_name(struct render *r, const struct node *node, struct value *out)
{
    const struct builtin *function = function_find(node->value);
    struct value *place;

    for (const struct scope *scope = r->scope; scope; scope = scope->parent) {
        const struct variable *variable = scope_variable(scope, node->value);

        TRY(render_spend(r, 1 + scope->count / 16));
        if (variable) {
            *out = variable->value;
            return OK;
        }
    }
    TRY(dict_find(r, r->context, node->value, &place));
    if (place)
        *out = *place;
    else if (function)
        *out = (struct value){.kind = VALUE_FUNCTION, .function = function};
    else
        *out = value_undefined(node->value.text, node->value.size);
    return OK;
}

static enum status eval_list(struct render *r, const struct node *node, struct value *out)
{
    struct list *list;

    TRY(list_new(r, 0, &list));
    for (const struct node *item = node->list; item; item = item->next) {
        struct value v;

        TRY(evaluate(r, item, &v));
        TRY(list_add(r, list, v));
    }
    *out = value_list(node->kind == NODE_LIST ? VALUE_LIST : VALUE_TUPLE, list);
    return OK;
}

static enum status eval_dict(struct render *r, const struct node *node, struct value *out)
{
    struct dict *dict;

    TRY(dict_new(r, 0, &dict));
    for (const struct node *pair = node->list; pair; pair = pair->next) {
        struct value key, v;

        TRY(evaluate(r, pair->left, &key));
        TRY(evaluate(r, pair->right, &v));
        TRY(dict_set(r, dict, key, v));
    }
    *out = (struct value){.kind = VALUE_DICT, .dict = dict};
    return OK;
}

static enum status eval_attribute(struct render *r, const struct node *node, struct value *out)
{
    struct value object;

    TRY(evaluate(r, node->left, &object));
    r->line = node->line;
    return value_attribute(r, object, node->value, out);
}

static enum status eval_item(struct render *r, const struct node *node, struct value *out)
{
    struct value object, key;

    TRY(evaluate(r, node->left, &object));
    TRY(evaluate(r, node->right, &key));
    r->line = node->line;
    return value_item(r, object, key, out);
}

static enum status eval_optional(struct render *r, const struct node *node, struct value *out)
{
    *out = (struct value){0};
    return node ? evaluate(r, node, out) : OK;
}

static enum status eval_slice(struct render *r, const struct node *node, struct value *out)
{
    struct value object, start, stop, step;

    TRY(evaluate(r, node->left, &object));
    TRY(eval_optional(r, node->right, &start));
    TRY(eval_optional(r, node->other, &stop));
    TRY(eval_optional(r, node->orelse, &step));
    r->line = node->line;
    return value_slice(r, object, start, stop, step, out);
}

/* ---- operators
 * ----------------------------------------------------------------------------------------- */

static enum status eval_chain(struct render *r, const struct node *node, struct value *out)
{
    struct value left, right;

    TRY(evaluate(r, node->left, &left));
    for (const struct node *link = node->list; link; link = link->next) {
        TRY(evaluate(r, link->left, &right));
        r->line = link->line;
        TRY(value_arithmetic(r, link->op, left, right, &left));
    }
    *out = left;
    return OK;
}

/* a < b < c is (a < b) and (b < c), with b evaluated once */
static enum status eval_compare(struct render *r, const struct node *node, struct value *out)
{
    struct value left, right;
    bool holds = true;

    TRY(evaluate(r, node->left, &left));
    for (const struct node *link = node->list; link && holds; link = link->next) {
        TRY(evaluate(r, link->left, &right));
        r->line = link->line;
        TRY(value_comparison(r, link->op, left, right, &holds));
        left = right;
    }
    *out = value_bool(holds);
    return OK;
}

static enum status eval_concat(struct render *r, const struct node *node, struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    for (const struct node *item = node->list; item; item = item->next) {
        struct value v;

        TRY(evaluate(r, item, &v));
        TRY(value_print(r, v, &text));
    }
    *out = string_from_bytes(r, &text);
    return OK;
}

/* The first operand that decides, or the last one. */
static enum status eval_and_or(struct render *r, const struct node *node, struct value *out)
{
    for (const struct node *item = node->list; item; item = item->next) {
        TRY(evaluate(r, item, out));
        if (value_is_true(*out) == (node->kind == NODE_OR))
            break;
    }
    return OK;
}

static enum status eval_not(struct render *r, const struct node *node, struct value *out)
{
    TRY(evaluate(r, node->left, out));
    *out = value_bool(!value_is_true(*out));
    return OK;
}

static enum status eval_negate(struct render *r, const struct node *node, struct value *out)
{
    TRY(evaluate(r, node->left, out));
    return value_negate(r, *out, out);
}

static enum status eval_plus(struct render *r, const struct node *node, struct value *out)
{
    TRY(evaluate(r, node->left, out));
    TRY(value_must_be_defined(r, *out));
    if (!value_is_number(*out))
        return render_fail(r, "+ %s cannot be computed", value_kind_names[out->kind]);
    if (out->kind == VALUE_BOOL)
        *out = value_int(out->boolean);
    return OK;
}

static enum status eval_condition(struct render *r, const struct node *node, struct value *out)
{
    struct value test;

    TRY(evaluate(r, node->right, &test));
    if (value_is_true(test))
        return evaluate(r, node->left, out);
    if (node->other)
        return evaluate(r, node->other, out);
    *out = value_undefined("the else of an inline if", 24);
    return OK;
}

/* ---- calls
 * -----------------------------------------------------------------------------------------------
 */

enum { MAX_ARGUMENTS = 255 };

struct argument_room { /* where the arguments of one call are gathered */
    struct value *values;
    struct keyword *keywords;
    struct arguments args;
    int32_t capacity;
};

static enum status add_positional(struct render *r, struct argument_room *room, struct value v)
{
    if (room->args.count == MAX_ARGUMENTS)
        return render_fail(r, "a call with more than %d arguments", MAX_ARGUMENTS);
    if (room->args.count == room->capacity) {
        struct value *values;

        room->capacity = room->capacity ? room->capacity * 2 : 4;
        TRY(render_alloc(r, (size_t)room->capacity * sizeof *values, &values));
        if (room->args.count)
            memcpy(values, room->values, (size_t)room->args.count * sizeof *values);
        room->args.values = room->values = values;
    }
    room->values[room->args.count++] = v;
    return OK;
}

static enum status add_keyword(struct render *r, struct argument_room *room, struct value name,
                               struct value v)
{
    int32_t n = room->args.num_keywords;

    if (name.kind != VALUE_STRING)
        return render_fail(r, "a keyword must be str, not %s", value_kind_names[name.kind]);
    for (int32_t i = 0; i < n; i++)
        if (value_same_text(room->keywords[i].name, name))
            return render_fail(r, "the argument \"%.*s\" is given twice", (int)MIN(name.size, 100u),
                               name.text);
    if (n == MAX_ARGUMENTS)
        return render_fail(r, "a call with more than %d keywords", MAX_ARGUMENTS);
    if ((n & (n - 1)) == 0) { /* full at each power of two */
        struct keyword *keywords;

        TRY(render_alloc(r, (size_t)MAX(2 * n, 1) * sizeof *keywords, &keywords));
        if (n)
            memcpy(keywords, room->keywords, (size_t)n * sizeof *keywords);
        room->args.keywords = room->keywords = keywords;
    }
    room->keywords[room->args.num_keywords++] = (struct keyword){name, v};
    return OK;
}

static enum status spread(struct render *r, struct argument_room *room, enum operator op,
                          struct value v)
{
    struct list *list;

    if (op == OP_MUL) {
        TRY(value_items(r, v, &list));
        for (int64_t i = 0; i < list->count; i++)
            TRY(add_positional(r, room, list->items[i]));
        return OK;
    }
    TRY(value_must_be_defined(r, v));
    if (v.kind != VALUE_DICT)
        return render_fail(r, "** wants dict, not %s", value_kind_names[v.kind]);
    for (int64_t i = 0; i < v.dict->count; i++)
        TRY(add_keyword(r, room, v.dict->entries[i].key, v.dict->entries[i].value));
    return OK;
}

static enum status eval_arguments(struct render *r, const struct node *list,
                                  struct argument_room *room)
{
    for (const struct node *argument = list; argument; argument = argument->next) {
        struct value v;

        TRY(evaluate(r, argument->left, &v));
        if (argument->op == OP_NONE)
            TRY(add_positional(r, room, v));
        else if (argument->op == OP_ASSIGN)
            TRY(add_keyword(r, room, argument->value, v));
        else
            TRY(spread(r, room, argument->op, v));
    }
    return OK;
}

/* What a body renders, as a string. */
static enum status capture(struct render *r, const struct node *body, struct value *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    struct bytes *outer = r->out;

    r->out = &text;
    enum status status = render_body(r, body);

    r->out = outer;
    TRY(status);
    *out = string_from_bytes(r, &text);
    return OK;
}

/* By position, then by name, then the default, which may use the parameters before it. */
static enum status bind_parameters(struct render *r, const struct macro *macro,
                                   const struct arguments *args)
{
    int32_t position = 0, keywords_used = 0;

    for (const struct node *p = macro->node->list; p; p = p->next, position++) {
        struct value v = value_undefined(p->value.text, p->value.size);
        bool given = position < args->count;

        if (given)
            v = args->values[position];
        for (int32_t i = 0; !given && i < args->num_keywords; i++)
            if (value_same_text(args->keywords[i].name, p->value)) {
                v = args->keywords[i].value;
                given = true;
                keywords_used++;
            }
        if (!given && p->left)
            TRY(evaluate(r, p->left, &v));
        TRY(scope_set(r, r->scope, p->value, v));
    }
    if (args->count > position)
        return render_fail(r, "macro %.*s takes %d arguments, %d given",
                           (int)MIN(macro->node->value.size, 100u), macro->node->value.text,
                           position, args->count);
    for (int32_t i = 0; i < args->num_keywords; i++)
        if (value_is_text(args->keywords[i].name, "caller")) {
            TRY(scope_set(r, r->scope, args->keywords[i].name, args->keywords[i].value));
            keywords_used++;
        }
    if (keywords_used < args->num_keywords)
        return render_fail(r, "macro %.*s has no place for a keyword that is given",
                           (int)MIN(macro->node->value.size, 100u), macro->node->value.text);
    return OK;
}

static enum status run_macro(struct render *r, const struct macro *macro,
                             const struct arguments *args, struct value *out)
{
    TRY(scope_push(r, macro->scope));
    TRY(bind_parameters(r, macro, args));
    return capture(r, macro->node->body, out);
}

static enum status call_macro(struct render *r, const struct macro *macro,
                              const struct arguments *args, struct value *out)
{
    struct scope *outer = r->scope;

    if (r->calls == r->limits.max_depth)
        return fail(ERR_FULL, "template line %d: macros call each other more than %d deep", r->line,
                    r->limits.max_depth);
    r->calls++;
    enum status status = run_macro(r, macro, args, out);

    r->calls--;
    r->scope = outer;
    return status;
}

enum status value_call(struct render *r, struct value callee, const struct arguments *args,
                       struct value *out)
{
    TRY(value_must_be_defined(r, callee));
    switch (callee.kind) {
    case VALUE_MACRO:
        return call_macro(r, callee.macro, args, out);
    case VALUE_FUNCTION:
        return builtin_call(r, callee.function, (struct value){0}, args, out);
    case VALUE_METHOD:
        return builtin_call(r, callee.method->builtin, callee.method->self, args, out);
    default:
        return render_fail(r, "a %s cannot be called", value_kind_names[callee.kind]);
    }
}

static enum status call_with(struct render *r, const struct node *node, struct argument_room *room,
                             struct value *out)
{
    struct value callee;

    TRY(evaluate(r, node->left, &callee));
    if (callee.kind == VALUE_UNDEFINED && node->left->kind == NODE_ATTRIBUTE &&
        !method_is_known(node->left->value))
        return node_refuse(node->left);
    TRY(eval_arguments(r, node->list, room));
    r->line = node->line;
    return value_call(r, callee, &room->args, out);
}

static enum status eval_call(struct render *r, const struct node *node, struct value *out)
{
    struct argument_room room = {0};

    return call_with(r, node, &room, out);
}

/* Filters and tests. */
static enum status eval_builtin(struct render *r, const struct node *node, struct value *out)
{
    struct argument_room room = {0};
    struct value input;

    if (!node->builtin)
        return node_refuse(node);
    TRY(evaluate(r, node->left, &input));
    TRY(eval_arguments(r, node->list, &room));
    r->line = node->line;
    return builtin_call(r, node->builtin, input, &room.args, out);
}

static evaluate_function *const evaluators[NUM_EXPRESSIONS] = {
    [NODE_LITERAL] = eval_literal,   [NODE_NAME] = eval_name,
    [NODE_LIST] = eval_list,         [NODE_TUPLE] = eval_list,
    [NODE_DICT] = eval_dict,         [NODE_ATTRIBUTE] = eval_attribute,
    [NODE_ITEM] = eval_item,         [NODE_SLICE] = eval_slice,
    [NODE_CALL] = eval_call,         [NODE_FILTER] = eval_builtin,
    [NODE_TEST] = eval_builtin,      [NODE_CHAIN] = eval_chain,
    [NODE_COMPARE] = eval_compare,   [NODE_CONCAT] = eval_concat,
    [NODE_AND] = eval_and_or,        [NODE_OR] = eval_and_or,
    [NODE_NOT] = eval_not,           [NODE_NEGATE] = eval_negate,
    [NODE_PLUS] = eval_plus,         [NODE_CONDITION] = eval_condition,
    [NODE_CAPTURED] = eval_captured,
};

/* Ten nodes to a call: what keeps the C stack bounded, in the way of Python's recursion limit. */
static enum status enter(struct render *r, const struct node *node)
{
    r->line = node->line;
    if (r->nesting >= 10 * r->limits.max_depth)
        return fail(ERR_FULL, "template line %d: nested more than %d deep", r->line,
                    10 * r->limits.max_depth);
    TRY(render_spend(r, 1));
    r->nesting++;
    return OK;
}

static enum status evaluate(struct render *r, const struct node *node, struct value *out)
{
    TRY(enter(r, node));
    enum status status = evaluators[node->kind](r, node, out);

    r->nesting--;
    return status;
}

/* ---- statements
 * --------------------------------------------------------------------------------------------- */

static enum status assign(struct render *r, const struct node *target, struct value v);

static enum status unpack(struct render *r, const struct node *tuple, struct value v)
{
    struct list *parts;
    int64_t wanted = 0;

    TRY(value_items(r, v, &parts));
    for (const struct node *item = tuple->list; item; item = item->next)
        wanted++;
    if (parts->count != wanted)
        return render_fail(r, "%lld values for %lld names", (long long)parts->count,
                           (long long)wanted);
    wanted = 0;
    for (const struct node *item = tuple->list; item; item = item->next)
        TRY(assign(r, item, parts->items[wanted++]));
    return OK;
}

static enum status assign(struct render *r, const struct node *target, struct value v)
{
    struct value object;

    r->line = target->line;
    if (target->kind == NODE_NAME)
        return scope_set(r, r->scope, target->value, v);
    if (target->kind == NODE_TUPLE)
        return unpack(r, target, v);
    TRY(evaluate(r, target->left, &object));
    if (object.kind != VALUE_NAMESPACE)
        return render_fail(r, "only a namespace() has attributes to set, not a %s",
                           value_kind_names[object.kind]);
    return dict_set(r, object.dict, target->value, v);
}

static enum status exec_text(struct render *r, const struct node *node)
{
    return render_emit(r, r->out, node->value.text, node->value.size);
}

static enum status exec_print(struct render *r, const struct node *node)
{
    struct value v;

    TRY(evaluate(r, node->left, &v));
    return value_print(r, v, r->out);
}

static enum status exec_set(struct render *r, const struct node *node)
{
    struct value v;

    TRY(evaluate(r, node->right, &v));
    return assign(r, node->left, v);
}

/* Renders a body in its own scope, and what the filters of the block make of it. */
static enum status capture_filtered(struct render *r, const struct node *node, struct value *out)
{
    struct scope *outer = r->scope;
    struct value captured = r->captured;

    TRY(scope_push(r, outer));
    TRY(capture(r, node->body, &r->captured));
    TRY(evaluate(r, node->right, out));
    r->captured = captured;
    r->scope = outer;
    return OK;
}

static enum status exec_set_block(struct render *r, const struct node *node)
{
    struct value v;

    TRY(capture_filtered(r, node, &v));
    return assign(r, node->left, v);
}

static enum status exec_filter_block(struct render *r, const struct node *node)
{
    struct value v;

    TRY(capture_filtered(r, node, &v));
    return value_print(r, v, r->out);
}

static enum status exec_if(struct render *r, const struct node *node)
{
    for (const struct node *branch = node->list; branch; branch = branch->next) {
        struct value test = value_bool(true);

        if (branch->left)
            TRY(evaluate(r, branch->left, &test));
        if (value_is_true(test))
            return render_body(r, branch->body);
    }
    return OK;
}

/* The scope of the next iteration: the same one, emptied, unless a macro has kept it. */
static enum status next_scope(struct render *r, struct scope *parent)
{
    if (r->scope == parent || r->scope->captured)
        return scope_push(r, parent);
    r->scope->count = 0;
    return OK;
}

/* Items for which "for … if" holds; the filter sees the targets, but no loop. */
static enum status filter_items(struct render *r, const struct node *node, struct list **items)
{
    struct scope *outer = r->scope;
    struct list *kept;

    TRY(list_new(r, 0, &kept));
    for (int64_t i = 0; i < (*items)->count; i++) {
        struct value test;

        TRY(next_scope(r, outer));
        TRY(assign(r, node->left, (*items)->items[i]));
        TRY(evaluate(r, node->other, &test));
        if (value_is_true(test))
            TRY(list_add(r, kept, (*items)->items[i]));
    }
    r->scope = outer;
    *items = kept;
    return OK;
}

/* whole_out: a body was rendered to its end; where none was, the {% else %} is rendered too. */
static enum status run_loop(struct render *r, const struct node *node, struct list *items,
                            bool *whole_out)
{
    struct scope *outer = r->scope;
    struct loop *loop;

    TRY(render_alloc(r, sizeof *loop, &loop));
    loop->list = items;
    for (; loop->index0 < items->count && r->flow != FLOW_BREAK; loop->index0++) {
        TRY(render_spend(r, 1));
        TRY(next_scope(r, outer));
        TRY(scope_set(r, r->scope, value_string("loop", 4),
                      (struct value){.kind = VALUE_LOOP, .loop = loop}));
        TRY(assign(r, node->left, items->items[loop->index0]));
        r->flow = FLOW_NEXT;
        TRY(render_body(r, node->body));
        *whole_out |= r->flow == FLOW_NEXT;
    }
    r->flow = FLOW_NEXT;
    r->scope = outer;
    return OK;
}

static enum status exec_for(struct render *r, const struct node *node)
{
    struct scope *outer = r->scope;
    bool was_whole = false;
    struct list *items;
    struct value v;

    TRY(evaluate(r, node->right, &v));
    TRY(value_items(r, v, &items));
    if (node->other)
        TRY(filter_items(r, node, &items));
    if (items->count > 0)
        TRY(run_loop(r, node, items, &was_whole));
    if (was_whole)
        return OK;
    TRY(scope_push(r, outer));
    TRY(render_body(r, node->orelse));
    r->scope = outer;
    return OK;
}

static enum status exec_loop_control(struct render *r, const struct node *node)
{
    r->flow = node->kind == NODE_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
    return OK;
}

static enum status new_macro(struct render *r, const struct node *node, struct value *out)
{
    struct macro *macro;

    TRY(render_alloc(r, sizeof *macro, &macro));
    *macro = (struct macro){node, r->scope};
    scope_capture(r->scope);
    *out = (struct value){.kind = VALUE_MACRO, .macro = macro};
    return OK;
}

static enum status exec_macro(struct render *r, const struct node *node)
{
    struct value macro;

    TRY(new_macro(r, node, &macro));
    return scope_set(r, r->scope, node->value, macro);
}

static enum status exec_call_block(struct render *r, const struct node *node)
{
    struct argument_room room = {0};
    struct value caller, v;

    TRY(new_macro(r, node, &caller));
    TRY(add_keyword(r, &room, node->value, caller));
    TRY(call_with(r, node->left, &room, &v));
    return value_print(r, v, r->out);
}

/* The values are computed outside, all of them before the first is assigned. */
static enum status exec_with(struct render *r, const struct node *node)
{
    struct scope *outer = r->scope;
    struct list *values;
    int64_t i = 0;

    TRY(list_new(r, 0, &values));
    for (const struct node *pair = node->list; pair; pair = pair->next) {
        struct value v;

        TRY(evaluate(r, pair->right, &v));
        TRY(list_add(r, values, v));
    }
    TRY(scope_push(r, outer));
    for (const struct node *pair = node->list; pair; pair = pair->next)
        TRY(assign(r, pair->left, values->items[i++]));
    TRY(render_body(r, node->body));
    r->scope = outer;
    return OK;
}

static execute_function *const executors[NUM_NODES] = {
    [NODE_TEXT] = exec_text,
    [NODE_PRINT] = exec_print,
    [NODE_SET] = exec_set,
    [NODE_SET_BLOCK] = exec_set_block,
    [NODE_FOR] = exec_for,
    [NODE_IF] = exec_if,
    [NODE_BREAK] = exec_loop_control,
    [NODE_CONTINUE] = exec_loop_control,
    [NODE_MACRO] = exec_macro,
    [NODE_CALL_BLOCK] = exec_call_block,
    [NODE_FILTER_BLOCK] = exec_filter_block,
    [NODE_WITH] = exec_with,
};

/* Stops behind a break or continue; the loop around it sees r->flow. */
enum status render_body(struct render *r, const struct node *body)
{
    for (const struct node *node = body; node && r->flow == FLOW_NEXT; node = node->next) {
        TRY(enter(r, node));
        enum status status = executors[node->kind](r, node);

        r->nesting--;
        TRY(status);
    }
    return OK;
}
