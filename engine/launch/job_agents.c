#include "engine/launch/job_internal.h"

#include "engine/cmd/exit_code.h"
#include "proto/base/build_id.h"
#include "proto/base/clock.h"

#include <stdio.h>
#include <string.h>

static void begin_running(struct job *job)
{
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        if (job->remotes[i].state != REMOTE_UP)
            return;
    job->is_running = true;
    for (int32_t i = 0; i < job->options.plan->count && !job->is_stopping; i++)
        job_start(job, &job->processes[i]);
}

/* Its processes are gone as far as we can know. */
void job_lose(struct job *job, struct remote *remote, const char *why, int code)
{
    bool is_expected = remote->state == REMOTE_QUITTING;
    char what[MAX_CAUSE];

    remote_close(remote);
    if (is_expected)
        return;
    snprintf(what, sizeof what, "host %s is lost: %s", remote->name, why);
    output_say(job->options.output, "%s", what);
    for (int32_t i = 0; i < job->options.plan->count; i++) {
        struct process *process = &job->processes[i];

        if (remote_of(job, process) != remote || !is_alive(process))
            continue;
        process->state = PROCESS_ENDED;
        if (!job->is_stopping)
            job_record_failure(process, what);
        if (is_engine(process))
            job->engine_code = EXIT_GONE;
    }
    job_fall(job, code);
}

/* The connection is closed: what its command ended with says more, if it has. */
void job_lose_closed(struct job *job, struct remote *remote)
{
    char why[MAX_CAUSE], text[64];
    int wait_status = 0, code = EXIT_GONE;

    while (remote_read_errors(remote))
        output_say(job->options.output, "host %s: %s", remote->name, remote->line);
    if (!child_wait(&remote->child, clock_deadline_ns(100), &wait_status)) {
        job_lose(job, remote, "its agent closed the connection", code);
        return;
    }
    if (remote->state == REMOTE_CONNECTING) {
        snprintf(why, sizeof why, "its agent ended with %s before it was there%s%s",
                 child_status_text(wait_status, text), remote->line[0] ? ": " : "", remote->line);
        int own = exit_code_of_child(wait_status);
        if (own == EXIT_CANNOT_RUN || own == EXIT_NO_PROGRAM)
            code = own;
    } else {
        snprintf(why, sizeof why, "its agent ended with %s", child_status_text(wait_status, text));
    }
    job_lose(job, remote, why, code);
}

static bool is_same(struct text text, const char *wanted)
{
    return text.size == strlen(wanted) && memcmp(text.data, wanted, text.size) == 0;
}

static void take_hello(struct job *job, struct remote *remote, const struct parcel *hello)
{
    const struct job_options *options = &job->options;
    char why[MAX_CAUSE];

    if (remote->state != REMOTE_CONNECTING) {
        job_lose(job, remote, "its agent said HELLO twice", EXIT_GONE);
        return;
    }
    if (!is_same(hello->other, build_id_text())) {
        snprintf(why, sizeof why, "tandem is another build there, %.*s, than here, %.12s",
                 (int)MIN(hello->other.size, 12u), hello->other.data, build_id_text());
        job_lose(job, remote, why, EXIT_MISMATCH);
        return;
    }
    remote->state = REMOTE_UP;
    leash_send(&remote->leash,
               &(struct parcel){.kind = PARCEL_JOB,
                                .number = (options->whole_lines ? JOB_LINES : 0) |
                                          (options->plan->has_engine ? JOB_HAS_ENGINE : 0) |
                                          (remote->is_local ? 0 : JOB_BEATS),
                                .text = options->token,
                                .other = text_of(build_id_text())});
    if (!job->is_running)
        begin_running(job);
}

/* Where the engine listens, to all other hosts. */
static void pass_address(struct job *job, const struct remote *from, struct text address)
{
    for (int32_t i = 0; i < job->options.plan->num_hosts; i++)
        if (&job->remotes[i] != from)
            leash_send(&job->remotes[i].leash,
                       &(struct parcel){.kind = PARCEL_ADDRESS, .text = address});
}

