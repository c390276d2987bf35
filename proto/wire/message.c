#include "proto/wire/message.h"

#include "proto/base/build_id.h"
#include "proto/wire/cursor.h"
#include "proto/wire/element.h"

#include <inttypes.h>
#include <msgpack.h>
#include <stdio.h>
#include <string.h>

static const struct field header_fields[] = {
    FIELD(struct message_header, type, FIELD_I32),
    FIELD(struct message_header, protocol, FIELD_I32),
    FIELD(struct message_header, build, FIELD_U64),
    FIELD(struct message_header, epoch, FIELD_U32),
    FIELD(struct message_header, step, FIELD_I64),
};
static const struct message_type header_type =
    MESSAGE_TYPE("header", 0, struct message_header, header_fields);

/* Bytes of the character at `s`, 0 if they are not UTF-8 (no surrogates, no long forms) or NUL. */
static size_t character_bytes(const char *s, size_t left)
{
    const uint8_t *c = (const uint8_t *)s;
    size_t n = c[0] < 0x80 ? 1 : c[0] < 0xc2 ? 0 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;

    if (n > left || c[0] > 0xf4 || c[0] == 0)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    if ((c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xed && c[1] > 0x9f) ||
        (c[0] == 0xf0 && c[1] < 0x90) || (c[0] == 0xf4 && c[1] > 0x8f))
        return 0;
    return n;
}

/* How many bytes are good text from the start. */
static size_t good_text_bytes(const char *s, size_t size)
{
    size_t at = 0, n;

    while (at < size && (n = character_bytes(s + at, size - at)) > 0)
        at += n;
    return at;
}

/* ---- encode ---------------------------------------------------------------------------------- */

static int append_to_bytes(void *bytes, const char *data, size_t size)
{
    bytes_append(bytes, data, size);
    return 0;
}

static void pack_text(msgpack_packer *packer, const char *text)
{
    size_t size = strlen(text), good = good_text_bytes(text, size);

    msgpack_pack_str(packer, size);
    while (good < size) {
        msgpack_pack_str_body(packer, text, good);
        msgpack_pack_str_body(packer, "?", 1);
        text += good + 1;
        size -= good + 1;
        good = good_text_bytes(text, size);
    }
    msgpack_pack_str_body(packer, text, size);
}

/* Bytes that hold every element: 1 and 2 are unsigned, 4 and 8 signed. */
static size_t narrowest_width(const void *elements, size_t size, int32_t count)
{
    uint64_t all = 0;

    if (size == 4)
        for (int32_t i = 0; i < count; i++)
            all |= (uint64_t)(int64_t)((const int32_t *)elements)[i];
    else
        for (int32_t i = 0; i < count; i++)
            all |= (uint64_t)((const int64_t *)elements)[i];
    return all <= UINT8_MAX ? 1 : all <= UINT16_MAX ? 2 : size;
}

/* `to[i] = from[i]` for element types of which one is as wide as the list's own. */
#define CONVERT(to_type, to, from_type, from, count)                                               \
    for (int32_t convert_i = 0; convert_i < (count); convert_i++)                                  \
    ((to_type *)(to))[convert_i] = (to_type)((const from_type *)(from))[convert_i]

static void narrow(uint8_t *to, size_t width, const void *from, size_t size, int32_t count)
{
    if (width == size)
        memcpy(to, from, size * (size_t)count);
    else if (width == 1 && size == 4)
        CONVERT(uint8_t, to, int32_t, from, count);
    else if (width == 1)
        CONVERT(uint8_t, to, int64_t, from, count);
    else
        for (int32_t i = 0; i < count; i++) { /* `to` has no alignment */
            uint16_t value = (uint16_t)load_int((const char *)from + (size_t)i * size, size);

            memcpy(to + 2 * i, &value, sizeof value);
        }
}

static bool is_all_zero(const void *elements, size_t bytes)
{
    const uint8_t *p = elements;

    return bytes == 0 || (p[0] == 0 && memcmp(p, p + 1, bytes - 1) == 0);
}

