#include "engine/text/template_internal.h"

#include <string.h>

struct parser {
    const struct token *token; /* the next one */
    struct arena *arena;
    int32_t depth;        /* expressions and statements that enclose this place */
    int32_t loops;        /* for loops that a break here could leave */
    int32_t macros;       /* macros around this place */
    struct node *missing; /* the first filter, test or method that we lack, outside of any if */
};

/* Where a chain of nodes grows. */
struct chain {
    struct node **end;
};

static enum status parse_expression(struct parser *p, struct node **out);
static enum status parse_or(struct parser *p, struct node **out);
static enum status parse_unary(struct parser *p, bool with_filters, struct node **out);
static enum status parse_postfix(struct parser *p, struct node **node);
static enum status parse_statements(struct parser *p, const char *const *ends,
                                    struct node **body_out);

/* ---- tokens ----------------------------------------------------------------------------- */

#define parse_fail(token, status, ...)                                                             \
    ({                                                                                             \
        AUTO_MEM char *what_ = mem_printf(__VA_ARGS__);                                            \
        fail((status), "template line %d, column %d: %s", (token)->line, (token)->column, what_);  \
    })

static enum status expected(const struct parser *p, const char *what)
{
    static const char *const names[] = {
        [TOKEN_TEXT] = "text",
        [TOKEN_PRINT_BEGIN] = "\"{{\"",
        [TOKEN_PRINT_END] = "\"}}\"",
        [TOKEN_BLOCK_BEGIN] = "\"{%\"",
        [TOKEN_BLOCK_END] = "\"%}\"",
        [TOKEN_LITERAL] = "a literal",
        [TOKEN_EOF] = "the end of the template",
    };
    const struct token *token = p->token;

    if (token->kind == TOKEN_NAME || token->kind == TOKEN_OPERATOR)
        return parse_fail(token, ERR_CORRUPT, "expected %s, found \"%.*s\"", what,
                          (int)MIN(token->value.size, 100u), token->value.text);
    return parse_fail(token, ERR_CORRUPT, "expected %s, found %s", what, names[token->kind]);
}

static bool at_operator(const struct parser *p, enum operator op)
{
    return p->token->kind == TOKEN_OPERATOR && p->token->op == op;
}

static bool at_name(const struct parser *p, const char *name)
{
    return p->token->kind == TOKEN_NAME && value_is_text(p->token->value, name);
}

static bool skip_operator(struct parser *p, enum operator op)
{
    bool is_it = at_operator(p, op);

    p->token += is_it;
    return is_it;
}

static bool skip_name(struct parser *p, const char *name)
{
    bool is_it = at_name(p, name);

    p->token += is_it;
    return is_it;
}

static enum status expect_operator(struct parser *p, enum operator op, const char *what)
{
    return skip_operator(p, op) ? OK : expected(p, what);
}

static enum status expect_kind(struct parser *p, enum token_kind kind, const char *what)
{
    if (p->token->kind != kind)
        return expected(p, what);
    p->token++;
    return OK;
}

static enum status expect_name(struct parser *p, const char *what, struct value *out)
{
    *out = p->token->value;
    return expect_kind(p, TOKEN_NAME, what);
}

static enum status enter(struct parser *p)
{
    if (p->depth == MAX_SOURCE_DEPTH)
        return parse_fail(p->token, ERR_CORRUPT, "nested more than %d deep", MAX_SOURCE_DEPTH);
    p->depth++;
    return OK;
}

/* ---- nodes ------------------------------------------------------------------------------ */

static struct node *node_at(struct parser *p, enum node_kind kind, const struct token *token)
{
    struct node *node = arena_alloc(p->arena, sizeof *node);

    *node = (struct node){.kind = kind, .line = token->line, .column = token->column};
    return node;
}

static struct node *node_new(struct parser *p, enum node_kind kind)
{
    return node_at(p, kind, p->token);
}

/* What `node` names is not there. Within an if it may never be reached: see parse_if. */
static void note_missing(struct parser *p, struct node *node, const struct token *name)
{
    node->value = name->value;
    node->line = name->line;
    node->column = name->column;
    p->missing = p->missing ? p->missing : node;
}

