#include "engine/executor/meeting.h"

#include "proto/base/log.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

static int32_t count_local(const int32_t *hosts, int32_t world, int32_t first)
{
    int32_t count = 0;

    for (int32_t rank = 0; rank < world; rank++)
        count += hosts[rank] == first;
    return count;
}

static void write_hosts(const int32_t *hosts, int32_t world, struct bytes *out)
{
    bytes_printf(out, "[");
    for (int32_t rank = 0; rank < world; rank++)
        bytes_printf(out, "%s%d", rank > 0 ? ", " : "", hosts[rank]);
    bytes_printf(out, "]");
}

/* What the first rank of a host tells of memory that it has set up; of others null. */
static enum status create_shared(struct link *link, const int32_t *hosts, int64_t deadline_ns,
                                 struct bytes *memory, bool *refused_out)
{
    *refused_out = false;
    bytes_printf(memory, "[");
    for (int32_t rank = 0; rank < link->world; rank++) {
        int32_t num_local = count_local(hosts, link->world, rank);
        AUTO_CLOSE(bytes) struct bytes replies = {0}; /* a list of one */
        AUTO_MEM char *args = mem_printf("{\"num_ranks\": %d}", num_local);

        if (num_local > 1)
            TRY(link_call(link, rank, rank + 1, "create_shared", args, deadline_ns, &replies,
                          refused_out));
        bytes_printf(memory, "%s%.*s", rank > 0 ? ", " : "",
                     num_local > 1 ? (int)replies.size - 2 : 4,
                     num_local > 1 ? bytes_text(&replies) + 1 : "null");
    }
    bytes_printf(memory, "]");
    return OK;
}

/* Every host's memory is made, and opened by all its ranks. */
static enum status share_memory(struct link *link, const int32_t *hosts, int64_t deadline_ns,
                                bool *refused_out)
{
    AUTO_CLOSE(bytes) struct bytes memory = {0}, text = {0};

    TRY(create_shared(link, hosts, deadline_ns, &memory, refused_out));
    write_hosts(hosts, link->world, &text);

    AUTO_MEM char *args = mem_printf("{\"hosts\": %s, \"memory\": %s}", bytes_text(&text),
                                     bytes_text(&memory));

    return link_call(link, 0, link->world, "open_shared", args, deadline_ns, NULL, refused_out);
}

static int32_t count_first(const int32_t *hosts, int32_t world)
{
    int32_t count = 0;

    for (int32_t rank = 0; rank < world; rank++)
        count += hosts[rank] == rank;
    return count;
}

/* They meet, and tell what that has left of their devices' memory. */
static enum status call_connect(struct link *link, const char *args, int64_t deadline_ns)
{
    AUTO_CLOSE(bytes) struct bytes replies = {0};
    bool is_refused;
    json_t *list;

    TRY(link_call(link, 0, link->world, "connect", args, deadline_ns, &replies, &is_refused));
    list = json_loads(bytes_text(&replies), 0, NULL);
    for (int32_t rank = 0; rank < link->world; rank++) {
        const json_t *bytes = json_object_get(json_array_get(list, (size_t)rank), "free_bytes");

        link->rendezvous.ranks[rank].ready.free_bytes = json_is_integer(bytes) ? json_integer_value(bytes) : -1;
    }
    json_decref(list);
    return OK;
}

static enum status connect_all(struct link *link, uint64_t session, const int32_t *hosts,
                               int64_t deadline_ns)
{
    AUTO_CLOSE(bytes) struct bytes endpoints = {0}, text = {0};
    int32_t num_first = count_first(hosts, link->world);
    bool has_several = num_first > 1, is_refused;

    log_info("%d ranks meet, %d of them over tcp", link->world, has_several ? num_first : 0);
    if (has_several)
        TRY(link_call(link, 0, link->world, "listen", "{}", deadline_ns, &endpoints, &is_refused));
    write_hosts(hosts, link->world, &text);

    AUTO_MEM char *args = mem_printf("{\"session\": \"%016" PRIx64 "\", \"hosts\": %s%s%s}", session,
                                     bytes_text(&text), has_several ? ", \"endpoints\": " : "",
                                     has_several ? bytes_text(&endpoints) : "");

    return call_connect(link, args, deadline_ns);
}

enum status meeting_hold(struct link *link, const struct meeting_options *options,
                         int64_t deadline_ns)
{
    AUTO_MEM int32_t *hosts = mem_new_array(int32_t, (size_t)link->world);
    bool shares = false, is_refused = false;
    enum status status = OK;

    if (options->over_mpi) {
        log_info("%d ranks meet by MPI", link->world);
        return call_connect(link, "{\"mpi\": true}", deadline_ns);
    }
    for (int32_t rank = 0; rank < link->world; rank++) {
        hosts[rank] = options->hosts[rank];
        shares |= hosts[rank] != rank;
    }
    if (shares)
        status = share_memory(link, hosts, deadline_ns, &is_refused);
    if (is_refused && options->may_do_without) {
        log_warn("ranks of one host share no memory, all meet over tcp: %s", fail_text());
        for (int32_t rank = 0; rank < link->world; rank++)
            hosts[rank] = rank;
        status = OK;
    }
    TRY(status);
    return connect_all(link, options->session, hosts, deadline_ns);
}
