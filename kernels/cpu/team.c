#include "kernels/cpu/team.h"

#include "kernels/cpu/futex.h"

#include "proto/base/memory.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

struct member {
    struct team *team;
    pthread_t id;
    int32_t thread; /* 1 … num_threads - 1 */
};

struct team {
    int32_t num_threads;
    int32_t num_started; /* of members */
    struct member *members;

    /* The operation. Written by the caller before it raises `round`. */
    void (*part)(void *args, int32_t thread);
    void *args;
    bool stop;

    _Alignas(64) _Atomic uint32_t round; /* raised for every operation */
    _Atomic uint32_t parked;             /* members asleep on `round`, or about to be */
    _Alignas(64) _Atomic uint32_t working; /* members that have not finished this round */
    _Atomic uint32_t waiting;            /* 1: the caller sleeps on `working`, or is about to */
};

/* Returns when `round` is no longer `last`. */
static void await_round(struct team *team, uint32_t last)
{
    struct spin so_far = {0};

    do
        if (atomic_load_explicit(&team->round, memory_order_acquire) != last)
            return;
    while (spin(&so_far));
    atomic_fetch_add(&team->parked, 1);
    while (atomic_load(&team->round) == last)
        futex_wait(&team->round, last, false, NULL);
    atomic_fetch_sub(&team->parked, 1);
}

static void *member_main(void *arg)
{
    struct member *member = arg;
    struct team *team = member->team;

    pthread_setname_np(pthread_self(), "team");
    for (uint32_t round = 0;; round++) {
        await_round(team, round);
        if (team->stop)
            return NULL;
        team->part(team->args, member->thread);
        if (atomic_fetch_sub(&team->working, 1) == 1 && atomic_load(&team->waiting))
            futex_wake_all(&team->working, false);
    }
}

static void begin_round(struct team *team)
{
    atomic_fetch_add(&team->round, 1);
    if (atomic_load(&team->parked))
        futex_wake_all(&team->round, false);
}

static void await_members(struct team *team)
{
    struct spin so_far = {0};

    do
        if (atomic_load_explicit(&team->working, memory_order_acquire) == 0)
            return;
    while (spin(&so_far));
    atomic_store(&team->waiting, 1);
    for (uint32_t left; (left = atomic_load(&team->working)) != 0;)
        futex_wait(&team->working, left, false, NULL);
    atomic_store(&team->waiting, 0);
}

void team_run(struct team *team, void (*part)(void *args, int32_t thread), void *args)
{
    if (team->num_threads > 1) {
        team->part = part;
        team->args = args;
        atomic_store_explicit(&team->working, (uint32_t)team->num_threads - 1, memory_order_relaxed);
        begin_round(team);
    }
    part(args, 0);
    if (team->num_threads > 1)
        await_members(team);
}

int32_t team_num_threads(const struct team *team)
{
    return team->num_threads;
}

/* Members take no signals: those are the business of the process's main thread. A fault of their own
 * they must take, for blocked it kills the process before anybody can say what it was. */
static enum status start_members(struct team *team)
{
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL};
    sigset_t all, before;

    sigfillset(&all);
    for (size_t i = 0; i < COUNT_OF(faults); i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int32_t i = 0; i < team->num_threads - 1; i++) {
        struct member *member = &team->members[i];

        *member = (struct member){.team = team, .thread = i + 1};

        int error = pthread_create(&member->id, NULL, member_main, member);

        if (error) {
            pthread_sigmask(SIG_SETMASK, &before, NULL);
            return fail(ERR_IO, "thread %d of %d cannot start: %s", i + 2, team->num_threads, strerror(error));
        }
        team->num_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return OK;
}

enum status team_new(int32_t num_threads, struct team **out)
{
    struct team *team = aligned_alloc(64, sizeof(*team));

    if (!team)
        return fail(ERR_NO_MEMORY, "a team of %d threads", num_threads);
    memset(team, 0, sizeof(*team));
    team->num_threads = num_threads;
    team->members = mem_new_array(struct member, (size_t)num_threads);

    enum status status = start_members(team);

    if (status != OK) {
        team_free(team);
        return status;
    }
    *out = team;
    return OK;
}

enum status team_bind(struct team *team, const cpu_set_t *cpus)
{
    for (int32_t i = 0; i < team->num_threads; i++) {
        pthread_t id = i ? team->members[i - 1].id : pthread_self();
        int error = pthread_setaffinity_np(id, sizeof *cpus, &cpus[i]);

        if (error)
            return fail(ERR_IO, "thread %d of %d cannot be bound to its cores: %s", i + 1,
                        team->num_threads, strerror(error));
    }
    return OK;
}

void team_free(struct team *team)
{
    if (!team)
        return;
    team->stop = true;
    begin_round(team);
    for (int32_t i = 0; i < team->num_started; i++)
        pthread_join(team->members[i].id, NULL);
    mem_free(team->members);
    free(team);
}