enum status node_refuse(const struct node *node)
{
    static const char *const forms[NUM_NODES][2] = {
        [NODE_FILTER] = {"filter \"", "\""},
        [NODE_TEST] = {"test \"", "\""},
        [NODE_ATTRIBUTE] = {"method .", "()"},
    };

    return parse_fail(node, ERR_UNSUPPORTED, "the %s%.*s%s is not supported", forms[node->kind][0],
                      (int)MIN(node->value.size, 100u), node->value.text, forms[node->kind][1]);
}

static void chain_add(struct chain *chain, struct node *node)
{
    *chain->end = node;
    chain->end = &node->next;
}

/* ---- literals and targets ------------------------------------------------------------------ */

static enum status parse_list(struct parser *p, struct node **out)
{
    struct node *list = node_new(p, NODE_LIST), *item;
    struct chain items = {&list->list};

    p->token++;
    while (!at_operator(p, OP_RBRACKET)) {
        TRY(parse_expression(p, &item));
        chain_add(&items, item);
        if (!skip_operator(p, OP_COMMA))
            break;
    }
    *out = list;
    return expect_operator(p, OP_RBRACKET, "\",\" or \"]\"");
}

static enum status parse_dict(struct parser *p, struct node **out)
{
    struct node *dict = node_new(p, NODE_DICT);
    struct chain pairs = {&dict->list};

    p->token++;
    while (!at_operator(p, OP_RBRACE)) {
        struct node *pair = node_new(p, NODE_PAIR);

        TRY(parse_expression(p, &pair->left));
        TRY(expect_operator(p, OP_COLON, "\":\" after the key"));
        TRY(parse_expression(p, &pair->right));
        chain_add(&pairs, pair);
        if (!skip_operator(p, OP_COMMA))
            break;
    }
    *out = dict;
    return expect_operator(p, OP_RBRACE, "\",\" or \"}\"");
}

typedef enum status parse_function(struct parser *p, struct node **out);

/* One item, or a tuple if there is a comma. `parenthesized`: "()" is the empty tuple. */
static enum status parse_tuple(struct parser *p, parse_function *parse_item, bool parenthesized,
                               struct node **out)
{
    struct node *tuple = node_new(p, NODE_TUPLE), *item;
    struct chain items = {&tuple->list};
    bool is_tuple = false;

    for (;;) {
        bool at_end = at_operator(p, OP_RPAREN) || p->token->kind == TOKEN_PRINT_END ||
                      p->token->kind == TOKEN_BLOCK_END || at_name(p, "in");

        if (at_end && (is_tuple || parenthesized))
            break;
        TRY(parse_item(p, &item));
        chain_add(&items, item);
        parenthesized = false;
        if (!skip_operator(p, OP_COMMA))
            break;
        is_tuple = true;
    }
    *out = is_tuple || !tuple->list ? tuple : tuple->list;
    return OK;
}

static enum status parse_string(struct parser *p, struct node **out)
{
    struct node *node = node_new(p, NODE_LITERAL);
    AUTO_CLOSE(bytes) struct bytes text = {0};

    node->value = p->token++->value;
    *out = node;
    if (p->token->kind != TOKEN_LITERAL || p->token->value.kind != VALUE_STRING)
        return OK;
    bytes_append(&text, node->value.text, node->value.size);
    for (; p->token->kind == TOKEN_LITERAL && p->token->value.kind == VALUE_STRING; p->token++)
        bytes_append(&text, p->token->value.text, p->token->value.size);
    node->value = value_string(arena_strndup(p->arena, bytes_text(&text), text.size), text.size);
    return OK;
}

static const struct constant {
    const char *name;
    struct value value;
} constants[] = {
    {"true", {.kind = VALUE_BOOL, .boolean = true}},
    {"True", {.kind = VALUE_BOOL, .boolean = true}},
    {"false", {.kind = VALUE_BOOL}},
    {"False", {.kind = VALUE_BOOL}},
    {"none", {.kind = VALUE_NONE}},
    {"None", {.kind = VALUE_NONE}},
};

