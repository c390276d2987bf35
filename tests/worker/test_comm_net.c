#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/wire/tcp.h"
#include "tests/support/comm_promises.h"
#include "worker/comm_hosts.h"
#include "worker/comm_net.h"

#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_RANKS = 8, JOIN_MS = 30000, ROUNDS = 40 };

/* What ranks tell each other beside their comm, as the engine would: seen by all processes. */
struct board {
    char endpoints[MAX_RANKS][128];
    _Atomic int num_listening, num_ready;
};

static struct board *board;
static struct curve_pair keys;

/* A rank: where it differs from the others, a test says so. */
struct rank {
    int32_t rank, world, epoch;
    int num_listening; /* before it joins */
    uint64_t session;
    int64_t buffer_bytes, join_ms;
    const struct curve_pair *keys;
};

static struct rank usual(int32_t rank, int32_t world)
{
    return (struct rank){.rank = rank, .world = world, .num_listening = world, .epoch = 4, .session = 0xabc, .keys = &keys,
                         .buffer_bytes = PROMISE_BUFFER_BYTES, .join_ms = JOIN_MS};
}

static void begin(void)
{
    if (!board)
        board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(board, MAP_FAILED);
    memset(board, 0, sizeof *board);
    expect_ok(curve_pair_new(&keys));
}

static void wait_for(_Atomic int *number, int at_least)
{
    while (atomic_load(number) < at_least)
        usleep(500);
}

static enum status listen_as(const struct rank *rank, struct comm_net **out)
{
    TRY(comm_net_listen("tcp://127.0.0.1:0", rank->keys, out));
    snprintf(board->endpoints[rank->rank], sizeof board->endpoints[0], "%s",
             comm_net_endpoint(*out));
    atomic_fetch_add(&board->num_listening, 1);
    return OK;
}

static enum status join_as(const struct rank *rank, struct comm_net *net, struct comm **out)
{
    const char *endpoints[MAX_RANKS];

    for (int r = 0; r < MAX_RANKS; r++)
        endpoints[r] = board->endpoints[r];
    return comm_net_join(net,
                         &(struct comm_net_group){
                             .rank = rank->rank,
                             .world = rank->world,
                             .session = rank->session,
                             .epoch = rank->epoch,
                             .endpoints = endpoints,
                             .buffer_bytes = rank->buffer_bytes,
                         },
                         clock_deadline_ns(rank->join_ms), out);
}

/* Listens, waits until all do, and joins. */
static enum status open_as(const struct rank *rank, struct comm **out)
{
    AUTO_FREE(comm_net) struct comm_net *net = NULL;

    TRY(listen_as(rank, &net));
    wait_for(&board->num_listening, rank->num_listening);
    TRY(join_as(rank, net, out));
    net = NULL;
    return OK;
}

/* ---- ranks that are processes --------------------------------------------------------------- */

/* What a rank does once it has joined, in a process of its own; the status it exits with: 0 is well. */
typedef int (*rank_act)(struct comm *comm, const struct rank *rank);

static pid_t start(const struct rank *rank, rank_act act)
{
    pid_t pid = fork();
    struct comm *comm;
    int status;

    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    if (open_as(rank, &comm) != OK) {
        fprintf(stderr, "# rank %d: %s\n", rank->rank, fail_text());
        _exit(100);
    }
    atomic_fetch_add(&board->num_ready, 1);
    status = act(comm, rank);
    if (status != 0)
        fprintf(stderr, "# rank %d: %s\n", rank->rank, fail_text());
    comm_close(comm);
    _exit(status);
}

static void expect_exits(const pid_t *pids, int num_pids, int wanted)
{
    for (int i = 0; i < num_pids; i++) {
        int status;

        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), wanted);
    }
}

static int keep_promises(struct comm *comm, const struct rank *rank)
{
    if (comm_shared(comm))
        return 1;
    return comm_keeps_its_promises(comm, rank->rank, rank->world, ROUNDS) ? 0 : 2;
}

/* Every rank of a world as a process that does the same. */
static void start_all(int32_t world, rank_act act, pid_t *pids)
{
    begin();
    for (int32_t r = 0; r < world; r++) {
        struct rank rank = usual(r, world);

        pids[r] = start(&rank, act);
    }
}