static void pack_numbers(msgpack_packer *packer, const struct field *field, const void *elements,
                         int32_t count)
{
    size_t size = element_size(field), width;
    struct bytes *out = packer->data;

    if (count == 0 || (field->is_column && (!elements || is_all_zero(elements, size * count)))) {
        msgpack_pack_nil(packer);
        return;
    }
    if (kind_of(field)->element != INT) {
        msgpack_pack_bin(packer, size * (size_t)count);
        msgpack_pack_bin_body(packer, elements, size * (size_t)count);
        return;
    }
    width = narrowest_width(elements, size, count);
    msgpack_pack_bin(packer, 1 + width * (size_t)count);
    uint8_t *body = bytes_reserve(out, 1 + width * (size_t)count);
    *body = (uint8_t)width;
    narrow(body + 1, width, elements, size, count);
    out->size += 1 + width * (size_t)count;
}

static enum status pack_fields(msgpack_packer *packer, const struct message_type *type,
                               const void *body);

static enum status pack_element(msgpack_packer *packer, const struct field *field, const void *p)
{
    size_t size = element_size(field);

    switch (kind_of(field)->element) {
    case BOOL:
        *(const bool *)p ? msgpack_pack_true(packer) : msgpack_pack_false(packer);
        break;
    case INT:
        msgpack_pack_int64(packer, load_int(p, size));
        break;
    case UINT:
        msgpack_pack_uint64(packer, load_uint(p, size));
        break;
    case FLOAT:
        if (size == 4)
            msgpack_pack_float(packer, *(const float *)p);
        else
            msgpack_pack_double(packer, *(const double *)p);
        break;
    case TEXT:
        if (strlen(load_text(p)) > (size_t)field->max_count)
            return fail(ERR_INVALID, "%s has %zu bytes, at most %d may be sent", field->name,
                        strlen(load_text(p)), field->max_count);
        pack_text(packer, load_text(p));
        break;
    case MESSAGE:
        msgpack_pack_array(packer, (size_t)field->type->num_fields);
        return pack_fields(packer, field->type, p);
    case BYTE: /* only in lists */
        break;
    }
    return OK;
}

static enum status pack_field(msgpack_packer *packer, const struct field *field, const void *body)
{
    const void *elements = get_elements(field, body);
    int32_t count = get_count(field, body);

    if (kind_of(field)->is_list && !field->is_column && (count < 0 || count > field->max_count))
        return fail(ERR_INVALID, "%s has %d elements, at most %d may be sent", field->name, count,
                    field->max_count);
    if (is_packed(field)) {
        pack_numbers(packer, field, elements, count);
        return OK;
    }
    if (kind_of(field)->is_list)
        msgpack_pack_array(packer, (size_t)count);
    for (int32_t i = 0; i < count; i++)
        TRY(pack_element(packer, field, element_at(field, elements, i)));
    return OK;
}

static enum status pack_fields(msgpack_packer *packer, const struct message_type *type,
                               const void *body)
{
    for (int32_t i = 0; i < type->num_fields; i++) {
        enum status status = pack_field(packer, field_at(type, i), body);

        if (status != OK)
            return fail(status, "%s.%s", type->name, fail_text());
    }
    return OK;
}

enum status message_encode(const struct message_type *type, uint32_t epoch, int64_t step,
                           const void *body, struct bytes *out)
{
    struct message_header header = {.type = type->id,
                                    .protocol = PROTOCOL_VERSION,
                                    .build = build_id_hash(),
                                    .epoch = epoch,
                                    .step = step};
    size_t size_before = out->size;
    msgpack_packer packer;

    msgpack_packer_init(&packer, out, append_to_bytes);
    msgpack_pack_array(&packer, (size_t)(header_type.num_fields + type->num_fields));
    enum status status = pack_fields(&packer, &header_type, &header);
    if (status == OK)
        status = pack_fields(&packer, type, body);
    if (status != OK)
        out->size = size_before;
    return status;
}

/* ---- decode ---------------------------------------------------------------------------------- */

struct reader {
    struct cursor cursor;
    struct arena *arena;
};

static void widen(void *to, size_t size, const uint8_t *from, size_t width, int32_t count)
{
    if (width == size)
        memcpy(to, from, size * (size_t)count);
    else if (width == 1 && size == 4)
        CONVERT(int32_t, to, uint8_t, from, count);
    else if (width == 1)
        CONVERT(int64_t, to, uint8_t, from, count);
    else
        for (int32_t i = 0; i < count; i++) {
            uint16_t value;

            memcpy(&value, from + 2 * i, sizeof value);
            store_int((char *)to + (size_t)i * size, size, value);
        }
}

