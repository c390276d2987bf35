#include "engine/launch/job_internal.h"

#include "engine/cmd/exit_code.h"
#include "proto/base/clock.h"
#include "proto/base/notify.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum {
    CONNECT_MS = 30000, /* that an agent has to say HELLO */
    LATE_MS = 10000,    /* that a process is not ready, when it is told; then twice as long */
    /* Without WATCHDOG=1 from one that says it: so many times as long as it ever took, between these. The
     * engine is to be first: it names a rank after 3.5 s of silence, and tells its stacks. */
    WATCHDOG_TIMES = 4,
    MIN_WATCHDOG_MS = 4000,
    MAX_WATCHDOG_MS = 10000,
    CLEAN_EXIT_MS = 300,    /* a rank that ended well waits for it, as the engine may be ending */
    RANKS_GRACE_MS = 5000,  /* that ranks have once their engine has ended, or something is lost */
    ORPHAN_GRACE_MS = 1000, /* that all have when our parent is gone */
    KILLED_MS = 3000,       /* that a process has to disappear after SIGKILL */
    ROLL_GRACE_MS = 10000,
    BACK_OFF_MS = 500,
    MAX_BACK_OFF_MS = 10000,
};

static const double default_grace_s = 5, engine_grace_s = 40;
/* Beside one for each rank, so that SIGHUP has room: the engine counts those of all ranks together. */
static const int32_t engine_max_restarts = 3;

/* ---- small questions ------------------------------------------------------------------------- */

static int32_t count_alive(const struct job *job)
{
    int32_t count = 0;

    for (int32_t i = 0; i < job->options.plan->count; i++)
        count += is_alive(&job->processes[i]);
    return count;
}

static double since_ms(int64_t ns)
{
    return clock_ms(clock_now_ns() - ns);
}

/* How long it may be silent. */
static int64_t watchdog_limit_ns(const struct process *process)
{
    int64_t ms = MAX_WATCHDOG_MS;

    if (process->watchdog_gap_ns > 0)
        ms = MIN(MAX(WATCHDOG_TIMES * process->watchdog_gap_ns / 1000000, MIN_WATCHDOG_MS), ms);
    return ms * 1000000;
}

/* ---- telling agents -------------------------------------------------------------------------- */

static void send_signal(struct job *job, struct process *process, int number)
{
    if (is_alive(process))
        leash_send(&remote_of(job, process)->leash,
                   &(struct parcel){.kind = PARCEL_SIGNAL,
                                    .process = (int32_t)(process - job->processes),
                                    .number = number});
}

void job_signal(struct job *job, int number)
{
    for (int32_t i = 0; i < job->options.plan->count; i++)
        send_signal(job, &job->processes[i], number);
}

static void signal_ranks(struct job *job, int number)
{
    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (!is_engine(&job->processes[i]))
            send_signal(job, &job->processes[i], number);
}

enum { MAX_OWN_VARIABLES = 8 };

/* What we set ourselves; the texts are the caller's. */
static int32_t list_own_variables(const struct job *job, const struct process *process,
                                  char *out[MAX_OWN_VARIABLES])
{
    const struct planned_process *plan = process->plan;
    const struct planned_host *host = &job->options.plan->hosts[plan->host];
    int32_t n = 0;

    if (plan->rank == ENGINE_RANK) {
        if (job->options.listen)
            out[n++] = mem_printf("TANDEM_LISTEN=%s", job->options.listen);
        out[n++] = mem_printf("TANDEM_MAX_RESTARTS=%d", job->max_restarts);
        out[n++] = mem_printf("TANDEM_RESTART_WINDOW=%.15g", job->options.settings->restart_window_s);
        return n;
    }
    out[n++] = mem_printf("TANDEM_RANK=%d", plan->rank);
    out[n++] = mem_printf("TANDEM_WORLD_SIZE=%d", job->options.plan->world);
    out[n++] = mem_printf("TANDEM_LOCAL_RANK=%d", plan->local_rank);
    out[n++] = mem_printf("TANDEM_LOCAL_WORLD_SIZE=%d", host->local_world);
    out[n++] = mem_printf("TANDEM_NODE=%d", host->node);
    out[n++] = mem_printf("TANDEM_RESTARTS=%d", process->num_restarts);
    return n;
}