static void every_rank_gets_the_same_sums(void **state)
{
    static const int32_t worlds[] = {1, 2, 3, 5};
    pid_t pids[MAX_RANKS];

    (void)state;
    for (size_t w = 0; w < COUNT_OF(worlds); w++) {
        start_all(worlds[w], keep_promises, pids);
        expect_exits(pids, worlds[w], 0);
    }
}

static int shm_fd;

static double odd_number(unsigned *seed)
{
    return ldexp((double)rand_r(seed) - RAND_MAX / 2, rand_r(seed) % 100 - 50);
}

/* Numbers whose sum depends on the order in which they are added. */
static int compare_with_shared_memory(struct comm *comm, const struct rank *rank)
{
    unsigned seed = (unsigned)rank->rank;
    double here[1500], there[1500];
    struct comm *shm;
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", shm_fd);
    if (comm_open(path, rank->rank, rank->world, &shm) != OK)
        return 1;
    for (size_t i = 0; i < COUNT_OF(here); i++)
        here[i] = there[i] = odd_number(&seed);
    if (comm_all_reduce_f64(comm, here, COUNT_OF(here)) != OK ||
        comm_all_reduce_f64(shm, there, COUNT_OF(there)) != OK)
        return 2;
    comm_close(shm);
    return memcmp(here, there, sizeof here) == 0 ? 0 : 3;
}

