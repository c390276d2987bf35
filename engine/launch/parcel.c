#include "engine/launch/parcel.h"

#include "proto/wire/cursor.h"

#include <endian.h>
#include <msgpack.h>
#include <string.h>

enum { HEADER_BYTES = 5 };

/* In this order in the body. */
enum {
    HAS_PROCESS = 1,
    MAY_BE_ALL = 2, /* with HAS_PROCESS */
    HAS_NUMBER = 4,
    HAS_TEXT = 8,
    HAS_OTHER = 16,
    HAS_WORDS = 32, /* words and variables */
    HAS_PLACE = 64,
};

enum side { LAUNCHER = 1, AGENT = 2 };

static const struct row {
    const char *name;
    int sides, fields;
    int64_t least, most; /* of the number */
    size_t max_text;
} rows[NUM_PARCEL_KINDS] = {
    [PARCEL_JOB] = {"JOB", LAUNCHER, HAS_NUMBER | HAS_TEXT | HAS_OTHER, 0, 7, 4096},
    [PARCEL_START] = {"START", LAUNCHER,
                      HAS_PROCESS | HAS_NUMBER | HAS_TEXT | HAS_WORDS | HAS_PLACE, 0, 3, 4095},
    [PARCEL_SIGNAL] = {"SIGNAL", LAUNCHER, HAS_PROCESS | MAY_BE_ALL | HAS_NUMBER, 1, 64, 0},
    [PARCEL_INPUT] = {"INPUT", LAUNCHER, HAS_PROCESS | HAS_TEXT, 0, 0, PARCEL_MAX_OUTPUT},
    [PARCEL_TAKEN] = {"TAKEN", LAUNCHER, HAS_NUMBER, 0, INT32_MAX, 0},
    [PARCEL_PAUSE] = {"PAUSE", LAUNCHER, 0, 0, 0, 0},
    [PARCEL_QUIT] = {"QUIT", LAUNCHER, HAS_NUMBER, 0, 86400000, 0},
    [PARCEL_HELLO] = {"HELLO", AGENT, HAS_NUMBER | HAS_TEXT | HAS_OTHER, 1, INT32_MAX, 255},
    [PARCEL_STARTED] = {"STARTED", AGENT, HAS_PROCESS | HAS_NUMBER | HAS_TEXT, 1, INT32_MAX,
                        BINDING_MAX_TEXT},
    [PARCEL_REFUSED] = {"REFUSED", AGENT, HAS_PROCESS | HAS_NUMBER | HAS_TEXT, 1, 255, 1023},
    [PARCEL_OUTPUT] = {"OUTPUT", AGENT, HAS_PROCESS | HAS_NUMBER | HAS_TEXT, 1, 2,
                       PARCEL_MAX_OUTPUT},
    [PARCEL_NOTICE] = {"NOTICE", AGENT, HAS_PROCESS | HAS_NUMBER | HAS_TEXT, 0, 15, 255},
    [PARCEL_ENDED] = {"ENDED", AGENT, HAS_PROCESS | HAS_NUMBER, 0, 0xffff, 0},
    [PARCEL_INPUT_TAKEN] = {"INPUT_TAKEN", AGENT, HAS_PROCESS, 0, 0, 0},
    [PARCEL_FAULT] = {"FAULT", AGENT, HAS_TEXT, 0, 0, 1023},
    [PARCEL_ADDRESS] = {"ADDRESS", LAUNCHER | AGENT, HAS_TEXT, 0, 0, 1023},
    [PARCEL_BEAT] = {"BEAT", LAUNCHER | AGENT, 0, 0, 0, 0},
};

const char *parcel_name(enum parcel_kind kind)
{
    return rows[kind].name;
}

/* ---- writing --------------------------------------------------------------------------------- */

static int append(void *bytes, const char *data, size_t size)
{
    bytes_append(bytes, data, size);
    return 0;
}

static void pack_text(msgpack_packer *packer, struct text text)
{
    msgpack_pack_bin(packer, text.size);
    if (text.size)
        msgpack_pack_bin_body(packer, text.data, text.size);
}

static void pack_list(msgpack_packer *packer, const struct text *list, int32_t count)
{
    ASSERT(count <= PARCEL_MAX_WORDS);
    msgpack_pack_array(packer, (size_t)count);
    for (int32_t i = 0; i < count; i++)
        pack_text(packer, list[i]);
}

static void pack_body(msgpack_packer *packer, const struct row *row, const struct parcel *parcel)
{
    if (row->fields & HAS_PROCESS)
        msgpack_pack_int32(packer, parcel->process);
    if (row->fields & HAS_NUMBER)
        msgpack_pack_int64(packer, parcel->number);
    if (row->fields & HAS_TEXT)
        pack_text(packer, parcel->text);
    if (row->fields & HAS_OTHER)
        pack_text(packer, parcel->other);
    if (row->fields & HAS_WORDS) {
        pack_list(packer, parcel->words, parcel->num_words);
        pack_list(packer, parcel->variables, parcel->num_variables);
    }
    if (row->fields & HAS_PLACE) {
        msgpack_pack_int(packer, parcel->binding.bind_to);
        msgpack_pack_int(packer, parcel->binding.map_by);
        msgpack_pack_int32(packer, parcel->binding.cores_per_rank);
        msgpack_pack_int32(packer, parcel->local_rank);
        msgpack_pack_int32(packer, parcel->local_world);
    }
}