void job_start(struct job *job, struct process *process)
{
    const struct planned_process *plan = process->plan;
    AUTO_MEM struct text *words = mem_new_array(struct text, (size_t)plan->num_words);
    AUTO_MEM struct text *variables =
        mem_new_array(struct text, (size_t)plan->app->num_variables + MAX_OWN_VARIABLES);
    char *ours[MAX_OWN_VARIABLES];
    int32_t num_ours = list_own_variables(job, process, ours);
    int32_t index = (int32_t)(process - job->processes);
    struct parcel parcel = {.kind = PARCEL_START,
                            .process = index,
                            .number = (index == job->reader ? START_READS_INPUT : 0) |
                                      (is_engine(process) ? START_IS_ENGINE : 0),
                            .text = text_of(plan->app->directory ? plan->app->directory : ""),
                            .words = words,
                            .num_words = plan->num_words,
                            .variables = variables,
                            .local_rank = MAX(plan->local_rank, 0),
                            .local_world =
                                MAX(job->options.plan->hosts[plan->host].local_world, 1)};

    for (int32_t i = 0; i < plan->num_words; i++)
        words[i] = text_of(plan->words[i]);
    for (int32_t i = 0; i < plan->app->num_variables; i++)
        variables[parcel.num_variables++] = text_of(plan->app->variables[i]);
    for (int32_t i = 0; i < num_ours; i++)
        variables[parcel.num_variables++] = text_of(ours[i]);
    parcel.binding = job->options.settings->binding;
    if (is_engine(process))
        parcel.binding.bind_to = BIND_NONE;
    leash_send(&remote_of(job, process)->leash, &parcel);
    for (int32_t i = 0; i < num_ours; i++)
        mem_free(ours[i]);

    process->state = PROCESS_STARTING;
    process->started_ns = clock_now_ns();
    process->late_ns = clock_deadline_ns(LATE_MS);
    process->watchdog_ns = process->watchdog_gap_ns = 0;
    process->is_ready = process->is_stopping = process->is_hung = false;
    process->status[0] = process->last_line[0] = '\0';
    if (index == job->reader) {
        job->input_on_its_way = false;
        if (job->input_has_ended)
            job_input(job, text_of(""));
    }
}

static void start_at(struct process *process, int64_t ns)
{
    process->state = PROCESS_WAITING;
    process->start_ns = ns;
}

/* ---- the end of the job ---------------------------------------------------------------------- */

static void kill_all(struct job *job)
{
    job->is_killed = true;
    job->deadline_ns = clock_deadline_ns(KILLED_MS);
    job_signal(job, SIGKILL);
}

/* Nobody is started any more; those who run are asked to end within limit_ms, the engine first. */
static void begin_stop(struct job *job, int number, int64_t limit_ms)
{
    struct process *engine = engine_of(job);

    if (job->is_stopping) {
        job->deadline_ns = MIN(job->deadline_ns, clock_deadline_ns(limit_ms));
        return;
    }
    job->is_stopping = true;
    job->stop_ns = clock_now_ns();
    job->deadline_ns = clock_deadline_ns(limit_ms);
    job->rolling = -1;
    notify("STOPPING=1");
    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (job->processes[i].state == PROCESS_WAITING)
            job->processes[i].state = PROCESS_ENDED;
    if (engine && is_alive(engine))
        send_signal(job, engine, number);
    else
        job_signal(job, number);
    /* What is stopped can't end. */
    job_signal(job, SIGCONT);
}

/* Something went wrong that cannot be mended: the first such thing is the job's exit code. */
void job_fall(struct job *job, int code)
{
    if (job->cause_code == 0 && !job->is_stopping)
        job->cause_code = code;
    begin_stop(job, SIGTERM, MIN(job->grace_ms, RANKS_GRACE_MS));
}

void job_stop(struct job *job, int number)
{
    if (job->is_stopping) {
        if (since_ms(job->stop_ns) < 300) /* timeout(1) sends it to us, and to our group */
            return;
        output_say(job->options.output, "a second signal: killing %d processes", count_alive(job));
        kill_all(job);
        return;
    }
    if (!job->is_running && job->cause_code == 0)
        job->cause_code = EXIT_SIGNAL + number;
    begin_stop(job, number, job->grace_ms);
}