static void the_bits_are_those_of_shared_memory(void **state)
{
    pid_t pids[5];
    char path[32];

    (void)state;
    shm_fd = memfd_create("comm", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", shm_fd);
    expect_ok(comm_create(path, 5, PROMISE_BUFFER_BYTES, 0));
    start_all(5, compare_with_shared_memory, pids);
    expect_exits(pids, 5, 0);
    close(shm_fd);
}

static int meet_once(struct comm *comm, const struct rank *rank)
{
    (void)rank;
    return comm_barrier(comm) == OK ? 0 : 1;
}

/* Who leaves first has sent all that the others wait for. */
static void the_last_exchange_arrives_though_ranks_leave_at_once(void **state)
{
    pid_t pids[MAX_RANKS];

    (void)state;
    for (int round = 0; round < 8; round++) {
        start_all(3, meet_once, pids);
        expect_exits(pids, 3, 0);
    }
}

/* Ranks 0 and 1 wait for rank 2, which does not come. */
static int wait_for_the_dead(struct comm *comm, const struct rank *rank)
{
    double x[2] = {1, 2};
    char wanted[160];
    enum status status;

    if (rank->rank == 2)
        for (;;)
            pause();
    status = comm_all_reduce_f64(comm, x, 2);
    snprintf(wanted, sizeof wanted, "rank 2 (%s) is gone", board->endpoints[2]);
    if (status != ERR_CLOSED || strcmp(fail_text(), wanted) != 0)
        return 1;
    return comm_barrier(comm) == ERR_CLOSED && strcmp(fail_text(), wanted) == 0 ? 0 : 2;
}

static void a_rank_that_is_killed_is_named_to_who_waits_for_it(void **state)
{
    pid_t pids[3];

    (void)state;
    start_all(3, wait_for_the_dead, pids);
    wait_for(&board->num_ready, 3);
    usleep(20000);
    kill(pids[2], SIGKILL);
    expect_exits(pids, 2, 0);
    expect_exits(pids + 2, 1, -SIGKILL);
}

/* Rank 2's connections are to others; ranks below 0 there are none: so rank 0's death is seen by those who
 * connected to it. */
static int wait_for_the_first(struct comm *comm, const struct rank *rank)
{
    if (rank->rank == 0)
        for (;;)
            pause();
    return comm_barrier(comm) == ERR_CLOSED && strncmp(fail_text(), "rank 0 (", 8) == 0 ? 0 : 1;
}

static void whoever_connected_to_a_rank_that_is_killed_is_told_too(void **state)
{
    pid_t pids[3];

    (void)state;
    start_all(3, wait_for_the_first, pids);
    wait_for(&board->num_ready, 3);
    kill(pids[0], SIGKILL);
    expect_exits(pids + 1, 2, 0);
    expect_exits(pids, 1, -SIGKILL);
}

static int do_not_agree(struct comm *comm, const struct rank *rank)
{
    static const char *const wanted[] = {
        ") has a sum of 24 bytes in exchange 1, this rank a sum of 16",
        ") has a sum of 16 bytes in exchange 1, this rank a sum of 24"};
    double x[3] = {0};

    if (comm_all_reduce_f64(comm, x, 2 + rank->rank) != ERR_MISMATCH)
        return 1;
    return strstr(fail_text(), wanted[rank->rank]) ? 0 : 2;
}

static int do_something_else(struct comm *comm, const struct rank *rank)
{
    float x = 0;

    if ((rank->rank == 0 ? comm_barrier(comm) : comm_all_reduce_f32_disjoint(comm, &x, 1)) !=
        ERR_MISMATCH)
        return 1;
    return strstr(fail_text(), rank->rank == 0 ? "a disjoint sum of 4 bytes in exchange 1, this "
                                                 "rank a barrier of 0"
                                               : "a barrier of 0 bytes in exchange 1")
               ? 0
               : 2;
}

static void ranks_that_do_not_do_the_same_are_refused_with_both_sizes(void **state)
{
    pid_t pids[2];

    (void)state;
    start_all(2, do_not_agree, pids);
    expect_exits(pids, 2, 0);
    start_all(2, do_something_else, pids);
    expect_exits(pids, 2, 0);
}

struct thread {
    pthread_t thread;
    struct rank rank;
    struct comm *comm;
    enum status status;
    char text[512];
};

static void *wait_thread(void *argument)
{
    struct thread *self = argument;

    self->status = comm_barrier(self->comm);
    snprintf(self->text, sizeof self->text, "%s", fail_text());
    return NULL;
}

/* Two that have joined can exchange something. */
static void meet_and_close(struct thread *first, struct comm *second)
{
    assert_int_equal(pthread_create(&first->thread, NULL, wait_thread, first), 0);
    expect_ok(comm_barrier(second));
    pthread_join(first->thread, NULL);
    assert_int_equal(first->status, OK);
    comm_abort(second);
    comm_close(second);
    comm_close(first->comm);
}

/* ---- hosts with several ranks ---------------------------------------------------------------- */

struct layout {
    int32_t world;
    int32_t hosts[MAX_RANKS]; /* of each rank */
};

static int host_fds[MAX_RANKS]; /* by host: what its ranks share */

static int32_t count_on(const struct layout *layout, int32_t host, int32_t end)
{
    int32_t n = 0;

    for (int32_t r = 0; r < end; r++)
        n += layout->hosts[r] == host;
    return n;
}

/* Hosts whose first rank is before `end`. */
static int32_t count_hosts(const struct layout *layout, int32_t end)
{
    int32_t n = 0;

    for (int32_t r = 0; r < end; r++)
        n += count_on(layout, layout->hosts[r], r) == 0;
    return n;
}

static void share_hosts(const struct layout *layout)
{
    for (int32_t host = 0; host < MAX_RANKS; host++) {
        int32_t num_ranks = count_on(layout, host, layout->world);
        char path[32];

        host_fds[host] = -1;
        if (num_ranks < 2)
            continue;
        host_fds[host] = memfd_create("host", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", host_fds[host]);
        expect_ok(comm_create(path, num_ranks, PROMISE_BUFFER_BYTES,
                              comm_hosts_shared_bytes(layout->world, PROMISE_BUFFER_BYTES)));
    }
}

static enum status open_on_host(const struct layout *layout, int32_t rank, struct comm **out)
{
    int32_t host = layout->hosts[rank], on_host = count_on(layout, host, layout->world);
    int32_t place = count_on(layout, host, rank), num_hosts = count_hosts(layout, layout->world);
    struct comm *local = NULL, *net = NULL;
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", host_fds[host]);
    if (on_host > 1)
        TRY(comm_open(path, place, on_host, &local));
    if (place == 0 && num_hosts > 1) {
        struct rank leader = usual(count_hosts(layout, rank), num_hosts);

        TRY(open_as(&leader, &net));
    }
    return comm_hosts_new(&(struct comm_hosts_group){.rank = rank,
                                                     .world = layout->world,
                                                     .hosts = layout->hosts,
                                                     .buffer_bytes = PROMISE_BUFFER_BYTES},
                          local, net, out);
}

static void start_layout(const struct layout *layout, rank_act act, pid_t *pids)
{
    begin();
    share_hosts(layout);
    for (int32_t r = 0; r < layout->world; r++) {
        struct rank rank = usual(r, layout->world);
        struct comm *comm;
        int status = 100;

        pids[r] = fork();
        assert_true(pids[r] >= 0);
        if (pids[r] > 0)
            continue;
        if (open_on_host(layout, r, &comm) == OK) {
            atomic_fetch_add(&board->num_ready, 1);
            status = act(comm, &rank);
            comm_close(comm);
        }
        if (status != 0)
            fprintf(stderr, "# rank %d: %d: %s\n", r, status, fail_text());
        _exit(status);
    }
}

static void close_hosts(void)
{
    for (int32_t host = 0; host < MAX_RANKS; host++)
        if (host_fds[host] >= 0)
            close(host_fds[host]);
}

static const struct layout layouts[] = {
    {2, {0, 0}}, {4, {0, 0, 1, 1}}, {3, {0, 1, 0}}, {5, {4, 2, 2, 4, 2}}, {3, {0, 1, 2}},
};

static void ranks_that_share_hosts_get_the_same_sums(void **state)
{
    pid_t pids[MAX_RANKS];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(layouts); i++) {
        start_layout(&layouts[i], keep_promises, pids);
        expect_exits(pids, layouts[i].world, 0);
        close_hosts();
    }
}

/* Everybody waits for rank 3, which stops all: it shares a host with rank 2, which leads, while 0 leads 1. */
static int wait_for_the_last(struct comm *comm, const struct rank *rank)
{
    if (rank->rank < 3)
        return comm_barrier(comm) == ERR_ABORTED && comm_is_aborted(comm) ? 0 : 1;
    wait_for(&board->num_ready, 4);
    usleep(20000);
    comm_abort(comm);
    return comm_barrier(comm) == ERR_ABORTED ? 0 : 2;
}

/* Its leader waits for the other host when rank 1 stops all. */
static int wait_for_the_other_host(struct comm *comm, const struct rank *rank)
{
    wait_for(&board->num_ready, 4);
    if (rank->rank >= 2)
        usleep(300000);
    else if (rank->rank == 1) {
        usleep(20000);
        comm_abort(comm);
    }
    return comm_barrier(comm) == ERR_ABORTED ? 0 : 1;
}

static void an_abort_by_any_rank_of_a_host_is_heard_on_all(void **state)
{
    pid_t pids[MAX_RANKS];

    (void)state;
    start_layout(&layouts[1], wait_for_the_last, pids);
    expect_exits(pids, 4, 0);
    close_hosts();
    start_layout(&layouts[1], wait_for_the_other_host, pids);
    expect_exits(pids, 4, 0);
    close_hosts();
}

static int lose_the_other_host(struct comm *comm, const struct rank *rank)
{
    if (rank->rank == 2)
        for (;;)
            pause();
    /* The leader knows who it was; the others that it has stopped them. */
    return comm_barrier(comm) == (rank->rank == 0 ? ERR_CLOSED : ERR_ABORTED) ? 0 : 1;
}

static void a_leader_that_loses_another_host_frees_its_own(void **state)
{
    static const struct layout layout = {3, {0, 0, 1}};
    pid_t pids[MAX_RANKS];

    (void)state;
    start_layout(&layout, lose_the_other_host, pids);
    wait_for(&board->num_ready, 3);
    kill(pids[2], SIGKILL);
    expect_exits(pids, 2, 0);
    expect_exits(pids + 2, 1, -SIGKILL);
    close_hosts();
}

/* Rank 2, of the other host, does not come until rank 0 and its host wait for it. */
static int tell_whom_it_waits_for(struct comm *comm, const struct rank *rank)
{
    pthread_t waiting;
    struct thread self = {.comm = comm};
    int32_t wanted = rank->rank == 1 ? 0 : 2;

    if (rank->rank == 2) {
        wait_for(&board->num_ready, 3 + 2);
        return comm_barrier(comm) == OK ? 0 : 1;
    }
    pthread_create(&waiting, NULL, wait_thread, &self);
    while (comm_waits_for(comm) != wanted)
        usleep(500);
    atomic_fetch_add(&board->num_ready, 1);
    pthread_join(waiting, NULL);
    return self.status == OK && comm_waits_for(comm) == -1 ? 0 : 2;
}

static void whom_a_rank_waits_for_is_a_rank_of_all(void **state)
{
    static const struct layout layout = {3, {0, 0, 1}};
    pid_t pids[MAX_RANKS];

    (void)state;
    start_layout(&layout, tell_whom_it_waits_for, pids);
    expect_exits(pids, 3, 0);
    close_hosts();
}

static void comms_that_do_not_fit_their_hosts_are_refused(void **state)
{
    static const struct layout layout = {3, {0, 0, 1}};
    struct comm *local, *comm;
    char path[32];

    (void)state;
    share_hosts(&layout);
    snprintf(path, sizeof path, "/proc/self/fd/%d", host_fds[0]);
    expect_ok(comm_open(path, 1, 2, &local));
    expect_fails(comm_hosts_new(&(struct comm_hosts_group){1, 3, layout.hosts, PROMISE_BUFFER_BYTES}, NULL,
                                NULL, &comm),
                 ERR_INVALID, "host 0 has 2 ranks, its comm is for 1");
    expect_fails(comm_hosts_new(&(struct comm_hosts_group){0, 3, layout.hosts, PROMISE_BUFFER_BYTES}, local,
                                NULL, &comm),
                 ERR_INVALID, "rank 0 leads one of 2 hosts, its comm between hosts is for 1");
    comm_close(local);
    close_hosts();
}

/* ---- ranks that are threads ----------------------------------------------------------------- */

static void *open_thread(void *argument)
{
    struct thread *self = argument;

    self->status = open_as(&self->rank, &self->comm);
    snprintf(self->text, sizeof self->text, "%s", fail_text());
    return NULL;
}

static void start_opening(struct thread *self)
{
    assert_int_equal(pthread_create(&self->thread, NULL, open_thread, self), 0);
}

static void close_all(struct thread *threads, int num_threads)
{
    for (int i = 0; i < num_threads; i++)
        comm_close(threads[i].comm);
}

/* Two ranks, joined; threads[1].rank may differ from the usual. */
static void open_two(struct thread *threads)
{
    for (int i = 0; i < 2; i++)
        start_opening(&threads[i]);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i].thread, NULL);
}

