#include "worker/state.h"

#include "proto/base/clock.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void write_fingerprint(uint64_t fingerprint, char out[static 17])
{
    snprintf(out, 17, "%016" PRIx64, fingerprint);
}

static void note_spare(struct worker *worker, enum spare_weights spare)
{
    struct worker_weights *weights = &worker->weights;

    weights->spare = spare;
    weights->spare_bytes = worker->spare ? model_weight_bytes(worker->spare) : 0;
    weights->spare_fingerprint[0] = '\0';
    if (worker->spare)
        write_fingerprint(worker->spare_origin.fingerprint, weights->spare_fingerprint);
    else
        model_file_free(give(worker->spare_origin.owned));
}

void worker_end_change(struct worker *worker)
{
    struct worker_weights *weights = &worker->weights;

    worker->is_changing = false;
    worker->change_status = worker->changed.status;
    if (worker->changed.status != OK)
        snprintf(worker->refusal, sizeof worker->refusal, "%s", worker->changed.text);
    switch (worker->change.verb) {
    case VERB_SLEEP:
        weights->sleep_level = worker->change.sleep_level;
        input_batch_forget(worker->batch);
        if (weights->sleep_level > 1)
            note_spare(worker, SPARE_NONE);
        break;
    case VERB_WAKE_UP: /* it may have come half the way */
        weights->sleep_level = worker->changed.status == OK ? 0 : worker->model ? 1 : 2;
        break;
    case VERB_SWAP_WEIGHTS:
        input_batch_forget(worker->batch);
        note_spare(worker, weights->spare == SPARE_LOADED ? SPARE_REPLACED : SPARE_LOADED);
        break;
    default:
        note_spare(worker, SPARE_NONE);
    }
}

/* The device thread is at steps, perhaps, and the device is its own. */
static void note_spare_memory(struct worker *worker)
{
    struct memory_held spare = {0};

    worker_count_model(worker->spare, &spare);
    atomic_fetch_add(&worker->held.weights_bytes, spare.weights_bytes);
    atomic_fetch_add(&worker->held.workspace_bytes, spare.workspace_bytes);
    atomic_fetch_sub(&worker->held.free_bytes, spare.weights_bytes + spare.workspace_bytes);
}

void worker_end_reload(struct worker *worker)
{
    struct reloaded loaded;

    worker->change_status = reload_end(give(worker->reload), &loaded);
    if (worker->change_status != OK) {
        snprintf(worker->refusal, sizeof worker->refusal, "%s", fail_text());
        note_spare(worker, SPARE_REFUSED);
        return;
    }
    worker->spare = loaded.model;
    worker->spare_origin = (struct origin){loaded.file, loaded.file, loaded.fingerprint};
    note_spare_memory(worker);
    worker->weights.load_ms = loaded.load_ms;
    note_spare(worker, SPARE_LOADED);
}

static enum status check_idle(const struct worker *worker, const char *what)
{
    if (worker->initialize.num_blocks == 0 || !worker->is_connected)
        return fail(ERR_MISMATCH, "%s before the rank is ready for steps", what);
    if (worker->is_changing || worker->reload)
        return fail(ERR_MISMATCH, "%s while %s", what,
                    worker->reload ? "weights are being loaded" : "another change goes on");
    return OK;
}

static enum status check_between_steps(const struct worker *worker, const char *what)
{
    TRY(check_idle(worker, what));
    if (worker_has_steps(worker))
        return fail(ERR_MISMATCH, "%s while a step is in hand", what);
    return OK;
}

static void begin_change(struct worker *worker, enum verb verb)
{
    worker->change.verb = verb;
    worker->is_changing = true;
    worker_command(worker, &worker->change);
}

/* Nothing to do: over, and well. */
static enum status change_nothing(struct worker *worker)
{
    worker->change_status = OK;
    worker->weights.kv_bytes = worker->weights.weight_bytes = 0;
    return OK;
}

