#include "proto/base/spawn.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the child's side, between fork and exec: async-signal-safe calls only ------------------- */

static void reset_signals(void)
{
    static const int ours[] = {SIGPIPE, SIGINT,  SIGTERM, SIGHUP,  SIGUSR1,
                               SIGUSR2, SIGCHLD, SIGTSTP, SIGTTIN, SIGTTOU};
    sigset_t none;

    for (size_t i = 0; i < COUNT_OF(ours); i++)
        signal(ours[i], SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void keep_fds(const struct spawn_options *options)
{
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    for (int i = 0; i < options->num_fds; i++)
        fcntl(options->fds[i], F_SETFD, 0);
}

/* What a child that could not be writes into the report. */
struct report {
    int error;
    bool is_directory; /* it is not the program that can't be had */
};

_Noreturn static void give_up(int report_fd, bool is_directory)
{
    struct report report = {errno, is_directory};

    /* The pipe closes by itself when exec succeeds: silence is success. */
    if (write(report_fd, &report, sizeof report) < 0)
        _exit(126);
    _exit(127);
}

static bool place_stdio(const int *stdio)
{
    for (int i = 0; stdio && i < 3; i++)
        if (stdio[i] >= 0 && dup2(stdio[i], i) < 0)
            return false;
    return true;
}

_Noreturn static void become(const struct spawn_options *options, char *const *env, pid_t parent,
                             int output_fd, int report_fd)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* The parent may have died before the line above. */
    if (getppid() != parent)
        _exit(127);
    reset_signals();
    if (output_fd >= 0 && (dup2(output_fd, 1) < 0 || dup2(output_fd, 2) < 0))
        _exit(127);
    if (!place_stdio(options->stdio))
        _exit(127);
    keep_fds(options);
    if (options->cpus)
        sched_setaffinity(0, sizeof *options->cpus, options->cpus);
    if (options->directory && chdir(options->directory) != 0)
        give_up(report_fd, true);
    execve(options->argv[0], (char *const *)options->argv, env);
    give_up(report_fd, false);
}

/* ---- lines with a prefix ---------------------------------------------------------------------- */

enum { MAX_LINE = 4096 };

/* Writes the whole lines of `text` and returns how many bytes are left for the next time. */
static size_t pass_lines(const struct child *child, char *text, size_t size, bool is_last)
{
    size_t start = 0;

    for (size_t i = 0; i < size; i++) {
        bool is_cut = i + 1 == size && (is_last || size == MAX_LINE);

        if (text[i] != '\n' && !is_cut)
            continue;
        size_t length = i - start + (text[i] != '\n');
        AUTO_MEM char *line = mem_printf("[%s] %.*s\n", child->prefix, (int)length, text + start);

        if (write(STDERR_FILENO, line, strlen(line)) < 0)
            break; /* nobody listens: the child must not block all the same */
        start = i + 1;
    }
    memmove(text, text + start, size - start);
    return size - start;
}

static void *pump(void *argument)
{
    struct child *child = argument;
    char text[MAX_LINE];
    size_t size = 0;

    pthread_setname_np(pthread_self(), "output");
    for (;;) {
        struct pollfd fds[2] = {{.fd = child->output_fd, .events = POLLIN},
                                {.fd = child->pump_stop_fd, .events = POLLIN}};

        poll(fds, 2, -1);
        if (!fds[0].revents && fds[1].revents)
            break; /* told to stop, and nothing more to read */
        ssize_t n = read(child->output_fd, text + size, sizeof text - size);
        if (n == 0)
            break;
        if (n > 0)
            size = pass_lines(child, text, size + (size_t)n, false);
    }
    pass_lines(child, text, size, true);
    return NULL;
}

static enum status start_pump(struct child *child)
{
    int error;

    child->pump_stop_fd = eventfd(0, EFD_CLOEXEC);
    if (child->pump_stop_fd < 0)
        return fail(ERR_IO, "no descriptor for the output of %s: %m", child->prefix);
    error = pthread_create(&child->pump, NULL, pump, child);
    if (error)
        return fail(ERR_IO, "no thread for the output of %s: %s", child->prefix, strerror(error));
    child->has_pump = true;
    return OK;
}

/* ---- the parent's side -------------------------------------------------------------------------- */

/* What a supervisor gave us is for us to answer, not for our children. */
static bool is_ours_alone(const char *entry)
{
    static const char *const names[] = {"NOTIFY_SOCKET=", "WATCHDOG_USEC=", "WATCHDOG_PID="};

    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strncmp(entry, names[i], strlen(names[i])) == 0)
            return true;
    return false;
}

