#include "engine/text/template_internal.h"

#include <math.h>
#include <string.h>

static enum status no_such(struct render *r, const char *symbol, struct value a, struct value b)
{
    TRY(value_must_be_defined(r, a));
    TRY(value_must_be_defined(r, b));
    return render_fail(r, "%s %s %s cannot be computed", value_kind_names[a.kind], symbol,
                       value_kind_names[b.kind]);
}

static enum status too_large(struct render *r)
{
    return render_fail(r, "an integer that does not fit into 64 bits");
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* Python's floor division and the remainder that goes with it, which has the sign of b. */
static enum status int_divide(struct render *r, int64_t a, int64_t b, int64_t *quotient,
                              int64_t *remainder)
{
    if (b == 0)
        return render_fail(r, "division by zero");
    if (a == INT64_MIN && b == -1)
        return too_large(r);
    *quotient = a / b;
    *remainder = a % b;
    if (*remainder != 0 && (*remainder < 0) != (b < 0)) {
        *remainder += b;
        --*quotient;
    }
    return OK;
}

static enum status int_power(struct render *r, int64_t base, int64_t exponent, int64_t *out)
{
    int64_t result = 1;

    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) && mul_overflows(result, base, &result))
            return too_large(r);
        if (exponent > 1 && mul_overflows(base, base, &base))
            return too_large(r);
    }
    *out = result;
    return OK;
}

static enum status float_arithmetic(struct render *r, enum operator op, double a, double b,
                                    double *out)
{
    double remainder, quotient;

    if (b == 0 && (op == OP_DIV || op == OP_FLOOR_DIV || op == OP_MOD))
        return render_fail(r, "division by zero");
    if (op == OP_POWER && ((a == 0 && b < 0) || (a < 0 && b != floor(b))))
        return render_fail(r, "%g to the power of %g is no number", a, b);
    switch (op) {
    case OP_ADD:
        *out = a + b;
        return OK;
    case OP_SUB:
        *out = a - b;
        return OK;
    case OP_MUL:
        *out = a * b;
        return OK;
    case OP_DIV:
        *out = a / b;
        return OK;
    case OP_POWER:
        *out = pow(a, b);
        return isinf(*out) && isfinite(a) && isfinite(b) ? render_fail(r, "a float too large") : OK;
    default:
        remainder = fmod(a, b);
        if (remainder == 0)
            remainder = copysign(0, b);
        else if ((remainder < 0) != (b < 0))
            remainder += b;
        quotient = floor((a - remainder) / b + 0.5);
        if (quotient == 0)
            quotient = copysign(0, a / b);
        *out = op == OP_MOD ? remainder : quotient;
        return OK;
    }
}

static enum status int_arithmetic(struct render *r, enum operator op, int64_t a, int64_t b,
                                  struct value *out)
{
    int64_t n = 0, other = 0;

    switch (op) {
    case OP_ADD:
        if (add_overflows(a, b, &n))
            return too_large(r);
        break;
    case OP_SUB:
        if (__builtin_sub_overflow(a, b, &n))
            return too_large(r);
        break;
    case OP_MUL:
        if (mul_overflows(a, b, &n))
            return too_large(r);
        break;
    case OP_FLOOR_DIV:
        TRY(int_divide(r, a, b, &n, &other));
        break;
    case OP_MOD:
        if (b == -1) /* the one quotient that overflows has remainder 0 */
            break;
        TRY(int_divide(r, a, b, &other, &n));
        break;
    default: /* POWER */
        TRY(int_power(r, a, b, &n));
        break;
    }
    *out = value_int(n);
    return OK;
}

/* ---- strings and lists ----------------------------------------------------------------------- */

static enum status concat(struct render *r, struct value a, struct value b, struct value *out)
{
    struct list *list;

    if (a.kind == VALUE_STRING) {
        char *text;

        if ((uint64_t)a.size + b.size > UINT32_MAX)
            return fail(ERR_FULL, "a string of more than %u bytes", UINT32_MAX);
        TRY(render_alloc(r, (size_t)a.size + b.size, &text));
        memcpy(text, a.text, a.size);
        memcpy(text + a.size, b.text, b.size);
        *out = value_string(text, (size_t)a.size + b.size);
        return OK;
    }
    TRY(list_new(r, a.list->count + b.list->count, &list));
    for (int64_t i = 0; i < a.list->count; i++)
        list->items[list->count++] = a.list->items[i];
    for (int64_t i = 0; i < b.list->count; i++)
        list->items[list->count++] = b.list->items[i];
    *out = value_list(a.kind, list);
    return OK;
}

