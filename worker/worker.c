#include "worker/state.h"

#include "proto/base/clock.h"
#include "proto/base/trace.h"
#include "worker/comm_hosts.h"
#include "worker/comm_net.h"

#include <inttypes.h>
#include <string.h>

/* From an abort to the device's return: the rest of a kernel, or of a layer that is loaded, and the waits that follow
 * it. */
enum { RESET_TIMEOUT_MS = 2000 };

/* ---- life ------------------------------------------------------------------------------------- */

void worker_command(struct worker *worker, struct command *command)
{
    if (mailbox_push(&worker->commands, &command->mail) != OK)
        ASSERT(false, "%s", fail_text()); /* it holds as many as there are commands */
}

static enum status make_batch(struct worker *worker)
{
    const struct worker_options *options = &worker->options;

    return input_batch_new(
        &(struct input_batch_limits){
            .max_num_seqs = options->max_num_seqs,
            .max_batched_tokens = options->max_batched_tokens,
            .max_model_len = options->max_model_len,
            .vocab_size = model_file_vocabulary(worker->file)->num_tokens,
        },
        &worker->batch);
}

enum status worker_new(const struct worker_options *options, const struct model_file *model,
                       struct worker **out)
{
    AUTO_FREE(worker) struct worker *worker = mem_new(struct worker);

    worker->options = *options;
    if (options->local_world == 0) {
        worker->options.local_rank = options->rank;
        worker->options.local_world = options->world;
    }
    worker->file = model;
    worker->origin.file = model;
    worker->next_step = -1;
    atomic_store(&worker->device_step, -1);
    worker->is_connected = options->world == 1; /* by loading */
    worker->connect.verb = VERB_CONNECT;
    worker->initialize.verb = VERB_INITIALIZE_KV_CACHE;
    worker->reset.verb = VERB_RESET;
    worker->stop.verb = VERB_STOP;
    for (int i = 0; i < NUM_STEPS; i++) {
        worker->steps[i].execute.verb = VERB_EXECUTE_MODEL;
        worker->steps[i].sample.verb = VERB_SAMPLE;
        worker->steps[i].bitmasks = mem_new_array(const uint32_t *, (size_t)options->max_num_seqs);
    }
    TRY(mailbox_open(&worker->commands, 2 * NUM_STEPS + 5));
    TRY(mailbox_open(&worker->answers, NUM_STEPS + 5));
    TRY(make_batch(worker));
    if (pthread_create(&worker->thread, NULL, worker_device_loop, worker) != 0)
        return fail(ERR_IO, "no thread for the device: %m");
    worker->thread_runs = true;
    *out = give(worker);
    return OK;
}

/* While the device is there that its model would have run on. */
static void drop_reload(struct worker *worker)
{
    if (!worker->reload)
        return;
    reload_stop(worker->reload);
    while (mailbox_pop(&worker->answers)) /* nobody waits for any */
        continue;
    reload_free(give(worker->reload));
}

bool worker_stop(struct worker *worker)
{
    int64_t deadline_ns = clock_deadline_ns(RESET_TIMEOUT_MS);
    struct mail *mail;

    atomic_store(&worker->is_given_up, true);
    worker_abort(worker);
    drop_reload(worker);
    worker_command(worker, &worker->stop);
    do
        mail = mailbox_wait(&worker->answers, deadline_ns);
    while (mail && mail != &worker->stopped);
    if (!mail)
        return false;
    pthread_join(worker->thread, NULL);
    worker->thread_runs = false;
    return true;
}

