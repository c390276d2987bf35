#include "engine/launch/crew.h"

#include "engine/cmd/exit_code.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/notify.h"
#include "proto/base/spawn.h"
#include "proto/wire/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_LINE = 16 << 10, LOOK_MS = 10 };

struct stream { /* its stdout or stderr */
    int fd;     /* -1: it has ended */
    char *text; /* [MAX_LINE], what is no whole line yet */
    size_t size;
};

struct member {
    int32_t process;
    struct child child; /* pid 0: it has ended */
    struct stream streams[2];
    int input_fd;       /* -1: it reads nothing, or its end */
    struct bytes input; /* what it has not read yet */
    bool input_ends;
    struct notify_receiver notices;
};

struct crew {
    struct leash *leash;
    const char *run_path;
    bool whole_lines, has_engine;
    struct member **members; /* [count], alive */
    int32_t count;
    int64_t look_ns; /* when it looks for the engine's address again; INT64_MAX: it is not waited for */
    size_t num_sent; /* bytes of output in this turn */
};

struct crew *crew_new(struct leash *leash, const char *run_path)
{
    struct crew *crew = mem_new(struct crew);

    *crew = (struct crew){.leash = leash, .run_path = run_path, .look_ns = INT64_MAX};
    return crew;
}

/* ---- files of the run directory -------------------------------------------------------------- */

/* Whole or not at all: a reader may be waiting for it. */
static enum status write_file(const struct crew *crew, const char *name, struct text text)
{
    AUTO_MEM char *path = mem_printf("%s/%s", crew->run_path, name);
    AUTO_MEM char *aside = mem_printf("%s.new", path);
    int fd = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool is_written = fd >= 0 && write(fd, text.data, text.size) == (ssize_t)text.size;

    if (fd >= 0)
        close(fd);
    if (!is_written || rename(aside, path) != 0)
        return fail(ERR_IO, "%s cannot be written: %m", path);
    return OK;
}

enum status crew_set_job(struct crew *crew, const struct parcel *job)
{
    crew->whole_lines = job->number & JOB_LINES;
    crew->has_engine = job->number & JOB_HAS_ENGINE;
    return job->text.size > 0 ? write_file(crew, "token", job->text) : OK;
}

enum status crew_set_address(struct crew *crew, struct text address)
{
    return write_file(crew, "engine", address);
}

/* The engine's address, once it is there. By polling: a user may have few inotify instances, 128 in all that
 * runs on the host. */
static void look_for_address(struct crew *crew)
{
    AUTO_MEM char *path = mem_printf("%s/engine", crew->run_path);
    char address[RENDEZVOUS_MAX_ENDPOINT + 1];
    enum status status = rendezvous_look_up(path, address);

    if (status == ERR_NOT_FOUND) {
        crew->look_ns = clock_deadline_ns(LOOK_MS);
        return;
    }
    crew->look_ns = INT64_MAX;
    if (status == OK)
        leash_send(crew->leash,
                   &(struct parcel){.kind = PARCEL_ADDRESS, .text = text_of(address)});
    else
        log_warn("the engine's address is not passed on: %s", fail_text());
}

int64_t crew_deadline_ns(const struct crew *crew)
{
    return crew->look_ns;
}

/* ---- output ---------------------------------------------------------------------------------- */

static void send_output(struct crew *crew, const struct member *member, int stream,
                        const char *text, size_t size)
{
    if (size == 0)
        return;
    leash_send(crew->leash, &(struct parcel){.kind = PARCEL_OUTPUT,
                                             .process = member->process,
                                             .number = stream + 1,
                                             .text = {text, size}});
    crew->num_sent += size;
}

/* Lines that are whole, and a part of one that is too long; at the end also what is left. */
static void send_lines(struct crew *crew, const struct member *member, int number, bool is_end)
{
    struct stream *stream = (struct stream *)&member->streams[number];
    const char *newline = memrchr(stream->text, '\n', stream->size);
    size_t size = newline ? (size_t)(newline - stream->text) + 1 : 0;

    if (!crew->whole_lines || is_end || (!newline && stream->size == MAX_LINE))
        size = stream->size;
    send_output(crew, member, number, stream->text, size);
    memmove(stream->text, stream->text + size, stream->size - size);
    stream->size -= size;
}

/* false: there is nothing more to read now. */
static bool read_output(struct crew *crew, struct member *member, int number)
{
    struct stream *stream = &member->streams[number];

    if (stream->fd < 0)
        return false;
    ssize_t n = read(stream->fd, stream->text + stream->size, MAX_LINE - stream->size);
    if (n < 0)
        return errno == EINTR;
    stream->size += (size_t)n;
    send_lines(crew, member, number, n == 0);
    if (n == 0) {
        close(stream->fd);
        stream->fd = -1;
    }
    return n > 0;
}