static void an_abort_wakes_who_waits_and_tells_the_others(void **state)
{
    struct thread threads[3];

    (void)state;
    begin();
    for (int i = 0; i < 3; i++) {
        threads[i] = (struct thread){.rank = usual(i, 3)};
        start_opening(&threads[i]);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i].thread, NULL);
    for (int i = 0; i < 3; i++)
        assert_int_equal(threads[i].status, OK);
    /* Ranks 0 and 1 wait for rank 2; somebody stops rank 1. */
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i].thread, NULL, wait_thread, &threads[i]), 0);
    usleep(20000);
    comm_abort(threads[1].comm);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i].thread, NULL);
    assert_int_equal(threads[1].status, ERR_ABORTED);
    assert_string_equal(threads[1].text, "rank 1 was told to stop");
    assert_int_equal(threads[0].status, ERR_ABORTED);
    assert_non_null(strstr(threads[0].text, ") tells all to stop"));
    /* The parts of the others are there: that exchange may still succeed. */
    if (comm_barrier(threads[2].comm) == OK)
        expect_fails(comm_barrier(threads[2].comm), ERR_ABORTED, ") tells all to stop");
    for (int i = 0; i < 3; i++)
        expect_fails(comm_barrier(threads[i].comm), ERR_ABORTED, "stop");
    close_all(threads, 3);
}

