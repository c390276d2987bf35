#include "engine/front/structured_outputs.h"

#include "engine/text/json_text.h"
#include "proto/model/json_field.h"

#include <string.h>

/* One request on its way. */
struct reader {
    struct arena *arena;
    struct grammar_spec spec;
    const char *kind;   /* what has asked for the grammar: "json", "guided_regex"; NULL: nothing yet */
    const char *source; /* the field of the body that it was in */
};

/* ---- texts ------------------------------------------------------------------------------------- */

static enum status take_text(struct reader *reader, enum grammar_kind kind, const char *text,
                             size_t size)
{
    if (size > MAX_GRAMMAR_BYTES)
        return fail(ERR_INVALID, "%s has %zu bytes; a grammar has at most %d.", reader->kind, size,
                    MAX_GRAMMAR_BYTES);
    if (memchr(text, '\0', size))
        return fail(ERR_INVALID, "%s must not contain a NUL character.", reader->kind);
    reader->spec.kind = kind;
    reader->spec.text = arena_strndup(reader->arena, text, size);
    reader->spec.size = size;
    return OK;
}

static enum status take_string(struct reader *reader, enum grammar_kind kind, const json_t *value)
{
    if (!json_is_string(value))
        return fail(ERR_INVALID, "%s must be a string.", reader->kind);
    if (json_string_length(value) == 0)
        return fail(ERR_INVALID, "%s cannot be empty.", reader->kind);
    return take_text(reader, kind, json_string_value(value), json_string_length(value));
}

static enum status take_json(struct reader *reader, enum grammar_kind kind, const json_t *value)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    json_text(value, JSON_TIGHT, &text);
    return take_text(reader, kind, bytes_text(&text), text.size);
}

/* A schema, as JSON or as the text of one. */
static enum status read_json(struct reader *reader, const json_t *value)
{
    json_error_t error;
    enum status status;
    json_t *schema;

    if (json_is_object(value) || json_is_boolean(value))
        return take_json(reader, GRAMMAR_JSON_SCHEMA, value);
    if (!json_is_string(value))
        return fail(ERR_INVALID, "%s must be a JSON schema: an object, or the text of one.",
                    reader->kind);
    schema = json_loadb(json_string_value(value), json_string_length(value),
                        JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (!schema)
        return fail(ERR_INVALID, "%s is no JSON at line %d, column %d: %s.", reader->kind,
                    error.line, error.column, error.text);
    status = json_is_object(schema) || json_is_boolean(schema)
                 ? take_json(reader, GRAMMAR_JSON_SCHEMA, schema)
                 : fail(ERR_INVALID, "%s must be the text of a JSON schema, an object.",
                        reader->kind);
    json_decref(schema);
    return status;
}

static enum status read_json_object(struct reader *reader, const json_t *value)
{
    if (!json_is_true(value))
        return fail(ERR_INVALID, "%s must be true.", reader->kind);
    return take_text(reader, GRAMMAR_JSON_OBJECT, "", 0);
}

static enum status read_regex(struct reader *reader, const json_t *value)
{
    return take_string(reader, GRAMMAR_REGEX, value);
}

static enum status read_choice(struct reader *reader, const json_t *value)
{
    const json_t *choice;
    size_t i;

    if (json_array_size(value) == 0)
        return fail(ERR_INVALID, "%s must be a list of texts, and not be empty.", reader->kind);
    json_array_foreach(value, i, choice) {
        if (!json_is_string(choice) || json_string_length(choice) == 0)
            return fail(ERR_INVALID, "%s must hold texts that are not empty; element %zu is none.",
                        reader->kind, i);
        if (strlen(json_string_value(choice)) != json_string_length(choice))
            return fail(ERR_INVALID, "%s must not contain a NUL character.", reader->kind);
    }
    return take_json(reader, GRAMMAR_CHOICE, value);
}

/* EBNF defines by "::=", Lark by ":". As vLLM reads them a comment, from # or // to the end of its line,
 * says nothing of it. */
static bool is_ebnf(const char *text)
{
    for (const char *line = text; *line; line += *line == '\n') {
        const char *end = line + strcspn(line, "\n");

        for (; line < end && *line != '#' && strncmp(line, "//", 2) != 0; line++)
            if (strncmp(line, "::=", 3) == 0)
                return true;
        line = end;
    }
    return false;
}

static enum status read_grammar(struct reader *reader, const json_t *value)
{
    const char *text = json_string_value(value);

