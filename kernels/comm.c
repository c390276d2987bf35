#include "kernels/comm.h"
#include "kernels/device.h"

#include "proto/base/log.h"
#include "proto/base/memory.h"

#include <stdio.h>
#include <string.h>

static bool is_alone(const struct comm *comm)
{
    return !comm || comm->world == 1;
}

void comm_close(struct comm *comm)
{
    if (comm)
        comm->ops->close(comm);
}

void comm_abort(struct comm *comm)
{
    if (comm)
        comm->ops->abort(comm);
}

bool comm_is_aborted(const struct comm *comm)
{
    return comm && comm->ops->is_aborted(comm);
}

int32_t comm_waits_for(const struct comm *comm)
{
    if (comm && comm->ops->waits_for)
        return comm->ops->waits_for(comm);
    return comm ? atomic_load_explicit(&comm->awaited, memory_order_relaxed) - 1 : -1;
}

void comm_add_parts(const struct comm_parts *parts, int64_t count, double *out)
{
    memcpy(out, parts->parts[0], (size_t)count * sizeof *out);
    for (int32_t p = 1; p < parts->num_parts; p++)
        for (int64_t i = 0; i < count; i++)
            out[i] += parts->parts[p][i];
}

void comm_add_disjoint(float *x, const float *part, int64_t count)
{
    uint32_t word, other;

    for (int64_t i = 0; i < count; i++) {
        memcpy(&word, &x[i], sizeof word);
        memcpy(&other, &part[i], sizeof other);
        word |= other;
        memcpy(&x[i], &word, sizeof word);
    }
}

enum status comm_check(const struct comm *comm)
{
    if (comm && comm->ops->check)
        return comm->ops->check(comm);
    return comm_is_aborted(comm) ? fail(ERR_ABORTED, "another rank is gone") : OK;
}

/* ---- to meet ------------------------------------------------------------------------------------- */

/* What a rank tells the others, its data behind it. */
struct word {
    char error[400]; /* "": it is well */
};

enum status comm_tell(struct comm *host, const char *error, const void *data, int64_t bytes, void *all)
{
    int32_t world = host->world;
    int64_t stride = (int64_t)sizeof(struct word) + bytes;
    AUTO_MEM char *own = mem_new_array(char, stride), *words = mem_new_array(char, world * stride);
    AUTO_MEM int64_t *sizes = mem_new_array(int64_t, world);

    snprintf(((struct word *)own)->error, sizeof(struct word), "%s", error ? error : "");
    if (bytes > 0)
        memcpy(own + sizeof(struct word), data, (size_t)bytes);
    TRY(comm_all_gather(host, own, stride, stride, words, sizes));
    for (int32_t rank = 0; rank < world; rank++) {
        const struct word *word = (const struct word *)(words + rank * stride);

        if (sizes[rank] != stride)
            return fail(ERR_MISMATCH, "rank %d tells %lld bytes in the place of %lld", rank, (long long)sizes[rank],
                        (long long)stride);
        if (word->error[0])
            return fail(ERR_UNSUPPORTED, "rank %d: %.*s", rank, (int)sizeof word->error - 1, word->error);
        if (bytes > 0)
            memcpy((char *)all + rank * bytes, word + 1, (size_t)bytes);
    }
    return OK;
}

static bool is_named(const struct comm_device_options *options, const char *name)
{
    return options->by && strcmp(options->by, name) == 0;
}

static bool may_go(const struct comm_device_options *options, const char *name)
{
    return !options->by || strcmp(options->by, "auto") == 0 || is_named(options, name);
}

enum status comm_open_device(struct device *dev, struct comm *host, const struct comm_device_options *options,
                             struct comm **out)
{
    AUTO_CLOSE(bytes) struct bytes why = {0};

    for (const struct comm_way *way = dev->ops->comm_ways; way && way->name; way++) {
        enum status status;

        if (!may_go(options, way->name))
            continue;
        if (way->is_open_to_all && !options->is_one_host && !is_named(options, way->name))
            status = fail(ERR_UNSUPPORTED, "it does not encrypt between hosts, so --device-comm has to name it");
        else
            status = way->open(dev, host, options, out);
        if (status != ERR_UNSUPPORTED)
            return status;
        bytes_printf(&why, "%s%s: %s", why.size > 0 ? "; " : "", way->name, fail_text());
    }
    if (!may_go(options, "host"))
        return fail(ERR_UNSUPPORTED, "--device-comm can't be %s",
                    why.size > 0 ? bytes_text(&why) : "what this device does not know");
    if (why.size > 0 && options->rank == 0)
        log_warn("sums among the ranks' GPUs go through their hosts; %s", bytes_text(&why));
    return comm_open_staged(dev, host, out);
}

