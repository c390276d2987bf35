/*
 * template_internal: what the parts of the template interpreter share.
 *
 * template_lexer.c   source -> tokens, with Jinja's whitespace control
 * template_parser.c  tokens -> nodes
 * template_render.c  walks the nodes: scopes, statements, expressions, calls
 * template_value.c   values: making, comparing, indexing; the budget that all of it spends
 * template_operators.c, template_text.c, template_format.c   arithmetic, strings, printing
 * template_printf.c  "%s" % x and "{}".format(x)
 * template_filters.c, template_tests.c, template_methods.c   tables of builtins
 * template_builtins.c   how these are found and get their arguments
 *
 * All memory of a compiled template is in its arena, all memory of a render in the render's, so
 * nothing here is freed one by one. Every string is valid UTF-8: the source is checked, JSON is
 * by nature, and strings are cut between code points only.
 */
#ifndef ENGINE_TEXT_TEMPLATE_INTERNAL_H
#define ENGINE_TEXT_TEMPLATE_INTERNAL_H

#include "engine/text/template.h"

/* ---- values ----------------------------------------------------------------------------- */

enum value_kind {
    VALUE_MISSING, /* an argument that was not given; never seen by a template */
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT,
    VALUE_STRING,
    VALUE_LIST, /* from here on `list` */
    VALUE_TUPLE,
    VALUE_RANGE,
    VALUE_KEYS,
    VALUE_VALUES,
    VALUE_ITEMS, /* to here */
    VALUE_ITERATOR,
    VALUE_DICT,
    VALUE_NAMESPACE,
    VALUE_LOOP,
    VALUE_MACRO,
    VALUE_FUNCTION,
    VALUE_METHOD,
    NUM_VALUE_KINDS
};

struct value {
    enum value_kind kind;
    uint32_t size; /* bytes of `text` */
    union {
        bool boolean;
        int64_t integer;
        double real;
        const char *text; /* STRING, no NUL at the end; UNDEFINED: the name that was looked for */
        struct list *list;
        struct iterator *iterator;
        struct dict *dict; /* DICT, NAMESPACE */
        struct loop *loop;
        struct macro *macro;
        const struct builtin *function;
        struct method *method;
    };
};

struct list { /* frozen once a template can see it */
    struct value *items;
    int64_t count, capacity;
};

struct iterator { /* a list that can be walked once */
    struct list *list;
};

struct entry {
    struct value key, value;
};

struct dict { /* in order of insertion; a lookup walks, and pays for it in steps */
    struct entry *entries;
    int64_t count, capacity;
};

struct loop {
    struct list *list;
    int64_t index0;
    struct list *last_changed; /* the arguments of the last loop.changed(); NULL: none yet */
};

struct macro {
    const struct node *node; /* MACRO or CALL_BLOCK: parameters and body */
    struct scope *scope;     /* where it was defined */
};

struct method { /* a method that was looked up but not yet called */
    const struct builtin *builtin;
    struct value self;
};

static inline struct value value_bool(bool b)
{
    return (struct value){.kind = VALUE_BOOL, .boolean = b};
}

static inline struct value value_int(int64_t n)
{
    return (struct value){.kind = VALUE_INT, .integer = n};
}

static inline struct value value_float(double x)
{
    return (struct value){.kind = VALUE_FLOAT, .real = x};
}

static inline struct value value_none(void)
{
    return (struct value){.kind = VALUE_NONE};
}

/* Borrows the text. */
static inline struct value value_string(const char *text, size_t size)
{
    return (struct value){.kind = VALUE_STRING, .size = (uint32_t)size, .text = text};
}

static inline struct value value_undefined(const char *name, size_t size)
{
    return (struct value){.kind = VALUE_UNDEFINED, .size = (uint32_t)size, .text = name};
}

static inline struct value value_list(enum value_kind kind, struct list *list)
{
    return (struct value){.kind = kind, .list = list};
}

static inline bool value_is_listlike(struct value v)
{
    return v.kind >= VALUE_LIST && v.kind <= VALUE_ITEMS;
}

static inline bool value_is_number(struct value v)
{
    return v.kind == VALUE_BOOL || v.kind == VALUE_INT || v.kind == VALUE_FLOAT;
}

/* Of a bool or an int. */
static inline int64_t value_integer(struct value v)
{
    return v.kind == VALUE_BOOL ? v.boolean : v.integer;
}

/* Of any number. */
static inline double value_real(struct value v)
{
    return v.kind == VALUE_FLOAT ? v.real : (double)value_integer(v);
}