static enum status parse_name(struct parser *p, struct node **out)
{
    struct node *node = node_new(p, NODE_NAME);

    *out = node;
    node->value = p->token->value;
    for (size_t i = 0; i < COUNT_OF(constants); i++)
        if (value_is_text(node->value, constants[i].name)) {
            node->kind = NODE_LITERAL;
            node->value = constants[i].value;
        }
    if (p->macros && node->kind == NODE_NAME &&
        (value_is_text(node->value, "varargs") || value_is_text(node->value, "kwargs")))
        return parse_fail(p->token, ERR_UNSUPPORTED, "\"%.*s\" of a macro is not supported",
                          (int)node->value.size, node->value.text);
    p->token++;
    return OK;
}

static enum status parse_primary(struct parser *p, struct node **out)
{
    const struct token *token = p->token;

    if (token->kind == TOKEN_NAME)
        return parse_name(p, out);
    if (token->kind == TOKEN_LITERAL && token->value.kind == VALUE_STRING)
        return parse_string(p, out);
    if (token->kind == TOKEN_LITERAL) {
        *out = node_new(p, NODE_LITERAL);
        (*out)->value = p->token++->value;
        return OK;
    }
    if (at_operator(p, OP_LBRACKET))
        return parse_list(p, out);
    if (at_operator(p, OP_LBRACE))
        return parse_dict(p, out);
    if (!skip_operator(p, OP_LPAREN))
        return expected(p, "an expression");
    TRY(parse_tuple(p, parse_expression, true, out));
    return expect_operator(p, OP_RPAREN, "\")\"");
}

/* name, namespace.attribute, or a parenthesized tuple of such */
static enum status parse_target_item(struct parser *p, struct node **out)
{
    struct node *attribute;

    if (skip_operator(p, OP_LPAREN)) {
        TRY(enter(p));
        TRY(parse_tuple(p, parse_target_item, true, out));
        p->depth--;
        return expect_operator(p, OP_RPAREN, "\")\"");
    }
    const struct token *token = p->token;

    if (token->kind != TOKEN_NAME)
        return expected(p, "a name to assign to");
    TRY(parse_name(p, out));
    if ((*out)->kind != NODE_NAME)
        return parse_fail(token, ERR_CORRUPT, "cannot assign to \"%.*s\"", (int)token->value.size,
                          token->value.text);
    if (!at_operator(p, OP_DOT))
        return OK;
    attribute = node_new(p, NODE_NAMESPACE_TARGET);
    p->token++;
    attribute->left = *out;
    *out = attribute;
    return expect_name(p, "the name of an attribute", &attribute->value);
}

static enum status parse_target(struct parser *p, struct node **out)
{
    return parse_tuple(p, parse_target_item, false, out);
}

/* ---- what follows a value: .x [x] (x) |x is x ------------------------------------------------ */

static enum status parse_argument(struct parser *p, struct node **out)
{
    struct node *argument = node_new(p, NODE_ARGUMENT);

    *out = argument;
    if (at_operator(p, OP_MUL) || at_operator(p, OP_POWER)) {
        argument->op = p->token++->op;
    } else if (p->token->kind == TOKEN_NAME && p->token[1].kind == TOKEN_OPERATOR &&
               p->token[1].op == OP_ASSIGN) {
        argument->op = OP_ASSIGN;
        argument->value = p->token->value;
        p->token += 2;
    }
    return parse_expression(p, &argument->left);
}

/* ( a, b, *c, d=1, **e ) */
static enum status parse_arguments(struct parser *p, struct node **list_out)
{
    struct chain arguments = {list_out};
    struct node *argument;
    enum operator last = OP_NONE;

    p->token++;
    while (!at_operator(p, OP_RPAREN)) {
        const struct token *token = p->token;

        TRY(parse_argument(p, &argument));
        if (argument->op == OP_NONE && last != OP_NONE)
            return parse_fail(token, ERR_CORRUPT, "a positional argument after a keyword");
        last = argument->op;
        chain_add(&arguments, argument);
        if (!skip_operator(p, OP_COMMA))
            break;
    }
    return expect_operator(p, OP_RPAREN, "\",\" or \")\"");
}

