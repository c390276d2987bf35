#include "engine/grammar/xgrammar_schema.h"

#include "engine/grammar/schema.h"
#include "engine/grammar/words.h"

#include <math.h>
#include <string.h>

/* ---- types of values ------------------------------------------------------------------------- */

enum {
    NULLS = 1,
    BOOLEANS = 2,
    INTEGERS = 4,
    FRACTIONS = 8, /* numbers that are no integers */
    STRINGS = 16,
    ARRAYS = 32,
    OBJECTS = 64,
    NUMBERS = INTEGERS | FRACTIONS,
    ALL = 127
};

static const struct {
    const char *name;
    int types;
} type_names[] = {
    {"null", NULLS},     {"boolean", BOOLEANS}, {"integer", INTEGERS}, {"number", NUMBERS},
    {"string", STRINGS}, {"array", ARRAYS},     {"object", OBJECTS},
};

static int types_named(json_t *type)
{
    int types = 0;
    json_t *item;
    size_t k;

    for (size_t i = 0; json_is_string(type) && i < COUNT_OF(type_names); i++)
        if (strcmp(json_string_value(type), type_names[i].name) == 0)
            types = type_names[i].types;
    json_array_foreach (type, k, item)
        if (json_is_string(item))
            types |= types_named(item);
    return types;
}

static int type_of_value(json_t *value)
{
    double number = json_number_value(value);

    switch (json_typeof(value)) {
    case JSON_NULL:
        return NULLS;
    case JSON_TRUE:
    case JSON_FALSE:
        return BOOLEANS;
    case JSON_INTEGER:
    case JSON_REAL:
        return number == floor(number) ? INTEGERS : FRACTIONS;
    case JSON_STRING:
        return STRINGS;
    case JSON_ARRAY:
        return ARRAYS;
    case JSON_OBJECT:
        return OBJECTS;
    }
    return ALL;
}

/* Of an enum or const; 0: it is neither. */
static int types_of_values(json_t *schema)
{
    json_t *constant = json_object_get(schema, "const"), *list = json_object_get(schema, "enum"),
           *item;
    int types = constant ? type_of_value(constant) : 0;
    size_t i;

    if (!constant)
        json_array_foreach (list, i, item)
            types |= type_of_value(item);
    return types;
}

static bool has_any(json_t *schema, const char *const *keywords)
{
    for (; *keywords; keywords++)
        if (json_object_get(schema, *keywords))
            return true;
    return false;
}

/* What XGrammar takes a schema without a `type` to be. */
static int types_implied(json_t *schema)
{
    static const char *const of_objects[] = {"properties", "additionalProperties",
                                             "unevaluatedProperties", NULL};
    static const char *const of_arrays[] = {"items", "prefixItems", "unevaluatedItems", NULL};

    return has_any(schema, of_objects) ? OBJECTS : has_any(schema, of_arrays) ? ARRAYS : ALL;
}

/* ---- oneOf: whether two schemas surely have no value in common ------------------------------- */

static int types_of_schema(json_t *schema)
{
    static const char *const opaque[] = {"$ref", "anyOf", "oneOf", "allOf", NULL};

    if (!json_is_object(schema) || has_any(schema, opaque))
        return ALL;
    if (types_of_values(schema))
        return types_of_values(schema);
    return json_object_get(schema, "type") ? types_named(json_object_get(schema, "type"))
                                           : types_implied(schema);
}

static bool is_among(json_t *value, json_t *schema)
{
    json_t *constant = json_object_get(schema, "const"), *item;
    size_t i;

    if (constant)
        return json_equal(value, constant);
    json_array_foreach (json_object_get(schema, "enum"), i, item)
        if (json_equal(value, item))
            return true;
    return false;
}

/* Strings only: 1 and 1.0 are one number. */
static bool have_other_strings(json_t *a, json_t *b)
{
    json_t *constant = json_object_get(a, "const"), *item;
    size_t i;

    if (types_of_values(a) != STRINGS || types_of_values(b) != STRINGS)
        return false;
    if (constant)
        return !is_among(constant, b);
    json_array_foreach (json_object_get(a, "enum"), i, item)
        if (is_among(item, b))
            return false;
    return true;
}

static bool is_required(json_t *schema, const char *name)
{
    json_t *item;
    size_t i;

    json_array_foreach (json_object_get(schema, "required"), i, item)
        if (json_is_string(item) && strcmp(json_string_value(item), name) == 0)
            return true;
    return false;
}

/* A property that both must have tells them apart. */
static bool are_told_apart(json_t *a, json_t *b)
{
    json_t *others = json_object_get(b, "properties"), *mine;
    const char *name;

    if (types_of_schema(a) != OBJECTS || types_of_schema(b) != OBJECTS)
        return false;
    json_object_foreach (json_object_get(a, "properties"), name, mine)
        if (is_required(a, name) && is_required(b, name) &&
            have_other_strings(mine, json_object_get(others, name)))
            return true;
    return false;
}