static inline bool value_is_text(struct value v, const char *text)
{
    return v.size == __builtin_strlen(text) && __builtin_memcmp(v.text, text, v.size) == 0;
}

static inline bool value_same_text(struct value a, struct value b)
{
    return a.size == b.size && __builtin_memcmp(a.text, b.text, a.size) == 0;
}

/* ---- nodes ------------------------------------------------------------------------------ */

/* Kind: how text, left, right, other, list, body and orelse are used. */
enum node_kind {
    /* expressions */
    NODE_LITERAL,   /* value */
    NODE_NAME,      /* value: the name */
    NODE_LIST,      /* list */
    NODE_TUPLE,     /* list */
    NODE_DICT,      /* list of PAIR(left: key, right: value) */
    NODE_ATTRIBUTE, /* left . value */
    NODE_ITEM,      /* left [ right ] */
    NODE_SLICE,     /* left [ right : other : orelse ], each may be NULL */
    NODE_CALL,      /* left ( list of ARGUMENT ) */
    NODE_FILTER,    /* left | builtin ( list of ARGUMENT ); NULL: we lack what value names */
    NODE_TEST,      /* left is builtin ( list of ARGUMENT ); the same */
    NODE_CHAIN,     /* left, then list of LINK: arithmetic from left to right */
    NODE_COMPARE,   /* left, then list of LINK */
    NODE_CONCAT,    /* list */
    NODE_AND,       /* list */
    NODE_OR,        /* list */
    NODE_NOT,       /* left */
    NODE_NEGATE,    /* left */
    NODE_PLUS,      /* left */
    NODE_CONDITION, /* left if right else other (may be NULL) */
    NODE_CAPTURED,  /* what the filter block or set block around it has rendered */
    NUM_EXPRESSIONS,
    /* statements */
    NODE_TEXT = NUM_EXPRESSIONS, /* value */
    NODE_PRINT,                  /* left */
    NODE_SET,                    /* left: target, right */
    NODE_SET_BLOCK,              /* left: target, right: filters over CAPTURED, body */
    NODE_FOR,                    /* left: target, right: iterable, other: filter or NULL */
    NODE_IF,                     /* list of BRANCH(left: test, NULL for else; body) */
    NODE_BREAK,
    NODE_CONTINUE,
    NODE_MACRO,        /* value: the name, list of PARAMETER, body */
    NODE_CALL_BLOCK,   /* left: CALL, list of PARAMETER, body */
    NODE_FILTER_BLOCK, /* right: filters over CAPTURED, body */
    NODE_WITH,         /* list of PAIR(left: target, right: value), body */
    NUM_NODES,
    /* parts of others */
    NODE_PAIR = NUM_NODES,
    NODE_LINK,      /* op, left */
    NODE_ARGUMENT,  /* op: 0 positional, '=' keyword, OP_MUL *list, OP_POWER **dict; left */
    NODE_PARAMETER, /* value: the name, left: default or NULL */
    NODE_BRANCH,
    NODE_NAMESPACE_TARGET, /* left: NAME, value: the attribute */
};

enum operator{
    OP_NONE,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOOR_DIV,
    OP_MOD,
    OP_POWER,
    OP_CONCAT,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
    OP_ASSIGN,
    OP_DOT,
    OP_COMMA,
    OP_COLON,
    OP_PIPE,
    OP_LPAREN,
    OP_RPAREN,
    OP_LBRACKET,
    OP_RBRACKET,
    OP_LBRACE,
    OP_RBRACE,
    OP_SEMICOLON,
};

struct node {
    enum node_kind kind;
    enum operator op;
    int32_t line, column;
    struct value value;
    const struct builtin *builtin;
    struct node *left, *right, *other;
    struct node *list;   /* first of a chain by `next` */
    struct node *body;   /* statements, by `next` */
    struct node *orelse; /* statements, by `next` */
    struct node *next;
};

struct template
{
    struct arena arena;
    struct node *body;
};

/* ---- tokens ----------------------------------------------------------------------------- */

enum token_kind {
    TOKEN_TEXT,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_NAME,
    TOKEN_LITERAL, /* a string, an integer or a float: `value` */
    TOKEN_OPERATOR,
    TOKEN_EOF,
};

struct token {
    enum token_kind kind;
    enum operator op;
    int32_t line, column; /* from 1; columns count bytes */
    struct value value;   /* text, name or literal; OPERATOR: its spelling */
};

struct token_array {
    struct token *tokens; /* the last one is EOF */
    size_t count, capacity;
};
void token_array_close(struct token_array *tokens);

enum { MAX_SOURCE_BYTES = 1 << 20, MAX_SOURCE_DEPTH = 100 };