void worker_free(struct worker *worker)
{
    if (!worker)
        return;
    drop_reload(worker);
    if (worker->thread_runs) {
        worker_command(worker, &worker->stop);
        pthread_join(worker->thread, NULL);
    }
    /* The engine may stop in the middle of a step: its answer is nobody's, and lies in steps[]. */
    while (mailbox_pop(&worker->commands) || mailbox_pop(&worker->answers))
        continue;
    input_batch_free(worker->batch);
    for (int i = 0; i < NUM_STEPS; i++) {
        arena_close(&worker->steps[i].answer.arena);
        arena_close(&worker->steps[i].grammar_arena);
        mem_free(worker->steps[i].bitmasks);
    }
    arena_close(&worker->meeting);
    mailbox_close(&worker->commands);
    mailbox_close(&worker->answers);
    model_file_free(worker->origin.owned);
    model_file_free(worker->spare_origin.owned);
    mem_free(worker);
}

int worker_output_fd(const struct worker *worker)
{
    return mailbox_fd(&worker->answers);
}

static void end_connect(struct worker *worker);

bool worker_take_change(struct worker *worker, struct mail *mail)
{
    if (mail == &worker->met.mail)
        end_connect(worker);
    else if (mail == &worker->changed.mail)
        worker_end_change(worker);
    else if (worker->reload && mail == reload_mail(worker->reload))
        worker_end_reload(worker);
    else
        return false;
    return true;
}

/* The next answer; NULL: there is none. */
static struct mail *next_answer(struct worker *worker, bool wait)
{
    struct mail *mail;

    do
        mail = wait ? mailbox_wait(&worker->answers, clock_deadline_ns(-1))
                    : mailbox_pop(&worker->answers);
    while (mail && worker_take_change(worker, mail));
    return mail;
}

/* Waits for what loading, or another command that is no step, came to. */
static enum status wait_setup(struct worker *worker)
{
    struct mail *mail = next_answer(worker, true);
    const struct answer *answer = MAIL_ITEM(mail, struct answer, mail);

    ASSERT(answer == &worker->setup);
    return answer->status == OK ? OK : fail(answer->status, "%s", answer->text);
}

enum status worker_wait_loaded(struct worker *worker, struct worker_memory *memory_out)
{
    ASSERT(!worker->is_loaded);
    TRY(wait_setup(worker));
    worker->is_loaded = true;
    *memory_out = worker->memory;
    return OK;
}

bool worker_is_loaded(const struct worker *worker)
{
    return worker->is_loaded;
}

enum status worker_create_shared(const struct worker *worker, int32_t num_ranks, const char *path)
{
    int32_t world = worker->options.world;
    int64_t buffer_bytes = worker_comm_buffer_bytes(worker);

    if (num_ranks < 2 || num_ranks > world)
        return fail(ERR_MISMATCH, "memory of %d ranks that one host shares, of %d", num_ranks, world);
    return comm_create(path, num_ranks, buffer_bytes,
                       num_ranks == world ? worker_comm_bytes(worker).shared
                                          : comm_hosts_shared_bytes(world, buffer_bytes));
}

/* The meeting as the device thread is to have it, whatever becomes of the caller's. */
static struct worker_meeting keep_meeting(struct worker *worker, const struct worker_meeting *meeting)
{
    struct worker_meeting kept = *meeting;
    size_t world = (size_t)worker->options.world;

    arena_reset(&worker->meeting);
    if (meeting->path)
        kept.path = arena_strndup(&worker->meeting, meeting->path, strlen(meeting->path));
    if (meeting->hosts) {
        int32_t *hosts = arena_alloc(&worker->meeting, world * sizeof *hosts);

        memcpy(hosts, meeting->hosts, world * sizeof *hosts);
        kept.hosts = hosts;
    }
    if (meeting->endpoints) {
        const char **endpoints = arena_alloc(&worker->meeting, world * sizeof *endpoints);

        for (size_t rank = 0; rank < world; rank++) {
            const char *text = meeting->endpoints[rank];

            endpoints[rank] = text ? arena_strndup(&worker->meeting, text, strlen(text)) : NULL;
        }
        kept.endpoints = endpoints;
    }
    return kept;
}

static void end_connect(struct worker *worker)
{
    worker->is_connecting = false;
    worker->met_status = worker->met.status;
    worker->is_connected = worker->met_status == OK;
}