void job_stop_soon(struct job *job, const char *why)
{
    output_say(job->options.output, "%s", why);
    if (job->cause_code == 0 && !job->is_stopping)
        job->cause_code = EXIT_SIGNAL + SIGHUP;
    begin_stop(job, SIGTERM, ORPHAN_GRACE_MS);
}

/* ---- failures -------------------------------------------------------------------------------- */

void job_record_failure(struct process *process, const char *what)
{
    if (process->failure[0])
        return;
    snprintf(process->failure, sizeof process->failure, "%s", what);
    snprintf(process->failure_line, sizeof process->failure_line, "%s", process->last_line);
    process->failure_ns = clock_now_ns();
}

static int by_time(const void *a, const void *b)
{
    const struct process *const *one = a, *const *other = b;

    return (*one)->failure_ns < (*other)->failure_ns ? -1
                                                     : (*one)->failure_ns > (*other)->failure_ns;
}

void job_report(const struct job *job)
{
    const struct process **failed =
        mem_new_array(const struct process *, (size_t)job->options.plan->count);
    size_t count = 0;

    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (job->processes[i].failure[0])
            failed[count++] = &job->processes[i];
    qsort(failed, count, sizeof *failed, by_time);
    if (count > 0)
        output_say(job->options.output,
                   "first failure%s:", count > 1 ? "s, the earliest first" : "");
    for (size_t i = 0; i < count; i++)
        output_say(job->options.output, "  %s, after %.3f s: %s%s%s", failed[i]->name,
                   (double)(failed[i]->failure_ns - job->began_ns) / 1e9, failed[i]->failure,
                   failed[i]->failure_line[0] ? "; its last line: " : "", failed[i]->failure_line);
    mem_free(failed);
}

int job_exit_code(const struct job *job)
{
    if (job->engine_code)
        return job->engine_code;
    return job->cause_code ? job->cause_code : job->stop_code;
}

bool job_is_over(const struct job *job)
{
    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (job->processes[i].state != PROCESS_ENDED)
            return false;
    return true;
}

/* ---- restarts -------------------------------------------------------------------------------- */

/* Restarts of it within the window; *oldest_out: the place of the first of all. */
static int32_t count_recent(const struct job *job, const struct process *process,
                            int32_t *oldest_out)
{
    int64_t since_ns = clock_now_ns() - (int64_t)(job->options.settings->restart_window_s * 1e9);
    int32_t recent = 0;

    *oldest_out = 0;
    for (int32_t i = 0; i < job->max_restarts; i++) {
        recent += process->restarts_ns[i] > 0 && process->restarts_ns[i] > since_ns;
        if (process->restarts_ns[i] < process->restarts_ns[*oldest_out])
            *oldest_out = i;
    }
    return recent;
}

/* How many restarts of it are within the window; the time of one more is noted. false: they are
 * spent. */
static bool spend_restart(struct job *job, struct process *process, int32_t *recent_out)
{
    int32_t oldest, recent = count_recent(job, process, &oldest);

    if (recent >= job->max_restarts)
        return false;
    process->restarts_ns[oldest] = clock_now_ns();
    process->num_restarts++;
    *recent_out = recent;
    return true;
}

static int64_t back_off_ms(int32_t recent)
{
    int64_t ms = BACK_OFF_MS;

    for (int32_t i = 1; i < recent && ms < MAX_BACK_OFF_MS; i++)
        ms *= 2;
    return recent == 0 ? 0 : MIN(ms, MAX_BACK_OFF_MS);
}