    return take_string(reader, text && is_ebnf(text) ? GRAMMAR_EBNF : GRAMMAR_LARK, value);
}

static enum status read_structural_tag(struct reader *reader, const json_t *value)
{
    return json_is_object(value) ? take_json(reader, GRAMMAR_STRUCTURAL_TAG, value)
                                 : take_string(reader, GRAMMAR_STRUCTURAL_TAG, value);
}

/* ---- options ----------------------------------------------------------------------------------- */

static enum status read_flag(const char *name, const json_t *value, bool *out)
{
    if (!json_is_boolean(value))
        return fail(ERR_INVALID, "%s must be true or false.", name);
    *out = json_is_true(value);
    return OK;
}

static enum status read_any_whitespace(struct reader *reader, const json_t *value)
{
    return read_flag("disable_any_whitespace", value, &reader->spec.disable_any_whitespace);
}

static enum status read_additional_properties(struct reader *reader, const json_t *value)
{
    return read_flag("disable_additional_properties", value,
                     &reader->spec.disable_additional_properties);
}

static enum status read_lenient(struct reader *reader, const json_t *value)
{
    return read_flag("lenient", value, &reader->spec.lenient);
}

static enum status copy_word(struct reader *reader, const char *name, const json_t *value,
                             const char **out)
{
    enum { MOST = 1024 };

    if (!json_is_string(value))
        return fail(ERR_INVALID, "%s must be a string.", name);
    if (json_string_length(value) > MOST ||
        strlen(json_string_value(value)) != json_string_length(value))
        return fail(ERR_INVALID, "%s must have at most %d bytes, and no NUL.", name, MOST);
    *out = arena_strndup(reader->arena, json_string_value(value), json_string_length(value));
    return OK;
}

static enum status read_whitespace_pattern(struct reader *reader, const json_t *value)
{
    return copy_word(reader, "whitespace_pattern", value, &reader->spec.whitespace_pattern);
}

/* "guidance" is what vLLM calls llguidance; "auto" is no choice. */
static enum status read_backend(struct reader *reader, const json_t *value)
{
    TRY(copy_word(reader, "backend", value, &reader->spec.backend));
    if (strcmp(reader->spec.backend, "auto") == 0)
        reader->spec.backend = NULL;
    else if (strcmp(reader->spec.backend, "guidance") == 0)
        reader->spec.backend = "llguidance";
    return OK;
}

/* ---- fields ------------------------------------------------------------------------------------ */

struct field {
    const char *name;
    enum status (*read)(struct reader *reader, const json_t *value);
    bool is_kind; /* it asks for a grammar; else it is an option */
};

static const struct field structured_fields[] = {
    {"json", read_json, true},
    {"json_object", read_json_object, true},
    {"regex", read_regex, true},
    {"choice", read_choice, true},
    {"grammar", read_grammar, true},
    {"structural_tag", read_structural_tag, true},
    {"disable_any_whitespace", read_any_whitespace},
    {"disable_additional_properties", read_additional_properties},
    {"whitespace_pattern", read_whitespace_pattern},
    {"lenient", read_lenient},
    {"backend", read_backend},
};

/* Fields of the body. */
static const struct field guided_fields[] = {
    {"guided_json", read_json, true},
    {"guided_regex", read_regex, true},
    {"guided_choice", read_choice, true},
    {"guided_grammar", read_grammar, true},
    {"guided_whitespace_pattern", read_whitespace_pattern},
    {"guided_decoding_backend", read_backend},
};

static enum status read_field(struct reader *reader, const struct field *field, const json_t *value)
{
    if (field->is_kind) {
        if (reader->kind)
            return fail(ERR_INVALID, "You can only use one kind of constraint for structured "
                        "outputs; there are `%s` and `%s`.", reader->kind, field->name);
        reader->kind = field->name;
    }
    return field->read(reader, value);
}

static enum status read_structured_outputs(struct reader *reader, const json_t *object)
{
    const char *name;
    json_t *value;