static bool is_overridden(const char *entry, const char *const *extra)
{
    size_t name_size = strcspn(entry, "=") + 1;

    for (; extra && *extra; extra++)
        if (strncmp(entry, *extra, name_size) == 0)
            return true;
    return false;
}

/* Our environment with `extra` on top; the array is the caller's, the texts are not. */
static char **make_env(const char *const *extra)
{
    size_t count = 0, num_extra = 0, n = 0;

    while (environ[count])
        count++;
    while (extra && extra[num_extra])
        num_extra++;
    char **env = mem_new_array(char *, count + num_extra + 1);
    for (size_t i = 0; i < count; i++)
        if (!is_ours_alone(environ[i]) && !is_overridden(environ[i], extra))
            env[n++] = environ[i];
    for (size_t i = 0; i < num_extra; i++)
        env[n++] = (char *)extra[i];
    return env;
}

static void close_pipe(int *ends)
{
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            close(ends[i]);
}

static enum status fork_child(const struct spawn_options *options, struct child *child,
                              int *output, int *report)
{
    AUTO_MEM char **env = make_env(options->env);
    pid_t parent = getpid();
    struct report failed;

    if (pipe2(report, O_CLOEXEC) < 0 || (options->prefix && pipe2(output, O_CLOEXEC) < 0))
        return fail(ERR_IO, "no pipe to start %s with: %m", options->argv[0]);
    child->pid = fork();
    if (child->pid < 0) {
        child->pid = 0;
        return fail(ERR_IO, "%s cannot be started: %m", options->argv[0]);
    }
    if (child->pid == 0)
        become(options, env, parent, output[1], report[1]);
    close(report[1]);
    report[1] = -1;
    if (read(report[0], &failed, sizeof failed) == sizeof failed) {
        waitpid(child->pid, NULL, 0);
        child->pid = 0;
        if (failed.is_directory)
            return fail(ERR_IO, "%s cannot be started in %s: %s", options->argv[0],
                        options->directory, strerror(failed.error));
        return fail(ERR_IO, "%s cannot be started: %s", options->argv[0], strerror(failed.error));
    }
    child->pidfd = pidfd_open(child->pid, 0);
    ASSERT(child->pidfd >= 0, "pidfd_open: %s", strerror(errno));
    return OK;
}

enum status spawn(const struct spawn_options *options, struct child *child_out)
{
    struct child *child = child_out;
    int output[2] = {-1, -1}, report[2] = {-1, -1};

    *child = (struct child){
        .pidfd = -1, .pump_stop_fd = -1, .output_fd = -1, .prefix = options->prefix};
    enum status status = fork_child(options, child, output, report);
    close_pipe(report);
    if (status != OK || !options->prefix) {
        close_pipe(output);
        return status;
    }
    child->output_fd = output[0];
    close(output[1]);
    status = start_pump(child);
    if (status != OK)
        child_close(child);
    return status;
}

bool child_wait(struct child *child, int64_t deadline_ns, int *status_out)
{
    struct pollfd ended = {.fd = child->pidfd, .events = POLLIN};
    int n;

    if (child->pid == 0)
        return true;
    do
        n = poll(&ended, 1, clock_left_ms(deadline_ns));
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return false;
    int status = 0;
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    child->pid = 0;
    *status_out = status;
    return true;
}

bool child_has_ended(int pidfd, pid_t *pid_out, int *status_out)
{
    siginfo_t end = {0};

    if (waitid(P_PIDFD, (id_t)pidfd, &end, WEXITED | WNOHANG | WNOWAIT) != 0 || end.si_pid == 0)
        return false;
    *pid_out = end.si_pid;
    *status_out = end.si_code == CLD_EXITED ? W_EXITCODE(end.si_status, 0) : end.si_status;
    return true;
}

void child_signal(const struct child *child, int signal)
{
    if (child->pid)
        pidfd_send_signal(child->pidfd, signal, NULL, 0);
}

void child_close(struct child *child)
{
    int unused;

    child_signal(child, SIGKILL);
    if (child->pidfd >= 0)
        child_wait(child, clock_deadline_ns(-1), &unused);
    if (child->has_pump) {
        eventfd_write(child->pump_stop_fd, 1);
        pthread_join(child->pump, NULL);
    }
    for (size_t i = 0; i < 3; i++) {
        int fd = (const int[]){child->pidfd, child->pump_stop_fd, child->output_fd}[i];

        if (fd >= 0)
            close(fd);
    }
    *child = (struct child){.pidfd = -1, .pump_stop_fd = -1, .output_fd = -1};
}

const char *child_status_text(int status, char text[static 64])
{
    if (WIFSIGNALED(status))
        snprintf(text, 64, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(text, 64, "exit status %d", WEXITSTATUS(status));
    return text;
}