static enum status parse_subscript(struct parser *p, struct node **node)
{
    struct node *item = node_new(p, NODE_ITEM);

    p->token++;
    item->left = *node;
    *node = item;
    if (!at_operator(p, OP_COLON))
        TRY(parse_expression(p, &item->right));
    if (skip_operator(p, OP_COLON)) {
        item->kind = NODE_SLICE;
        if (!at_operator(p, OP_COLON) && !at_operator(p, OP_RBRACKET))
            TRY(parse_expression(p, &item->other));
        if (skip_operator(p, OP_COLON) && !at_operator(p, OP_RBRACKET))
            TRY(parse_expression(p, &item->orelse));
    }
    return expect_operator(p, OP_RBRACKET, "\"]\"");
}

static enum status parse_attribute(struct parser *p, struct node **node)
{
    struct node *attribute = node_new(p, NODE_ATTRIBUTE);
    const struct token *token = ++p->token;

    attribute->left = *node;
    *node = attribute;
    if (token->kind == TOKEN_LITERAL && token->value.kind == VALUE_INT) { /* x.0 is x[0] */
        attribute->kind = NODE_ITEM;
        attribute->right = node_new(p, NODE_LITERAL);
        attribute->right->value = p->token++->value;
        return OK;
    }
    TRY(expect_name(p, "the name of an attribute", &attribute->value));
    if (at_operator(p, OP_LPAREN) && !method_is_known(attribute->value))
        note_missing(p, attribute, token);
    return OK;
}

static enum status parse_call(struct parser *p, struct node **node)
{
    struct node *call = node_new(p, NODE_CALL);

    call->left = *node;
    *node = call;
    return parse_arguments(p, &call->list);
}

static enum status parse_postfix(struct parser *p, struct node **node)
{
    for (;;) {
        if (at_operator(p, OP_DOT))
            TRY(parse_attribute(p, node));
        else if (at_operator(p, OP_LBRACKET))
            TRY(parse_subscript(p, node));
        else if (at_operator(p, OP_LPAREN))
            TRY(parse_call(p, node));
        else
            return OK;
    }
}

/* The filter or test whose name stands here. */
static enum status parse_builtin(struct parser *p, const char *what,
                                 const struct builtin *(*find)(struct value name),
                                 struct node *node)
{
    const struct token *token = p->token;
    struct value name;

    TRY(expect_name(p, what, &name));
    node->builtin = find(name);
    if (!node->builtin)
        note_missing(p, node, token);
    return OK;
}

/* map("name"), select("name") …: the inner name is looked for now, where it is a literal. */
static void check_inner_name(struct parser *p, const struct node *filter)
{
    static const struct {
        const char *filter;
        int index;
        enum node_kind kind;
        const struct builtin *(*find)(struct value name);
    } rows[] = {
        {"map", 0, NODE_FILTER, filter_find},    {"select", 0, NODE_TEST, test_find},
        {"reject", 0, NODE_TEST, test_find},     {"selectattr", 1, NODE_TEST, test_find},
        {"rejectattr", 1, NODE_TEST, test_find},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct node *argument = filter->list;

        if (strcmp(rows[i].filter, filter->builtin->name) != 0)
            continue;
        for (int k = 0; k < rows[i].index && argument; k++)
            argument = argument->next;
        if (argument && argument->op == OP_NONE && argument->left->kind == NODE_LITERAL &&
            argument->left->value.kind == VALUE_STRING && !rows[i].find(argument->left->value)) {
            struct token name = {.value = argument->left->value,
                                 .line = argument->left->line,
                                 .column = argument->left->column};

            note_missing(p, node_new(p, rows[i].kind), &name);
        }
    }
}

static enum status parse_filter(struct parser *p, struct node **node)
{
    struct node *filter = node_new(p, NODE_FILTER);

    filter->left = *node;
    *node = filter;
    TRY(parse_builtin(p, "the filter", filter_find, filter));
    if (at_operator(p, OP_LPAREN))
        TRY(parse_arguments(p, &filter->list));
    if (filter->builtin)
        check_inner_name(p, filter);
    return OK;
}