static void begin_connect(struct worker *worker)
{
    worker->is_connecting = true;
    atomic_store(&worker->gives_up_meeting, false);
    worker_command(worker, &worker->connect);
}

enum status worker_connect_begin(struct worker *worker, const struct worker_meeting *meeting)
{
    AUTO_FREE(comm_net) struct comm_net *taken = meeting->net;

    if (!worker->is_loaded || worker->is_connected || worker->is_connecting)
        return fail(ERR_MISMATCH, "ranks meet once, after loading or a reset");
    worker->connect.meeting = keep_meeting(worker, meeting);
    taken = NULL; /* the device thread's */
    begin_connect(worker);
    return OK;
}

enum status worker_connect_end(struct worker *worker, bool wait, bool *is_over_out)
{
    bool goes_on = true;

    while (goes_on && worker->is_connecting) {
        struct mail *mail = wait ? mailbox_wait(&worker->answers, clock_deadline_ns(-1))
                                 : mailbox_pop(&worker->answers);

        goes_on = mail && worker_take_change(worker, mail);
    }
    *is_over_out = !worker->is_connecting;
    return worker->is_connecting || worker->met_status == OK
               ? OK
               : fail(worker->met_status, "%s", worker->met.text);
}

int64_t worker_available_bytes(const struct worker *worker)
{
    ASSERT(worker->is_connected);
    return worker->available_bytes;
}

enum status worker_connect(struct worker *worker, const struct worker_meeting *meeting)
{
    bool is_over;

    TRY(worker_connect_begin(worker, meeting));
    return worker_connect_end(worker, true, &is_over);
}

enum status worker_initialize_kv_cache(struct worker *worker, int32_t num_blocks)
{
    int32_t before = worker->initialize.num_blocks;

    if (!worker->is_loaded || (before > 0 && before != num_blocks) || num_blocks < 1)
        return fail(ERR_MISMATCH, "the KV cache is sized once, after loading, with 1 block or more");
    if (worker->weights.sleep_level < 2) {
        worker->initialize.num_blocks = num_blocks;
        worker_command(worker, &worker->initialize);
        TRY(wait_setup(worker));
        worker->weights.sleep_level = 0;
    }
    input_batch_set_num_blocks(worker->batch, num_blocks);
    return OK;
}

/* Lets pass the answers to steps that are given up. */
static enum status wait_reset(struct worker *worker)
{
    int64_t deadline_ns = clock_deadline_ns(RESET_TIMEOUT_MS);
    struct mail *mail;

    do
        mail = mailbox_wait(&worker->answers, deadline_ns);
    while (mail && (worker_take_change(worker, mail) || mail != &worker->setup.mail));
    return mail ? OK
                : fail(ERR_TIMEOUT, "the device has not come back %d ms after an abort",
                       RESET_TIMEOUT_MS);
}

enum status worker_reset(struct worker *worker)
{
    bool is_over;

    ASSERT(worker->is_loaded);
    if (worker->weights.sleep_level > 1 || worker->is_changing)
        return fail(ERR_MISMATCH, "the ranks meet anew while this one is asleep without weights or "
                                  "changes them: another process is to take its place");
    worker_abort(worker);
    worker->is_connected = false; /* the device thread closes the comm, if late after we have given it up */
    worker_command(worker, &worker->reset);
    TRY(wait_reset(worker));
    worker->is_connected = false; /* it may have become that meanwhile */
    worker->next_step = -1;
    for (int i = 0; i < NUM_STEPS; i++)
        worker->steps[i].phase = PHASE_EMPTY;
    input_batch_free(give(worker->batch));
    TRY(make_batch(worker));
    if (worker->options.world > 1)
        return OK;
    begin_connect(worker);
    return worker_connect_end(worker, true, &is_over);
}

/* ---- steps ------------------------------------------------------------------------------------ */