static void an_abort_is_heard_by_who_comes_when_its_rank_has_closed(void **state)
{
    (void)state;
    for (int stops = 0; stops < 2; stops++) {
        struct thread threads[2] = {{.rank = usual(0, 2)}, {.rank = usual(1, 2)}};

        begin();
        open_two(threads);
        assert_int_equal(threads[0].status, OK);
        assert_int_equal(threads[1].status, OK);
        comm_abort(threads[stops].comm);
        comm_close(threads[stops].comm);
        usleep(20000);
        expect_fails(comm_barrier(threads[!stops].comm), ERR_ABORTED, ") tells all to stop");
        comm_close(threads[!stops].comm);
    }
}

static void an_abort_ends_a_join(void **state)
{
    struct thread thread = {.rank = usual(0, 2)};
    struct comm_net *net;
    struct comm *comm;

    (void)state;
    begin();
    snprintf(board->endpoints[1], sizeof board->endpoints[1], "tcp://127.0.0.1:1");
    expect_ok(listen_as(&thread.rank, &net));
    comm_net_abort(net);
    expect_fails(join_as(&thread.rank, net, &comm), ERR_ABORTED, "rank 0 was told to stop");
    comm_net_free(net);
}

static void a_rank_of_an_earlier_epoch_is_refused_and_the_others_meet(void **state)
{
    struct thread first = {.rank = usual(0, 2)};
    struct rank second = usual(1, 2), stale = second;
    struct comm_net *net = NULL;
    struct comm *comm;

    (void)state;
    begin();
    stale.epoch = 3;
    expect_ok(listen_as(&stale, &net));
    start_opening(&first);
    wait_for(&board->num_listening, 2);
    expect_fails(join_as(&stale, net, &comm), ERR_MISMATCH,
                 ") refuses: rank 1 is of epoch 3, not 4");
    comm_net_free(net);
    expect_ok(comm_net_listen("tcp://127.0.0.1:0", &keys, &net));
    expect_ok(join_as(&second, net, &comm));
    pthread_join(first.thread, NULL);
    assert_int_equal(first.status, OK);
    meet_and_close(&first, comm);
}

