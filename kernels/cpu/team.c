#include "kernels/cpu/team.h"

#include "kernels/cpu/futex.h"
#include "kernels/cpu/signals.h"

#include "proto/base/memory.h"

#include <inttypes.h>
#include <pthread.h>
#include <string.h>

struct member {
    struct team *team;
    pthread_t id;
    int32_t thread; /* 1 … num_threads - 1 */
};

/* What a thread is to do. Both say so by a release, so that who finds something sees the team's `run` or `deal`. */
struct seat {
    /* What is left of its share, as pack_share has it: one word, so that the thread takes from the front while others
     * take from the back. */
    _Alignas(64) _Atomic uint64_t left;
    _Atomic bool is_called; /* to do its part of `run` */
};

struct team {
    int32_t num_threads;
    int32_t num_started; /* of members */
    struct member *members;
    struct seat *seats; /* [num_threads] */
    _Atomic bool stop;

    /* An operation in which each thread has a part of its own. */
    struct {
        void (*part)(void *args, int32_t thread);
        void *args;
    } run;
    /* One whose items are taken by whoever comes. Who has taken some may read it until he has added them to `done`. */
    struct {
        void (*part)(const void *args, struct span piece, struct span share, int32_t thread);
        const void *args;
        int32_t count, num_shares;
    } deal;

    _Alignas(64) _Atomic uint32_t round; /* raised for every operation */
    _Atomic uint32_t parked;             /* members asleep on `round`, or about to be */
    _Alignas(64) _Atomic uint32_t working; /* members that have not finished their part of `run` */
    _Atomic uint32_t done;               /* items of `deal` */
    _Atomic uint32_t waiting;            /* 1: the caller sleeps on one of these, or is about to */
};

/* ---- items that whoever comes may take ----------------------------------------------------------------- */

enum { ITEM_BITS = 28 };
/* A piece is this part of what is left, so that little is left to take when most is done. */
enum { PIECES = 4 };
_Static_assert(TEAM_MAX_ITEMS == (1 << ITEM_BITS) - 1 && TEAM_MAX_GRAIN < 1 << (64 - 2 * ITEM_BITS), "one word");

static uint64_t pack_share(struct span items, int64_t grain)
{
    return (uint64_t)grain << 2 * ITEM_BITS | (uint64_t)items.first << ITEM_BITS | (uint64_t)items.end;
}

/* From the front, or from the back; left_out: what was left until then. False: nothing. */
static bool take(struct seat *seat, bool is_front, struct span *piece_out, struct span *left_out)
{
    uint64_t word = atomic_load_explicit(&seat->left, memory_order_relaxed), rest;

    do {
        struct span left = {(int64_t)(word >> ITEM_BITS & TEAM_MAX_ITEMS), (int64_t)(word & TEAM_MAX_ITEMS)};
        int64_t grain = (int64_t)(word >> 2 * ITEM_BITS);
        int64_t count = MIN(left.end - left.first, MAX(grain, (left.end - left.first) / PIECES));

        if (count == 0)
            return false;
        *left_out = left;
        *piece_out = is_front ? (struct span){left.first, left.first + count}
                              : (struct span){left.end - count, left.end};
        rest = pack_share(is_front ? (struct span){piece_out->end, left.end}
                                   : (struct span){left.first, piece_out->first}, grain);
    } while (!atomic_compare_exchange_weak_explicit(&seat->left, &word, rest, memory_order_acquire,
                                                    memory_order_relaxed));
    return true;
}

static struct span share_of(const struct team *team, int32_t thread)
{
    int64_t count = team->deal.count, n = team->deal.num_shares;

    return (struct span){count * thread / n, count * (thread + 1) / n};
}

/* Does what is left of a share; returns how many items it had done here. */
static uint32_t do_share(struct team *team, int32_t whose, int32_t thread)
{
    struct span piece, left;
    uint32_t done = 0;

    while (take(&team->seats[whose], whose == thread, &piece, &left)) {
        struct span share = whose == thread ? (struct span){share_of(team, thread).first, left.end} : piece;

        team->deal.part(team->deal.args, piece, share, thread);
        done += (uint32_t)(piece.end - piece.first);
    }
    return done;
}

static void note_done(struct team *team, uint32_t items)
{
    uint32_t count;

    if (items == 0)
        return;
    count = (uint32_t)team->deal.count; /* it may be another's once all are done */
    if (atomic_fetch_add(&team->done, items) + items == count && atomic_load(&team->waiting))
        futex_wake_all(&team->done, false);
}

/* Its own share, then those of threads whose numbers differ in one bit: so a share has a few that look after it, and
 * a thread looks after few. */
static void do_shares(struct team *team, int32_t thread)
{
    uint32_t done = do_share(team, thread, thread);

    for (int32_t bit = 1; bit < team->num_threads; bit *= 2)
        if ((thread ^ bit) < team->num_threads)
            done += do_share(team, thread ^ bit, thread);
    note_done(team, done);
}

