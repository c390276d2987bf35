/*
 * bench_comm: how long ranks take to add up, a JSON line for each way they meet, world and size.
 *
 *   bench_comm [WORLD...]
 *   mpirun -np WORLD bench_comm MODULE      comm_mpi, by tandem_mpi.so at this path
 *
 * Ranks are processes of this machine: comm_shm, and comm_net over loopback with CURVE. Rank 0's times of
 * all_reduce_f64, in microseconds; between two of them it does nothing (like layers that cost nothing).
 */
#include "proto/base/clock.h"
#include "worker/comm_mpi.h"
#include "worker/comm_net.h"
#include "worker/identity.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_RANKS = 16, WARM_UP = 200, ROUNDS = 3000, BUFFER_BYTES = 1 << 16 };

static const int32_t sizes[] = {1, 576, 8 * 576};

static struct board {
    char endpoints[MAX_RANKS][128];
    _Atomic int num_listening;
} *board;

static struct curve_pair keys;
static int shm_fd;

static enum status open_shm(int32_t rank, int32_t world, struct comm **out)
{
    char path[32];

    snprintf(path, sizeof path, "/proc/self/fd/%d", shm_fd);
    return comm_open(path, rank, world, out);
}

static enum status open_net(int32_t rank, int32_t world, struct comm **out)
{
    const char *endpoints[MAX_RANKS];
    struct comm_net *net;

    TRY(comm_net_listen("tcp://127.0.0.1:0", &keys, &net));
    snprintf(board->endpoints[rank], sizeof board->endpoints[0], "%s", comm_net_endpoint(net));
    atomic_fetch_add(&board->num_listening, 1);
    while (atomic_load(&board->num_listening) < world)
        usleep(1000);
    for (int r = 0; r < MAX_RANKS; r++)
        endpoints[r] = board->endpoints[r];
    return comm_net_join(net,
                         &(struct comm_net_group){
                             .rank = rank,
                             .world = world,
                             .endpoints = endpoints,
                             .buffer_bytes = BUFFER_BYTES,
                         },
                         clock_deadline_ns(10000), out);
}

static const char *module;

static enum status open_mpi(int32_t rank, int32_t world, struct comm **out)
{
    TRY(comm_mpi_start(module, rank, world));
    return comm_mpi_open(BUFFER_BYTES, clock_deadline_ns(10000), out);
}

static const struct way {
    const char *name;
    enum status (*open)(int32_t rank, int32_t world, struct comm **out);
} ways[] = {
    {"shm", open_shm},
    {"net", open_net},
};

static int compare(const void *a, const void *b)
{
    return (*(const int64_t *)a > *(const int64_t *)b) - (*(const int64_t *)a < *(const int64_t *)b);
}

static void measure(struct comm *comm, const struct way *way, int32_t rank, int32_t world,
                    int32_t count)
{
    static int64_t ns[ROUNDS];
    static double x[8 * 576];

    for (int i = -WARM_UP; i < ROUNDS; i++) {
        int64_t start_ns = clock_now_ns();

        ASSERT(comm_all_reduce_f64(comm, x, count) == OK, "%s", fail_text());
        if (i >= 0)
            ns[i] = clock_now_ns() - start_ns;
    }
    qsort(ns, ROUNDS, sizeof *ns, compare);
    if (rank == 0)
        printf("{\"bench\": \"all_reduce\", \"way\": \"%s\", \"world\": %d, \"doubles\": %d, "
               "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f}\n",
               way->name, world, count, (double)ns[ROUNDS / 2] / 1e3,
               (double)ns[ROUNDS * 9 / 10] / 1e3, (double)ns[ROUNDS * 99 / 100] / 1e3);
}

static void run_rank(const struct way *way, int32_t rank, int32_t world)
{
    struct comm *comm;

    ASSERT(way->open(rank, world, &comm) == OK, "%s", fail_text());
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        measure(comm, way, rank, world, sizes[i]);
    comm_close(comm);
    fflush(stdout);
    _exit(0);
}

static void run_world(const struct way *way, int32_t world)
{
    char path[32];

    memset(board, 0, sizeof *board);
    shm_fd = memfd_create("comm", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", shm_fd);
    ASSERT(comm_create(path, world, BUFFER_BYTES, 0) == OK, "%s", fail_text());
    for (int32_t rank = 0; rank < world; rank++)
        if (fork() == 0)
            run_rank(way, rank, world);
    while (wait(NULL) > 0)
        continue;
    close(shm_fd);
}

static void run_rank_of_mpirun(void)
{
    struct identity identity;

    ASSERT(identity_of_process(&identity) == OK, "%s", fail_text());
    run_rank(&(struct way){"mpi", open_mpi}, identity.rank, identity.world);
}

int main(int argc, char **argv)
{
    module = argc > 1 && strstr(argv[1], ".so") ? argv[1] : NULL;
    if (module)
        run_rank_of_mpirun();
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(board != MAP_FAILED && curve_pair_new(&keys) == OK);
    for (int i = 1; i < MAX(argc, 2); i++) {
        int32_t world = argc > 1 ? atoi(argv[i]) : 2;

        ASSERT(world >= 2 && world <= MAX_RANKS, "a world of 2 to %d ranks", MAX_RANKS);
        for (size_t w = 0; w < COUNT_OF(ways); w++)
            run_world(&ways[w], world);
    }
    return 0;
}