static void restart(struct job *job, struct process *process, const char *what, int code)
{
    int32_t recent = 0;

    if (job->max_restarts == 0) {
        output_say(job->options.output, "%s: %s; ending the others", process->name, what);
        job_fall(job, code);
        return;
    }
    if (!spend_restart(job, process, &recent)) {
        output_say(job->options.output, "%s: %s, and %d restarts within %g s are spent",
                   process->name, what, job->max_restarts, job->options.settings->restart_window_s);
        job_fall(job, EXIT_RESTARTS_SPENT);
        return;
    }
    if (code == 0) { /* the engine may be ending, and have told it to go */
        start_at(process, clock_deadline_ns(CLEAN_EXIT_MS));
        process->ended_well = true;
        return;
    }
    int64_t wait_ms = back_off_ms(recent);
    if (wait_ms == 0)
        output_say(job->options.output, "%s: %s; it is started again", process->name, what);
    else
        output_say(job->options.output, "%s: %s; it is started again in %.1f s", process->name,
                   what, (double)wait_ms / 1000);
    if (wait_ms == 0)
        job_start(job, process);
    else
        start_at(process, clock_deadline_ns(wait_ms));
}

/* ---- rolling --------------------------------------------------------------------------------- */

/* From this process on, the next rank that runs. */
static void roll_on(struct job *job, int32_t from)
{
    for (int32_t i = from; i < job->options.plan->count; i++) {
        struct process *process = &job->processes[i];

        if (is_engine(process) || !is_alive(process))
            continue;
        job->rolling = i;
        job->rolling_has_ended = false;
        job->rolling_kill_ns = clock_deadline_ns(MIN(job->grace_ms, ROLL_GRACE_MS));
        send_signal(job, process, SIGTERM);
        return;
    }
    job->rolling = -1;
    output_say(job->options.output, "%d ranks restarted one by one in %.2f s", job->num_rolled,
               since_ms(job->rolling_began_ns) / 1000);
}

/* To the engine a rank that we end is one that is lost, and of those it bears so many. */
static bool may_roll(const struct job *job)
{
    const char *told = plan_engine_flag(job->options.plan, "--max-restarts");
    long most = told ? strtol(told, NULL, 10) : job->max_restarts;
    int32_t spent = 0, unused;

    if (!job->options.plan->has_engine)
        return true;
    for (int32_t i = 0; i < job->options.plan->count; i++)
        spent += count_recent(job, &job->processes[i], &unused);
    if (spent + job->options.plan->world <= most)
        return true;
    output_say(job->options.output,
               "SIGHUP: %d ranks are not restarted, as the engine would end: it bears --max-restarts "
               "%ld within %g s, %d are spent",
               job->options.plan->world, most, job->options.settings->restart_window_s, spent);
    return false;
}

void job_roll(struct job *job)
{
    if (job->is_stopping || !job->is_running)
        return;
    if (job->rolling >= 0) {
        output_say(job->options.output, "the ranks are being restarted already");
        return;
    }
    if (!may_roll(job))
        return;
    job->rolling_began_ns = clock_now_ns();
    job->num_rolled = 0;
    output_say(job->options.output, "restarting the ranks one by one");
    roll_on(job, 0);
}

/* It is as far as it has to be for the next one's turn. */
static void rolled(struct job *job, const struct process *process)
{
    if (job->rolling != process - job->processes || !job->rolling_has_ended)
        return;
    job->num_rolled++;
    roll_on(job, job->rolling + 1);
}

/* ---- what becomes of one process ------------------------------------------------------------- */

static void engine_ended(struct job *job, struct process *engine, int code, const char *what)
{
    /* One that we had to kill did not fail by itself, if something else made us. */
    if (code && !(job->is_killed && job->cause_code))
        job->engine_code = code;
    if (code && !job->is_stopping) {
        job_record_failure(engine, what);
        output_say(job->options.output, "the engine: %s; ending its ranks", what);
    }
    if (job->is_stopping && !job->is_killed) {
        job->deadline_ns = MIN(job->deadline_ns, clock_deadline_ns(RANKS_GRACE_MS));
        signal_ranks(job, SIGTERM);
    } else if (!job->is_stopping) {
        begin_stop(job, SIGTERM, RANKS_GRACE_MS);
    }
}

static void rank_ended(struct job *job, struct process *process, int code, const char *what)
{
    struct process *engine = engine_of(job);
    bool is_rolling = job->rolling == process - job->processes && !job->rolling_has_ended;

    if (is_rolling) {
        int32_t unused;

        job->rolling_has_ended = true;
        if (!engine || !spend_restart(job, process, &unused))
            process->num_restarts++;
        job_start(job, process);
        return;
    }
    if (code == 0 && (!engine || engine->is_stopping || !is_alive(engine)))
        return; /* it is done */
    if (code)
        job_record_failure(process, what);
    restart(job, process, what, code);
}

