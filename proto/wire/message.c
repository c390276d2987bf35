#include "proto/wire/message.h"

#include "proto/base/build_id.h"
#include "proto/wire/cursor.h"

#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lists are copied as they lie in memory");

/*
 * Every field is seen as elements in memory: one for a value, `count` for a list.
 * What to do with an element depends on its class alone.
 */
enum element { BOOL, INT, UINT, FLOAT, TEXT, BYTE, MESSAGE };

static const struct kind {
    enum element element;
    uint8_t size; /* 0: the type's */
    bool is_list;
} kinds[NUM_FIELD_KINDS] = {
    [FIELD_BOOL] = {BOOL, sizeof(bool), false},
    [FIELD_I32] = {INT, 4, false},
    [FIELD_I64] = {INT, 8, false},
    [FIELD_U32] = {UINT, 4, false},
    [FIELD_U64] = {UINT, 8, false},
    [FIELD_F32] = {FLOAT, 4, false},
    [FIELD_F64] = {FLOAT, 8, false},
    [FIELD_TEXT] = {TEXT, sizeof(char *), false},
    [FIELD_MESSAGE] = {MESSAGE, 0, false},
    [FIELD_BYTES] = {BYTE, 1, true},
    [FIELD_I32S] = {INT, 4, true},
    [FIELD_I64S] = {INT, 8, true},
    [FIELD_F32S] = {FLOAT, 4, true},
    [FIELD_F64S] = {FLOAT, 8, true},
    [FIELD_MESSAGES] = {MESSAGE, 0, true},
};

static const struct field header_fields[] = {
    FIELD(struct message_header, type, FIELD_I32),
    FIELD(struct message_header, protocol, FIELD_I32),
    FIELD(struct message_header, build, FIELD_U64),
    FIELD(struct message_header, epoch, FIELD_U32),
    FIELD(struct message_header, step, FIELD_I64),
};
static const struct message_type header_type =
    MESSAGE_TYPE("header", 0, struct message_header, header_fields);

static const struct field *field_at(const struct message_type *type, int32_t i)
{
    return (const struct field *)((const char *)type->fields + (size_t)i * type->stride);
}

static const struct kind *kind_of(const struct field *field)
{
    return &kinds[field->kind];
}

static size_t element_size(const struct field *field)
{
    return field->type ? field->type->size : kind_of(field)->size;
}

/* Lists of numbers and bytes travel as one bin. */
static bool is_packed(const struct field *field)
{
    return kind_of(field)->is_list && kind_of(field)->element != MESSAGE;
}

static int32_t get_count(const struct field *field, const void *body)
{
    return kind_of(field)->is_list ? *(const int32_t *)((const char *)body + field->count_offset)
                                   : 1;
}

static const void *get_elements(const struct field *field, const void *body)
{
    const void *place = (const char *)body + field->offset;

    return kind_of(field)->is_list ? *(const void *const *)place : place;
}

static const void *element_at(const struct field *field, const void *elements, int32_t i)
{
    return (const char *)elements + (size_t)i * element_size(field);
}

static int64_t load_int(const void *p, size_t size)
{
    return size == 4 ? *(const int32_t *)p : *(const int64_t *)p;
}

static uint64_t load_uint(const void *p, size_t size)
{
    return size == 4 ? *(const uint32_t *)p : *(const uint64_t *)p;
}

static double load_float(const void *p, size_t size)
{
    return size == 4 ? (double)*(const float *)p : *(const double *)p;
}

static const char *load_text(const void *p)
{
    const char *text = *(const char *const *)p;

    return text ? text : "";
}

static void store_int(void *p, size_t size, int64_t value)
{
    if (size == 4)
        *(int32_t *)p = (int32_t)value;
    else
        *(int64_t *)p = value;
}

static void store_uint(void *p, size_t size, uint64_t value)
{
    if (size == 4)
        *(uint32_t *)p = (uint32_t)value;
    else
        *(uint64_t *)p = value;
}

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

static void *take_array(struct arena *arena, int32_t count, size_t size)
{
    size_t bytes = (size_t)count * size; /* count is under a row's limit: no overflow in 64 bits */

    return bytes ? memset(arena_alloc(arena, bytes), 0, bytes) : NULL;
}

static void set_list(const struct field *field, void *body, void *elements, int32_t count)
{
    *(void **)((char *)body + field->offset) = elements;
    *(int32_t *)((char *)body + field->count_offset) = count;
}

/* Does `count` fit the row: its limit, or the column that came before it? */
static enum status check_count(const struct field *field, const void *body, size_t count)
{
    if (field->is_column && count != (size_t)get_count(field, body))
        return fail(ERR_CORRUPT, "%s has %zu elements where the columns before it have %d",
                    field->name, count, get_count(field, body));
    if (!field->is_column && count > (size_t)field->max_count)
        return fail(ERR_CORRUPT, "%s has %zu elements, the limit is %d", field->name, count,
                    field->max_count);
    return OK;
}

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