/* ---- input ----------------------------------------------------------------------------------- */

static void close_input(struct member *member)
{
    if (member->input_fd >= 0)
        close(member->input_fd);
    member->input_fd = -1;
    bytes_close(&member->input);
}

static void write_input(struct crew *crew, struct member *member)
{
    ssize_t n = write(member->input_fd, member->input.data, member->input.size);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0) { /* it closed its end: what comes is thrown away */
        close_input(member);
    } else {
        memmove(member->input.data, member->input.data + n, member->input.size - (size_t)n);
        member->input.size -= (size_t)n;
        if (member->input.size > 0)
            return;
        if (member->input_ends)
            close_input(member);
    }
    leash_send(crew->leash,
               &(struct parcel){.kind = PARCEL_INPUT_TAKEN, .process = member->process});
}

/* ---- members --------------------------------------------------------------------------------- */

static struct member *find(const struct crew *crew, int32_t process)
{
    for (int32_t i = 0; i < crew->count; i++)
        if (crew->members[i]->process == process)
            return crew->members[i];
    return NULL;
}

static void member_free(struct member *member)
{
    if (member->child.pid)
        kill(-member->child.pid, SIGKILL);
    child_close(&member->child);
    for (int i = 0; i < 2; i++) {
        if (member->streams[i].fd >= 0)
            close(member->streams[i].fd);
        mem_free(member->streams[i].text);
    }
    close_input(member);
    notify_receiver_close(&member->notices);
    mem_free(member);
}

void crew_free(struct crew *crew)
{
    if (!crew)
        return;
    for (int32_t i = 0; i < crew->count; i++)
        member_free(crew->members[i]);
    mem_free(crew->members);
    mem_free(crew);
}

static void take_notices(struct crew *crew, struct member *member)
{
    struct notice notice;

    while (notify_receiver_take(&member->notices, &notice)) {
        int flags =
            (notice.is_ready ? NOTICE_READY : 0) | (notice.is_stopping ? NOTICE_STOPPING : 0) |
            (notice.is_watchdog ? NOTICE_WATCHDOG : 0) | (notice.has_status ? NOTICE_STATUS : 0);

        leash_send(crew->leash, &(struct parcel){.kind = PARCEL_NOTICE,
                                                 .process = member->process,
                                                 .number = flags,
                                                 .text = text_of(notice.status)});
    }
}

/* Its process has ended: so does what it left in its group, and its output. */
static void end(struct crew *crew, struct member *member)
{
    int wait_status = 0;

    /* Before it is reaped, while its number can't be another's. */
    kill(-member->child.pid, SIGKILL);
    if (!child_wait(&member->child, 0, &wait_status))
        return;
    for (int i = 0; i < 2; i++) {
        while (read_output(crew, member, i))
            continue;
        send_lines(crew, member, i, crew->whole_lines);
    }
    take_notices(crew, member);
    leash_send(crew->leash, &(struct parcel){.kind = PARCEL_ENDED,
                                             .process = member->process,
                                             .number = wait_status & 0xffff});
    for (int32_t i = 0; i < crew->count; i++)
        if (crew->members[i] == member)
            crew->members[i] = crew->members[--crew->count];
    member_free(member);
}

void crew_signal(struct crew *crew, int32_t process, int signal)
{
    for (int32_t i = 0; i < crew->count; i++)
        if (process == PARCEL_ALL || crew->members[i]->process == process)
            kill(-crew->members[i]->child.pid, signal);
}

void crew_input(struct crew *crew, int32_t process, struct text text)
{
    struct member *member = find(crew, process);

    if (!member || member->input_fd < 0) {
        if (text.size > 0) /* it is gone: the next one may want what follows */
            leash_send(crew->leash,
                       &(struct parcel){.kind = PARCEL_INPUT_TAKEN, .process = process});
        return;
    }
    if (text.size > 0)
        bytes_append(&member->input, text.data, text.size);
    else if (member->input.size > 0)
        member->input_ends = true;
    else
        close_input(member);
}

bool crew_has(const struct crew *crew, pid_t pid)
{
    for (int32_t i = 0; i < crew->count; i++)
        if (crew->members[i]->child.pid == pid)
            return true;
    return false;
}

int32_t crew_num_alive(const struct crew *crew)
{
    return crew->count;
}

/* ---- starting -------------------------------------------------------------------------------- */

