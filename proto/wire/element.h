/*
 * element: a field of a message as elements in memory, whatever its kind.
 *
 * One element for a value, `count` for a list; what to do with an element
 * depends on its class alone. For message.c and message_json.c only.
 *
 * Thread: any.
 */
#ifndef PROTO_WIRE_ELEMENT_H
#define PROTO_WIRE_ELEMENT_H

#include "proto/wire/message.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "lists are copied as they lie in memory");

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

static inline const struct field *field_at(const struct message_type *type, int32_t i)
{
    return (const struct field *)((const char *)type->fields + (size_t)i * type->stride);
}

static inline const struct kind *kind_of(const struct field *field)
{
    return &kinds[field->kind];
}

static inline size_t element_size(const struct field *field)
{
    return field->type ? field->type->size : kind_of(field)->size;
}

/* Lists of numbers and bytes travel as one bin. */
static inline bool is_packed(const struct field *field)
{
    return kind_of(field)->is_list && kind_of(field)->element != MESSAGE;
}

static inline int32_t get_count(const struct field *field, const void *body)
{
    return kind_of(field)->is_list ? *(const int32_t *)((const char *)body + field->count_offset)
                                   : 1;
}

static inline const void *get_elements(const struct field *field, const void *body)
{
    const void *place = (const char *)body + field->offset;

    return kind_of(field)->is_list ? *(const void *const *)place : place;
}

static inline const void *element_at(const struct field *field, const void *elements, int32_t i)
{
    return (const char *)elements + (size_t)i * element_size(field);
}

static inline int64_t load_int(const void *p, size_t size)
{
    return size == 4 ? *(const int32_t *)p : *(const int64_t *)p;
}

static inline uint64_t load_uint(const void *p, size_t size)
{
    return size == 4 ? *(const uint32_t *)p : *(const uint64_t *)p;
}

static inline double load_float(const void *p, size_t size)
{
    return size == 4 ? (double)*(const float *)p : *(const double *)p;
}

static inline const char *load_text(const void *p)
{
    const char *text = *(const char *const *)p;

    return text ? text : "";
}

static inline void store_int(void *p, size_t size, int64_t value)
{
    if (size == 4)
        *(int32_t *)p = (int32_t)value;
    else
        *(int64_t *)p = value;
}

static inline void store_uint(void *p, size_t size, uint64_t value)
{
    if (size == 4)
        *(uint32_t *)p = (uint32_t)value;
    else
        *(uint64_t *)p = value;
}

/* Room for elements, zeroed; NULL for none. */
static inline void *take_array(struct arena *arena, int32_t count, size_t size)
{
    return count ? arena_array(arena, (size_t)count, size) : NULL;
}

static inline void set_list(const struct field *field, void *body, void *elements, int32_t count)
{
    *(void **)((char *)body + field->offset) = elements;
    *(int32_t *)((char *)body + field->count_offset) = count;
}

/* Does `count` fit the row: its limit, or the column that came before it? */
static inline enum status check_count(const struct field *field, const void *body, size_t count)
{
    if (field->is_column && count != (size_t)get_count(field, body))
        return fail(ERR_CORRUPT, "%s has %zu elements where the columns before it have %d",
                    field->name, count, get_count(field, body));
    if (!field->is_column && count > (size_t)field->max_count)
        return fail(ERR_CORRUPT, "%s has %zu elements, the limit is %d", field->name, count,
                    field->max_count);
    return OK;
}

#endif