void job_process_ended(struct job *job, struct process *process, int wait_status)
{
    int code = exit_code_of_child(wait_status);
    char status_text[64], what[128], silence[64] = "";

    if (process->is_hung)
        snprintf(silence, sizeof silence, ", killed as no WATCHDOG=1 came for %.0f s",
                 clock_ms(watchdog_limit_ns(process)) / 1e3);
    snprintf(what, sizeof what, "%s%s", child_status_text(wait_status, status_text), silence);
    process->state = PROCESS_ENDED;
    process->ended_ns = clock_now_ns();
    if (is_engine(process)) {
        engine_ended(job, process, code, what);
    } else if (job->is_stopping) {
        /* With an engine its code counts: that ranks end as they do is its doing. */
        if (job->stop_code == 0 && !engine_of(job))
            job->stop_code = code;
    } else {
        rank_ended(job, process, code, what);
    }
}

void job_process_refused(struct job *job, struct process *process, int code, struct text why)
{
    AUTO_MEM char *words = mem_strndup(why.data, why.size);

    process->state = PROCESS_ENDED;
    job_record_failure(process, words);
    if (!job->is_stopping)
        output_say(job->options.output, "%s: %s", process->name, words);
    if (is_engine(process))
        job->engine_code = code;
    job_fall(job, code);
}

/* ---- readiness ------------------------------------------------------------------------------- */

static void tell_ready(struct job *job)
{
    const struct plan *plan = job->options.plan;
    const char *engine = plan->has_engine ? "the engine and " : "";
    const char *ranks = plan->world == 1 ? "rank" : "ranks";

    job->is_ready = true;
    output_say(job->options.output, "%s%d %s ready in %.3f s", engine, plan->world, ranks,
               since_ms(job->began_ns) / 1000);
    notify("READY=1\nSTATUS=%s%d %s ready", engine, plan->world, ranks);
}

static void process_ready(struct job *job, struct process *process)
{
    process->is_ready = true;
    process->late_ns = INT64_MAX;
    if (job->is_ready && process->num_restarts > 0)
        output_say(job->options.output, "%s is ready again, %.3f s after it ended", process->name,
                   since_ms(process->ended_ns) / 1000);
    rolled(job, process);
    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (!job->processes[i].is_ready)
            return;
    if (!job->is_ready)
        tell_ready(job);
}

void job_process_notice(struct job *job, struct process *process, int64_t flags,
                           struct text status)
{
    job->speaks_notify = true;
    if (flags & NOTICE_STATUS) {
        /* Checked by whoever received it, who may not be one of us. */
        size_t size = MIN(status.size, (size_t)NOTICE_MAX_STATUS);

        for (size_t i = 0; i < size; i++)
            process->status[i] = (unsigned char)status.data[i] < ' ' || status.data[i] == 0x7f
                                     ? '?'
                                     : status.data[i];
        process->status[size] = '\0';
        if (is_engine(process))
            notify("STATUS=%s", process->status);
    }
    if (flags & NOTICE_WATCHDOG) {
        int64_t now_ns = clock_now_ns();

        if (process->watchdog_ns)
            process->watchdog_gap_ns = MAX(process->watchdog_gap_ns, now_ns - process->watchdog_ns);
        process->watchdog_ns = now_ns;
    }
    if (flags & NOTICE_STOPPING)
        process->is_stopping = true;
    if ((flags & NOTICE_READY) && !process->is_ready)
        process_ready(job, process);
}

void job_process_started(struct job *job, struct process *process, struct text bound)
{
    if (process->state == PROCESS_STARTING)
        process->state = PROCESS_RUNNING;
    if (job->options.settings->report_bindings)
        output_say(job->options.output, "%s is bound to %.*s", process->name,
                   bound.size ? (int)bound.size : 7, bound.size ? bound.data : "nothing");
    if (!job->speaks_notify && !engine_of(job)) /* nothing more will be heard of it */
        rolled(job, process);
}

