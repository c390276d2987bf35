#include "engine/grammar/schema.h"

#include "engine/grammar/words.h"
#include "proto/base/map.h"

#include <string.h>

enum status schema_load(const char *what, const char *text, size_t size, json_t **out)
{
    json_error_t error;

    *out =
        json_loadb(text, size, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!*out) {
        (void)!fail_in_words(ERR_INVALID, error.text, strlen(error.text));
        return fail(ERR_INVALID, "the %s is no JSON: %s, at byte %d", what, fail_text(),
                    error.position);
    }
    return OK;
}

/* ---- references ------------------------------------------------------------------------------ */

/* A step of a JSON pointer, "~1" and "~0" undone; `step` has room for it. */
static const char *next_step(const char *pointer, char *step)
{
    for (; *pointer != '\0' && *pointer != '/'; pointer++) {
        char c = *pointer;

        if (c == '~' && (pointer[1] == '0' || pointer[1] == '1'))
            c = *++pointer == '1' ? '/' : '~';
        *step++ = c;
    }
    *step = '\0';
    return pointer;
}

/* NULL: it is not there, or outside of the document. */
static json_t *resolve(json_t *root, const char *reference)
{
    AUTO_MEM char *step = mem_alloc(strlen(reference) + 1);
    json_t *json = root;

    if (*reference++ != '#')
        return NULL;
    while (json && *reference == '/') {
        reference = next_step(reference + 1, step);
        if (json_is_array(json)) {
            char *end;
            unsigned long index = strtoul(step, &end, 10);

            json = *step == '\0' || *end != '\0' ? NULL : json_array_get(json, index);
        } else {
            json = json_object_get(json, step); /* NULL of what is no object */
        }
    }
    return *reference == '\0' ? json : NULL;
}

/* ---- the schemas of a document --------------------------------------------------------------- */

enum { HOLDS_SCHEMA = 1, HOLDS_LIST = 2, HOLDS_NAMES = 4 };

static const struct {
    const char *keyword;
    int holds;
} keywords[] = {
    {"$defs", HOLDS_NAMES},
    {"definitions", HOLDS_NAMES},
    {"properties", HOLDS_NAMES},
    {"patternProperties", HOLDS_NAMES},
    {"dependentSchemas", HOLDS_NAMES},
    {"dependencies", HOLDS_NAMES}, /* or lists of names, which are no schemas */
    {"allOf", HOLDS_LIST},
    {"anyOf", HOLDS_LIST},
    {"oneOf", HOLDS_LIST},
    {"prefixItems", HOLDS_LIST},
    {"items", HOLDS_SCHEMA | HOLDS_LIST},
    {"additionalItems", HOLDS_SCHEMA},
    {"unevaluatedItems", HOLDS_SCHEMA},
    {"contains", HOLDS_SCHEMA},
    {"additionalProperties", HOLDS_SCHEMA},
    {"unevaluatedProperties", HOLDS_SCHEMA},
    {"propertyNames", HOLDS_SCHEMA},
    {"not", HOLDS_SCHEMA},
    {"if", HOLDS_SCHEMA},
    {"then", HOLDS_SCHEMA},
    {"else", HOLDS_SCHEMA},
    {"contentSchema", HOLDS_SCHEMA},
};

struct visit {
    struct arena arena;
    struct map seen;                    /* json_t -> itself */
    const struct schema_place **places; /* those that are known so far */
    size_t num_places, capacity;
};

static void visit_close(struct visit *visit)
{
    map_close(&visit->seen);
    arena_close(&visit->arena);
    mem_free(visit->places);
}

static void add_place(struct visit *visit, struct schema_place place)
{
    struct schema_place *copy;

    /* jansson shares one true and one false among all: they are not told apart, and need not be. */
    if (!json_is_boolean(place.schema) &&
        map_put(&visit->seen, (uint64_t)(uintptr_t)place.schema, place.schema))
        return;
    copy = arena_alloc(&visit->arena, sizeof *copy);
    *copy = place;
    if (visit->num_places == visit->capacity) {
        visit->capacity = 2 * visit->capacity + 16;
        visit->places = mem_resize(visit->places, visit->capacity * sizeof *visit->places);
    }
    visit->places[visit->num_places++] = copy;
}

static void add_children(struct visit *visit, json_t *root, const struct schema_place *parent)
{
    json_t *reference = json_object_get(parent->schema, "$ref"), *target;

    for (size_t k = 0; k < COUNT_OF(keywords); k++) {
        json_t *value = json_object_get(parent->schema, keywords[k].keyword), *child;
        struct schema_place place = {.parent = parent, .keyword = keywords[k].keyword};

        if (!value)
            continue;
        if (keywords[k].holds & HOLDS_NAMES) {
            json_object_foreach (value, place.name, child) {
                place.schema = child;
                add_place(visit, place);
            }
        } else if (json_is_array(value) && (keywords[k].holds & HOLDS_LIST)) {
            place.is_item = true;
            json_array_foreach (value, place.index, child) {
                place.schema = child;
                add_place(visit, place);
            }
        } else {
            place.schema = value;
            add_place(visit, place);
        }
    }
    if (json_is_string(reference)) {
        target = resolve(root, json_string_value(reference));
        if (target)
            add_place(visit,
                      (struct schema_place){.parent = parent, .keyword = "$ref", .schema = target});
    }
}

enum status schema_visit(json_t *root,
                         enum status (*visit_one)(void *user, const struct schema_place *place),
                         void *user)
{
    AUTO_CLOSE(visit) struct visit visit = {0};

    add_place(&visit, (struct schema_place){.schema = root});
    for (size_t i = 0; i < visit.num_places; i++) {
        const struct schema_place *place = visit.places[i];

        add_children(&visit, root, place);
        TRY(visit_one(user, place));
    }
    return OK;
}

static enum status close_object(void *user, const struct schema_place *place)
{
    bool lists = json_object_get(place->schema, "properties") ||
                 json_object_get(place->schema, "patternProperties");
    bool says = json_object_get(place->schema, "additionalProperties") ||
                json_object_get(place->schema, "unevaluatedProperties");

    (void)user;
    if (lists && !says)
        json_object_set_new(place->schema, "additionalProperties", json_false());
    return OK;
}

enum status schema_close_objects(json_t *root)
{
    return schema_visit(root, close_object, NULL);
}

const char *schema_path(const struct schema_place *place, char text[static SCHEMA_PATH_BYTES])
{
    size_t at = SCHEMA_PATH_BYTES - 1;
    char step[SCHEMA_PATH_BYTES], name[SHORT_NAME_BYTES];

    text[at] = '\0';
    if (!place->parent)
        return "the root";
    for (; place->parent; place = place->parent) { /* from the end, which says most */
        size_t size;

        if (place->name) {
            size = (size_t)snprintf(step, sizeof step, "/%s/%s", place->keyword,
                                    short_name(place->name, name));
        } else if (place->is_item) {
            size = (size_t)snprintf(step, sizeof step, "/%s/%zu", place->keyword, place->index);
        } else {
            size = (size_t)snprintf(step, sizeof step, "/%s", place->keyword);
        }
        if (at < size + 4) {
            at -= 3;
            memcpy(text + at, "...", 3);
            break;
        }
        at -= size;
        memcpy(text + at, step, size);
    }
    return text + at;
}
