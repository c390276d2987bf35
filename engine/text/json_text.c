#include "engine/text/json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void append_text(struct bytes *out, const char *text)
{
    bytes_append(out, text, strlen(text));
}

static void append_real(double value, struct bytes *out)
{
    char text[40];

    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    append_text(out, text);
    if (!strpbrk(text, ".e")) /* 1.0 is no integer */
        append_text(out, ".0");
}

static void append_string(const json_t *string, struct bytes *out)
{
    AUTO_MEM char *text = json_dumps(string, JSON_ENCODE_ANY);

    append_text(out, text);
}

static void append_key(const char *key, size_t size, struct bytes *out)
{
    json_t *string = json_stringn(key, size);

    append_string(string, out);
    json_decref(string);
}

static void append_array(const json_t *array, enum json_spacing spacing, struct bytes *out)
{
    const json_t *item;
    size_t i;

    append_text(out, "[");
    json_array_foreach(array, i, item) {
        if (i > 0)
            append_text(out, spacing == JSON_SPACED ? ", " : ",");
        json_text(item, spacing, out);
    }
    append_text(out, "]");
}

static void append_object(const json_t *object, enum json_spacing spacing, struct bytes *out)
{
    const char *key;
    size_t size, n = 0;
    json_t *value;

    append_text(out, "{");
    json_object_keylen_foreach((json_t *)object, key, size, value) {
        if (n++ > 0)
            append_text(out, spacing == JSON_SPACED ? ", " : ",");
        append_key(key, size, out);
        append_text(out, spacing == JSON_SPACED ? ": " : ":");
        json_text(value, spacing, out);
    }
    append_text(out, "}");
}

void json_text(const json_t *json, enum json_spacing spacing, struct bytes *out)
{
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        append_object(json, spacing, out);
        break;
    case JSON_ARRAY:
        append_array(json, spacing, out);
        break;
    case JSON_STRING:
        append_string(json, out);
        break;
    case JSON_INTEGER:
        bytes_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(json));
        break;
    case JSON_REAL:
        append_real(json_real_value(json), out);
        break;
    case JSON_TRUE:
        append_text(out, "true");
        break;
    case JSON_FALSE:
        append_text(out, "false");
        break;
    case JSON_NULL:
        append_text(out, "null");
        break;
    }
}