static bool at_test_argument(const struct parser *p)
{
    if (p->token->kind == TOKEN_NAME)
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
    return p->token->kind == TOKEN_LITERAL || at_operator(p, OP_LBRACKET) ||
           at_operator(p, OP_LBRACE);
}

static enum status parse_test(struct parser *p, struct node **node)
{
    struct node *test = node_new(p, NODE_TEST), *negation = NULL;

    p->token++;
    if (at_name(p, "not")) {
        negation = node_new(p, NODE_NOT);
        p->token++;
    }
    test->left = *node;
    TRY(parse_builtin(p, "the test", test_find, test));
    if (at_operator(p, OP_LPAREN)) {
        TRY(parse_arguments(p, &test->list));
    } else if (at_test_argument(p)) {
        if (at_name(p, "is"))
            return expected(p, "no second \"is\"");
        test->list = node_new(p, NODE_ARGUMENT);
        TRY(enter(p));
        TRY(parse_primary(p, &test->list->left));
        TRY(parse_postfix(p, &test->list->left));
        p->depth--;
    }
    if (negation)
        negation->left = test;
    *node = negation ? negation : test;
    return OK;
}

static enum status parse_filters_and_tests(struct parser *p, struct node **node)
{
    for (;;) {
        if (skip_operator(p, OP_PIPE))
            TRY(parse_filter(p, node));
        else if (at_name(p, "is"))
            TRY(parse_test(p, node));
        else if (at_operator(p, OP_LPAREN))
            TRY(parse_call(p, node));
        else
            return OK;
    }
}

/* ---- operators, from tight to loose --------------------------------------------------------- */

static enum status parse_unary(struct parser *p, bool with_filters, struct node **out)
{
    TRY(enter(p));
    if (at_operator(p, OP_SUB) || at_operator(p, OP_ADD)) {
        struct node *sign = node_new(p, at_operator(p, OP_SUB) ? NODE_NEGATE : NODE_PLUS);

        p->token++;
        TRY(parse_unary(p, false, &sign->left));
        *out = sign;
    } else {
        TRY(parse_primary(p, out));
    }
    TRY(parse_postfix(p, out));
    if (with_filters)
        TRY(parse_filters_and_tests(p, out));
    p->depth--;
    return OK;
}

static enum status parse_operand(struct parser *p, struct node **out)
{
    return parse_unary(p, true, out);
}

/* `next`, then any number of (operator, `next`), from left to right. */
static enum status parse_links(struct parser *p, const enum operator* ops, parse_function *next,
                               struct node **out)
{
    struct node *chain = node_new(p, NODE_CHAIN);
    struct chain links = {&chain->list};

    TRY(next(p, &chain->left));
    for (;;) {
        const enum operator* op = ops;

        while (*op != OP_NONE && !at_operator(p, *op))
            op++;
        if (*op == OP_NONE)
            break;
        struct node *link = node_new(p, NODE_LINK);

        link->op = p->token++->op;
        TRY(next(p, &link->left));
        chain_add(&links, link);
    }
    *out = chain->list ? chain : chain->left;
    return OK;
}

static enum status parse_power(struct parser *p, struct node **out)
{
    static const enum operator ops[] = {OP_POWER, OP_NONE};

    return parse_links(p, ops, parse_operand, out);
}

static enum status parse_product(struct parser *p, struct node **out)
{
    static const enum operator ops[] = {OP_MUL, OP_DIV, OP_FLOOR_DIV, OP_MOD, OP_NONE};

    return parse_links(p, ops, parse_power, out);
}

static enum status parse_concat(struct parser *p, struct node **out)
{
    struct node *concat = node_new(p, NODE_CONCAT), *item;
    struct chain items = {&concat->list};

    do {
        TRY(parse_product(p, &item));
        chain_add(&items, item);
    } while (skip_operator(p, OP_CONCAT));
    *out = concat->list->next ? concat : concat->list;
    return OK;
}

static enum status parse_sum(struct parser *p, struct node **out)
{
    static const enum operator ops[] = {OP_ADD, OP_SUB, OP_NONE};

