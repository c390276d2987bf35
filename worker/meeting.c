#include "worker/meeting.h"

#include "proto/wire/tcp.h"
#include "worker/comm_net.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PATH = 64 };

static void drop_shared(struct meeting *meeting)
{
    if (meeting->shared_fd >= 0)
        close(meeting->shared_fd);
    meeting->shared_fd = -1;
}

void meeting_close(struct meeting *meeting)
{
    comm_net_free(give(meeting->net));
    drop_shared(meeting);
}

/* ---- memory of one host ---------------------------------------------------------------------- */

enum status meeting_create_shared(struct meeting *meeting, const struct worker *worker,
                                  const json_t *args, struct bytes *reply)
{
    json_int_t num_ranks = json_integer_value(json_object_get(args, "num_ranks"));
    char path[MAX_PATH];
    struct stat info;

    if (num_ranks < 2 || num_ranks > INT32_MAX)
        return fail(ERR_MISMATCH, "memory that %lld ranks share", (long long)num_ranks);
    drop_shared(meeting);
    meeting->shared_fd = memfd_create("tandem-comm", MFD_CLOEXEC);
    if (meeting->shared_fd < 0 || fstat(meeting->shared_fd, &info) != 0)
        return fail(ERR_IO, "no memory to share between %lld ranks: %m", (long long)num_ranks);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), meeting->shared_fd);
    TRY(worker_create_shared(worker, (int32_t)num_ranks, path));
    bytes_printf(reply, "{\"path\": \"%s\", \"inode\": %lld}", path, (long long)info.st_ino);
    return OK;
}

static enum status open_memory(const char *path, json_int_t inode, int *fd_out)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    struct stat info;

    if (fd < 0)
        return fail(ERR_NOT_FOUND, "%.64s: %m", path);
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && (json_int_t)info.st_ino == inode) {
        *fd_out = fd;
        return OK;
    }
    close(fd);
    return fail(ERR_NOT_FOUND,
                "%.64s is something else here: ranks that share memory must see each other's processes",
                path);
}

/* hosts: [world]. */
static enum status read_hosts(const json_t *args, int32_t world, int32_t *hosts)
{
    const json_t *list = json_object_get(args, "hosts");

    if (json_array_size(list) != (size_t)world)
        return fail(ERR_MISMATCH, "the hosts of %zu ranks, there are %d", json_array_size(list), world);
    for (int32_t rank = 0; rank < world; rank++) {
        const json_t *first = json_array_get(list, (size_t)rank);

        if (!json_is_integer(first) || json_integer_value(first) < 0 ||
            json_integer_value(first) > rank)
            return fail(ERR_MISMATCH, "the first rank on rank %d's host is one from 0 to %d", rank, rank);
        hosts[rank] = (int32_t)json_integer_value(first);
        if (hosts[hosts[rank]] != hosts[rank])
            return fail(ERR_MISMATCH, "rank %d is the first on rank %d's host, and is not on it",
                        hosts[rank], rank);
    }
    return OK;
}

static int32_t count_local(const int32_t *hosts, int32_t rank, int32_t world)
{
    int32_t count = 0;

    for (int32_t r = 0; r < world; r++)
        count += hosts[r] == hosts[rank];
    return count;
}

enum status meeting_open_shared(struct meeting *meeting, const struct worker_main_options *options,
                                const json_t *args)
{
    AUTO_MEM int32_t *hosts = mem_new_array(int32_t, (size_t)options->world);
    const json_t *memory;
    const char *path;
    int fd;

    TRY(read_hosts(args, options->world, hosts));
    if (count_local(hosts, options->rank, options->world) == 1)
        return OK;
    if (hosts[options->rank] == options->rank && meeting->shared_fd >= 0)
        return OK; /* it has made it, and others find it by this descriptor */
    memory = json_array_get(json_object_get(args, "memory"), (size_t)hosts[options->rank]);
    path = json_string_value(json_object_get(memory, "path"));
    if (!path)
        return fail(ERR_MISMATCH, "no path to memory that rank %d shares with rank %d",
                    options->rank, hosts[options->rank]);
    TRY(open_memory(path, json_integer_value(json_object_get(memory, "inode")), &fd));
    drop_shared(meeting);
    meeting->shared_fd = fd;
    return OK;
}

/* ---- hosts ----------------------------------------------------------------------------------- */

enum status meeting_listen(struct meeting *meeting, const struct worker_main_options *options,
                           const char *engine, struct bytes *reply)
{
    char address[TCP_MAX_TEXT + 1];

    if (!options->token)
        return fail(ERR_MISMATCH, "ranks of several hosts need a token, and this one has none");
    if (options->comm_address)
        snprintf(address, sizeof address, "%s", options->comm_address);
    else
        TRY(tcp_own_address(engine, address));
    comm_net_free(give(meeting->net));
    TRY(comm_net_listen(address, &options->token->worker, &meeting->net));
    bytes_printf(reply, "\"%s\"", comm_net_endpoint(meeting->net));
    return OK;
}

/* endpoints: [world], NULL where ranks don't listen, as on one host alone. */
static enum status read_endpoints(const json_t *args, int32_t world, const char **endpoints)
{
    const json_t *list = json_object_get(args, "endpoints");

    if (list && json_array_size(list) != (size_t)world)
        return fail(ERR_MISMATCH, "%zu endpoints of %d ranks", json_array_size(list), world);
    for (int32_t rank = 0; list && rank < world; rank++) {
        endpoints[rank] = json_string_value(json_array_get(list, (size_t)rank));
        if (!endpoints[rank])
            return fail(ERR_MISMATCH, "the endpoint of rank %d is no text", rank);
    }
    return OK;
}

static enum status check_prepared(const struct meeting *meeting,
                                  const struct worker_main_options *options, const int32_t *hosts,
                                  const char *const *endpoints)
{
    int32_t num_local = count_local(hosts, options->rank, options->world);

    if (num_local > 1 && meeting->shared_fd < 0)
        return fail(ERR_MISMATCH, "%d ranks share a host, and rank %d has not opened their memory",
                    num_local, options->rank);
    if (num_local < options->world && (!meeting->net || !endpoints[0]))
        return fail(ERR_MISMATCH, "ranks are on several hosts, and %s",
                    meeting->net ? "no endpoints have come" : "this one does not listen");
    return OK;
}

enum status meeting_begin(struct meeting *meeting, const struct worker_main_options *options, struct worker *worker,
                          int32_t epoch, const json_t *args)
{
    AUTO_MEM int32_t *hosts = mem_new_array(int32_t, (size_t)options->world);
    AUTO_MEM const char **endpoints = mem_new_array(const char *, (size_t)options->world);
    const char *session = json_string_value(json_object_get(args, "session"));
    char path[MAX_PATH];

    if (json_is_true(json_object_get(args, "mpi")))
        return worker_connect_begin(worker, &(struct worker_meeting){.over_mpi = true});
    TRY(read_hosts(args, options->world, hosts));
    TRY(read_endpoints(args, options->world, endpoints));
    TRY(check_prepared(meeting, options, hosts, endpoints));
    snprintf(path, sizeof path, "/proc/self/fd/%d", meeting->shared_fd);
    return worker_connect_begin(worker, &(struct worker_meeting){
                                            .hosts = hosts,
                                            .path = path,
                                            .net = give(meeting->net),
                                            .session = session ? strtoull(session, NULL, 16) : 0,
                                            .epoch = epoch,
                                            .endpoints = endpoints,
                                        });
}

void meeting_end(struct meeting *meeting)
{
    drop_shared(meeting);
}