enum status worker_sleep(struct worker *worker, int32_t level)
{
    if (level < 1 || level > 2)
        return fail(ERR_INVALID, "sleep at level %d; there are 1 and 2", level);
    TRY(check_between_steps(worker, "sleep"));
    if (level <= worker->weights.sleep_level)
        return change_nothing(worker);
    worker->change.sleep_level = level;
    begin_change(worker, VERB_SLEEP);
    return OK;
}

enum status worker_wake_up(struct worker *worker)
{
    TRY(check_idle(worker, "wake-up"));
    if (worker->weights.sleep_level == 0)
        return change_nothing(worker);
    begin_change(worker, VERB_WAKE_UP);
    return OK;
}

enum status worker_load_weights(struct worker *worker, const char *path)
{
    TRY(check_idle(worker, "load of weights"));
    if (worker->spare)
        return fail(ERR_MISMATCH, "load of weights while others, of fingerprint %s, are kept beside "
                                  "those in use: drop them first",
                    worker->weights.spare_fingerprint);
    if (worker->weights.sleep_level > 0)
        return fail(ERR_MISMATCH, "load of weights while the rank is asleep");
    TRY(reload_start(&(struct reload_options){.path = path,
                                              .running = worker->file,
                                              .model = worker_model_options(worker),
                                              .isa = worker->options.isa,
                                              .cuda_module = worker->options.cuda_module,
                                              .ordinal = worker->options.local_rank,
                                              .cublaslt_rows = worker_cublaslt_rows(&worker->options),
                                              .cublaslt = worker->options.cublaslt,
                                              .device = worker->device},
                     &worker->answers, &worker->reload));
    worker->weights.spare = SPARE_LOADING;
    return OK;
}

static enum status exchange_weights(struct worker *worker, enum spare_weights with,
                                    const char *what, const char *fingerprint)
{
    const struct worker_weights *weights = &worker->weights;

    TRY(check_between_steps(worker, what));
    if (weights->sleep_level > 0)
        return fail(ERR_MISMATCH, "%s while the rank is asleep", what);
    if (weights->spare != with)
        return fail(ERR_MISMATCH, "%s, and no weights were %s before", what,
                    with == SPARE_LOADED ? "loaded" : "replaced");
    if (fingerprint && strcmp(fingerprint, weights->spare_fingerprint) != 0)
        return fail(ERR_MISMATCH, "%s to weights of fingerprint %.64s, those loaded have %s", what,
                    fingerprint, weights->spare_fingerprint);
    begin_change(worker, VERB_SWAP_WEIGHTS);
    return OK;
}

enum status worker_swap_weights(struct worker *worker, const char *fingerprint)
{
    return exchange_weights(worker, SPARE_LOADED, "swap of weights", fingerprint);
}

enum status worker_roll_weights_back(struct worker *worker)
{
    return exchange_weights(worker, SPARE_REPLACED, "rollback of weights", NULL);
}

enum status worker_drop_weights(struct worker *worker)
{
    TRY(check_idle(worker, "drop of weights"));
    if (!worker->spare) {
        worker->weights.spare = SPARE_NONE;
        return change_nothing(worker);
    }
    begin_change(worker, VERB_DROP_WEIGHTS);
    return OK;
}

enum status worker_finish(struct worker *worker, bool wait, bool *is_over_out)
{
    bool goes_on = true;

    /* What is answered to steps in hand is worker_collect's, which takes what comes between. */
    while (goes_on && !worker_has_steps(worker) && (worker->is_changing || worker->reload)) {
        struct mail *mail = wait ? mailbox_wait(&worker->answers, clock_deadline_ns(-1))
                                 : mailbox_pop(&worker->answers);

        goes_on = mail && worker_take_change(worker, mail);
    }
    *is_over_out = !worker->is_changing && !worker->reload;
    return !*is_over_out || worker->change_status == OK
               ? OK
               : fail(worker->change_status, "%s", worker->refusal);
}

struct worker_weights worker_weights(const struct worker *worker)
{
    struct worker_weights weights = worker->weights;

    write_fingerprint(worker->origin.fingerprint, weights.fingerprint);
    weights.refusal = worker->refusal;
    weights.fraction = worker->reload ? reload_fraction(worker->reload) : worker->spare ? 1 : 0;
    return weights;
}