    return parse_links(p, ops, parse_concat, out);
}

static enum operator comparison_here(const struct parser *p)
{
    if (p->token->kind == TOKEN_OPERATOR && p->token->op >= OP_EQ && p->token->op <= OP_GE)
        return p->token->op;
    if (at_name(p, "in"))
        return OP_IN;
    if (at_name(p, "not") && p->token[1].kind == TOKEN_NAME &&
        value_is_text(p->token[1].value, "in"))
        return OP_NOT_IN;
    return OP_NONE;
}

static enum status parse_comparison(struct parser *p, struct node **out)
{
    struct node *compare = node_new(p, NODE_COMPARE);
    struct chain links = {&compare->list};
    enum operator op;

    TRY(parse_sum(p, &compare->left));
    while ((op = comparison_here(p)) != OP_NONE) {
        struct node *link = node_new(p, NODE_LINK);

        link->op = op;
        p->token += 1 + (op == OP_NOT_IN);
        TRY(parse_sum(p, &link->left));
        chain_add(&links, link);
    }
    *out = compare->list ? compare : compare->left;
    return OK;
}

static enum status parse_not(struct parser *p, struct node **out)
{
    struct node *negation = node_new(p, NODE_NOT);

    if (!skip_name(p, "not"))
        return parse_comparison(p, out);
    *out = negation;
    TRY(enter(p));
    TRY(parse_not(p, &negation->left));
    p->depth--;
    return OK;
}

static enum status parse_words(struct parser *p, const char *word, enum node_kind kind,
                               parse_function *next, struct node **out)
{
    struct node *node = node_new(p, kind), *item;
    struct chain items = {&node->list};

    do {
        TRY(next(p, &item));
        chain_add(&items, item);
    } while (skip_name(p, word));
    *out = node->list->next ? node : node->list;
    return OK;
}

static enum status parse_and(struct parser *p, struct node **out)
{
    return parse_words(p, "and", NODE_AND, parse_not, out);
}

static enum status parse_or(struct parser *p, struct node **out)
{
    return parse_words(p, "or", NODE_OR, parse_and, out);
}

static enum status parse_expression(struct parser *p, struct node **out)
{
    struct node *missing = p->missing;

    TRY(enter(p));
    TRY(parse_or(p, out));
    while (at_name(p, "if")) {
        struct node *condition = node_new(p, NODE_CONDITION);

        p->token++;
        condition->left = *out;
        TRY(parse_or(p, &condition->right));
        if (skip_name(p, "else"))
            TRY(parse_expression(p, &condition->other));
        p->missing = missing;
        *out = condition;
    }
    p->depth--;
    return OK;
}

/* ---- statements ----------------------------------------------------------------------------- */

static enum status end_tag(struct parser *p)
{
    return expect_kind(p, TOKEN_BLOCK_END, "\"%}\"");
}

/* "… %} body {% end %}", up to before the last "%}" */
static enum status parse_block(struct parser *p, const char *end, struct node **body_out)
{
    const char *const ends[] = {end, NULL};

    TRY(parse_statements(p, ends, body_out));
    p->token++;
    return OK;
}

/* A body that a break cannot leave. */
static enum status parse_closed_block(struct parser *p, const char *end, struct node **body_out)
{
    int32_t loops = p->loops;

    p->loops = 0;
    TRY(parse_block(p, end, body_out));
    p->loops = loops;
    return OK;
}

static enum status parse_set(struct parser *p, struct node *node)
{
    node->kind = NODE_SET;
    TRY(parse_target(p, &node->left));
    if (skip_operator(p, OP_ASSIGN))
        return parse_tuple(p, parse_expression, false, &node->right);
    node->kind = NODE_SET_BLOCK;
    node->right = node_new(p, NODE_CAPTURED);
    while (skip_operator(p, OP_PIPE))
        TRY(parse_filter(p, &node->right));
    return parse_closed_block(p, "endset", &node->body);
}

static enum status parse_for(struct parser *p, struct node *node)
{
    static const char *const ends[] = {"endfor", "else", NULL};