static void keep_last_line(struct process *process, const char *text, size_t size)
{
    while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == '\r'))
        size--;
    const char *newline = size ? memrchr(text, '\n', size) : NULL;
    if (newline) {
        size -= (size_t)(newline + 1 - text);
        text = newline + 1;
    }
    if (size == 0)
        return;
    size = MIN(size, (size_t)MAX_LAST_LINE);
    for (size_t i = 0; i < size; i++)
        process->last_line[i] = (unsigned char)text[i] < ' ' || text[i] == 0x7f ? ' ' : text[i];
    process->last_line[size] = '\0';
}

void job_process_output(struct job *job, struct process *process, int stream, struct text text)
{
    if (stream == 2)
        keep_last_line(process, text.data, text.size);
    output_text(job->options.output, &process->files, process->tag, stream, text.data, text.size);
}

/* ---- the loop -------------------------------------------------------------------------------- */

size_t job_num_fds(const struct job *job)
{
    return (size_t)job->options.plan->num_hosts * REMOTE_NUM_FDS;
}

void job_poll(const struct job *job, struct pollfd *fds)
{
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        remote_poll(&job->remotes[i], fds + (size_t)i * REMOTE_NUM_FDS);
}

static void send_to(struct job *job, struct remote *remote)
{
    if (remote->state == REMOTE_GONE)
        return;
    if (remote->num_owed > 0 && !output_is_full(job->options.output)) {
        leash_send(&remote->leash,
                   &(struct parcel){.kind = PARCEL_TAKEN, .number = (int64_t)remote->num_owed});
        remote->num_owed = 0;
    }
    if (remote_beats(remote) && leash_beat(&remote->leash) != OK) {
        AUTO_MEM char *why = mem_strdup(fail_text());

        job_lose(job, remote, why, EXIT_GONE);
        return;
    }
    if (leash_flush(&remote->leash) != OK)
        job_lose_closed(job, remote);
}

void job_turn(struct job *job, const struct pollfd *fds)
{
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++, fds += REMOTE_NUM_FDS) {
        struct remote *remote = &job->remotes[i];

        if (fds[2].revents)
            while (remote_read_errors(remote))
                output_say(job->options.output, "host %s: %s", remote->name, remote->line);
        if (fds[0].revents && remote->state != REMOTE_GONE)
            job_take_parcels(job, remote);
    }
    job_tick(job);
}

void job_send(struct job *job)
{
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        send_to(job, &job->remotes[i]);
}

int64_t job_deadline_ns(const struct job *job)
{
    int64_t deadline_ns = job->is_stopping ? job->deadline_ns : INT64_MAX;

    for (int32_t i = 0; i < job->options.plan->num_hosts; i++) {
        if (remote_beats(&job->remotes[i]))
            deadline_ns = MIN(deadline_ns, leash_deadline_ns(&job->remotes[i].leash));
        if (job->remotes[i].state == REMOTE_CONNECTING)
            deadline_ns = MIN(deadline_ns, job->began_ns + CONNECT_MS * 1000000LL);
    }
    for (int32_t i = 0; i < job->options.plan->count; i++) {
        const struct process *process = &job->processes[i];

        if (process->state == PROCESS_WAITING && job->is_running)
            deadline_ns = MIN(deadline_ns, process->start_ns);
        if (is_alive(process) && !process->is_ready && job->speaks_notify)
            deadline_ns = MIN(deadline_ns, process->late_ns);
        if (is_alive(process) && process->watchdog_ns && !process->is_hung)
            deadline_ns = MIN(deadline_ns, process->watchdog_ns + watchdog_limit_ns(process));
    }
    if (job->rolling >= 0 && !job->rolling_has_ended)
        deadline_ns = MIN(deadline_ns, job->rolling_kill_ns);
    return deadline_ns;
}