enum { MAX_ARMS = 256 }; /* each is held against each other one */

static bool are_disjoint(json_t *arms)
{
    size_t n = json_array_size(arms);

    if (n > MAX_ARMS)
        return false;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < i; k++) {
            json_t *a = json_array_get(arms, i), *b = json_array_get(arms, k);

            if ((types_of_schema(a) & types_of_schema(b)) != 0 && !have_other_strings(a, b) &&
                !are_told_apart(a, b))
                return false;
        }
    return true;
}

/* ---- keywords -------------------------------------------------------------------------------- */

/* The first of these that is there is what a schema is read by. */
static const char *const readers[] = {"$ref", "const", "enum", "anyOf", "oneOf", "allOf", NULL};

static bool never(json_t *schema)
{
    (void)schema;
    return false;
}

static bool always(json_t *schema)
{
    (void)schema;
    return true;
}

/* A format goes before a pattern, a pattern before lengths. */
static bool format_counts(json_t *schema)
{
    static const char *const known[] = {"date",
                                        "time",
                                        "date-time",
                                        "duration",
                                        "email",
                                        "hostname",
                                        "ipv4",
                                        "ipv6",
                                        "uri",
                                        "uri-reference",
                                        "uri-template",
                                        "uuid",
                                        "json-pointer",
                                        "relative-json-pointer",
                                        NULL};
    const char *format = json_string_value(json_object_get(schema, "format"));

    for (const char *const *name = known; format && *name; name++)
        if (strcmp(format, *name) == 0)
            return true;
    return false;
}

static bool pattern_counts(json_t *schema)
{
    return !json_object_get(schema, "format");
}

static bool length_counts(json_t *schema)
{
    return !json_object_get(schema, "format") && !json_object_get(schema, "pattern");
}

static bool multiple_counts(json_t *schema)
{
    static const char *const limits[] = {"minimum", "maximum", "exclusiveMinimum",
                                         "exclusiveMaximum", NULL};
    double multiple = json_number_value(json_object_get(schema, "multipleOf"));
    int types = types_named(json_object_get(schema, "type"));

    return !(types & FRACTIONS) && !has_any(schema, limits) && multiple == floor(multiple) &&
           multiple <= 1024;
}

static bool uniqueness_is_not_asked(json_t *schema)
{
    return json_is_false(json_object_get(schema, "uniqueItems"));
}

static bool required_ones_are_listed(json_t *schema)
{
    json_t *properties = json_object_get(schema, "properties"), *item;
    size_t i;

    json_array_foreach (json_object_get(schema, "required"), i, item)
        if (json_is_string(item) && !json_object_get(properties, json_string_value(item)))
            return false;
    return true;
}

/* Of a key that fits two of these, it minds one. */
static bool patterns_stand_alone(json_t *schema)
{
    return json_object_size(json_object_get(schema, "patternProperties")) <= 1 &&
           json_object_size(json_object_get(schema, "properties")) == 0;
}

static bool names_stand_alone(json_t *schema)
{
    return !json_object_get(schema, "patternProperties") &&
           json_object_size(json_object_get(schema, "properties")) == 0;
}

static bool unevaluated_ones_do_not_matter(json_t *schema)
{
    return json_object_get(schema, "additionalProperties") ||
           json_is_true(json_object_get(schema, "unevaluatedProperties"));
}

static bool condition_has_no_consequence(json_t *schema)
{
    return !json_object_get(schema, "then") && !json_object_get(schema, "else");
}

/* What constrains values of these types; it is enforced where the schema is read by its type, and
 * `counts`. */
static const struct {
    const char *name;
    int types;
    bool (*counts)(json_t *schema);
} keywords[] = {
    {"not", ALL, never},
    {"if", ALL, condition_has_no_consequence},
    {"$dynamicRef", ALL, never},
    {"$recursiveRef", ALL, never},
    {"type", ALL, always},
    {"minimum", NUMBERS, always},
    {"maximum", NUMBERS, always},
    {"exclusiveMinimum", NUMBERS, always},
    {"exclusiveMaximum", NUMBERS, always},
    {"multipleOf", NUMBERS, multiple_counts},
    {"format", STRINGS, format_counts},
    {"pattern", STRINGS, pattern_counts},
    {"minLength", STRINGS, length_counts},
    {"maxLength", STRINGS, length_counts},
    {"items", ARRAYS, always},
    {"prefixItems", ARRAYS, always},
    {"unevaluatedItems", ARRAYS, always},
    {"minItems", ARRAYS, always},
    {"maxItems", ARRAYS, always},
    {"uniqueItems", ARRAYS, uniqueness_is_not_asked},
    {"contains", ARRAYS, never},
    {"properties", OBJECTS, always},
    {"required", OBJECTS, required_ones_are_listed},
    {"patternProperties", OBJECTS, patterns_stand_alone},
    {"additionalProperties", OBJECTS, always},
    {"unevaluatedProperties", OBJECTS, unevaluated_ones_do_not_matter},
    {"propertyNames", OBJECTS, names_stand_alone},
    {"minProperties", OBJECTS, always},
    {"maxProperties", OBJECTS, always},
    {"dependentRequired", OBJECTS, never},
    {"dependentSchemas", OBJECTS, never},
    {"dependencies", OBJECTS, never},
};

