#include "engine/grammar/process.h"

#include "engine/grammar/region.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/trace.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A mask that took longer is a reason not to wait for the next. */
enum { SLOW_NS = 10 * 1000 * 1000 };

/* What all masks of one output may take, and what each token adds: a grammar whose masks take this long
 * would slow the machine down for all. */
static const int64_t BUDGET_NS = 1000000000, BUDGET_PER_TOKEN_NS = 2000000;

struct grammar_process {
    struct grammar_process_options options;
    struct region *region;
    int region_fd;
    _Atomic int pidfd; /* -1: it has not been started */
    pid_t pid;         /* the compiler's */
    _Atomic int32_t num_users;

    _Atomic int32_t failure; /* enum status; OK: none. The sentence is written before. */
    _Atomic bool is_failing;
    char sentence[REGION_SENTENCE];

    /* core's: */
    int32_t *free_places; /* [num_places] a queue: the one that was freed first is taken first */
    int32_t first_free, num_free;
    bool is_place_wanted; /* an output found none */
};

/* One output. */
struct remote_grammar {
    struct grammar grammar;
    struct grammar_process *process;
    int32_t place;  /* -1: none yet */
    bool is_filled; /* the answer to its last question was seen */
    bool is_terminated;
    int64_t total_ns, last_ns; /* that the process took for it, and for the last mask */
    int64_t begin_ns;          /* of that */
    int32_t num_tokens;
};

static struct remote_grammar *remote(struct grammar *grammar)
{
    return CONTAINER_OF(grammar, struct remote_grammar, grammar);
}

/* ---- the process ----------------------------------------------------------------------------- */

static int64_t size_of_region(const struct region *shape)
{
    return region_masks_at(shape) + shape->num_places * region_mask_stride(shape);
}

static void write_spec(struct region *region, const struct grammar_spec *spec)
{
    region->disable_any_whitespace = spec->disable_any_whitespace;
    region->disable_additional_properties = spec->disable_additional_properties;
    region->lenient = spec->lenient;
    if (spec->size > 0)
        memcpy(region_text(region), spec->text, spec->size);
    if (spec->whitespace_pattern)
        memcpy(region_pattern(region), spec->whitespace_pattern, (size_t)region->pattern_size);
}

enum status grammar_process_new(const struct grammar_spec *spec, int32_t backend,
                                const struct grammar_process_options *options,
                                struct grammar_process **out)
{
    struct region shape = {
        .num_places = options->num_places,
        .num_words = grammar_num_words(options->vocab_size),
        .kind = spec->kind,
        .backend = backend,
        .text_size = (int64_t)spec->size,
        .pattern_size = spec->whitespace_pattern ? (int64_t)strlen(spec->whitespace_pattern) : -1,
    };
    int fd = memfd_create("tandem-grammar", MFD_CLOEXEC);
    void *region;

    shape.bytes = size_of_region(&shape);
    if (fd < 0)
        return fail(ERR_IO, "no memory to share with a grammar process: %m");
    if (ftruncate(fd, shape.bytes) != 0 ||
        (region = mmap(NULL, (size_t)shape.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) ==
            MAP_FAILED) {
        close(fd);
        return fail(ERR_NO_MEMORY, "%ld bytes to share with a grammar process: %m",
                    (long)shape.bytes);
    }

    struct grammar_process *process = mem_new(struct grammar_process);

    process->options = *options;
    process->region = region;
    process->region_fd = fd;
    process->num_users = 1;
    process->pidfd = -1;
    *process->region = shape;
    write_spec(process->region, spec);
    process->free_places = mem_new_array(int32_t, (size_t)options->num_places);
    process->num_free = options->num_places;
    for (int32_t i = 0; i < options->num_places; i++)
        process->free_places[i] = i;
    *out = process;
    return OK;
}

struct grammar_process *grammar_process_take(struct grammar_process *process)
{
    atomic_fetch_add(&process->num_users, 1);
    return process;
}

static void kill_it(struct grammar_process *process)
{
    int pidfd = atomic_load(&process->pidfd);

    if (pidfd >= 0)
        pidfd_send_signal(pidfd, SIGKILL, NULL, 0); /* it may have ended: that is fine */
}

void grammar_process_drop(struct grammar_process *process)
{
    if (!process || atomic_fetch_sub(&process->num_users, 1) > 1)
        return;
    kill_it(process);
    if (process->pidfd >= 0)
        close(process->pidfd);
    munmap(process->region, (size_t)process->region->bytes);
    close(process->region_fd);
    mem_free(process->free_places);
    mem_free(process);
}

bool grammar_process_is_idle(const struct grammar_process *process)
{
    return atomic_load(&process->num_users) == 1;
}

int grammar_process_region_fd(const struct grammar_process *process)
{
    return process->region_fd;
}

void grammar_process_started(struct grammar_process *process, pid_t pid)
{
    int pidfd = pidfd_open(pid, 0);

    process->pid = pid;
    atomic_store(&process->pidfd, pidfd);
    if (pidfd >= 0 && grammar_process_has_failed(process))
        kill_it(process); /* while it was being started */
}

enum status grammar_process_result(const struct grammar_process *process)
{
    const struct region *region = process->region;