/* What execve is given: "tandem" is this program, a word with a slash is a path, others are in
 * PATH. ERR_NOT_FOUND: there is none; ERR_IO: it can't be run. */
static enum status find_program(const char *word, const char *folder, char **out)
{
    const char *path = getenv("PATH");
    bool is_there = false;

    if (strcmp(word, "tandem") == 0) {
        *out = mem_strdup("/proc/self/exe");
        return OK;
    }
    if (strchr(word, '/')) {
        AUTO_MEM char *place =
            word[0] == '/' || !*folder ? mem_strdup(word) : mem_printf("%s/%s", folder, word);

        if (access(place, F_OK) != 0)
            return fail(ERR_NOT_FOUND, "%s: %m", word);
        if (access(place, X_OK) != 0)
            return fail(ERR_IO, "%s: %m", word);
        *out = mem_strdup(word);
        return OK;
    }
    for (path = path && *path ? path : "/usr/local/bin:/usr/bin:/bin"; path;
         path = strchr(path, ':') ? strchr(path, ':') + 1 : NULL) {
        AUTO_MEM char *place = mem_printf("%.*s/%s", (int)strcspn(path, ":"), path, word);

        is_there = is_there || access(place, F_OK) == 0;
        if (access(place, X_OK) == 0) {
            *out = give(place);
            return OK;
        }
    }
    return is_there ? fail(ERR_IO, "%s is in PATH and can't be executed", word)
                    : fail(ERR_NOT_FOUND, "there is no program %s in PATH", word);
}

/* A list of C strings, NULL at the end. */
struct strings {
    char **list;
    int32_t count;
};

static void strings_add(struct strings *strings, char *given)
{
    strings->list = mem_resize(strings->list, sizeof *strings->list * (size_t)(strings->count + 2));
    strings->list[strings->count++] = given;
    strings->list[strings->count] = NULL;
}

static void strings_close(struct strings *strings)
{
    for (int32_t i = 0; i < strings->count; i++)
        mem_free(strings->list[i]);
    mem_free(strings->list);
}

static void add_variables(const struct crew *crew, const struct parcel *start,
                          const struct member *member, struct strings *out)
{
    for (int32_t i = 0; i < start->num_variables; i++)
        strings_add(out, mem_strndup(start->variables[i].data, start->variables[i].size));
    strings_add(out, mem_printf("NOTIFY_SOCKET=%s", member->notices.path));
    if (!crew->has_engine)
        return;
    strings_add(out, mem_printf("TANDEM_TOKEN=%s/token", crew->run_path));
    strings_add(out, mem_printf(start->number & START_IS_ENGINE ? "TANDEM_ADDRESS_FILE=%s/engine"
                                                                : "TANDEM_ENGINE=file:%s/engine",
                                crew->run_path));
}

struct stdio { /* pipes, and the child's ends of them */
    int ours[3], theirs[3];
};

static void stdio_close(struct stdio *stdio)
{
    for (int i = 0; i < 3; i++) {
        if (stdio->ours[i] >= 0)
            close(stdio->ours[i]);
        if (stdio->theirs[i] >= 0)
            close(stdio->theirs[i]);
    }
}

static enum status open_stdio(bool reads_input, struct stdio *out)
{
    *out = (struct stdio){{-1, -1, -1}, {-1, -1, -1}};
    for (int i = 0; i < 3; i++) {
        int ends[2];

        if (i == 0 && !reads_input) {
            out->theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
            continue;
        }
        if (pipe2(ends, O_CLOEXEC) != 0)
            return fail(ERR_IO, "no pipe for it: %m");
        out->ours[i] = ends[i == 0];
        out->theirs[i] = ends[i != 0];
        fcntl(out->ours[i], F_SETFL, O_NONBLOCK);
    }
    return OK;
}

static enum status start_member(struct crew *crew, const struct parcel *start,
                                struct member *member, char bound[static BINDING_MAX_TEXT])
{
    AUTO_CLOSE(strings) struct strings argv = {0};
    AUTO_CLOSE(strings) struct strings env = {0};
    AUTO_CLOSE(stdio) struct stdio stdio = {{-1, -1, -1}, {-1, -1, -1}};
    AUTO_MEM char *folder = mem_strndup(start->text.data, start->text.size);
    AUTO_MEM char *program = NULL,
                  *notify_path = mem_printf("%s/notify.%d", crew->run_path, start->process);
    cpu_set_t cpus;

