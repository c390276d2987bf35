/*
 * net_rank: one rank of a comm_net as a program, for tests across hosts.
 *
 *   net_rank RANK WORLD IP FOLDER
 *
 * FOLDER/token holds the keys; each rank writes its endpoint to FOLDER/RANK and reads the others'. It adds up
 * until somebody is gone, a line "step N" every hundred steps, or "joined" at first. Then it prints the reason, and
 * how many milliseconds after the last step: exit 3 for ERR_CLOSED, 1 for anything else.
 */
#include "proto/base/clock.h"
#include "worker/comm_net.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_RANKS = 16, COUNT = 576, MAX_TEXT = 128 };

static void tell(const char *folder, int32_t rank, const char *endpoint)
{
    AUTO_MEM char *path = mem_printf("%s/%d", folder, rank);
    AUTO_MEM char *aside = mem_printf("%s.new", path);
    FILE *file = fopen(aside, "w");

    ASSERT(file && fputs(endpoint, file) >= 0 && fclose(file) == 0 && rename(aside, path) == 0);
}

static void hear(const char *folder, int32_t rank, char *endpoint_out)
{
    AUTO_MEM char *path = mem_printf("%s/%d", folder, rank);
    FILE *file;

    while (!(file = fopen(path, "r")))
        usleep(1000);
    ASSERT(fgets(endpoint_out, MAX_TEXT, file));
    fclose(file);
}

static enum status join(int32_t rank, int32_t world, const char *ip, const char *folder,
                        struct comm **out)
{
    AUTO_FREE(comm_net) struct comm_net *net = NULL;
    AUTO_MEM char *token_path = mem_printf("%s/token", folder);
    AUTO_MEM char *address = mem_printf("tcp://%s:0", ip);
    static char texts[MAX_RANKS][MAX_TEXT];
    const char *endpoints[MAX_RANKS];
    struct token token;

    TRY(token_read(token_path, &token));
    TRY(comm_net_listen(address, &token.worker, &net));
    tell(folder, rank, comm_net_endpoint(net));
    for (int32_t r = 0; r < world; r++) {
        hear(folder, r, texts[r]);
        endpoints[r] = texts[r];
    }
    TRY(comm_net_join(net,
                      &(struct comm_net_group){
                          .rank = rank,
                          .world = world,
                          .endpoints = endpoints,
                          .buffer_bytes = COUNT * sizeof(double),
                      },
                      clock_deadline_ns(20000), out));
    net = NULL;
    return OK;
}

static enum status add_up(struct comm *comm, int32_t world, int64_t *last_ns)
{
    for (int64_t step = 0;; step++) {
        double x[COUNT];

        for (int i = 0; i < COUNT; i++)
            x[i] = (double)(step + i);
        TRY(comm_all_reduce_f64(comm, x, COUNT));
        for (int i = 0; i < COUNT; i++)
            if (x[i] != (double)world * (double)(step + i))
                return fail(ERR_INTERNAL, "step %lld: a sum is %g", (long long)step, x[i]);
        *last_ns = clock_now_ns();
        if (step % 100 == 0)
            printf("step %lld\n", (long long)step);
        usleep(1000);
    }
}

int main(int argc, char **argv)
{
    int64_t last_ns = clock_now_ns();
    struct comm *comm = NULL;
    enum status status;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc != 5 || atoi(argv[2]) > MAX_RANKS)
        return 2;
    status = join(atoi(argv[1]), atoi(argv[2]), argv[3], argv[4], &comm);
    if (status == OK)
        status = add_up(comm, atoi(argv[2]), &last_ns);
    printf("%s: %s, %lld ms after the last step\n", status_name(status), fail_text(),
           (long long)(clock_now_ns() - last_ns) / 1000000);
    comm_close(comm);
    return status == ERR_CLOSED ? 3 : 1;
}