    if (!json_is_object(object))
        return fail(ERR_INVALID, "structured_outputs must be an object.");
    json_object_foreach((json_t *)object, name, value) {
        const struct field *field = NULL;

        for (size_t i = 0; i < COUNT_OF(structured_fields) && !field; i++)
            if (strcmp(structured_fields[i].name, name) == 0)
                field = &structured_fields[i];
        if (!field && name[0] != '_') /* vLLM's clients may send fields of its own */
            return fail(ERR_INVALID, "Unknown field `%.64s` in structured_outputs.", name);
        if (field && !json_is_null(value) && !(field->is_kind && json_is_false(value)))
            TRY(read_field(reader, field, value));
    }
    if (!reader->kind)
        return fail(ERR_INVALID, "You must use one kind of constraint for structured outputs: json, "
                    "json_object, regex, choice, grammar or structural_tag.");
    return OK;
}

static enum status read_guided(struct reader *reader, const json_t *body)
{
    for (size_t i = 0; i < COUNT_OF(guided_fields); i++) {
        const json_t *value = field_find(body, guided_fields[i].name);

        if (value)
            TRY(read_field(reader, &guided_fields[i], value));
    }
    return OK;
}

/* ---- response_format ---------------------------------------------------------------------------- */

/* name: of the field. */
static enum status read_schema(struct reader *reader, const char *name, const json_t *schema)
{
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return fail(ERR_INVALID, "%s must be a JSON schema.", name);
    reader->kind = name;
    return take_json(reader, GRAMMAR_JSON_SCHEMA, schema);
}

/* {"name", "description", "schema", "strict"}. Without strict a schema is followed all the same. */
static enum status read_json_schema(struct reader *reader, const json_t *format)
{
    const json_t *about = json_object_get(format, "json_schema");
    const json_t *name = json_object_get(about, "name");

    if (!json_is_object(about))
        return fail(ERR_INVALID, "response_format of type json_schema needs json_schema, an object.");
    if (!json_is_string(name) || json_string_length(name) == 0)
        return fail(ERR_INVALID, "response_format.json_schema.name must be a text.");
    return read_schema(reader, "response_format.json_schema.schema", json_object_get(about, "schema"));
}

/* Any object; or, as llama.cpp has it, one of a schema beside the type. */
static enum status read_json_mode(struct reader *reader, const json_t *format)
{
    const json_t *schema = field_find(format, "schema");

    if (schema)
        return read_schema(reader, "response_format.schema", schema);
    reader->kind = "response_format";
    return take_text(reader, GRAMMAR_JSON_OBJECT, "", 0);
}

/* The whole of it is the tag: {"type": "structural_tag", "format"} or {..., "structures", "triggers"}. */
static enum status read_tag_format(struct reader *reader, const json_t *format)
{
    reader->kind = "response_format";
    return take_json(reader, GRAMMAR_STRUCTURAL_TAG, format);
}

static enum status read_anything(struct reader *reader, const json_t *format)
{
    (void)reader;
    (void)format;
    return OK;
}

static const struct {
    const char *type;
    enum status (*read)(struct reader *reader, const json_t *format);
} formats[] = {
    {"text", read_anything},
    {"json_object", read_json_mode},
    {"json_schema", read_json_schema},
    {"structural_tag", read_tag_format},
};

static enum status read_response_format(struct reader *reader, const json_t *format)
{
    const char *type = json_string_value(json_object_get(format, "type"));

    for (size_t i = 0; i < COUNT_OF(formats) && type; i++)
        if (strcmp(formats[i].type, type) == 0)
            return formats[i].read(reader, format);
    return fail(ERR_INVALID, "response_format must be an object whose type is text, json_object, "
                "json_schema or structural_tag.");
}

/* ---- the whole ---------------------------------------------------------------------------------- */

bool structured_outputs_are_asked_for(const json_t *body)
{
    bool is_asked = field_find(body, "response_format") || field_find(body, "structured_outputs");

    for (size_t i = 0; i < COUNT_OF(guided_fields); i++)
        is_asked |= field_find(body, guided_fields[i].name) != NULL;
    return is_asked;
}

static enum status read_all(struct reader *reader, const json_t *body)
{
    const json_t *format = field_find(body, "response_format");
    const json_t *outputs = field_find(body, "structured_outputs");
    const char *before;

    reader->source = "response_format";
    if (format)
        TRY(read_response_format(reader, format));
    before = reader->kind;
    reader->source = "structured_outputs";
    if (outputs && before)
        return fail(ERR_INVALID, "You can only use one kind of constraint for structured outputs; "
                    "there are `response_format` and `structured_outputs`.");
    if (outputs)
        TRY(read_structured_outputs(reader, outputs));
    reader->source = NULL;
    return read_guided(reader, body);
}

enum status structured_outputs_read(const json_t *body, struct arena *arena,
                                    const struct grammar_spec **out, const char **param_out)
{
    struct reader reader = {.arena = arena};
    enum status status = read_all(&reader, body);

    *param_out = status == OK ? NULL : reader.source ? reader.source : reader.kind;
    TRY(status);
    if (reader.kind) {
        struct grammar_spec *spec = arena_alloc(arena, sizeof *spec);

        *spec = reader.spec;
        *out = spec;
    }
    return OK;
}