/* Can anybody connect to it? */
static bool is_let_in(const char *endpoint)
{
    struct tcp_address address;
    struct pollfd fd = {.events = POLLOUT};
    bool is_in;

    expect_ok(tcp_resolve(endpoint, false, &address));
    fd.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    is_in = connect(fd.fd, (const struct sockaddr *)&address.address, address.size) == 0 ||
            poll(&fd, 1, 100) == 1;
    close(fd.fd);
    return is_in;
}

static void nobody_is_let_in_once_all_are_there(void **state)
{
    struct thread first = {.rank = usual(0, 2)};
    struct rank second = usual(1, 2);
    struct comm_net *net = NULL;
    struct comm *comm;

    (void)state;
    begin();
    expect_ok(listen_as(&second, &net));
    start_opening(&first);
    wait_for(&board->num_listening, 2);
    for (int i = 0; i < 2; i++)
        assert_true(is_let_in(board->endpoints[i]));
    expect_ok(join_as(&second, net, &comm));
    pthread_join(first.thread, NULL);
    assert_int_equal(first.status, OK);
    for (int i = 0; i < 2; i++)
        assert_false(is_let_in(board->endpoints[i]));
    meet_and_close(&first, comm);
}

/* How rank 1 differs, and what rank 0 tells it. */
static const struct {
    int64_t buffer_bytes;
    uint64_t session;
    int32_t world;
    const char *refusal;
} strangers[] = {
    {PROMISE_BUFFER_BYTES, 0xabd, 2, "refuses: rank 1 is of job 0000000000000abd, not "
                                     "0000000000000abc"},
    {2 * PROMISE_BUFFER_BYTES, 0xabc, 2, "refuses: rank 1 exchanges 8192 bytes at once, not 4096"},
    {PROMISE_BUFFER_BYTES, 0xabc, 3, "refuses: rank 1 is one of 3 ranks, not of 2"},
};

static void who_is_not_of_the_group_is_told_why(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(strangers); i++) {
        struct thread threads[2] = {{.rank = usual(0, 2)}, {.rank = usual(1, 2)}};

        begin();
        snprintf(board->endpoints[2], sizeof board->endpoints[2], "tcp://127.0.0.1:1");
        threads[0].rank.join_ms = 500;
        threads[1].rank.session = strangers[i].session;
        threads[1].rank.buffer_bytes = strangers[i].buffer_bytes;
        threads[1].rank.world = strangers[i].world;
        open_two(threads);
        if (!strstr(threads[1].text, strangers[i].refusal))
            fail_msg("\"%s\" lacks \"%s\"", threads[1].text, strangers[i].refusal);
        assert_int_equal(threads[1].status, ERR_MISMATCH);
        assert_int_equal(threads[0].status, ERR_TIMEOUT);
        assert_non_null(strstr(threads[0].text, "rank 0 waited in vain for rank 1 (tcp://"));
    }
}