/* ---- sums ---------------------------------------------------------------------------------------- */

enum status comm_all_reduce_f64(struct comm *comm, double *x, int64_t count)
{
    struct comm_parts sum;

    if (is_alone(comm))
        return OK;
    if (comm->ops->all_reduce_f64)
        return comm->ops->all_reduce_f64(comm, x, count);
    for (int64_t piece; count > 0; count -= piece, x += piece) {
        piece = MIN(count, comm->sum_max);
        memcpy(comm_sum_buffer(comm), x, (size_t)piece * sizeof *x);
        TRY(comm_sum(comm, piece, &sum));
        comm_add_parts(&sum, piece, x);
    }
    return OK;
}

enum status comm_all_reduce_f32_disjoint(struct comm *comm, float *x, int64_t count)
{
    return is_alone(comm) ? OK : comm->ops->all_reduce_f32_disjoint(comm, x, count);
}

double *comm_sum_buffer(struct comm *comm)
{
    return comm->ops->sum_buffer(comm);
}

int64_t comm_sum_max(const struct comm *comm)
{
    return comm->sum_max;
}

enum status comm_sum(struct comm *comm, int64_t count, struct comm_parts *out)
{
    ASSERT(count >= 0 && count <= comm->sum_max, "%lld doubles of %lld", (long long)count,
           (long long)comm->sum_max);
    return comm->ops->sum(comm, count, out);
}

bool comm_can_record(const struct comm *comm)
{
    return is_alone(comm) || comm->ops->align;
}

static enum status align(struct comm *comm)
{
    return is_alone(comm) ? OK : comm->ops->align(comm);
}

enum status comm_record(struct comm *comm, struct device *dev)
{
    TRY(align(comm));
    return device_record(dev);
}

enum status comm_end_record(struct comm *comm, struct device *dev, struct device_recording **out)
{
    enum status status = align(comm), ended = device_end_record(dev, out);

    if (status == OK || ended != OK)
        return ended;
    device_recording_free(dev, *out);
    return status;
}

enum status comm_replay(struct comm *comm, struct device *dev, struct device_recording *recording)
{
    TRY(align(comm));
    TRY(device_replay(dev, recording));
    if (!is_alone(comm) && comm->ops->replayed)
        comm->ops->replayed(comm);
    return OK;
}

enum status comm_agree(struct comm *comm, bool own, bool *all_out)
{
    int32_t world = is_alone(comm) ? 1 : comm->world;
    AUTO_MEM bool *told = mem_new_array(bool, world);
    AUTO_MEM int64_t *sizes = mem_new_array(int64_t, world);

    *all_out = own;
    if (world == 1)
        return OK;
    TRY(comm_all_gather(comm, &own, sizeof own, sizeof own, told, sizes));
    for (int32_t rank = 0; rank < world; rank++)
        *all_out &= sizes[rank] == sizeof own && told[rank];
    return OK;
}

int32_t comm_columns_max(const struct comm *comm, const int32_t *first)
{
    int32_t widest = 1;

    for (int32_t rank = 0; rank < comm->world; rank++)
        widest = MAX(widest, first[rank + 1] - first[rank]);
    return (int32_t)MIN(comm->columns_max / widest, (int64_t)INT32_MAX);
}

enum status comm_gather_columns(struct comm *comm, const struct comm_columns *columns)
{
    ASSERT(columns->rows <= comm_columns_max(comm, columns->first), "%d rows", columns->rows);
    return comm->ops->gather_columns(comm, columns);
}

void *comm_shared(const struct comm *comm)
{
    return comm->shared;
}

enum status comm_barrier(struct comm *comm)
{
    return comm->ops->barrier(comm);
}

enum status comm_all_gather(struct comm *comm, const void *data, int64_t bytes, int64_t stride,
                            void *out, int64_t *bytes_out)
{
    ASSERT(bytes >= 0 && bytes <= stride, "%lld bytes of %lld", (long long)bytes,
           (long long)stride);
    if (!is_alone(comm))
        return comm->ops->all_gather(comm, data, bytes, stride, out, bytes_out);
    if (bytes > 0)
        memcpy(out, data, (size_t)bytes);
    bytes_out[0] = bytes;
    return OK;
}
