/* The procedures that an engine may call on its ranks, beside those that let them meet. */
#include "worker/worker.h"

#include "proto/base/stacks.h"

#include <jansson.h>
#include <string.h>
#include <unistd.h>

struct worker_procedure {
    const char *name;
    const char *phase; /* of its arguments; NULL: it has none */
    /* Does it, or begins a change; NULL: there is nothing to do before the reply. */
    enum status (*begin)(struct worker *worker, const json_t *args);
    bool waits; /* the reply, for the change that was begun */
    enum status (*reply)(const struct worker_weights *weights, json_t *reply);
};

static const char *text_of(const json_t *args, const char *name)
{
    return json_string_value(json_object_get(args, name));
}

/* ---- sleep ------------------------------------------------------------------------------------ */

static enum status begin_sleep(struct worker *worker, const json_t *args)
{
    const json_t *level = json_object_get(args, "level");

    return worker_sleep(worker, level ? (int32_t)json_integer_value(level) : 1);
}

static enum status begin_wake_up(struct worker *worker, const json_t *args)
{
    (void)args;
    return worker_wake_up(worker);
}

static enum status reply_sleep(const struct worker_weights *weights, json_t *reply)
{
    json_object_set_new(reply, "level", json_integer(weights->sleep_level));
    json_object_set_new(reply, "kv_cache_bytes", json_integer(weights->kv_bytes));
    json_object_set_new(reply, "weight_bytes", json_integer(weights->weight_bytes));
    return OK;
}

/* ---- weights ---------------------------------------------------------------------------------- */

static enum status begin_load(struct worker *worker, const json_t *args)
{
    const char *path = text_of(args, "path");

    if (!path || !*path)
        return fail(ERR_INVALID, "reload_weights wants the path of a model");
    return worker_load_weights(worker, path);
}

static enum status begin_swap(struct worker *worker, const json_t *args)
{
    return worker_swap_weights(worker, text_of(args, "fingerprint"));
}

static enum status begin_rollback(struct worker *worker, const json_t *args)
{
    (void)args;
    return worker_roll_weights_back(worker);
}

static enum status begin_drop(struct worker *worker, const json_t *args)
{
    (void)args;
    return worker_drop_weights(worker);
}

static enum status reply_weights(const struct worker_weights *weights, json_t *reply)
{
    static const char *const names[] = {
        [SPARE_NONE] = "none",         [SPARE_LOADING] = "loading", [SPARE_LOADED] = "loaded",
        [SPARE_REPLACED] = "replaced", [SPARE_REFUSED] = "refused",
    };
    bool is_kept = weights->spare == SPARE_LOADED || weights->spare == SPARE_REPLACED;

    json_object_set_new(reply, "fingerprint", json_string(weights->fingerprint));
    json_object_set_new(reply, "spare", json_string(names[weights->spare]));
    if (weights->spare == SPARE_LOADING)
        json_object_set_new(reply, "fraction", json_real(weights->fraction));
    if (weights->spare == SPARE_REFUSED)
        json_object_set_new(reply, "refusal", json_string(weights->refusal));
    if (is_kept) {
        json_object_set_new(reply, "spare_fingerprint", json_string(weights->spare_fingerprint));
        json_object_set_new(reply, "spare_bytes", json_integer(weights->spare_bytes));
        json_object_set_new(reply, "load_ms", json_real(weights->load_ms));
    }
    return OK;
}

static enum status reply_drop(const struct worker_weights *weights, json_t *reply)
{
    json_object_set_new(reply, "fingerprint", json_string(weights->fingerprint));
    json_object_set_new(reply, "weight_bytes", json_integer(weights->weight_bytes));
    return OK;
}

/* ---- stacks ----------------------------------------------------------------------------------- */

static enum status reply_stacks(const struct worker_weights *weights, json_t *reply)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    (void)weights;
    TRY(stacks_of_process(getpid(), &text));
    json_object_set_new(reply, "pid", json_integer(getpid()));
    json_object_set_new(reply, "text", json_string(bytes_text(&text)));
    return OK;
}

/* ---- the table -------------------------------------------------------------------------------- */

static const struct worker_procedure procedures[] = {
    {"sleep", NULL, begin_sleep, true, reply_sleep},
    {"wake_up", NULL, begin_wake_up, true, reply_sleep},
    {"reload_weights", "load", begin_load, true, reply_weights},
    {"reload_weights", "begin", begin_load, false, reply_weights},
    {"reload_weights", "status", NULL, false, reply_weights},
    {"reload_weights", "swap", begin_swap, true, reply_weights},
    {"reload_weights", "rollback", begin_rollback, true, reply_weights},
    {"reload_weights", "drop", begin_drop, true, reply_drop},
    {"stacks", NULL, NULL, false, reply_stacks},
};

static enum status find(const char *name, const char *phase, const struct worker_procedure **out)
{
    bool is_known = false;

    for (size_t i = 0; i < COUNT_OF(procedures); i++) {
        const struct worker_procedure *procedure = &procedures[i];

        if (strcmp(procedure->name, name) != 0)
            continue;
        is_known = true;
        *out = procedure;
        if (!procedure->phase || (phase && strcmp(procedure->phase, phase) == 0))
            return OK;
    }
    return is_known ? fail(ERR_INVALID, "%s has no phase '%.64s'", name, phase ? phase : "")
                    : fail(ERR_NOT_FOUND, "no call is named '%.64s'", name);
}

static enum status begin(struct worker *worker, const char *name, const json_t *args,
                         const struct worker_procedure **out)
{
    const struct worker_procedure *procedure;

    TRY(find(name, text_of(args, "phase"), &procedure));
    if (procedure->begin)
        TRY(procedure->begin(worker, args));
    *out = procedure;
    return OK;
}

enum status worker_call_begin(struct worker *worker, const char *name, const char *args,
                              struct worker_call *out)
{
    json_t *object = json_loads(args, 0, NULL); /* NULL has no members either */
    enum status status = begin(worker, name, object, &out->procedure);

    json_decref(object);
    return status;
}

enum status worker_call_end(struct worker *worker, struct worker_call *call, bool wait,
                            struct bytes *reply, bool *is_over_out)
{
    const struct worker_procedure *procedure = call->procedure;
    bool is_over = true;
    enum status status = worker_finish(worker, wait && procedure->waits, &is_over);

    *is_over_out = is_over || !procedure->waits;
    if (!*is_over_out)
        return OK;
    call->procedure = NULL;
    if (procedure->waits)
        TRY(status);

    struct worker_weights weights = worker_weights(worker);
    json_t *object = json_object();
    char *text = NULL;

    status = procedure->reply(&weights, object);
    if (status == OK)
        text = json_dumps(object, JSON_COMPACT);
    json_decref(object);
    TRY(status);
    ASSERT(text);
    bytes_printf(reply, "%s", text);
    free(text);
    return OK;
}