    if (region->status == OK)
        return OK;
    /* A limit that the text has met will be met again: "try later" would be wrong. */
    return fail(region->status == ERR_FULL ? ERR_INVALID : (enum status)region->status, "%.*s",
                REGION_SENTENCE - 1, region->sentence);
}

int64_t grammar_process_compile_ns(const struct grammar_process *process)
{
    return process->region->compile_ns;
}

int64_t grammar_process_bytes(const struct grammar_process *process)
{
    return process->region->private_bytes + region_masks_at(process->region);
}

static void ring_bell(const struct grammar_process *process)
{
    if (process->options.bell_fd >= 0)
        eventfd_write(process->options.bell_fd, 1);
}

void grammar_process_fail(struct grammar_process *process, enum status status, const char *text)
{
    if (atomic_exchange(&process->is_failing, true))
        return;
    snprintf(process->sentence, sizeof process->sentence, "%s", text);
    atomic_store(&process->failure, (int32_t)status);
    kill_it(process);
    ring_bell(process);
}

void grammar_process_demote(struct grammar_process *process)
{
    if (process->pid > 0)
        region_give_way(process->pid); /* the thread that serves */
}

bool grammar_process_has_failed(const struct grammar_process *process)
{
    return atomic_load(&process->failure) != OK;
}

int64_t grammar_process_hang_ns(const struct grammar_process *process)
{
    struct region *region = process->region;
    int64_t oldest_ns = INT64_MAX;

    for (int32_t i = 0; i < process->options.num_places; i++) {
        const struct region_place *place = region_place(region, i);
        int64_t posted_ns = atomic_load_explicit(&place->posted_ns, memory_order_acquire);

        if (posted_ns > 0 && atomic_load(&place->num_done) != atomic_load(&place->num_posted))
            oldest_ns = MIN(oldest_ns, posted_ns);
    }
    return oldest_ns == INT64_MAX ? 0 : MAX(clock_now_ns() - oldest_ns, 1);
}

bool grammar_process_is_of(const struct grammar_process *process, const struct grammar_spec *spec,
                           int32_t backend)
{
    struct region *region = process->region;
    int64_t pattern_size =
        spec->whitespace_pattern ? (int64_t)strlen(spec->whitespace_pattern) : -1;

    return region->kind == spec->kind && region->backend == backend &&
           region->disable_any_whitespace == spec->disable_any_whitespace &&
           region->disable_additional_properties == spec->disable_additional_properties &&
           region->lenient == spec->lenient && region->text_size == (int64_t)spec->size &&
           region->pattern_size == pattern_size &&
           (spec->size == 0 || memcmp(region_text(region), spec->text, spec->size) == 0) &&
           (pattern_size <= 0 || memcmp(region_pattern(region), spec->whitespace_pattern,
                                        (size_t)pattern_size) == 0);
}

/* ---- questions -------------------------------------------------------------------------------- */

static void wake(struct region *region)
{
    if (atomic_load(&region->num_sleepers) > 0)
        syscall(SYS_futex, &region->num_posted, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void post(struct remote_grammar *self, token_id token)
{
    struct region *region = self->process->region;
    struct region_place *place = region_place(region, self->place);
    uint32_t at = atomic_load_explicit(&region->num_posted, memory_order_relaxed);

    place->token = token;
    self->is_filled = false;
    atomic_fetch_add_explicit(&place->num_posted, 1, memory_order_relaxed);
    atomic_store_explicit(&place->posted_ns, clock_now_ns(), memory_order_release);
    atomic_store_explicit(&region_ring(region)[at % (uint32_t)region->num_places], self->place,
                          memory_order_relaxed);
    atomic_store(&region->num_posted, at + 1);
    wake(region);
}

static bool is_answered(const struct region *region, int32_t place)
{
    const struct region_place *at = region_place((struct region *)region, place);

    return atomic_load_explicit(&at->num_done, memory_order_acquire) ==
           atomic_load_explicit(&at->num_posted, memory_order_relaxed);
}

/* A place may still have a question of an output that has ended: it is none before that is answered. */
static bool take_place(struct remote_grammar *self)
{
    struct grammar_process *process = self->process;
    struct region *region = process->region;
    int32_t place = process->free_places[process->first_free];

    if (process->num_free == 0) {
        process->is_place_wanted = true;
        return false;
    }
    if (!is_answered(region, place)) {
        atomic_store(&region->engine_waits, true);
        if (!is_answered(region, place))
            return false;
    }
    self->place = place;
    process->first_free = (process->first_free + 1) % process->options.num_places;
    process->num_free--;
    return true;
}

static void remote_begin_mask(struct grammar *grammar)
{
    struct remote_grammar *self = remote(grammar);

    if (self->place < 0 && take_place(self))
        post(self, START_ANEW);
}

static bool remote_is_ready(struct grammar *grammar)
{
    struct remote_grammar *self = remote(grammar);

    if (grammar_process_has_failed(self->process))
        return true;
    remote_begin_mask(grammar);
    if (self->place < 0)
        return false;
    if (is_answered(self->process->region, self->place))
        return true;
    atomic_store(&self->process->region->engine_waits, true);
    /* It may have been answered before it could see that we wait. */
    return is_answered(self->process->region, self->place);
}

/* Once for each answer. */
static void note_answer(struct remote_grammar *self)
{
    struct region_place *place = region_place(self->process->region, self->place);

    if (self->is_filled)
        return;
    self->is_filled = true;
    atomic_store_explicit(&place->posted_ns, 0, memory_order_relaxed);
    self->begin_ns = place->begin_ns;
    self->last_ns = place->end_ns - place->begin_ns;
    self->total_ns += self->last_ns;
}

static enum status check_answer(struct remote_grammar *self)
{
    const struct region_place *place = region_place(self->process->region, self->place);
    int64_t budget_ns = BUDGET_NS + self->num_tokens * BUDGET_PER_TOKEN_NS;

    if (place->status != OK)
        return fail(place->status == ERR_FULL ? ERR_INVALID : ERR_INTERNAL, "the grammar: %.*s",
                    (int)sizeof place->sentence - 1, place->sentence);
    if (self->total_ns > budget_ns)
        return fail(ERR_INVALID, "the grammar takes too long: %ld ms for the masks of %d tokens",
                    (long)(self->total_ns / 1000000), self->num_tokens + 1);
    return OK;
}

static enum status remote_fill_bitmask(struct grammar *grammar, uint32_t *words, int32_t num_words)
{
    struct remote_grammar *self = remote(grammar);
    struct grammar_process *process = self->process;
    enum status failure = (enum status)atomic_load(&process->failure);

    if (failure != OK)
        return fail(failure, "%s", process->sentence);
    ASSERT(self->place >= 0 && is_answered(process->region, self->place));
    ASSERT(num_words == process->region->num_words);
    note_answer(self);
    TRY(check_answer(self));
    memcpy(words, region_mask(process->region, self->place), (size_t)num_words * sizeof *words);
    return OK;
}

static bool is_stop_token(const struct grammar_process *process, token_id token)
{
    for (int32_t i = 0; i < process->options.num_stop_tokens; i++)
        if (process->options.stop_tokens[i] == token)
            return true;
    return false;
}

static bool remote_accept(struct grammar *grammar, token_id token)
{
    struct remote_grammar *self = remote(grammar);
    struct grammar_process *process = self->process;
    const uint32_t *mask;

    if (self->is_terminated || !self->is_filled || token < 0 ||
        token >= process->options.vocab_size)
        return false;
    mask = region_mask(process->region, self->place);
    if (!(mask[token / 32] >> (token % 32) & 1))
        return false;
    self->num_tokens++;
    if (is_stop_token(process, token))
        self->is_terminated = true;
    else
        post(self, token);
    return true;
}

static bool remote_is_slow(const struct grammar *grammar)
{
    return CONTAINER_OF(grammar, const struct remote_grammar, grammar)->last_ns > SLOW_NS;
}

static void remote_fill_times(const struct grammar *grammar, int64_t *begin_ns_out,
                              int64_t *end_ns_out)
{
    const struct remote_grammar *self =
        CONTAINER_OF(grammar, const struct remote_grammar, grammar);

    *begin_ns_out = self->begin_ns;
    *end_ns_out = self->begin_ns + self->last_ns;
}

static bool remote_is_terminated(const struct grammar *grammar)
{
    return CONTAINER_OF(grammar, const struct remote_grammar, grammar)->is_terminated;
}

static void free_place(struct remote_grammar *self)
{
    struct grammar_process *process = self->process;

    if (self->place < 0)
        return;
    process->free_places[(process->first_free + process->num_free++) %
                         process->options.num_places] = self->place;
    if (process->is_place_wanted) {
        process->is_place_wanted = false;
        ring_bell(process);
    }
}

static void remote_free(struct grammar *grammar)
{
    struct remote_grammar *self = remote(grammar);

    free_place(self);
    grammar_process_drop(self->process);
    mem_free(self);
}

struct grammar *grammar_process_start(struct grammar_process *process)
{
    static const struct grammar_ops ops = {
        .name = "process",
        .accept = remote_accept,
        .begin_mask = remote_begin_mask,
        .is_ready = remote_is_ready,
        .fill_bitmask = remote_fill_bitmask,
        .is_slow = remote_is_slow,
        .fill_times = remote_fill_times,
        .is_terminated = remote_is_terminated,
        .free = remote_free,
    };
    struct remote_grammar *self = mem_new(struct remote_grammar);

    *self = (struct remote_grammar){
        .grammar = {&ops}, .process = grammar_process_take(process), .place = -1};
    return &self->grammar;
}