    node->kind = NODE_FOR;
    TRY(parse_target(p, &node->left));
    if (!skip_name(p, "in"))
        return expected(p, "\"in\"");
    TRY(parse_tuple(p, parse_or, false, &node->right));
    if (skip_name(p, "if"))
        TRY(parse_expression(p, &node->other));
    if (at_name(p, "recursive"))
        return parse_fail(p->token, ERR_UNSUPPORTED, "\"recursive\" is not supported");
    p->loops++;
    TRY(parse_statements(p, ends, &node->body));
    p->loops--;
    if (skip_name(p, "endfor"))
        return OK;
    p->token++;
    return parse_block(p, "endfor", &node->orelse);
}

static enum status parse_branches(struct parser *p, struct node *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct chain branches = {&node->list};

    for (;;) {
        struct node *branch = node_new(p, NODE_BRANCH);

        TRY(parse_tuple(p, parse_or, false, &branch->left));
        TRY(parse_statements(p, ends, &branch->body));
        chain_add(&branches, branch);
        if (skip_name(p, "elif"))
            continue;
        if (skip_name(p, "endif"))
            return OK;
        branch = node_new(p, NODE_BRANCH);
        p->token++;
        chain_add(&branches, branch);
        return parse_block(p, "endif", &branch->body);
    }
}

/* What is missing within is refused where it is reached: a template may ask first which it has. */
static enum status parse_if(struct parser *p, struct node *node)
{
    struct node *missing = p->missing;

    node->kind = NODE_IF;
    TRY(parse_branches(p, node));
    p->missing = missing;
    return OK;
}

static enum status parse_parameters(struct parser *p, struct node **list_out)
{
    struct chain parameters = {list_out};
    bool has_default = false;

    TRY(expect_operator(p, OP_LPAREN, "\"(\""));
    while (!at_operator(p, OP_RPAREN)) {
        struct node *parameter = node_new(p, NODE_PARAMETER);

        TRY(expect_name(p, "the name of a parameter", &parameter->value));
        if (skip_operator(p, OP_ASSIGN)) {
            has_default = true;
            TRY(parse_expression(p, &parameter->left));
        } else if (has_default) {
            return expected(p, "a default, as the parameter before has one");
        }
        chain_add(&parameters, parameter);
        if (!skip_operator(p, OP_COMMA))
            break;
    }
    return expect_operator(p, OP_RPAREN, "\",\" or \")\"");
}

static enum status parse_macro_body(struct parser *p, const char *end, struct node *node)
{
    p->macros++;
    TRY(parse_closed_block(p, end, &node->body));
    p->macros--;
    return OK;
}

static enum status parse_macro(struct parser *p, struct node *node)
{
    node->kind = NODE_MACRO;
    TRY(expect_name(p, "the name of the macro", &node->value));
    TRY(parse_parameters(p, &node->list));
    return parse_macro_body(p, "endmacro", node);
}

static enum status parse_call_block(struct parser *p, struct node *node)
{
    const struct token *token;

    node->kind = NODE_CALL_BLOCK;
    node->value = value_string("caller", 6);
    if (at_operator(p, OP_LPAREN))
        TRY(parse_parameters(p, &node->list));
    token = p->token;
    TRY(parse_expression(p, &node->left));
    if (node->left->kind != NODE_CALL)
        return parse_fail(token, ERR_CORRUPT, "expected a call");
    return parse_macro_body(p, "endcall", node);
}

static enum status parse_filter_block(struct parser *p, struct node *node)
{
    node->kind = NODE_FILTER_BLOCK;
    node->right = node_new(p, NODE_CAPTURED);
    do
        TRY(parse_filter(p, &node->right));
    while (skip_operator(p, OP_PIPE));
    return parse_closed_block(p, "endfilter", &node->body);
}

static enum status parse_with(struct parser *p, struct node *node)
{
    struct chain pairs = {&node->list};