void parcel_write(struct bytes *out, const struct parcel *parcel)
{
    uint8_t header[HEADER_BYTES] = {[4] = (uint8_t)parcel->kind};
    size_t start = out->size;
    msgpack_packer packer;

    bytes_append(out, header, sizeof header);
    msgpack_packer_init(&packer, out, append);
    pack_body(&packer, &rows[parcel->kind], parcel);

    uint32_t body_size = htole32((uint32_t)(out->size - start - HEADER_BYTES));
    ASSERT(out->size - start - HEADER_BYTES <= PARCEL_MAX_BODY, "%s", parcel_name(parcel->kind));
    memcpy(out->data + start, &body_size, sizeof body_size);
}

/* ---- reading --------------------------------------------------------------------------------- */

static struct text read_text(struct cursor *cursor, size_t most)
{
    struct text text;

    text.data = (const char *)cursor_bin(cursor, &text.size);
    if (text.size > most)
        cursor_refuse(cursor, "a text is too long");
    return text;
}

/* Words become arguments of execve, which a NUL would end. */
static int32_t read_list(struct cursor *cursor, struct text *list)
{
    size_t count = cursor_enter_array(cursor);

    if (count > PARCEL_MAX_WORDS) {
        cursor_refuse(cursor, "a list has too many words");
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        list[i] = read_text(cursor, PARCEL_MAX_BODY);
        if (list[i].size && memchr(list[i].data, '\0', list[i].size))
            cursor_refuse(cursor, "a word has a NUL in it");
    }
    cursor_leave(cursor);
    return cursor_is_ok(cursor) ? (int32_t)count : 0;
}

static void read_words(struct parcel_reader *reader, struct cursor *cursor, struct parcel *out)
{
    if (!reader->list)
        reader->list = mem_new_array(struct text, 2 * PARCEL_MAX_WORDS);
    out->words = reader->list;
    out->num_words = read_list(cursor, reader->list);
    out->variables = reader->list + PARCEL_MAX_WORDS;
    out->num_variables = read_list(cursor, reader->list + PARCEL_MAX_WORDS);
    if (out->num_words == 0)
        cursor_refuse(cursor, "a program has no name");
}

static void read_place(struct cursor *cursor, struct parcel *out)
{
    out->binding.bind_to = (enum bind_to)cursor_int(cursor, 0, NUM_BIND_TO - 1);
    out->binding.map_by = (enum map_by)cursor_int(cursor, 0, NUM_MAP_BY - 1);
    out->binding.cores_per_rank = (int32_t)cursor_int(cursor, 1, PARCEL_MAX_PROCESS);
    out->local_rank = (int32_t)cursor_int(cursor, 0, PARCEL_MAX_PROCESS - 1);
    out->local_world = (int32_t)cursor_int(cursor, 1, PARCEL_MAX_PROCESS);
}

static enum status read_body(struct parcel_reader *reader, const struct row *row,
                             const uint8_t *body, size_t size, struct parcel *out)
{
    struct cursor cursor;

    cursor_init(&cursor, body, size);
    if (row->fields & HAS_PROCESS)
        out->process = (int32_t)cursor_int(&cursor, row->fields & MAY_BE_ALL ? PARCEL_ALL : 0,
                                           PARCEL_MAX_PROCESS - 1);
    if (row->fields & HAS_NUMBER)
        out->number = cursor_int(&cursor, row->least, row->most);
    if (row->fields & HAS_TEXT)
        out->text = read_text(&cursor, row->max_text);
    if (row->fields & HAS_OTHER)
        out->other = read_text(&cursor, 255);
    if (row->fields & HAS_WORDS)
        read_words(reader, &cursor, out);
    if (row->fields & HAS_PLACE)
        read_place(&cursor, out);
    if (cursor_is_ok(&cursor) && cursor_left(&cursor) > 0)
        cursor_refuse(&cursor, "bytes are left behind the last field");
    enum status status = cursor_status(&cursor);
    return status == OK
               ? OK
               : fail(status, "a parcel %s of %zu bytes: %s", row->name, size, fail_text());
}

void parcel_reader_add(struct parcel_reader *reader, const void *data, size_t size)
{
    if (reader->at > 0) {
        memmove(reader->bytes.data, reader->bytes.data + reader->at,
                reader->bytes.size - reader->at);
        reader->bytes.size -= reader->at;
        reader->at = 0;
    }
    bytes_append(&reader->bytes, data, size);
}

enum status parcel_reader_next(struct parcel_reader *reader, bool is_from_agent, struct parcel *out,
                               bool *found_out)
{
    const uint8_t *start = reader->bytes.data + reader->at;
    size_t left = reader->bytes.size - reader->at;
    uint32_t size;

    *found_out = false;
    if (left < HEADER_BYTES)
        return OK;
    memcpy(&size, start, sizeof size);
    size = le32toh(size);
    uint8_t kind = start[4];
    if (kind >= NUM_PARCEL_KINDS || !(rows[kind].sides & (is_from_agent ? AGENT : LAUNCHER)))
        return fail(ERR_CORRUPT, "kind %u is no parcel of %s", kind,
                    is_from_agent ? "an agent" : "the launcher");
    if (size > PARCEL_MAX_BODY)
        return fail(ERR_CORRUPT, "a parcel %s of %u bytes, %d are the most", rows[kind].name, size,
                    PARCEL_MAX_BODY);
    if (left < HEADER_BYTES + size)
        return OK;
    *out = (struct parcel){.kind = (enum parcel_kind)kind};
    TRY(read_body(reader, &rows[kind], start + HEADER_BYTES, size, out));
    reader->at += HEADER_BYTES + size;
    *found_out = true;
    return OK;
}

void parcel_reader_close(struct parcel_reader *reader)
{
    bytes_close(&reader->bytes);
    mem_free(reader->list);
    *reader = (struct parcel_reader){0};
}
