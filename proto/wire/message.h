/*
 * message: one table of field rows makes a struct a message.
 *
 * The rows give encode, decode, print, equal and JSON both ways, so a field that
 * is added to a struct costs one row. On the wire a message is one MessagePack
 * array: the header's fields, then the body's in row order. There are no
 * optional fields: one that is missing, unknown or too many is refused by name.
 *
 * Lists of numbers travel as `bin`: lists of integers as one byte that says how
 * wide an element is (1, 2: unsigned, 4, 8: signed), then little-endian
 * elements; floats as their bits. An empty list, and a column of zeros, is nil.
 *
 * Thread: any; the tables are constant.
 */
#ifndef PROTO_WIRE_MESSAGE_H
#define PROTO_WIRE_MESSAGE_H

#include "proto/base/memory.h"

#include <jansson.h>

enum { PROTOCOL_VERSION = 1 };

enum field_kind {
    /* one value in the struct */
    FIELD_BOOL,    /* bool */
    FIELD_I32,     /* int32_t */
    FIELD_I64,     /* int64_t */
    FIELD_U32,     /* uint32_t */
    FIELD_U64,     /* uint64_t */
    FIELD_F32,     /* float */
    FIELD_F64,     /* double */
    FIELD_TEXT,    /* const char *: UTF-8 without NUL inside; NULL is sent as "" */
    FIELD_MESSAGE, /* a struct of another table */
    /* a pointer in the struct, and a count (int32_t) in another member */
    FIELD_BYTES,    /* const uint8_t * */
    FIELD_I32S,     /* const int32_t * */
    FIELD_I64S,     /* const int64_t * */
    FIELD_F32S,     /* const float * */
    FIELD_F64S,     /* const double * */
    FIELD_MESSAGES, /* array of structs of another table */
    NUM_FIELD_KINDS
};

struct message_type;

struct field {
    const char *name;
    enum field_kind kind;
    bool is_column;  /* its count was set by an earlier row, and must be the same */
    bool is_private; /* message_print gives the count only: users' text and tokens */
    uint32_t offset;
    uint32_t count_offset;
    int32_t max_count; /* of elements; of a text: bytes */
    const struct message_type *type; /* FIELD_MESSAGE(S): of the elements */
};

struct message_type {
    const char *name;
    int32_t id;    /* on the wire; 0 for one that occurs only inside others */
    size_t size;   /* of the struct */
    const struct field *fields;
    size_t stride; /* bytes from row to row: a table may carry more columns than struct field */
    int32_t num_fields;
};

/* ---- how rows are written: FIELD(struct x, rank, FIELD_I32) ---------------------------------- */

#define FIELD(s, member, field_kind)                                                               \
    {.name = #member, .kind = (field_kind), .offset = offsetof(s, member)}
#define FIELD_TEXT_OF(s, member, max_bytes)                                                        \
    {.name = #member, .kind = FIELD_TEXT, .offset = offsetof(s, member), .max_count = (max_bytes)}
#define FIELD_STRUCT(s, member, message)                                                           \
    {.name = #member, .kind = FIELD_MESSAGE, .offset = offsetof(s, member), .type = (message)}
/* A pointer and its own count. */
#define FIELD_LIST(s, member, count, field_kind, max, ...)                                         \
    {.name = #member,                                                                              \
     .kind = (field_kind),                                                                         \
     .offset = offsetof(s, member),                                                                \
     .count_offset = offsetof(s, count),                                                           \
     .max_count = (max),                                                                           \
     __VA_ARGS__}
/* A pointer to as many elements as an earlier list with the same count has. */
#define FIELD_COLUMN(s, member, count, field_kind)                                                 \
    {.name = #member,                                                                              \
     .kind = (field_kind),                                                                         \
     .is_column = true,                                                                            \
     .offset = offsetof(s, member),                                                                \
     .count_offset = offsetof(s, count)}
#define MESSAGE_TYPE(message_name, message_id, s, rows)                                            \
    {.name = (message_name),                                                                       \
     .id = (message_id),                                                                           \
     .size = sizeof(s),                                                                            \
     .fields = (rows),                                                                             \
     .stride = sizeof(struct field),                                                               \
     .num_fields = COUNT_OF(rows)}

/* ---- messages -------------------------------------------------------------------------------- */

struct message_header {
    int32_t type;     /* message_type.id */
    int32_t protocol; /* PROTOCOL_VERSION of the sender */
    uint64_t build;   /* build_id_hash() of the sender */
    uint32_t epoch;   /* raised each time the set of workers is rebuilt */
    int64_t step;     /* that it belongs to; -1: none */
};

struct message {
    struct message_header header;
    const struct message_type *type;
    void *body; /* the type's struct; lives in the arena it was decoded into */
};

/* The message whose header has this id, or NULL. Defined by the schema, wire/messages.c. */
const struct message_type *message_type_of(int32_t id);
const struct message_type *message_type_named(const char *name);

/* Appends one frame to `out`. ERR_INVALID names a field over its limit, and leaves `out` as it
 * was. Bytes of a text that are not UTF-8 are sent as '?'. */
MUST_USE enum status message_encode(const struct message_type *type, uint32_t epoch, int64_t step,
                                    const void *body, struct bytes *out);
/* Copies everything out of `frame` into `arena`, nothing of it is borrowed. ERR_MISMATCH: another
 * protocol version or an unknown type; ERR_CORRUPT: the sentence names the field. */
MUST_USE enum status message_decode(const void *frame, size_t size, struct arena *arena,
                                    struct message *out);
/* Is it of this build and this epoch? ERR_MISMATCH says both values. */
MUST_USE enum status message_check_place(const struct message *message, uint32_t epoch);

/* For people: a line a field. */
void message_print(const struct message *message, struct bytes *out);
/* Bitwise, down to the floats. Headers are not compared. */
bool message_equal(const struct message_type *type, const void *a, const void *b);

/* For replay files. {"message", "epoch", "step", "build", "body": {name: value}}; bytes as
 * hexadecimal, U64 and floats that JSON cannot say as text. The caller owns the result. */
json_t *message_to_json(const struct message *message);
/* Strict: ERR_INVALID names the key that is missing, unknown or of the wrong kind. */
MUST_USE enum status message_from_json(const json_t *json, struct arena *arena,
                                       struct message *out);

/* The body alone, for a struct inside something else. */
void message_body_print(const struct message_type *type, const void *body, int indent,
                        struct bytes *out);

#endif
