#include "proto/wire/element.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>

/* ---- to JSON --------------------------------------------------------------------------------- */

/* JSON has no infinity and no NaN, and a NaN has bits: those floats are their bits as text. */
static json_t *float_to_json(const void *p, size_t size)
{
    double value = load_float(p, size);

    if (isfinite(value))
        return json_real(value);
    return json_sprintf("0x%" PRIx64, load_uint(p, size));
}

static json_t *body_to_json(const struct message_type *type, const void *body);

static json_t *element_to_json(const struct field *field, const void *p)
{
    size_t size = element_size(field);

    switch (kind_of(field)->element) {
    case BOOL:
        return json_boolean(*(const bool *)p);
    case INT:
        return json_integer(load_int(p, size));
    case UINT:
        return json_sprintf("0x%" PRIx64, load_uint(p, size));
    case FLOAT:
        return float_to_json(p, size);
    case TEXT:
        return json_string(load_text(p));
    case MESSAGE:
        return body_to_json(field->type, p);
    default:
        return json_null();
    }
}

static json_t *bytes_to_json(const uint8_t *data, int32_t count)
{
    static const char digits[] = "0123456789abcdef";
    AUTO_CLOSE(bytes) struct bytes text = {0};
    char *to = bytes_reserve(&text, 2 * (size_t)count);

    for (int32_t i = 0; data && i < count; i++) {
        *to++ = digits[data[i] >> 4];
        *to++ = digits[data[i] & 15];
    }
    return json_stringn((const char *)text.data, data ? 2 * (size_t)count : 0);
}

static json_t *field_to_json(const struct field *field, const void *body)
{
    const void *elements = get_elements(field, body);
    int32_t count = get_count(field, body);

    if (!kind_of(field)->is_list)
        return element_to_json(field, elements);
    if (kind_of(field)->element == BYTE && elements)
        return bytes_to_json(elements, count);

    json_t *array = json_array();

    for (int32_t i = 0; elements && i < count; i++)
        json_array_append_new(array, element_to_json(field, element_at(field, elements, i)));
    return array;
}

static json_t *body_to_json(const struct message_type *type, const void *body)
{
    json_t *object = json_object();

    for (int32_t i = 0; i < type->num_fields; i++) {
        const struct field *field = field_at(type, i);

        json_object_set_new(object, field->name, field_to_json(field, body));
    }
    return object;
}

json_t *message_to_json(const struct message *message)
{
    const struct message_header *header = &message->header;

    return json_pack("{s:s, s:I, s:I, s:o, s:o}", "message", message->type->name, "epoch",
                     (json_int_t)header->epoch, "step", (json_int_t)header->step, "build",
                     json_sprintf("0x%" PRIx64, header->build), "body",
                     body_to_json(message->type, message->body));
}

/* ---- from JSON ------------------------------------------------------------------------------- */

static enum status expected(const struct field *field, const char *what)
{
    return fail(ERR_INVALID, "%s must be %s", field->name, what);
}

static enum status parse_bits(const struct field *field, const json_t *json, uint64_t max,
                              uint64_t *out)
{
    const char *text = json_string_value(json);
    char *end;

    if (!text || strncmp(text, "0x", 2) != 0)
        return expected(field, "a text like \"0x1f\"");
    errno = 0;
    *out = strtoull(text + 2, &end, 16);
    if (errno || end == text + 2 || *end || text[2] == '-' || text[2] == '+' || *out > max)
        return expected(field, "a text like \"0x1f\"");
    return OK;
}

static enum status body_from_json(const struct message_type *type, const json_t *json,
                                  struct arena *arena, void *body);

static enum status element_from_json(const struct field *field, const json_t *json,
                                     struct arena *arena, void *p)
{
    size_t size = element_size(field);
    uint64_t bits;

    switch (kind_of(field)->element) {
    case BOOL:
        if (!json_is_boolean(json))
            return expected(field, "true or false");
        *(bool *)p = json_is_true(json);
        return OK;
    case INT:
        if (!json_is_integer(json) ||
            (size == 4 && json_integer_value(json) != (int32_t)json_integer_value(json)))
            return expected(field, size == 4 ? "a 32-bit integer" : "an integer");
        store_int(p, size, json_integer_value(json));
        return OK;
    case UINT:
        TRY(parse_bits(field, json, size == 4 ? UINT32_MAX : UINT64_MAX, &bits));
        store_uint(p, size, bits);
        return OK;
    case FLOAT:
        if (json_is_string(json)) {
            TRY(parse_bits(field, json, size == 4 ? UINT32_MAX : UINT64_MAX, &bits));
            store_uint(p, size, bits);
        } else if (!json_is_number(json) ||
                   (size == 4 && fabs(json_number_value(json)) > FLT_MAX)) {
            return expected(field, "a number of its width, or its bits as text");
        } else if (size == 4) {
            *(float *)p = (float)json_number_value(json);
        } else {
            *(double *)p = json_number_value(json);
        }
        return OK;
    case TEXT:
        if (!json_is_string(json) || json_string_length(json) > (size_t)field->max_count ||
            strlen(json_string_value(json)) != json_string_length(json))
            return fail(ERR_INVALID, "%s must be a text of at most %d bytes without NUL",
                        field->name, field->max_count);
        *(const char **)p =
            arena_strndup(arena, json_string_value(json), json_string_length(json));
        return OK;
    case MESSAGE:
        return body_from_json(field->type, json, arena, p);
    default:
        return expected(field, "hexadecimal digits");
    }
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static enum status bytes_from_json(const struct field *field, const json_t *json,
                                   struct arena *arena, void *body)
{
    const char *text = json_string_value(json);
    size_t count = json_string_length(json) / 2;

