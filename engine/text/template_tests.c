/* The tests behind "is". */
#include "engine/text/template_internal.h"

#define TEST(test_name, condition)                                                                 \
    static enum status test_##test_name(struct render *r, struct value v,                          \
                                        const struct arguments *args, struct value *out)           \
    {                                                                                              \
        (void)r;                                                                                   \
        (void)args;                                                                                \
        *out = value_bool(condition);                                                              \
        return OK;                                                                                 \
    }

#define COMPARISON(test_name, op)                                                                  \
    static enum status test_##test_name(struct render *r, struct value v,                          \
                                        const struct arguments *args, struct value *out)           \
    {                                                                                              \
        bool is_so;                                                                                \
                                                                                                   \
        if (args->bound[0].kind == VALUE_MISSING)                                                  \
            return render_fail(r, "the test " #test_name " needs an argument");                    \
        TRY(value_comparison(r, op, v, args->bound[0], &is_so));                                   \
        *out = value_bool(is_so);                                                                  \
        return OK;                                                                                 \
    }

static bool is_iterable(struct value v)
{
    return value_is_listlike(v) || v.kind == VALUE_STRING || v.kind == VALUE_DICT ||
           v.kind == VALUE_ITERATOR || v.kind == VALUE_UNDEFINED || v.kind == VALUE_LOOP;
}

static bool is_sequence(struct value v)
{
    return v.kind == VALUE_STRING || v.kind == VALUE_LIST || v.kind == VALUE_TUPLE ||
           v.kind == VALUE_RANGE || v.kind == VALUE_DICT || v.kind == VALUE_UNDEFINED;
}

TEST(defined, v.kind != VALUE_UNDEFINED)
TEST(undefined, v.kind == VALUE_UNDEFINED)
TEST(none, v.kind == VALUE_NONE)
TEST(boolean, v.kind == VALUE_BOOL)
TEST(true, v.kind == VALUE_BOOL && v.boolean)
TEST(false, v.kind == VALUE_BOOL && !v.boolean)
TEST(integer, v.kind == VALUE_INT)
TEST(float, v.kind == VALUE_FLOAT)
TEST(number, value_is_number(v))
TEST(string, v.kind == VALUE_STRING)
TEST(mapping, v.kind == VALUE_DICT)
TEST(iterable, is_iterable(v))
TEST(sequence, is_sequence(v))
TEST(callable, v.kind == VALUE_MACRO || v.kind == VALUE_FUNCTION || v.kind == VALUE_METHOD ||
                   v.kind == VALUE_UNDEFINED)
COMPARISON(eq, OP_EQ)
COMPARISON(ne, OP_NE)
COMPARISON(lt, OP_LT)
COMPARISON(le, OP_LE)
COMPARISON(gt, OP_GT)
COMPARISON(ge, OP_GE)
COMPARISON(in, OP_IN)

static enum status divides(struct render *r, struct value v, struct value by, int64_t wanted,
                           struct value *out)
{
    struct value remainder;
    bool is_so;

    TRY(value_arithmetic(r, OP_MOD, v, by, &remainder));
    TRY(value_equal(r, remainder, value_int(wanted), &is_so));
    *out = value_bool(is_so);
    return OK;
}

static enum status test_odd(struct render *r, struct value v, const struct arguments *args,
                            struct value *out)
{
    (void)args;
    return divides(r, v, value_int(2), 1, out);
}

static enum status test_even(struct render *r, struct value v, const struct arguments *args,
                             struct value *out)
{
    (void)args;
    return divides(r, v, value_int(2), 0, out);
}

static enum status test_divisibleby(struct render *r, struct value v, const struct arguments *args,
                                    struct value *out)
{
    return divides(r, v, args->bound[0], 0, out);
}

static const struct builtin tests[] = {
    {"defined", test_defined, ""},
    {"undefined", test_undefined, ""},
    {"none", test_none, ""},
    {"boolean", test_boolean, ""},
    {"true", test_true, ""},
    {"false", test_false, ""},
    {"integer", test_integer, ""},
    {"float", test_float, ""},
    {"number", test_number, ""},
    {"string", test_string, ""},
    {"mapping", test_mapping, ""},
    {"iterable", test_iterable, ""},
    {"sequence", test_sequence, ""},
    {"callable", test_callable, ""},
    {"odd", test_odd, ""},
    {"even", test_even, ""},
    {"divisibleby", test_divisibleby, "num"},
    {"in", test_in, "seq"},
    {"eq", test_eq, "other"},
    {"equalto", test_eq, "other"},
    {"==", test_eq, "other"},
    {"ne", test_ne, "other"},
    {"!=", test_ne, "other"},
    {"lt", test_lt, "other"},
    {"lessthan", test_lt, "other"},
    {"<", test_lt, "other"},
    {"le", test_le, "other"},
    {"<=", test_le, "other"},
    {"gt", test_gt, "other"},
    {"greaterthan", test_gt, "other"},
    {">", test_gt, "other"},
    {"ge", test_ge, "other"},
    {">=", test_ge, "other"},
};

const struct builtin *test_find(struct value name)
{
    return builtin_find(tests, COUNT_OF(tests), name);
}