    node->kind = NODE_WITH;
    while (p->token->kind != TOKEN_BLOCK_END) {
        struct node *pair = node_new(p, NODE_PAIR);

        TRY(parse_target(p, &pair->left));
        TRY(expect_operator(p, OP_ASSIGN, "\"=\""));
        TRY(parse_expression(p, &pair->right));
        chain_add(&pairs, pair);
        if (!skip_operator(p, OP_COMMA))
            break;
    }
    return parse_block(p, "endwith", &node->body);
}

/* transformers marks what an assistant has said; for a prompt it is just its body. */
static enum status parse_generation(struct parser *p, struct node *node)
{
    node->kind = NODE_WITH;
    return parse_closed_block(p, "endgeneration", &node->body);
}

static enum status parse_loop_control(struct parser *p, struct node *node)
{
    const struct token *word = p->token - 1;

    node->kind = value_is_text(word->value, "break") ? NODE_BREAK : NODE_CONTINUE;
    if (p->loops == 0)
        return parse_fail(word, ERR_CORRUPT, "\"%.*s\" outside of a loop", (int)word->value.size,
                          word->value.text);
    return OK;
}

static const struct tag {
    const char *name;
    enum status (*parse)(struct parser *p, struct node *node);
} tags[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call_block},
    {"filter", parse_filter_block},
    {"with", parse_with},
    {"generation", parse_generation},
    {"break", parse_loop_control},
    {"continue", parse_loop_control},
};

static enum status parse_tag(struct parser *p, struct node **out)
{
    const struct token *token = p->token;
    struct value name;

    TRY(expect_name(p, "the name of a tag", &name));
    *out = node_at(p, NODE_TEXT, token);
    for (size_t i = 0; i < COUNT_OF(tags); i++)
        if (value_is_text(name, tags[i].name))
            return tags[i].parse(p, *out);
    if (name.size > 3 && memcmp(name.text, "end", 3) == 0)
        return parse_fail(token, ERR_CORRUPT, "\"%.*s\" closes nothing that is open here",
                          (int)MIN(name.size, 100u), name.text);
    return parse_fail(token, ERR_UNSUPPORTED, "the tag \"%.*s\" is not supported",
                      (int)MIN(name.size, 100u), name.text);
}

static bool at_any_name(const struct parser *p, const char *const *names)
{
    for (; names && *names; names++)
        if (at_name(p, *names))
            return true;
    return false;
}

static enum status parse_print(struct parser *p, struct node **out)
{
    *out = node_new(p, NODE_PRINT);
    TRY(parse_tuple(p, parse_expression, false, &(*out)->left));
    return expect_kind(p, TOKEN_PRINT_END, "\"}}\"");
}

/* Up to the tag whose name is one of `ends`, with p->token at that name; all if ends is NULL. */
static enum status parse_body(struct parser *p, const char *const *ends, struct node **body_out)
{
    struct chain body = {body_out};

    for (;;) {
        struct node *statement;
        const struct token *token = p->token++;

        if (token->kind == TOKEN_TEXT) {
            statement = node_at(p, NODE_TEXT, token);
            statement->value = token->value;
        } else if (token->kind == TOKEN_PRINT_BEGIN) {
            TRY(parse_print(p, &statement));
        } else if (token->kind == TOKEN_BLOCK_BEGIN) {
            if (at_any_name(p, ends))
                return OK;
            TRY(parse_tag(p, &statement));
            TRY(end_tag(p));
        } else if (ends) {
            p->token--;
            AUTO_MEM char *what = mem_printf("{%% %s %%}", ends[0]);

            return expected(p, what);
        } else {
            return OK;
        }
        chain_add(&body, statement);
    }
}

static enum status parse_statements(struct parser *p, const char *const *ends,
                                    struct node **body_out)
{
    TRY(enter(p));
    skip_operator(p, OP_COLON); /* as in Python; Jinja allows it */
    TRY(end_tag(p));
    TRY(parse_body(p, ends, body_out));
    p->depth--;
    return OK;
}

enum status template_parse(const struct token_array *tokens, struct arena *arena,
                           struct node **body_out)
{
    struct parser p = {.token = tokens->tokens, .arena = arena};

    *body_out = NULL;
    TRY(parse_body(&p, NULL, body_out));
    return p.missing ? node_refuse(p.missing) : OK;
}