static void who_does_not_hold_the_key_is_not_let_in(void **state)
{
    struct thread threads[2] = {{.rank = usual(0, 2)}, {.rank = usual(1, 2)}};
    struct curve_pair others, mixed;

    (void)state;
    begin();
    expect_ok(curve_pair_new(&others));
    /* Of another job. */
    threads[0].rank.join_ms = 500;
    threads[1].rank.keys = &others;
    open_two(threads);
    assert_int_equal(threads[0].status, ERR_TIMEOUT);
    assert_int_equal(threads[1].status, ERR_CLOSED);
    assert_non_null(strstr(threads[1].text, "nobody listens there, or with other keys"));

    /* Who knows the public key, but not the secret one. */
    begin();
    mixed = others;
    memcpy(mixed.public_key, keys.public_key, sizeof mixed.public_key);
    threads[0].rank.join_ms = 500;
    threads[1].rank.keys = &mixed;
    open_two(threads);
    assert_int_equal(threads[0].status, ERR_TIMEOUT);
    assert_int_equal(threads[1].status, ERR_CLOSED);
}

static void a_rank_whose_process_is_gone_cannot_be_reached(void **state)
{
    struct thread thread = {.rank = usual(1, 2)};
    struct comm_net *net = NULL;

    (void)state;
    begin();
    expect_ok(listen_as(&(struct rank){.rank = 0, .keys = &keys}, &net));
    comm_net_free(net); /* its endpoint is on the board still */
    start_opening(&thread);
    pthread_join(thread.thread, NULL);
    assert_int_equal(thread.status, ERR_CLOSED);
    assert_non_null(strstr(thread.text, "rank 0 (tcp://127.0.0.1:"));
    assert_non_null(strstr(thread.text, ") cannot be reached: nobody listens there"));
}

static void addresses_that_nobody_could_connect_to_are_refused(void **state)
{
    struct comm_net *net = NULL;

    (void)state;
    begin();
    expect_fails(comm_net_listen("tcp://*:0", &keys, &net), ERR_INVALID, "every interface");
    expect_fails(comm_net_listen("tcp://0.0.0.0:0", &keys, &net), ERR_INVALID, "every interface");
    expect_fails(comm_net_listen("ipc:///tmp/x", &keys, &net), ERR_INVALID,
                 "ranks listen on tcp://IP:0, 'ipc:///tmp/x' is none");
    expect_fails(comm_net_listen("tcp://192.0.2.1:0", &keys, &net), ERR_IO,
                 "tcp://192.0.2.1:0 cannot be listened on");
    assert_null(net);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_rank_gets_the_same_sums),
    cmocka_unit_test(the_bits_are_those_of_shared_memory),
    cmocka_unit_test(the_last_exchange_arrives_though_ranks_leave_at_once),
    cmocka_unit_test(a_rank_that_is_killed_is_named_to_who_waits_for_it),
    cmocka_unit_test(whoever_connected_to_a_rank_that_is_killed_is_told_too),
    cmocka_unit_test(ranks_that_do_not_do_the_same_are_refused_with_both_sizes),
    cmocka_unit_test(ranks_that_share_hosts_get_the_same_sums),
    cmocka_unit_test(an_abort_by_any_rank_of_a_host_is_heard_on_all),
    cmocka_unit_test(a_leader_that_loses_another_host_frees_its_own),
    cmocka_unit_test(whom_a_rank_waits_for_is_a_rank_of_all),
    cmocka_unit_test(comms_that_do_not_fit_their_hosts_are_refused),
    cmocka_unit_test(an_abort_wakes_who_waits_and_tells_the_others),
    cmocka_unit_test(an_abort_is_heard_by_who_comes_when_its_rank_has_closed),
    cmocka_unit_test(an_abort_ends_a_join),
    cmocka_unit_test(a_rank_of_an_earlier_epoch_is_refused_and_the_others_meet),
    cmocka_unit_test(who_is_not_of_the_group_is_told_why),
    cmocka_unit_test(nobody_is_let_in_once_all_are_there),
    cmocka_unit_test(who_does_not_hold_the_key_is_not_let_in),
    cmocka_unit_test(a_rank_whose_process_is_gone_cannot_be_reached),
    cmocka_unit_test(addresses_that_nobody_could_connect_to_are_refused),
};
TEST_MAIN(tests)