static enum status read_numbers(struct reader *reader, const struct field *field, void *body)
{
    size_t size = element_size(field), width = size, bytes;

    if (cursor_nil(&reader->cursor)) {
        int32_t count = field->is_column ? get_count(field, body) : 0;

        set_list(field, body, take_array(reader->arena, count, size), count);
        return OK;
    }
    const uint8_t *data = cursor_bin(&reader->cursor, &bytes);
    if (!cursor_is_ok(&reader->cursor))
        return OK; /* the caller looks at the cursor */
    if (kind_of(field)->element == INT) {
        width = bytes ? *data : 0;
        if (width != 1 && width != 2 && width != size)
            return fail(ERR_CORRUPT, "%s has elements of %zu bytes, where at most %zu fit",
                        field->name, width, size);
        data++;
        bytes--;
    }
    if (bytes % width != 0)
        return fail(ERR_CORRUPT, "%s has %zu bytes, not a multiple of %zu", field->name, bytes,
                    width);
    TRY(check_count(field, body, bytes / width));
    int32_t count = (int32_t)(bytes / width);
    void *elements = count ? arena_alloc(reader->arena, size * (size_t)count) : NULL;
    if (count)
        widen(elements, size, data, width, count);
    set_list(field, body, elements, count);
    return OK;
}

static enum status read_text(struct reader *reader, const struct field *field, const char **out)
{
    size_t size;
    const char *text = cursor_text(&reader->cursor, &size);

    if (size > (size_t)field->max_count)
        return fail(ERR_CORRUPT, "%s has %zu bytes, the limit is %d", field->name, size,
                    field->max_count);
    if (good_text_bytes(text, size) != size)
        return fail(ERR_CORRUPT, "%s is not UTF-8 at its byte %zu", field->name,
                    good_text_bytes(text, size));
    *out = arena_strndup(reader->arena, text, size);
    return OK;
}

static enum status read_fields(struct reader *reader, const struct message_type *type, void *body);

static enum status check_num_fields(const struct message_type *type, size_t num_fields)
{
    if (num_fields < (size_t)type->num_fields)
        return fail(ERR_CORRUPT, "%s.%s is missing: %zu fields of %d came", type->name,
                    field_at(type, (int32_t)num_fields)->name, num_fields, type->num_fields);
    if (num_fields > (size_t)type->num_fields)
        return fail(ERR_CORRUPT, "%s has %d fields, %zu came", type->name, type->num_fields,
                    num_fields);
    return OK;
}

static enum status read_struct(struct reader *reader, const struct message_type *type, void *body)
{
    size_t num_fields = cursor_enter_array(&reader->cursor);

    if (!cursor_is_ok(&reader->cursor))
        return OK;
    TRY(check_num_fields(type, num_fields));
    TRY(read_fields(reader, type, body));
    cursor_leave(&reader->cursor);
    return OK;
}

static enum status read_element(struct reader *reader, const struct field *field, void *p)
{
    struct cursor *cursor = &reader->cursor;
    size_t size = element_size(field);

    switch (kind_of(field)->element) {
    case BOOL:
        *(bool *)p = cursor_bool(cursor);
        break;
    case INT:
        store_int(p, size, size == 4 ? cursor_int(cursor, INT32_MIN, INT32_MAX)
                                     : cursor_int(cursor, INT64_MIN, INT64_MAX));
        break;
    case UINT:
        store_uint(p, size, cursor_uint(cursor, size == 4 ? UINT32_MAX : UINT64_MAX));
        break;
    case FLOAT:
        if (size == 4)
            *(float *)p = cursor_f32(cursor);
        else
            *(double *)p = cursor_f64(cursor);
        break;
    case TEXT:
        return read_text(reader, field, p);
    case MESSAGE:
        return read_struct(reader, field->type, p);
    case BYTE:
        break;
    }
    return OK;
}