static void tick_process(struct job *job, struct process *process, int64_t now_ns)
{
    if (process->state == PROCESS_WAITING && job->is_running && now_ns >= process->start_ns) {
        if (process->ended_well)
            output_say(job->options.output,
                       "%s has ended, and the engine has not; it is started again", process->name);
        process->ended_well = false;
        job_start(job, process);
    }
    if (!is_alive(process))
        return;
    if (!process->is_ready && job->speaks_notify && !job->is_stopping &&
        now_ns >= process->late_ns) {
        int64_t waited_ns = now_ns - process->started_ns;

        output_say(job->options.output, "%s: no READY after %.0f s; last phase: %s", process->name,
                   (double)waited_ns / 1e9, process->status[0] ? process->status : "unknown");
        process->late_ns = now_ns + waited_ns;
    }
    if (process->watchdog_ns && !process->is_hung &&
        now_ns - process->watchdog_ns >= watchdog_limit_ns(process)) {
        process->is_hung = true;
        send_signal(job, process, SIGKILL);
    }
}

static void tick_stop(struct job *job, int64_t now_ns)
{
    AUTO_CLOSE(bytes) struct bytes names = {0};

    if (now_ns < job->deadline_ns)
        return;
    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (is_alive(&job->processes[i]) && names.size < 512)
            bytes_printf(&names, "%s%s", names.size ? ", " : "", job->processes[i].name);
    if (!job->is_killed) {
        output_say(job->options.output, "still there after %.1f s, and killed: %s",
                   since_ms(job->stop_ns) / 1000, bytes_text(&names));
        kill_all(job);
        return;
    }
    /* Not even SIGKILL: the agent does not answer, or the kernel does not let go of them. */
    output_say(job->options.output, "given up: %s", bytes_text(&names));
    for (int32_t i = 0; i < job->options.plan->count; i++)
        job->processes[i].state = PROCESS_ENDED;
}

void job_tick(struct job *job)
{
    int64_t now_ns = clock_now_ns();

    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        if (job->remotes[i].state == REMOTE_CONNECTING &&
            now_ns - job->began_ns >= CONNECT_MS * 1000000LL)
            job_lose(job, &job->remotes[i], "its agent did not come within 30 s", EXIT_GONE);
    for (int32_t i = 0; i < job->options.plan->count; i++)
        tick_process(job, &job->processes[i], now_ns);
    if (job->rolling >= 0 && !job->rolling_has_ended && now_ns >= job->rolling_kill_ns) {
        job->rolling_kill_ns = INT64_MAX;
        send_signal(job, &job->processes[job->rolling], SIGKILL);
    }
    if (job->is_stopping && !job_is_over(job))
        tick_stop(job, now_ns);
}

/* ---- stopping and going on ------------------------------------------------------------------- */

void job_pause(struct job *job)
{
    job_signal(job, SIGTSTP);
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++) {
        struct remote *remote = &job->remotes[i];

        if (remote->state != REMOTE_UP)
            continue;
        leash_send(&remote->leash, &(struct parcel){.kind = PARCEL_PAUSE});
        if (leash_flush(&remote->leash) != OK)
            job_lose_closed(job, remote);
    }
}

void job_resume(struct job *job)
{
    int64_t now_ns = clock_now_ns();

    job_signal(job, SIGCONT);
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        job->remotes[i].leash.heard_ns = now_ns;
    for (int32_t i = 0; i < job->options.plan->count; i++)
        if (job->processes[i].watchdog_ns)
            job->processes[i].watchdog_ns = now_ns;
}

/* ---- input ----------------------------------------------------------------------------------- */

bool job_wants_input(const struct job *job)
{
    return job->reader >= 0 && !job->input_on_its_way && !job->input_has_ended &&
           job->processes[job->reader].state == PROCESS_RUNNING;
}

void job_input(struct job *job, struct text text)
{
    struct process *process = &job->processes[job->reader];

    if (text.size > 0)
        job->input_on_its_way = true;
    else
        job->input_has_ended = true;
    if (is_alive(process))
        leash_send(&remote_of(job, process)->leash,
                   &(struct parcel){.kind = PARCEL_INPUT, .process = job->reader, .text = text});
}

/* ---- begin and end --------------------------------------------------------------------------- */

static void name_process(const struct job *job, struct process *process)
{
    const char *host = job->options.plan->hosts[process->plan->host].name;

    if (is_engine(process))
        snprintf(process->tag, sizeof process->tag, "engine");
    else
        snprintf(process->tag, sizeof process->tag, "rank %d", process->plan->rank);
    if (job->options.plan->has_remote_hosts)
        snprintf(process->name, sizeof process->name, "%s on %s", process->tag, host);
    else
        snprintf(process->name, sizeof process->name, "%s%s", is_engine(process) ? "the " : "",
                 process->tag);
}