/* Texts point into the arena. */
MUST_USE enum status template_lex(const char *source, size_t size, struct arena *arena,
                                  struct token_array *out);
MUST_USE enum status template_parse(const struct token_array *tokens, struct arena *arena,
                                    struct node **body_out);
/* ERR_UNSUPPORTED: where the FILTER, TEST or ATTRIBUTE (a method) stands, and its name. */
enum status node_refuse(const struct node *node);

/* ---- a render --------------------------------------------------------------------------- */

struct variable {
    struct value name, value;
};

struct scope {
    struct scope *parent;
    struct variable *variables;
    int32_t count, capacity;
    bool captured; /* a macro refers to it: it must not be used again for the next iteration */
};

enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

struct render {
    struct template_limits limits; /* with the defaults filled in */
    int64_t steps_left, bytes_left;
    int32_t nesting; /* nodes being evaluated */
    int32_t calls;   /* macros being run */
    int32_t line;    /* of the node being evaluated, for messages */
    struct arena arena;
    struct dict *context;
    struct scope *scope;
    struct bytes *out; /* where print statements go: the caller's, or a capture's */
    struct value captured;
    enum flow flow;
};

MUST_USE enum status render_body(struct render *r, const struct node *body);

/* ERR_INVALID with the line. */
enum status render_fail(const struct render *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The two budgets. ERR_FULL names the limit. */
MUST_USE enum status render_spend(struct render *r, int64_t steps);
MUST_USE enum status render_spend_bytes(struct render *r, uint64_t bytes);    /* bytes walked */
MUST_USE enum status render_alloc(struct render *r, size_t bytes, void *out); /* void **, zeroed */
MUST_USE enum status render_check_depth(const struct render *r, int32_t depth);
/* Appends, and pays for it. */
MUST_USE enum status render_emit(struct render *r, struct bytes *out, const char *data,
                                 size_t size);

/* ---- template_value.c ------------------------------------------------------------------- */

extern const char *const value_kind_names[NUM_VALUE_KINDS]; /* as Python names the types */

MUST_USE enum status value_from_json(struct render *r, const json_t *json, int32_t depth,
                                     struct value *out);
MUST_USE enum status string_copy(struct render *r, const char *text, size_t size,
                                 struct value *out);
/* A buffer filled by render_emit, so already paid for. */
struct value string_from_bytes(struct render *r, const struct bytes *bytes);
MUST_USE enum status list_new(struct render *r, int64_t capacity, struct list **out);
MUST_USE enum status list_add(struct render *r, struct list *list, struct value v);
MUST_USE enum status iterator_new(struct render *r, struct list *list, struct value *out);
MUST_USE enum status dict_new(struct render *r, int64_t capacity, struct dict **out);
/* NULL: not there. */
MUST_USE enum status dict_find(struct render *r, const struct dict *dict, struct value key,
                               struct value **out);
MUST_USE enum status dict_set(struct render *r, struct dict *dict, struct value key,
                              struct value v);
MUST_USE enum status tuple_of_two(struct render *r, struct value a, struct value b,
                                  struct value *out);

bool value_is_true(struct value v);
MUST_USE enum status value_equal(struct render *r, struct value a, struct value b, bool *out);
/* Python's <, =, >: -1, 0, 1; ERR_INVALID where the two have no order. NaN compares as 2. */
MUST_USE enum status value_compare(struct render *r, struct value a, struct value b, int *out);
/* The order that sorts `keys`: a stable permutation of 0 .. n-1, equal ones as they stand. */
MUST_USE enum status values_sort(struct render *r, const struct value *keys, int64_t n,
                                 bool reverse, int64_t **order_out);
MUST_USE enum status value_contains(struct render *r, struct value container, struct value item,
                                    bool *out);
/* The items of anything that can be walked; an iterator is used up. */
MUST_USE enum status value_items(struct render *r, struct value v, struct list **out);
MUST_USE enum status value_length(struct render *r, struct value v, int64_t *out);
/* v[key]: items before attributes. v.name: attributes before items. Undefined if there is none. */
MUST_USE enum status value_item(struct render *r, struct value v, struct value key,
                                struct value *out);
MUST_USE enum status value_attribute(struct render *r, struct value v, struct value name,
                                     struct value *out);
/* start, stop and step may be MISSING or none. */
MUST_USE enum status value_slice(struct render *r, struct value v, struct value start,
                                 struct value stop, struct value step, struct value *out);
/* Fails if v is undefined, with its name; what Python does on most uses. */
MUST_USE enum status value_must_be_defined(const struct render *r, struct value v);

/* ---- operators: template_operators.c ---------------------------------------------------- */

MUST_USE enum status value_arithmetic(struct render *r, enum operator op, struct value a,
                                      struct value b, struct value *out);
MUST_USE enum status value_comparison(struct render *r, enum operator op, struct value a,
                                      struct value b, bool *out);
MUST_USE enum status value_negate(struct render *r, struct value v, struct value *out);

/* ---- template_format.c ------------------------------------------------------------------ */

struct json_style {
    struct value indent; /* a string, or MISSING: on one line */
    struct value item_separator, key_separator;
    bool ensure_ascii, sort_keys;
};

/* str(v): a string stays as it is. */
MUST_USE enum status value_print(struct render *r, struct value v, struct bytes *out);
MUST_USE enum status value_to_string(struct render *r, struct value v, struct value *out);
MUST_USE enum status value_repr(struct render *r, struct value v, struct bytes *out);
MUST_USE enum status value_write_json(struct render *r, struct value v,
                                      const struct json_style *style, struct bytes *out);

/* ---- text ------------------------------------------------------------------------------- */

int32_t text_decode(const char *p, size_t *size_out); /* the code point at p */
size_t text_encode(int32_t code_point, char out[4]);
bool text_is_space(int32_t code_point); /* as Python's str.isspace */
int32_t text_upper(int32_t code_point); /* ß, which has two letters there, stays as it is */
size_t text_num_chars(const char *text, size_t size);
size_t text_offset(const char *text, size_t size, int64_t chars); /* byte of the n-th char */
size_t text_before(const char *text, size_t at); /* where the character before byte `at` begins */
/* Bytes of leading and of trailing space, or of characters of `set` if it is not NULL. */
size_t text_leading(struct value s, const struct value *set);
size_t text_trailing(struct value s, const struct value *set);

/* ---- builtins --------------------------------------------------------------------------- */

struct keyword {
    struct value name, value;
};

enum { MAX_PARAMETERS = 6 };

struct arguments {
    const struct value *values;
    int32_t count;
    const struct keyword *keywords;
    int32_t num_keywords;
    struct value bound[MAX_PARAMETERS]; /* by the builtin's parameters; MISSING: not given */
};

struct builtin {
    const char *name;
    enum status (*run)(struct render *r, struct value self, const struct arguments *args,
                       struct value *out);
    const char *parameters; /* names, a space between; NULL: it reads values and keywords */
    uint32_t kinds;         /* methods: 1 << value_kind for each kind that has it */
};

/* NULL: there is none. */
const struct builtin *filter_find(struct value name);
const struct builtin *test_find(struct value name);
const struct builtin *function_find(struct value name);
const struct builtin *method_find(enum value_kind kind, struct value name);
bool method_is_known(struct value name); /* of any kind */

MUST_USE enum status builtin_call(struct render *r, const struct builtin *builtin,
                                  struct value self, const struct arguments *args,
                                  struct value *out);
const struct builtin *builtin_find(const struct builtin *rows, size_t count, struct value name);

/* Arguments of a builtin: by index in its parameters; `fallback` when MISSING. */
MUST_USE enum status argument_string(struct render *r, const struct arguments *args, int index,
                                     const char *fallback, struct value *out);
MUST_USE enum status argument_int(struct render *r, const struct arguments *args, int index,
                                  int64_t fallback, int64_t *out);
bool argument_flag(const struct arguments *args, int index);

/* Shared by operators, filters and methods. */
/* s % (values): %s, %d, %r and %%, a value for each. */
MUST_USE enum status string_percent(struct render *r, struct value s, const struct value *values,
                                    int64_t count, struct value *out);
/* s.format(args): {}, {0} and {name}. */
MUST_USE enum status string_format(struct render *r, struct value s, const struct arguments *args,
                                   struct value *out);
MUST_USE enum status string_replace(struct render *r, struct value s, struct value old,
                                    struct value with, int64_t count, struct value *out);
MUST_USE enum status string_join(struct render *r, struct value separator, struct list *items,
                                 bool strings_only, struct value *out);
MUST_USE enum status string_upper(struct render *r, struct value s, struct value *out);
MUST_USE enum status string_lower(struct render *r, struct value s, struct value *out);
MUST_USE enum status string_capitalize(struct render *r, struct value s, struct value *out);
/* Lines without their ends, as str.splitlines. */
MUST_USE enum status string_lines(struct render *r, struct value s, struct list **out);
struct value string_strip(struct value s, const struct value *set, bool left, bool right);
/* Runs a call of any callable value; a name for messages. */
MUST_USE enum status value_call(struct render *r, struct value callee, const struct arguments *args,
                                struct value *out);

#endif