static enum status read_list(struct reader *reader, const struct field *field, void *body)
{
    size_t count = cursor_enter_array(&reader->cursor);
    size_t least_bytes = field->type ? (size_t)field->type->num_fields + 1 : 1;

    if (!cursor_is_ok(&reader->cursor))
        return OK;
    TRY(check_count(field, body, count));
    /* A struct is larger than its shortest form: take memory only for bytes that are there. */
    if (count * least_bytes > cursor_left(&reader->cursor))
        return fail(ERR_CORRUPT, "%s has %zu elements and %zu bytes for them", field->name, count,
                    cursor_left(&reader->cursor));
    char *elements = take_array(reader->arena, (int32_t)count, element_size(field));

    for (size_t i = 0; i < count; i++) {
        enum status status = read_element(reader, field, elements + i * element_size(field));

        if (status != OK)
            return fail(status, "%s[%zu]: %s", field->name, i, fail_text());
    }
    cursor_leave(&reader->cursor);
    set_list(field, body, elements, (int32_t)count);
    return OK;
}

static enum status read_field(struct reader *reader, const struct field *field, void *body)
{
    if (is_packed(field))
        return read_numbers(reader, field, body);
    if (kind_of(field)->is_list)
        return read_list(reader, field, body);
    return read_element(reader, field, (char *)body + field->offset);
}

static enum status read_fields(struct reader *reader, const struct message_type *type, void *body)
{
    for (int32_t i = 0; i < type->num_fields; i++) {
        const struct field *field = field_at(type, i);
        enum status status = read_field(reader, field, body);

        if (status != OK)
            return fail(status, "%s.%s", type->name, fail_text());
        if (!cursor_is_ok(&reader->cursor)) {
            status = cursor_status(&reader->cursor);
            return fail(status, "%s.%s: %s", type->name, field->name, fail_text());
        }
    }
    return OK;
}

static enum status decode_body(struct reader *reader, size_t num_fields, struct message *out)
{
    const struct message_type *type = out->type;

    if (num_fields < (size_t)header_type.num_fields)
        return check_num_fields(&header_type, num_fields);
    TRY(check_num_fields(type, num_fields - (size_t)header_type.num_fields));
    out->body = take_array(reader->arena, 1, type->size);
    TRY(read_fields(reader, type, out->body));
    if (cursor_left(&reader->cursor) > 0)
        return fail(ERR_CORRUPT, "%s is followed by %zu more bytes", type->name,
                    cursor_left(&reader->cursor));
    return OK;
}

enum status message_decode(const void *frame, size_t size, struct arena *arena,
                           struct message *out)
{
    struct reader reader = {.arena = arena};
    struct message message = {0};

    cursor_init(&reader.cursor, frame, size);
    size_t num_fields = cursor_enter_array(&reader.cursor);
    if (!cursor_is_ok(&reader.cursor)) {
        enum status status = cursor_status(&reader.cursor);
        return fail(status, "a frame of %zu bytes is not a message: %s", size, fail_text());
    }
    TRY(read_fields(&reader, &header_type, &message.header));
    if (message.header.protocol != PROTOCOL_VERSION)
        return fail(ERR_MISMATCH, "a message of protocol version %d came; this side speaks %d",
                    message.header.protocol, PROTOCOL_VERSION);
    message.type = message_type_of(message.header.type);
    if (!message.type)
        return fail(ERR_MISMATCH, "a message of the unknown type %d came", message.header.type);
    enum status status = decode_body(&reader, num_fields, &message);
    /* Another build may lay a message out in another way: then that is what to tell. */
    if (status != OK && message.header.build != build_id_hash())
        return fail(ERR_MISMATCH, "%s; it comes from build %016" PRIx64 ", this one is %016" PRIx64,
                    fail_text(), message.header.build, build_id_hash());
    if (status == OK)
        *out = message;
    return status;
}

enum status message_check_place(const struct message *message, uint32_t epoch)
{
    const struct message_header *header = &message->header;

    if (header->build != build_id_hash())
        return fail(ERR_MISMATCH, "%s comes from build %016" PRIx64 ", this one is %016" PRIx64,
                    message->type->name, header->build, build_id_hash());
    if (header->epoch != epoch)
        return fail(ERR_MISMATCH, "%s belongs to epoch %u, this one is %u", message->type->name,
                    header->epoch, epoch);
    return OK;
}