bool worker_has_steps(const struct worker *worker)
{
    for (int i = 0; i < NUM_STEPS; i++)
        if (worker->steps[i].phase != PHASE_EMPTY)
            return true;
    return false;
}

bool worker_awaits_collect(const struct worker *worker, int64_t step,
                           const struct scheduler_output *plan)
{
    return worker->steps[step & 1].phase == PHASE_SAMPLING ||
           (worker->steps[(step - 1) & 1].phase == PHASE_SAMPLING &&
            input_batch_is_replaced(worker->batch, step - 1, plan));
}

enum status worker_prepare_inputs(struct worker *worker, int64_t step,
                                  const struct scheduler_output *plan)
{
    struct step_slot *slot = &worker->steps[step & 1];
    int64_t begin_ns = trace_begin();
    enum status status;

    if (worker->initialize.num_blocks == 0)
        return fail(ERR_MISMATCH, "step %" PRId64 " came before the KV cache was sized", step);
    if (worker->weights.sleep_level > 0 || worker->is_changing)
        return fail(ERR_MISMATCH, "step %" PRId64 " came while the rank %s", step,
                    worker->is_changing ? "changes what it holds" : "is asleep");
    if (!worker->is_connected)
        return fail(ERR_MISMATCH, "step %" PRId64 " came before the ranks have met", step);
    if (step < 0 || (worker->next_step >= 0 && step != worker->next_step))
        return fail(ERR_MISMATCH, "step %" PRId64 " is prepared, step %" PRId64 " is next", step,
                    worker->next_step);
    if (slot->phase != PHASE_EMPTY)
        return fail(ERR_MISMATCH, "step %" PRId64 " is prepared while step %" PRId64 " runs", step,
                    step - NUM_STEPS);
    TRY(injected_fault_strike(&worker->options.fault, worker->options.rank, step,
                              FAULT_IN_PREPARE_INPUTS));
    device_begin_range(worker->device, "prepare_inputs", step);
    status = input_batch_stage(worker->batch, step, plan);
    device_end_range(worker->device);
    TRY(status);
    slot->phase = PHASE_PREPARED;
    worker->next_step = step + 1;
    trace_end("prepare_inputs", begin_ns, step);
    return OK;
}

static enum status check_phase(const struct worker *worker, int64_t step, enum step_phase phase,
                               const char *verb)
{
    const struct step_slot *slot = &worker->steps[step & 1];

    if (input_batch_staged(worker->batch, step)->step != step || slot->phase != phase)
        return fail(ERR_MISMATCH, "%s of step %" PRId64 ", which is not due", verb, step);
    return OK;
}

enum status worker_execute_model(struct worker *worker, int64_t step)
{
    struct step_slot *slot = &worker->steps[step & 1];

    TRY(check_phase(worker, step, PHASE_PREPARED, "execute_model"));
    slot->phase = PHASE_EXECUTING;
    slot->execute.step = step;
    worker_command(worker, &slot->execute);
    return OK;
}

static enum status check_bitmask(const struct staged_step *staged,
                                 const struct staged_sample *sample,
                                 const struct grammar_output *grammar, int32_t at)
{
    if (at >= grammar->num_rows || grammar->slots[at] != sample->slot)
        return fail(ERR_MISMATCH, "step %" PRId64 ": no bitmask came for slot %d, which needs one",
                    staged->step, sample->slot);
    if (grammar->positions[at] != sample->position)
        return fail(ERR_MISMATCH,
                    "step %" PRId64 ": the bitmask of slot %d is for position %d, its token comes at %d",
                    staged->step, sample->slot, grammar->positions[at], sample->position);
    return OK;
}

/* Each mask goes beside the row of the step that it is for: nothing is sampled unmasked where a mask
 * was due. */
static enum status take_bitmasks(struct worker *worker, const struct staged_step *staged,
                                 struct step_slot *slot, const struct grammar_output *grammar)
{
    static const struct grammar_output no_masks;
    const struct worker_memory *memory = &worker->memory;
    int32_t num_due = 0;
    uint32_t *bits;

