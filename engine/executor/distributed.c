/*
 * distributed: ranks that others start, wherever they are: a launcher, a batch system, Kubernetes, a person. They
 * find the engine by its address, and prove by the token that they belong to it. Where one is lost, whoever
 * started it is expected to start another.
 */
#include "engine/executor/linked.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/wire/tcp.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { STOP_TIMEOUT_MS = 2000, STOP_LOOK_MS = 10 };

struct distributed {
    struct linked_executor linked;
    struct run_dir run_dir;
    const struct config *config;
    char *way_in; /* link's */
    uint64_t session; /* of the ranks' exchanges */
};

static struct distributed *of(struct executor *executor)
{
    return CONTAINER_OF(executor, struct distributed, linked.executor);
}

/* ---- how ranks meet -------------------------------------------------------------------------- */

static bool is_same_host(const struct rank_info *a, const struct rank_info *b)
{
    return strcmp(a->host, b->host) == 0 && strcmp(a->boot_id, b->boot_id) == 0;
}

/* Of each rank, the first on its host. */
static void find_hosts(const struct link *link, int32_t *hosts_out)
{
    const struct rank_info *ranks = link->rendezvous.ranks;

    for (int32_t rank = 0; rank < link->world; rank++)
        for (hosts_out[rank] = 0; !is_same_host(&ranks[rank], &ranks[hosts_out[rank]]);)
            hosts_out[rank]++;
}

static enum status plan_meeting(struct linked_executor *linked, int32_t *hosts_out,
                                struct meeting_options *options_out)
{
    struct distributed *distributed = of(&linked->executor);
    const struct link *link = &linked->link;
    const char *comm = distributed->config->comm;

    find_hosts(link, hosts_out);
    for (int32_t rank = 0; rank < link->world; rank++) {
        if (strcmp(comm, "shm") == 0 && hosts_out[rank] != 0)
            return fail(ERR_MISMATCH, "rank 0 is on %s and rank %d on %s: with --comm shm all share memory",
                        link->rendezvous.ranks[0].host, rank, link->rendezvous.ranks[rank].host);
        if (strcmp(comm, "net") == 0)
            hosts_out[rank] = rank;
    }
    *options_out = (struct meeting_options){.session = distributed->session,
                                            .hosts = hosts_out,
                                            .over_mpi = strcmp(comm, "mpi") == 0,
                                            .may_do_without = strcmp(comm, "auto") == 0};
    return OK;
}

/* The old one is asked to go, if it can hear that; another is to come. */
static enum status replace(struct linked_executor *linked, int32_t rank, const char *peer)
{
    log_warn("another process is awaited in the place of rank %d, for %.0f s at most", rank,
             of(&linked->executor)->config->join_timeout);
    if (*peer)
        link_give_up(&linked->link, peer);
    return OK;
}

static const struct rank_source source = {.replace = replace, .plan_meeting = plan_meeting};

/* ---- starting -------------------------------------------------------------------------------- */

/* Made where it is not there yet. */
static enum status find_token(const char *path, struct token *out)
{
    if (access(path, F_OK) == 0 || errno != ENOENT)
        return token_read(path, out);
    TRY(token_create(path, out));
    log_info("%s is a new token: ranks need it", path);
    return OK;
}

/* What others are to read in a file must be where they reach us. */
static enum status check_listen(const char *endpoint, bool is_published)
{
    struct tcp_address address;

    if (!is_published || !tcp_is_endpoint(endpoint))
        return OK;
    TRY(tcp_resolve(endpoint, true, &address));
    if (tcp_is_any(&address))
        return fail(ERR_INVALID,
                    "--listen %s is every interface, which no --address-file can tell others: name "
                    "one, tcp://10.0.0.1:0 or tcp://eth0:0", endpoint);
    return OK;
}

static enum status listen_for_ranks(struct distributed *distributed)
{
    const struct config *config = distributed->config;
    struct channel_keys keys;
    struct channel *channel;
    struct token token;
    const char *endpoint = config->listen ? config->listen : "tcp://127.0.0.1:0";
    AUTO_MEM char *token_path = NULL;

    TRY(check_listen(endpoint, config->address_file != NULL));
    TRY(run_dir_open(config->run_dir, &distributed->run_dir));
    token_path = config->token ? mem_strdup(config->token) /* else one of this engine alone */
                               : mem_printf("%s/token", distributed->run_dir.path);
    TRY(find_token(token_path, &token));
    channel_keys_of_engine(&token, &keys);
    TRY(channel_listen(endpoint, &keys, &channel));
    linked_open(&distributed->linked, channel, 1, config);
    distributed->linked.source = &source;
    distributed->way_in = mem_printf("--engine %s --token %s", channel_endpoint(channel), token_path);
    distributed->linked.link.waits_for_others = true;
    distributed->linked.link.way_in = distributed->way_in;
    distributed->linked.join_timeout_ms = (int64_t)(config->join_timeout * 1e3);
    log_info("%d ranks are to join at %s", config->tp, channel_endpoint(channel));
    return config->address_file
               ? rendezvous_publish(config->address_file, channel_endpoint(channel))
               : OK;
}

static enum status distributed_open(const struct executor_options *options, struct executor **out)
{
    AUTO_FREE(executor) struct executor *executor = &mem_new(struct distributed)->linked.executor;
    struct distributed *distributed = of(executor);
    struct executor_info *info = &executor->info;

    executor->ops = &executor_distributed;
    distributed->config = options->config;
    if (getrandom(&distributed->session, sizeof distributed->session, 0) !=
        sizeof distributed->session)
        return fail(ERR_IO, "no random number: %m");
    info->num_ranks = options->config->tp;
    TRY(executor_max_model_len(options->config, model_file_config(options->model),
                               &info->max_model_len));
    TRY(listen_for_ranks(distributed));
    TRY(linked_gather(&distributed->linked, options));
    *out = give(executor);
    return OK;
}

/* ---- stopping -------------------------------------------------------------------------------- */

/* Ranks that have heard it go; those that have not would be told that the engine is gone. */
static void dismiss_ranks(struct link *link)
{
    int64_t deadline_ns = clock_deadline_ns(STOP_TIMEOUT_MS);

    for (int32_t rank = 0; rank < link->world; rank++)
        if (link->rendezvous.ranks[rank].is_joined)
            link_dismiss(link, link->rendezvous.ranks[rank].peer);
    while (link_num_connected(link) > 0 && clock_now_ns() < deadline_ns)
        usleep(STOP_LOOK_MS * 1000);
}

static void distributed_free(struct executor *executor)
{
    struct distributed *distributed = of(executor);
    AUTO_MEM char *sentence = mem_strdup(fail_text()); /* why, if a failure brought us here */

    if (distributed->linked.link.ranks)
        dismiss_ranks(&distributed->linked.link);
    if (distributed->config->address_file)
        unlink(distributed->config->address_file);
    linked_close(&distributed->linked);
    if (distributed->run_dir.path)
        run_dir_close(&distributed->run_dir);
    mem_free(distributed->way_in);
    mem_free(distributed);
    (void)fail(OK, "%s", sentence);
}

const struct executor_ops executor_distributed = {
    .name = "distributed",
    .doc = "ranks that others start, on any host",
    .open = distributed_open,
    .prepare_inputs = linked_prepare_inputs,
    .execute_model = linked_execute_model,
    .sample = linked_sample,
    .collect = linked_collect,
    .wait = linked_wait,
    .call = linked_call,
    .recover = linked_recover,
    .workers = linked_workers,
    .free = distributed_free,
};
