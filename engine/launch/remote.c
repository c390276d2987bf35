#include "engine/launch/remote.h"

#include "engine/cmd/exit_code.h"
#include "engine/launch/agent.h"
#include "proto/base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static struct remote remote_new(const char *name, bool is_local)
{
    return (struct remote){.name = name,
                           .is_local = is_local,
                           .leash = {.in_fd = -1, .out_fd = -1},
                           .child = {.pidfd = -1, .pump_stop_fd = -1, .output_fd = -1},
                           .error_fd = -1};
}

/* ---- here ------------------------------------------------------------------------------------ */

/* A session of its own: Ctrl-C is the launcher's to pass on. */
_Noreturn static void be_the_agent(int fd, pid_t launcher)
{
    int null_fd, kept = dup2(fd, 3);

    setsid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != launcher)
        _exit(EXIT_GONE);
    close_range(4, ~0u, 0);
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null_fd, STDIN_FILENO);
    dup2(null_fd, STDOUT_FILENO);
    close(null_fd);
    fcntl(kept, F_SETFD, FD_CLOEXEC);
    _exit(agent_run(kept, kept));
}

enum status remote_open_local(const char *name, struct remote *out)
{
    pid_t self = getpid();
    int ends[2];

    *out = remote_new(name, true);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return fail(ERR_IO, "no socket for an agent: %m");
    out->child.pid = fork();
    if (out->child.pid == 0)
        be_the_agent(ends[1], self);
    close(ends[1]);
    leash_open(&out->leash, ends[0], ends[0], false);
    if (out->child.pid < 0) {
        out->child.pid = 0;
        return fail(ERR_IO, "no process for an agent: %m");
    }
    out->child.pidfd = pidfd_open(out->child.pid, 0);
    ASSERT(out->child.pidfd >= 0, "pidfd_open: %s", strerror(errno));
    return OK;
}

/* ---- elsewhere ------------------------------------------------------------------------------- */

/* A shell there reads the words once more. */
static char *quote(const char *path)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+=@%,:";
    AUTO_CLOSE(bytes) struct bytes out = {0};

    if (path[strspn(path, plain)] == '\0')
        return mem_strdup(path);
    bytes_printf(&out, "'");
    for (; *path; path++) {
        if (*path == '\'')
            bytes_printf(&out, "'\\'");
        bytes_append(&out, path, 1);
    }
    bytes_printf(&out, "'");
    return mem_strdup(bytes_text(&out));
}

static enum status own_path(char **out)
{
    char path[4096];
    ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);

    if (size < 0)
        return fail(ERR_IO, "the path of this program is not known: %m");
    path[size] = '\0';
    *out = quote(path);
    return OK;
}

static void close_both(int *ends)
{
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            close(ends[i]);
}

enum status remote_open(const char *name, const char *command, struct remote *out)
{
    AUTO_MEM char *path = NULL, *script = mem_printf("exec %s \"$@\"", command);
    int in[2] = {-1, -1}, to[2] = {-1, -1}, errors[2] = {-1, -1};

    *out = remote_new(name, false);
    TRY(own_path(&path));
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(to, O_CLOEXEC) != 0 || pipe2(errors, O_CLOEXEC) != 0) {
        enum status status = fail(ERR_IO, "no pipe to host %s: %m", name);

        close_both(in);
        close_both(to);
        return status;
    }

    const char *argv[] = {"/bin/sh", "-c", script, "sh", name, path, "launch-agent", NULL};
    enum status status =
        spawn(&(struct spawn_options){.argv = argv, .stdio = (int[]){to[0], in[1], errors[1]}},
              &out->child);

    close(to[0]);
    close(in[1]);
    close(errors[1]);
    leash_open(&out->leash, in[0], to[1], false);
    out->error_fd = errors[0];
    fcntl(out->error_fd, F_SETFL, O_NONBLOCK);
    return status;
}

/* ---- both ------------------------------------------------------------------------------------ */

void remote_close(struct remote *remote)
{
    leash_close(&remote->leash);
    if (!remote->is_local && remote->child.pid)
        kill(-remote->child.pid, SIGKILL); /* ssh, and the shell around it */
    child_close(&remote->child);
    if (remote->error_fd >= 0)
        close(remote->error_fd);
    remote->error_fd = -1;
    remote->state = REMOTE_GONE;
}

void remote_poll(const struct remote *remote, struct pollfd *fds)
{
    fds[0] = (struct pollfd){.fd = remote->leash.in_fd, .events = POLLIN};
    fds[1] =
        (struct pollfd){.fd = leash_has_more_to_send(&remote->leash) ? remote->leash.out_fd : -1,
                        .events = POLLOUT};
    fds[2] = (struct pollfd){.fd = remote->error_fd, .events = POLLIN};
}

bool remote_read_errors(struct remote *remote)
{
    while (remote->error_fd >= 0) {
        char c;
        ssize_t n = read(remote->error_fd, &c, 1); /* few words, and rarely any */

        if (n < 0)
            return false;
        if (n == 0) {
            close(remote->error_fd);
            remote->error_fd = -1;
            return false;
        }
        if (c == '\n' || c == '\r') {
            bool is_line = remote->line_size > 0;

            remote->line_size = 0;
            if (is_line)
                return true;
            continue;
        }
        if (remote->line_size < REMOTE_MAX_LINE) {
            remote->line[remote->line_size++] = (unsigned char)c < ' ' || c == 0x7f ? '?' : c;
            remote->line[remote->line_size] = '\0';
        }
    }
    return false;
}
