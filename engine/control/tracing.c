#include "engine/control/tracing.h"

#include "engine/server/server.h"
#include "engine/trace/report.h"
#include "proto/base/trace.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One command of these. */
struct tracing {
    struct control_call *call;
    bool is_profile;
    char *path; /* of the file */
    int32_t num_ranks; /* that write parts */
    struct job job;    /* writes it */
    enum status status;
    char *why;         /* it failed */
    struct bytes report;
};

static void tracing_free(struct tracing *tracing)
{
    mem_free(tracing->path);
    mem_free(tracing->why);
    bytes_close(&tracing->report);
    mem_free(tracing);
}

static struct engine *engine_of(const struct control_call *call)
{
    return front_engine(call->server->front);
}

/* Ranks with processes of their own; one in ours has its spans among ours. */
static int32_t count_ranks(const struct engine *engine)
{
    struct engine_worker workers[MAX_RANKS];
    int32_t n = MIN(engine_workers(engine, workers, MAX_RANKS), (int32_t)MAX_RANKS);

    return n == 1 && workers[0].pid == getpid() ? 0 : n;
}

/* Tells the ranks, where there are any; `then` goes on, at once or when they have answered. */
static void tell_ranks(struct control_call *call, const char *action, const char *path,
                       engine_listener *then, void *user)
{
    json_t *args;
    enum status status;

    if (count_ranks(engine_of(call)) == 0) {
        then(user, OK, "");
        return;
    }
    args = json_pack("{s:s, s:s*}", "action", action, "path", path);

    AUTO_MEM char *text = json_dumps(args, JSON_COMPACT);
    json_decref(args);
    status = engine_call_workers(engine_of(call), "trace", text, then, user);
    if (status != OK)
        then(user, status, fail_text());
}

/* ---- on and off ------------------------------------------------------------------------------ */

static void start_here(void *user, enum status status, const char *text)
{
    AUTO_MEM char *why = mem_strdup(text);

    if (status == OK && !trace_is_on()) {
        status = trace_start(TRACE_SPANS);
        mem_free(why);
        why = mem_strdup(fail_text());
    }
    control_call_end(user, status, why, NULL);
}

void tracing_start(struct control_call *call)
{
    if (trace_is_on())
        control_call_end(call, ERR_INVALID, "tracing is on", NULL);
    else
        tell_ranks(call, "start", NULL, start_here, call);
}

static void stop_here(void *user, enum status status, const char *text)
{
    trace_stop();
    control_call_end(user, status, text, NULL);
}

/* With --trace the file is written at the end all the same, of what there is. */
void tracing_stop(struct control_call *call)
{
    if (!trace_is_on())
        control_call_end(call, ERR_INVALID, "tracing is off", NULL);
    else
        tell_ranks(call, "stop", NULL, stop_here, call);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* parts[0] is ours; the ranks' are there. */
static enum status merge(const struct tracing *tracing)
{
    int32_t n = tracing->num_ranks + 1;
    const char **parts = mem_new_array(const char *, (size_t)n);
    enum status status;

    parts[0] = mem_printf("%s.engine", tracing->path);
    for (int32_t rank = 0; rank < tracing->num_ranks; rank++)
        parts[rank + 1] = mem_printf("%s.worker.%d", tracing->path, rank);
    status = trace_write(parts[0], "engine");
    if (status == OK)
        status = trace_merge(parts, n, tracing->path);
    for (int32_t i = 0; i < n; i++) {
        unlink(parts[i]);
        mem_free((char *)parts[i]);
    }
    mem_free(parts);
    return status;
}

static enum status tell_report(struct tracing *tracing)
{
    AUTO_CLOSE(timeline) struct timeline timeline = {0};
    struct report report;

    TRY(timeline_read(tracing->path, &timeline));
    report_make(&timeline, &report);
    report_print(&report, &tracing->report);
    report_close(&report);
    return OK;
}

static void write_file(struct job *job)
{
    struct tracing *tracing = CONTAINER_OF(job, struct tracing, job);

    tracing->status = merge(tracing);
    if (tracing->status == OK && tracing->is_profile)
        tracing->status = tell_report(tracing);
    if (tracing->status != OK)
        tracing->why = mem_strdup(fail_text());
}

static void file_is_written(struct job *job)
{
    struct tracing *tracing = CONTAINER_OF(job, struct tracing, job);

    if (tracing->status == OK && tracing->is_profile)
        bytes_printf(&tracing->report, "\nthe whole, for ui.perfetto.dev: %s\n", tracing->path);
    control_call_end(tracing->call, tracing->status, tracing->why,
                     json_string(tracing->is_profile ? bytes_text(&tracing->report)
                                                     : tracing->path));
    tracing_free(tracing);
}

static void ranks_have_written(void *user, enum status status, const char *text)
{
    struct tracing *tracing = user;
    struct server *server = tracing->call->server;

    if (tracing->is_profile)
        trace_stop();
    if (status == OK && server->jobs) {
        tracing->job = (struct job){.run = write_file, .done = file_is_written};
        jobs_add(server->jobs, &tracing->job);
        return;
    }
    control_call_end(tracing->call, status == OK ? ERR_CLOSED : status, text, NULL);
    tracing_free(tracing);
}

static struct tracing *tracing_new(struct control_call *call, const char *path)
{
    struct tracing *tracing = mem_new(struct tracing);

    tracing->call = call;
    tracing->path = mem_strdup(path);
    tracing->num_ranks = count_ranks(engine_of(call));
    return tracing;
}

void tracing_dump(struct control_call *call)
{
    const char *path = json_string_value(json_object_get(call->args, "file"));
    struct tracing *tracing = tracing_new(call, path);

    tell_ranks(call, "write", path, ranks_have_written, tracing);
}

/* They have stopped; what they have is theirs to write still. */
static void profile_has_stopped(void *user, enum status status, const char *text)
{
    struct tracing *tracing = user;

    if (status == OK)
        tell_ranks(tracing->call, "write", tracing->path, ranks_have_written, tracing);
    else
        ranks_have_written(tracing, status, text);
}

/* A new file that nobody else can have made. */
static enum status make_file(const struct config *config, char **path_out)
{
    const char *folder = config->dump_dir ? config->dump_dir : getenv("TMPDIR");
    AUTO_MEM char *path =
        mem_printf("%s/tandem-profile-XXXXXX.json", folder && *folder ? folder : "/tmp");
    int fd = mkostemps(path, (int)strlen(".json"), O_CLOEXEC);

    if (fd < 0)
        return fail(ERR_IO, "%s can't be made: %m", path);
    close(fd);
    *path_out = give(path);
    return OK;
}

void tracing_profile(struct control_call *call)
{
    AUTO_MEM char *path = NULL;
    struct tracing *tracing;

    if (!trace_is_on()) {
        control_call_end(call, ERR_INVALID, "no profile was started", NULL);
        return;
    }
    if (make_file(&call->server->live_config, &path) != OK) {
        control_call_end(call, ERR_IO, fail_text(), NULL);
        return;
    }
    tracing = tracing_new(call, path);
    tracing->is_profile = true;
    tell_ranks(call, "stop", NULL, profile_has_stopped, tracing);
}
