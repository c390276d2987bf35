#include "proto/model/json_field.h"

#include <stdio.h>
#include <string.h>

enum status field_parse(const void *data, size_t size, size_t most, size_t flags, json_t **out)
{
    json_error_t error;

    if (size > most)
        return fail(ERR_CORRUPT, "has %zu bytes; %zu is the limit", size, most);
    *out = json_loadb(data, size, JSON_REJECT_DUPLICATES | flags, &error);
    return *out ? OK : fail(ERR_CORRUPT, "line %d, column %d: %s", error.line, error.column, error.text);
}

const json_t *field_find(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

enum status field_missing(const char *key)
{
    return fail(ERR_CORRUPT, "%s is missing", key);
}

enum status field_wrong(enum status status, const char *key, const json_t *value,
                        const char *needed)
{
    AUTO_MEM char *text =
        json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(12));

    return fail(status, "%s is %.64s%s; %s", key, text ? text : "too deep",
                text && strlen(text) > 64 ? " ..." : "", needed);
}

enum status field_integer(const json_t *object, const char *key, int32_t least, int32_t most,
                          int32_t *out)
{
    const json_t *value = field_find(object, key);
    json_int_t number = json_integer_value(value);
    char needed[64];

    if (!value)
        return OK;
    snprintf(needed, sizeof needed, "a whole number from %d to %d is possible", least, most);
    if (!json_is_integer(value) || number < least || number > most)
        return field_wrong(ERR_CORRUPT, key, value, needed);
    *out = (int32_t)number;
    return OK;
}

enum status field_float(const json_t *object, const char *key, double least, double most,
                        float *out)
{
    const json_t *value = field_find(object, key);
    double number = json_number_value(value);
    char needed[64];

    if (!value)
        return OK;
    snprintf(needed, sizeof needed, "a number from %g to %g is possible", least, most);
    if (!json_is_number(value) || !(number >= least && number <= most))
        return field_wrong(ERR_CORRUPT, key, value, needed);
    *out = (float)number;
    return OK;
}

enum status field_bool(const json_t *object, const char *key, bool *out)
{
    const json_t *value = field_find(object, key);

    if (!value)
        return OK;
    if (!json_is_boolean(value))
        return field_wrong(ERR_CORRUPT, key, value, "true or false is possible");
    *out = json_is_true(value);
    return OK;
}

enum status field_text(const json_t *object, const char *key, const char **out)
{
    const json_t *value = field_find(object, key);

    if (!value)
        return OK;
    if (!json_is_string(value))
        return field_wrong(ERR_CORRUPT, key, value, "a text is needed");
    *out = json_string_value(value);
    return OK;
}
