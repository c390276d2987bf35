#include "engine/executor/procedures.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *phase; /* NULL: any */
    enum procedure_effect effect;
    const char *wants_spare;
} procedures[] = {
    {"sleep", NULL, PROCEDURE_SLEEP},
    {"wake_up", NULL, PROCEDURE_WAKE_UP},
    {"reload_weights", "load", PROCEDURE_LOAD},
    {"reload_weights", "begin", PROCEDURE_LOAD},
    {"reload_weights", "swap", PROCEDURE_EXCHANGE, "loaded"},
    {"reload_weights", "rollback", PROCEDURE_EXCHANGE, "replaced"},
};

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text ? text : "";
}

void procedure_read(const char *name, const char *args, struct procedure *out)
{
    json_t *object = json_loads(args, 0, NULL); /* NULL has no members */
    const char *phase = text_of(object, "phase"), *path = text_of(object, "path");

    *out = (struct procedure){.effect = PROCEDURE_NO_EFFECT};
    for (size_t i = 0; i < COUNT_OF(procedures); i++)
        if (strcmp(procedures[i].name, name) == 0 &&
            (!procedures[i].phase || strcmp(procedures[i].phase, phase) == 0)) {
            out->effect = procedures[i].effect;
            out->wants_spare = procedures[i].wants_spare;
        }
    out->drops_weights = out->effect == PROCEDURE_SLEEP &&
                         json_integer_value(json_object_get(object, "level")) > 1;
    if (out->effect == PROCEDURE_LOAD && strlen(path) < sizeof out->path)
        strcpy(out->path, path);
    json_decref(object);
}

static enum status check_spares(const json_t *list, const char *wanted)
{
    const char *first = text_of(json_array_get(list, 0), "spare_fingerprint");
    const json_t *reply;
    size_t rank;

    json_array_foreach(list, rank, reply) {
        const char *spare = text_of(reply, "spare"),
                   *fingerprint = text_of(reply, "spare_fingerprint");

        if (strcmp(spare, wanted) != 0)
            return fail(ERR_MISMATCH, "rank %zu: no weights were %s before", rank, wanted);
        if (strcmp(fingerprint, first) != 0)
            return fail(ERR_MISMATCH, "rank %zu has %s weights of fingerprint %.64s, rank 0 of %.64s",
                        rank, wanted, fingerprint, first);
    }
    return OK;
}

enum status procedure_check_spares(const char *replies, const char *wanted)
{
    json_t *list = json_loads(replies, 0, NULL);
    enum status status = json_array_size(list) > 0
                             ? check_spares(list, wanted)
                             : fail(ERR_CORRUPT, "no rank tells what weights it holds");

    json_decref(list);
    return status;
}

static enum status check_loads(const json_t *list, bool *are_over_out)
{
    enum status refusal = OK;
    const json_t *reply;
    size_t rank;

    json_array_foreach(list, rank, reply) {
        const char *spare = text_of(reply, "spare");

        if (strcmp(spare, "loading") == 0)
            *are_over_out = false;
        else if (strcmp(spare, "refused") == 0 && refusal == OK)
            refusal = fail(ERR_INVALID, "rank %zu: %s", rank, text_of(reply, "refusal"));
    }
    return *are_over_out && refusal == OK ? check_spares(list, "loaded") : refusal;
}

enum status procedure_check_loads(const char *replies, bool *are_over_out)
{
    json_t *list = json_loads(replies, 0, NULL);
    enum status status;

    *are_over_out = true;
    status = check_loads(list, are_over_out);
    json_decref(list);
    return *are_over_out ? status : OK;
}

void procedure_read_fingerprint(const char *replies, char out[static 17])
{
    json_t *list = json_loads(replies, 0, NULL);

    snprintf(out, 17, "%s", text_of(json_array_get(list, 0), "fingerprint"));
    json_decref(list);
}