    TRY(check_count(field, body, count));
    uint8_t *data = take_array(arena, (int32_t)count, 1);

    for (size_t i = 0; i < 2 * count; i++) {
        if (hex_digit(text[i]) < 0)
            return expected(field, "hexadecimal digits");
        data[i / 2] = (uint8_t)(data[i / 2] << 4 | hex_digit(text[i]));
    }
    if (json_string_length(json) % 2 != 0)
        return expected(field, "an even number of hexadecimal digits");
    set_list(field, body, data, (int32_t)count);
    return OK;
}

static enum status field_from_json(const struct field *field, const json_t *json,
                                   struct arena *arena, void *body)
{
    if (!kind_of(field)->is_list)
        return element_from_json(field, json, arena, (char *)body + field->offset);
    if (kind_of(field)->element == BYTE && json_is_string(json))
        return bytes_from_json(field, json, arena, body);
    if (!json_is_array(json))
        return expected(field, "a list");

    size_t count = json_array_size(json);

    /* An empty column is one of zeros. */
    if (field->is_column && count == 0)
        count = (size_t)get_count(field, body);
    TRY(check_count(field, body, count));
    char *elements = take_array(arena, (int32_t)count, element_size(field));

    for (size_t i = 0; i < json_array_size(json); i++) {
        enum status status = element_from_json(field, json_array_get(json, i), arena,
                                               elements + i * element_size(field));

        if (status != OK)
            return fail(status, "%s[%zu]: %s", field->name, i, fail_text());
    }
    set_list(field, body, elements, (int32_t)count);
    return OK;
}

static const struct field *find_field(const struct message_type *type, const char *name)
{
    for (int32_t i = 0; i < type->num_fields; i++)
        if (strcmp(field_at(type, i)->name, name) == 0)
            return field_at(type, i);
    return NULL;
}

static enum status body_from_json(const struct message_type *type, const json_t *json,
                                  struct arena *arena, void *body)
{
    const char *key;
    json_t *value;

    if (!json_is_object(json))
        return fail(ERR_INVALID, "%s must be an object", type->name);
    json_object_foreach((json_t *)json, key, value)
        if (!find_field(type, key))
            return fail(ERR_INVALID, "%s has no field '%.64s'", type->name, key);
    for (int32_t i = 0; i < type->num_fields; i++) {
        const struct field *field = field_at(type, i);
        json_t *member = json_object_get(json, field->name);

        if (!member)
            return fail(ERR_INVALID, "%s.%s is missing", type->name, field->name);
        enum status status = field_from_json(field, member, arena, body);
        if (status != OK)
            return fail(status, "%s.%s", type->name, fail_text());
    }
    return OK;
}

enum status message_from_json(const json_t *json, struct arena *arena, struct message *out)
{
    static const struct field build_field = FIELD(struct message_header, build, FIELD_U64);
    struct message message = {.header.protocol = PROTOCOL_VERSION};
    const json_t *build = json_object_get(json, "build"), *body = json_object_get(json, "body");
    const char *name = json_string_value(json_object_get(json, "message"));
    json_t *epoch = json_object_get(json, "epoch"), *step = json_object_get(json, "step");

    if (!name || !(message.type = message_type_named(name)))
        return fail(ERR_INVALID, "\"message\" must name a message, not '%.64s'", name ? name : "");
    if (!json_is_integer(epoch) || json_integer_value(epoch) < 0 ||
        json_integer_value(epoch) > UINT32_MAX || !json_is_integer(step))
        return fail(ERR_INVALID, "%s needs the integers \"epoch\" and \"step\"", name);
    message.header.type = message.type->id;
    message.header.epoch = (uint32_t)json_integer_value(epoch);
    message.header.step = json_integer_value(step);
    TRY(parse_bits(&build_field, build, UINT64_MAX, &message.header.build));
    message.body = take_array(arena, 1, message.type->size);
    TRY(body_from_json(message.type, body, arena, message.body));
    *out = message;
    return OK;
}