static void do_all_shares(struct team *team)
{
    uint32_t done = 0;

    for (int32_t whose = 0; whose < team->num_threads; whose++)
        done += do_share(team, whose, 0);
    note_done(team, done);
}

/* ---- members ------------------------------------------------------------------------------------------- */

/* Returns the number of the round, when it is no longer `last`. */
static uint32_t await_round(struct team *team, uint32_t last)
{
    struct spin so_far = {0};
    uint32_t round;

    do
        if ((round = atomic_load_explicit(&team->round, memory_order_acquire)) != last)
            return round;
    while (spin(&so_far));
    atomic_fetch_add(&team->parked, 1);
    while ((round = atomic_load(&team->round)) == last)
        futex_wait(&team->round, last, false, NULL);
    atomic_fetch_sub(&team->parked, 1);
    return round;
}

static void do_run(struct team *team, int32_t thread)
{
    struct seat *seat = &team->seats[thread];

    if (!atomic_load_explicit(&seat->is_called, memory_order_acquire))
        return;
    atomic_store_explicit(&seat->is_called, false, memory_order_relaxed);
    team->run.part(team->run.args, thread);
    if (atomic_fetch_sub(&team->working, 1) == 1 && atomic_load(&team->waiting))
        futex_wake_all(&team->working, false);
}

/* It may come late, when rounds have gone by to which others have seen. */
static void *member_main(void *arg)
{
    struct member *member = arg;
    struct team *team = member->team;
    uint32_t round = 0;

    pthread_setname_np(pthread_self(), "team");
    while (true) {
        round = await_round(team, round);
        if (atomic_load(&team->stop))
            return NULL;
        do_run(team, member->thread);
        do_shares(team, member->thread);
    }
}

/* ---- the caller ---------------------------------------------------------------------------------------- */

static void begin_round(struct team *team)
{
    atomic_fetch_add(&team->round, 1);
    if (atomic_load(&team->parked))
        futex_wake_all(&team->round, false);
}

/* False: for as long as a thread spins the word has not become `wanted`. */
static bool spin_until(_Atomic uint32_t *word, uint32_t wanted)
{
    struct spin so_far = {0};

    do
        if (atomic_load_explicit(word, memory_order_acquire) == wanted)
            return true;
    while (spin(&so_far));
    return false;
}

static void sleep_until(struct team *team, _Atomic uint32_t *word, uint32_t wanted)
{
    atomic_store(&team->waiting, 1);
    for (uint32_t now; (now = atomic_load(word)) != wanted;)
        futex_wait(word, now, false, NULL);
    atomic_store(&team->waiting, 0);
}

void team_run(struct team *team, void (*part)(void *args, int32_t thread), void *args)
{
    if (team->num_threads > 1) {
        team->run.part = part;
        team->run.args = args;
        atomic_store_explicit(&team->working, (uint32_t)team->num_threads - 1, memory_order_relaxed);
        for (int32_t i = 1; i < team->num_threads; i++)
            atomic_store_explicit(&team->seats[i].is_called, true, memory_order_release);
        begin_round(team);
    }
    part(args, 0);
    if (team->num_threads > 1 && !spin_until(&team->working, 0))
        sleep_until(team, &team->working, 0);
}

void team_share(struct team *team, int64_t count, int64_t grain,
                void (*part)(const void *args, struct span piece, struct span share, int32_t thread), const void *args)
{
    int32_t n = (int32_t)MIN((int64_t)team->num_threads, count / grain);

    ASSERT(count <= TEAM_MAX_ITEMS && grain <= TEAM_MAX_GRAIN, "%" PRId64 " items, by %" PRId64, count, grain);
    if (n < 2) {
        if (count > 0)
            part(args, (struct span){0, count}, (struct span){0, count}, 0);
        return;
    }
    team->deal.part = part;
    team->deal.args = args;
    team->deal.count = (int32_t)count;
    team->deal.num_shares = n;
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    for (int32_t i = 0; i < n; i++)
        atomic_store_explicit(&team->seats[i].left, pack_share(share_of(team, i), grain), memory_order_release);
    begin_round(team);
    do_shares(team, 0);
    if (spin_until(&team->done, (uint32_t)count))
        return;
    do_all_shares(team);
    sleep_until(team, &team->done, (uint32_t)count);
}

int32_t team_num_threads(const struct team *team)
{
    return team->num_threads;
}

static enum status start_members(struct team *team)
{
    sigset_t before;

    signals_block(&before);
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
    team->seats = aligned_alloc(64, (size_t)num_threads * sizeof *team->seats);
    if (!team->seats) {
        team_free(team);
        return fail(ERR_NO_MEMORY, "a team of %d threads", num_threads);
    }
    memset(team->seats, 0, (size_t)num_threads * sizeof *team->seats);

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
    atomic_store(&team->stop, true);
    begin_round(team);
    for (int32_t i = 0; i < team->num_started; i++)
        pthread_join(team->members[i].id, NULL);
    mem_free(team->members);
    free(team->seats);
    free(team);
}