/* NULL: it is no process of this host that runs. */
static struct process *find_process(struct job *job, const struct remote *remote,
                                    const struct parcel *parcel)
{
    struct process *process =
        parcel->process < job->options.plan->count ? &job->processes[parcel->process] : NULL;

    return process && remote_of(job, process) == remote && is_alive(process) ? process : NULL;
}

static void take_parcel_of_process(struct job *job, struct remote *remote,
                                   const struct parcel *parcel)
{
    struct process *process = find_process(job, remote, parcel);
    char why[MAX_CAUSE];

    if (!process) {
        snprintf(why, sizeof why, "its agent speaks of process %d, which does not run there",
                 parcel->process);
        job_lose(job, remote, why, EXIT_GONE);
        return;
    }
    switch (parcel->kind) {
    case PARCEL_STARTED:
        job_process_started(job, process, parcel->text);
        break;
    case PARCEL_REFUSED:
        job_process_refused(job, process, (int)parcel->number, parcel->text);
        break;
    case PARCEL_OUTPUT:
        remote->num_owed += parcel->text.size;
        job_process_output(job, process, (int)parcel->number, parcel->text);
        break;
    case PARCEL_NOTICE:
        job_process_notice(job, process, parcel->number, parcel->text);
        break;
    default:
        job_process_ended(job, process, (int)parcel->number);
    }
}

static void take_parcel(struct job *job, struct remote *remote, const struct parcel *parcel)
{
    char why[MAX_CAUSE];

    if (remote->state == REMOTE_CONNECTING && parcel->kind != PARCEL_HELLO &&
        parcel->kind != PARCEL_FAULT) {
        snprintf(why, sizeof why, "its agent said %s before HELLO", parcel_name(parcel->kind));
        job_lose(job, remote, why, EXIT_GONE);
        return;
    }
    switch (parcel->kind) {
    case PARCEL_HELLO:
        take_hello(job, remote, parcel);
        break;
    case PARCEL_FAULT:
        snprintf(why, sizeof why, "%.*s", (int)MIN(parcel->text.size, sizeof why - 1),
                 parcel->text.data);
        job_lose(job, remote, why, EXIT_GONE);
        break;
    case PARCEL_ADDRESS:
        pass_address(job, remote, parcel->text);
        break;
    case PARCEL_INPUT_TAKEN:
        job->input_on_its_way = false;
        break;
    case PARCEL_BEAT:
        break;
    default:
        take_parcel_of_process(job, remote, parcel);
    }
}

/* The first words of an agent that is none: a greeting of its shell, or an error. */
static void lose_garbled(struct job *job, struct remote *remote)
{
    const struct bytes *bytes = &remote->leash.reader.bytes;
    char why[MAX_CAUSE], words[49];
    size_t size = MIN(bytes->size, sizeof words - 1);

    for (size_t i = 0; i < size; i++)
        words[i] = bytes->data[i] < ' ' || bytes->data[i] >= 0x7f ? '?' : (char)bytes->data[i];
    words[size] = '\0';
    if (remote->state == REMOTE_CONNECTING)
        snprintf(why, sizeof why,
                 "it says '%s' where its agent should speak; does its shell print something?",
                 words);
    else
        snprintf(why, sizeof why, "its agent speaks nonsense: %.200s", fail_text());
    job_lose(job, remote, why, EXIT_GONE);
}

void job_take_parcels(struct job *job, struct remote *remote)
{
    struct parcel parcel;
    bool found;

    if (leash_fill(&remote->leash) != OK) {
        job_lose_closed(job, remote);
        return;
    }
    while (remote->state != REMOTE_GONE) {
        if (leash_next(&remote->leash, &parcel, &found) != OK) {
            lose_garbled(job, remote);
            return;
        }
        if (!found)
            return;
        take_parcel(job, remote, &parcel);
    }
}