    for (int32_t i = 0; i < start->num_words; i++)
        strings_add(&argv, mem_strndup(start->words[i].data, start->words[i].size));
    TRY(find_program(argv.list[0], folder, &program));
    mem_free(argv.list[0]);
    argv.list[0] = give(program);
    TRY(notify_receiver_open(notify_path, &member->notices));
    add_variables(crew, start, member, &env);
    TRY(open_stdio(start->number & START_READS_INPUT, &stdio));
    if (start->binding.bind_to != BIND_NONE)
        TRY(binding_place(&start->binding, NULL, start->local_rank, start->local_world, &cpus,
                          bound));
    TRY(spawn(&(struct spawn_options){.argv = (const char *const *)argv.list,
                                      .env = (const char *const *)env.list,
                                      .stdio = stdio.theirs,
                                      .directory = *folder ? folder : NULL,
                                      .cpus = *bound ? &cpus : NULL},
              &member->child));
    member->input_fd = stdio.ours[0];
    for (int i = 0; i < 2; i++) {
        member->streams[i].fd = stdio.ours[i + 1];
        member->streams[i].text = mem_alloc(MAX_LINE);
    }
    for (int i = 0; i < 3; i++)
        stdio.ours[i] = -1; /* the member's now */
    return OK;
}

static enum exit_code code_of_refusal(enum status status)
{
    return status == ERR_NOT_FOUND ? EXIT_NO_PROGRAM
           : status == ERR_INVALID ? EXIT_WRONG_USAGE
                                   : EXIT_CANNOT_RUN;
}

void crew_start(struct crew *crew, const struct parcel *start)
{
    struct member *member = mem_new(struct member);
    char bound[BINDING_MAX_TEXT] = "";

    *member = (struct member){.process = start->process,
                              .child = {.pidfd = -1, .pump_stop_fd = -1, .output_fd = -1},
                              .streams = {{.fd = -1}, {.fd = -1}},
                              .input_fd = -1,
                              .notices = {.fd = -1}};
    if (start->number & START_IS_ENGINE)
        crew->look_ns = clock_now_ns();
    enum status status = find(crew, start->process)
                             ? fail(ERR_INTERNAL, "process %d runs already", start->process)
                             : start_member(crew, start, member, bound);

    if (status != OK) {
        leash_send(crew->leash, &(struct parcel){.kind = PARCEL_REFUSED,
                                                 .process = start->process,
                                                 .number = code_of_refusal(status),
                                                 .text = text_of(fail_text())});
        member_free(member);
        return;
    }
    crew->members = mem_resize(crew->members, sizeof(struct member *) * (size_t)(crew->count + 1));
    crew->members[crew->count++] = member;
    leash_send(crew->leash, &(struct parcel){.kind = PARCEL_STARTED,
                                             .process = start->process,
                                             .number = member->child.pid,
                                             .text = text_of(bound)});
}

/* ---- waiting --------------------------------------------------------------------------------- */

enum { FDS_OF_MEMBER = 5 };

size_t crew_num_fds(const struct crew *crew)
{
    return FDS_OF_MEMBER * (size_t)crew->count;
}

/* Each has its place, -1 where there is nothing to wait for: poll passes over those. */
size_t crew_poll(const struct crew *crew, bool wants_output, struct pollfd *fds)
{
    size_t n = 0;

    for (int32_t i = 0; i < crew->count; i++) {
        const struct member *member = crew->members[i];

        fds[n++] = (struct pollfd){.fd = member->child.pidfd, .events = POLLIN};
        fds[n++] = (struct pollfd){.fd = member->notices.fd, .events = POLLIN};
        for (int k = 0; k < 2; k++)
            fds[n++] =
                (struct pollfd){.fd = wants_output ? member->streams[k].fd : -1, .events = POLLIN};
        fds[n++] = (struct pollfd){.fd = member->input.size > 0 ? member->input_fd : -1,
                                   .events = POLLOUT};
    }
    return n;
}

static void turn_member(struct crew *crew, struct member *member, const struct pollfd *fds)
{
    if (fds[1].revents)
        take_notices(crew, member);
    for (int i = 0; i < 2; i++)
        if (fds[2 + i].revents)
            read_output(crew, member, i);
    if (fds[4].revents)
        write_input(crew, member);
    if (fds[0].revents)
        end(crew, member);
}

size_t crew_turn(struct crew *crew, const struct pollfd *fds, size_t num_fds)
{
    crew->num_sent = 0;
    if (clock_now_ns() >= crew->look_ns)
        look_for_address(crew);
    /* From the last: end() puts the last in the place of one that goes. */
    for (size_t i = num_fds / FDS_OF_MEMBER; i-- > 0;)
        turn_member(crew, crew->members[i], fds + FDS_OF_MEMBER * i);
    return crew->num_sent;
}