/* ---- print ----------------------------------------------------------------------------------- */

/* %g with the digits that tell every value of the width apart. */
static void print_float(struct bytes *out, double value, size_t size)
{
    bytes_printf(out, "%.*g", size == 4 ? 9 : 17, value);
}

static void print_element(const struct field *field, const void *p, int indent, struct bytes *out)
{
    size_t size = element_size(field);

    switch (kind_of(field)->element) {
    case BOOL:
        bytes_printf(out, "%s", *(const bool *)p ? "true" : "false");
        break;
    case INT:
        bytes_printf(out, "%" PRId64, load_int(p, size));
        break;
    case UINT:
        bytes_printf(out, "%" PRIu64, load_uint(p, size));
        break;
    case FLOAT:
        print_float(out, load_float(p, size), size);
        break;
    case TEXT:
        bytes_printf(out, "\"%s\"", load_text(p));
        break;
    case BYTE:
        bytes_printf(out, "%02x", *(const uint8_t *)p);
        break;
    case MESSAGE:
        bytes_printf(out, "\n");
        message_body_print(field->type, p, indent + 2, out);
        break;
    }
}

static void print_field(const struct field *field, const void *body, int indent, struct bytes *out)
{
    const char *elements = get_elements(field, body);
    int32_t count = get_count(field, body);
    enum element element = kind_of(field)->element;

    if (kind_of(field)->is_list && element != MESSAGE)
        bytes_printf(out, "%*s%s (%d):", indent, "", field->name, count);
    else if (element != MESSAGE)
        bytes_printf(out, "%*s%s:", indent, "", field->name);
    if (field->is_private && element != MESSAGE)
        count = 0;
    for (int32_t i = 0; elements && i < count; i++) {
        const void *p = element_at(field, elements, i);

        if (element == MESSAGE && kind_of(field)->is_list)
            bytes_printf(out, "%*s%s[%d]:", indent, "", field->name, i);
        else if (element == MESSAGE)
            bytes_printf(out, "%*s%s:", indent, "", field->name);
        else if (element != BYTE || i % 4 == 0)
            bytes_printf(out, " ");
        print_element(field, p, indent, out);
    }
    if (element != MESSAGE)
        bytes_printf(out, "\n");
}

void message_body_print(const struct message_type *type, const void *body, int indent,
                        struct bytes *out)
{
    for (int32_t i = 0; i < type->num_fields; i++)
        print_field(field_at(type, i), body, indent, out);
}

void message_print(const struct message *message, struct bytes *out)
{
    bytes_printf(out, "%s: epoch %u, step %" PRId64 "\n", message->type->name,
                 message->header.epoch, message->header.step);
    message_body_print(message->type, message->body, 2, out);
}

/* ---- equal ----------------------------------------------------------------------------------- */

static bool element_equal(const struct field *field, const void *a, const void *b)
{
    switch (kind_of(field)->element) {
    case TEXT:
        return strcmp(load_text(a), load_text(b)) == 0;
    case MESSAGE:
        return message_equal(field->type, a, b);
    default:
        return memcmp(a, b, element_size(field)) == 0;
    }
}

static bool numbers_equal(const struct field *field, const void *a, const void *b, int32_t count)
{
    size_t bytes = (size_t)count * element_size(field);

    if (a && b)
        return bytes == 0 || memcmp(a, b, bytes) == 0;
    /* A column that is not there is one of zeros. */
    return is_all_zero(a ? a : b, a || b ? bytes : 0);
}

bool message_equal(const struct message_type *type, const void *a, const void *b)
{
    for (int32_t i = 0; i < type->num_fields; i++) {
        const struct field *field = field_at(type, i);
        const void *a_elements = get_elements(field, a), *b_elements = get_elements(field, b);
        int32_t count = get_count(field, a);

        if (count != get_count(field, b))
            return false;
        if (is_packed(field) && !numbers_equal(field, a_elements, b_elements, count))
            return false;
        for (int32_t k = 0; !is_packed(field) && k < count; k++)
            if (!element_equal(field, element_at(field, a_elements, k),
                               element_at(field, b_elements, k)))
                return false;
    }
    return true;
}