static enum status add_process(struct job *job, struct process *process)
{
    char folder[24];

    process->restarts_ns = mem_new_array(int64_t, (size_t)MAX(job->max_restarts, 1));
    process->start_ns = INT64_MAX;
    process->late_ns = INT64_MAX;
    name_process(job, process);
    snprintf(folder, sizeof folder, is_engine(process) ? "engine" : "rank.%d", process->plan->rank);
    return output_files_open(job->options.output, folder, &process->files);
}

static enum status open_remotes(struct job *job)
{
    const struct plan *plan = job->options.plan;

    /* Those of this machine first: a fork has all that is open. */
    for (int pass = 0; pass < 2; pass++)
        for (int32_t i = 0; i < plan->num_hosts; i++) {
            const struct planned_host *host = &plan->hosts[i];

            if (host->is_local && pass == 0)
                TRY(remote_open_local(host->name, &job->remotes[i]));
            if (!host->is_local && pass == 1)
                TRY(remote_open(host->name, job->options.settings->agent, &job->remotes[i]));
        }
    return OK;
}

enum status job_new(const struct job_options *options, struct job **out)
{
    AUTO_FREE(job) struct job *job = mem_new(struct job);
    const struct launch_options *settings = options->settings;
    const struct plan *plan = options->plan;
    double grace_s = plan->has_engine ? engine_grace_s : default_grace_s;

    job->options = *options;
    job->began_ns = clock_now_ns();
    job->rolling = -1;
    job->reader = settings->has_stdin ? 0 : -1; /* the engine, or rank 0 */
    job->speaks_notify = plan->has_engine;
    job->max_restarts = settings->max_restarts >= 0 ? settings->max_restarts
                        : plan->has_engine          ? engine_max_restarts + plan->world
                                                    : 0;
    job->grace_ms = (int64_t)((settings->grace_s >= 0 ? settings->grace_s : grace_s) * 1000);
    job->processes = mem_new_array(struct process, (size_t)plan->count);
    job->remotes = mem_new_array(struct remote, (size_t)plan->num_hosts);
    for (int32_t i = 0; i < plan->num_hosts; i++)
        job->remotes[i] =
            (struct remote){.leash = {.in_fd = -1, .out_fd = -1},
                            .child = {.pidfd = -1, .pump_stop_fd = -1, .output_fd = -1},
                            .error_fd = -1,
                            .state = REMOTE_GONE};
    for (int32_t i = 0; i < plan->count; i++)
        job->processes[i] = (struct process){.plan = &plan->processes[i], .files = {{-1, -1}}};
    for (int32_t i = 0; i < plan->count; i++)
        TRY(add_process(job, &job->processes[i]));
    TRY(open_remotes(job));
    *out = give(job);
    return OK;
}

/* Agents end by themselves when they are told to, and leave nothing; those that do not are killed.
 */
static void end_agents(struct job *job)
{
    int64_t deadline_ns = clock_deadline_ns(KILLED_MS);
    int unused;

    for (int32_t i = 0; i < job->options.plan->num_hosts; i++) {
        struct remote *remote = &job->remotes[i];

        if (remote->state == REMOTE_GONE)
            continue;
        leash_send(&remote->leash, &(struct parcel){.kind = PARCEL_QUIT, .number = 0});
        if (leash_flush(&remote->leash) == OK)
            remote->state = REMOTE_QUITTING;
    }
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        if (job->remotes[i].state == REMOTE_QUITTING)
            child_wait(&job->remotes[i].child, deadline_ns, &unused);
}

void job_free(struct job *job)
{
    if (!job)
        return;
    end_agents(job);
    for (int32_t i = 0; job->remotes && i < job->options.plan->num_hosts; i++)
        remote_close(&job->remotes[i]);
    for (int32_t i = 0; job->processes && i < job->options.plan->count; i++) {
        output_files_close(&job->processes[i].files);
        mem_free(job->processes[i].restarts_ns);
    }
    mem_free(job->processes);
    mem_free(job->remotes);
    mem_free(job);
}