    if (!grammar)
        grammar = &no_masks;
    TRY(grammar_output_check(grammar, memory->first_token, memory->num_tokens));
    arena_reset(&slot->grammar_arena);
    bits = arena_alloc(&slot->grammar_arena, (size_t)grammar->num_bitmask_bytes);
    if (grammar->num_bitmask_bytes > 0)
        memcpy(bits, grammar->bitmask, (size_t)grammar->num_bitmask_bytes);
    for (int32_t i = 0; i < staged->num_samples; i++) {
        slot->bitmasks[i] = NULL;
        if (!staged->samples[i].needs_bitmask)
            continue;
        TRY(check_bitmask(staged, &staged->samples[i], grammar, num_due));
        slot->bitmasks[i] =
            bits + (int64_t)grammar->bitmask_rows[num_due++] * grammar->words_per_row;
    }
    if (num_due < grammar->num_rows)
        return fail(ERR_MISMATCH, "step %" PRId64 ": a bitmask came for slot %d, which needs none",
                    staged->step, grammar->slots[num_due]);
    return OK;
}

enum status worker_sample(struct worker *worker, int64_t step,
                          const struct grammar_output *grammar)
{
    struct step_slot *slot = &worker->steps[step & 1];

    TRY(check_phase(worker, step, PHASE_EXECUTING, "sample"));
    TRY(take_bitmasks(worker, input_batch_staged(worker->batch, step), slot, grammar));
    slot->phase = PHASE_SAMPLING;
    slot->sample.step = step;
    worker_command(worker, &slot->sample);
    return OK;
}

enum status worker_collect(struct worker *worker, bool wait, int64_t *step_out,
                           const struct model_runner_output **output_out)
{
    struct mail *mail = next_answer(worker, wait);

    *output_out = NULL;
    if (!mail)
        return OK;

    struct answer *answer = MAIL_ITEM(mail, struct answer, mail);

    *step_out = answer->step;
    if (answer->status != OK)
        return fail(answer->status, "%s", answer->text);
    worker->steps[answer->step & 1].phase = PHASE_EMPTY;
    *output_out = &answer->output;
    return OK;
}

void worker_abort(struct worker *worker)
{
    atomic_store(&worker->gives_up_meeting, true);
    if (worker->is_connected && worker->comm)
        comm_abort(worker_layers_comm(worker));
    else if (worker->is_connecting)
        comm_abort(atomic_load(&worker->meeting_comm));
}

struct memory_held worker_memory_held(const struct worker *worker)
{
    return (struct memory_held){
        .weights_bytes = atomic_load_explicit(&worker->held.weights_bytes, memory_order_relaxed),
        .kv_cache_bytes = atomic_load_explicit(&worker->held.kv_cache_bytes, memory_order_relaxed),
        .workspace_bytes = atomic_load_explicit(&worker->held.workspace_bytes, memory_order_relaxed),
        /* Less than nothing: others took it while weights were loaded beside. */
        .free_bytes = MAX(atomic_load_explicit(&worker->held.free_bytes, memory_order_relaxed), (int64_t)0),
        .total_bytes = atomic_load_explicit(&worker->held.total_bytes, memory_order_relaxed),
    };
}

struct worker_progress worker_progress(const struct worker *worker)
{
    struct worker_progress progress = {
        .step = atomic_load_explicit(&worker->device_step, memory_order_relaxed),
        .num_done = work_count_read(&worker->work),
        /* One rank alone has no comm, and may be asked by any thread. */
        .waits_for = worker->options.world > 1 && worker->is_connected
                         ? comm_waits_for(worker_layers_comm(worker))
                         : -1,
        .passes = work_count_passes(&worker->work),
    };

    if (progress.step >= 0)
        progress.ns_in_step = clock_now_ns() - atomic_load_explicit(&worker->device_since_ns,
                                                                    memory_order_relaxed);
    return progress;
}