static enum status refuse(const struct schema_place *place, const char *keyword)
{
    char path[SCHEMA_PATH_BYTES];

    return fail(ERR_INVALID, "the keyword `%s` at %s is not enforced by xgrammar", keyword,
                schema_path(place, path));
}

/* `type` beside values that all are of it says nothing. */
static bool is_said_already(json_t *schema, const char *keyword, int types)
{
    int named = types_named(json_object_get(schema, keyword));

    return strcmp(keyword, "type") == 0 && types_of_values(schema) && (types & ~named) == 0;
}

/* A schema that is read by `reader`: what stands beside it is dropped, unless it is of other
 * types. */
static enum status check_siblings(const struct schema_place *place, const char *reader)
{
    json_t *schema = place->schema;
    bool has_values = strcmp(reader, "const") == 0 || strcmp(reader, "enum") == 0;
    int types = has_values ? types_of_values(schema) : ALL;

    for (const char *const *other = readers; *other; other++)
        if (strcmp(*other, reader) != 0 && json_object_get(schema, *other))
            return refuse(place, *other);
    for (size_t i = 0; i < COUNT_OF(keywords); i++)
        if ((keywords[i].types & types) && json_object_get(schema, keywords[i].name) &&
            !(has_values && is_said_already(schema, keywords[i].name, types)))
            return refuse(place, keywords[i].name);
    return OK;
}

static enum status check_reader(const struct schema_place *place, const char *reader)
{
    json_t *value = json_object_get(place->schema, reader);
    const char *reference = json_string_value(value);

    TRY(check_siblings(place, reader));
    /* Outside of the document it takes anything; and it reads a path without its escapes. */
    if (strcmp(reader, "$ref") == 0 && reference &&
        (strpbrk(reference, "~%") ||
         (strcmp(reference, "#") != 0 && strncmp(reference, "#/", 2) != 0)))
        return refuse(place, reader);
    if (strcmp(reader, "allOf") == 0 && json_array_size(value) > 1)
        return refuse(place, reader);
    if (strcmp(reader, "oneOf") == 0 && !are_disjoint(value))
        return refuse(place, reader);
    return OK;
}

static enum status check_schema(void *user, const struct schema_place *place)
{
    json_t *schema = place->schema, *type = json_object_get(schema, "type");
    bool is_name = place->keyword && strcmp(place->keyword, "propertyNames") == 0;
    int types;

    (void)user;
    if (place->parent && json_object_get(schema, "$id")) /* references inside of it start there */
        return refuse(place, "$id");
    for (const char *const *reader = readers; *reader; reader++)
        if (json_object_get(schema, *reader))
            return check_reader(place, *reader);
    if (json_is_string(type) || json_array_size(type) > 0)
        types = types_named(type);
    else
        types = is_name ? STRINGS : types_implied(schema);
    for (size_t i = 0; i < COUNT_OF(keywords); i++)
        if ((keywords[i].types & types) && json_object_get(schema, keywords[i].name) &&
            ((types == ALL && keywords[i].types != ALL) || !keywords[i].counts(schema)))
            return refuse(place, keywords[i].name);
    return OK;
}

enum status xgrammar_check_schema(json_t *schema)
{
    return schema_visit(schema, check_schema, NULL);
}

/* ---- structural tags ------------------------------------------------------------------------- */

enum status xgrammar_check_structural_tag(json_t *tag, bool lenient)
{
    const char *type = json_string_value(json_object_get(tag, "type")), *key;
    char name[SHORT_NAME_BYTES];
    json_t *child;
    size_t i;

    if (type && strstr(type, "token")) /* "token", "any_tokens", "token_dispatch", ... */
        return fail(ERR_INVALID, "a structural tag may not name tokens, as the format `%s` does",
                    short_name(type, name));
    json_object_foreach (tag, key, child) {
        if (strcmp(key, "json_schema") != 0)
            TRY(xgrammar_check_structural_tag(child, lenient));
        else if (!lenient)
            TRY(xgrammar_check_schema(child));
    }
    json_array_foreach (tag, i, child)
        TRY(xgrammar_check_structural_tag(child, lenient));
    return OK;
}