/* 'ab' * 3, [0] * 3; the size is checked before anything is made. */
static enum status repeat(struct render *r, struct value v, int64_t times, struct value *out)
{
    uint64_t unit = v.kind == VALUE_STRING ? v.size : (uint64_t)v.list->count, total;
    struct list *list;
    char *text;

    if (mul_overflows(unit, (uint64_t)MAX(times, 0), &total) || total > UINT32_MAX)
        return fail(ERR_FULL, "template line %d: %llu times %lld is more than %u items or bytes",
                    r->line, (unsigned long long)unit, (long long)times, UINT32_MAX);
    if (v.kind == VALUE_STRING) {
        TRY(render_alloc(r, total, &text));
        for (uint64_t at = 0; at < total; at += unit)
            memcpy(text + at, v.text, unit);
        *out = value_string(text, total);
        return OK;
    }
    TRY(list_new(r, (int64_t)total, &list));
    for (; list->count < (int64_t)total; list->count++)
        list->items[list->count] = v.list->items[(uint64_t)list->count % unit];
    *out = value_list(v.kind, list);
    return OK;
}

static bool is_repeatable(struct value v)
{
    return v.kind == VALUE_STRING || v.kind == VALUE_LIST || v.kind == VALUE_TUPLE;
}

static bool is_int(struct value v)
{
    return v.kind == VALUE_INT || v.kind == VALUE_BOOL;
}

/* ---- the doors --------------------------------------------------------------------------------
 */

static enum status numbers(struct render *r, enum operator op, struct value a, struct value b,
                           struct value *out)
{
    double x = 0;

    if (is_int(a) && is_int(b) && op != OP_DIV && !(op == OP_POWER && value_integer(b) < 0))
        return int_arithmetic(r, op, value_integer(a), value_integer(b), out);
    TRY(float_arithmetic(r, op, value_real(a), value_real(b), &x));
    *out = value_float(x);
    return OK;
}

enum status value_arithmetic(struct render *r, enum operator op, struct value a, struct value b,
                             struct value *out)
{
    static const char *const symbols[] = {
        [OP_ADD] = "+",        [OP_SUB] = "-", [OP_MUL] = "*",   [OP_DIV] = "/",
        [OP_FLOOR_DIV] = "//", [OP_MOD] = "%", [OP_POWER] = "**"};

    if (value_is_number(a) && value_is_number(b))
        return numbers(r, op, a, b, out);
    if (op == OP_MOD && a.kind == VALUE_STRING && b.kind == VALUE_TUPLE)
        return string_percent(r, a, b.list->items, b.list->count, out);
    if (op == OP_MOD && a.kind == VALUE_STRING)
        return string_percent(r, a, &b, 1, out);
    if (op == OP_ADD && a.kind == b.kind && is_repeatable(a))
        return concat(r, a, b, out);
    if (op == OP_MUL && is_repeatable(a) && is_int(b))
        return repeat(r, a, value_integer(b), out);
    if (op == OP_MUL && is_int(a) && is_repeatable(b))
        return repeat(r, b, value_integer(a), out);
    return no_such(r, symbols[op], a, b);
}

enum status value_comparison(struct render *r, enum operator op, struct value a, struct value b,
                             bool *out)
{
    int order;

    switch (op) {
    case OP_EQ:
        return value_equal(r, a, b, out);
    case OP_NE:
        TRY(value_equal(r, a, b, out));
        *out = !*out;
        return OK;
    case OP_IN:
        return value_contains(r, b, a, out);
    case OP_NOT_IN:
        TRY(value_contains(r, b, a, out));
        *out = !*out;
        return OK;
    default:
        TRY(value_compare(r, a, b, &order));
        *out = (op == OP_LT && order == -1) || (op == OP_GT && order == 1) ||
               (op == OP_LE && (order == -1 || order == 0)) ||
               (op == OP_GE && (order == 1 || order == 0));
        return OK;
    }
}

enum status value_negate(struct render *r, struct value v, struct value *out)
{
    if (is_int(v))
        return value_arithmetic(r, OP_SUB, value_int(0), v, out);
    TRY(value_must_be_defined(r, v));
    if (v.kind != VALUE_FLOAT)
        return render_fail(r, "- %s cannot be computed", value_kind_names[v.kind]);
    *out = value_float(-v.real);
    return OK;
}
