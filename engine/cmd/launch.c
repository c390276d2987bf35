#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/launch/agent.h"
#include "engine/launch/descendants.h"
#include "engine/launch/job.h"
#include "proto/base/clock.h"
#include "proto/base/file_read.h"
#include "proto/base/notify.h"
#include "proto/wire/curve.h"
#include "proto/wire/rendezvous.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LEFTOVERS_MS = 2000 };

struct launch {
    struct launch_options options;
    struct plan plan;
    struct output output;
    struct job *job;
    int signal_fd;
    int parent_fd; /* readable when whoever started us has ended; -1: we may outlive it */
    bool is_orphan;
    int64_t watchdog_ms, watchdog_ns; /* for systemd: how often, and when next */
};

/* ---- where the engine listens ---------------------------------------------------------------- */

/* Our address as this host sees it: that of the interface on the way to it. Nothing is sent. */
static enum status find_own_address(const char *host, char out[static NI_MAXHOST])
{
    const char *at = strrchr(host, '@'), *name = at ? at + 1 : host;
    struct addrinfo *found = NULL, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM};
    struct sockaddr_storage own;
    socklen_t own_size = sizeof own;
    int error = getaddrinfo(name, "9", &hints, &found);

    if (error)
        return fail(ERR_INVALID,
                    "host %s is not known here (%s): tell the engine where to listen, by --listen "
                    "tcp://ADDRESS:0",
                    name, gai_strerror(error));
    int fd = socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool is_found = fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
                    getsockname(fd, (struct sockaddr *)&own, &own_size) == 0 &&
                    getnameinfo((struct sockaddr *)&own, own_size, out, NI_MAXHOST, NULL, 0,
                                NI_NUMERICHOST) == 0;

    if (fd >= 0)
        close(fd);
    freeaddrinfo(found);
    return is_found ? OK
                    : fail(ERR_INVALID,
                           "no way to host %s: tell the engine where to listen, by --listen "
                           "tcp://ADDRESS:0",
                           name);
}

/* NULL: there is no engine, or it was told. */
static enum status find_listen(const struct plan *plan, char **out)
{
    char address[NI_MAXHOST] = "127.0.0.1";

    if (!plan->has_engine || plan_engine_flag(plan, "--listen"))
        return OK;
    for (int32_t i = 0; i < plan->num_hosts; i++)
        if (!plan->hosts[i].is_local) {
            TRY(find_own_address(plan->hosts[i].name, address));
            break;
        }
    *out = mem_printf("tcp://%s:0", address);
    return OK;
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* Those of a file that the engine is told of, or new ones. They travel in memory and over pipes;
 * agents write them to their own run directories. */
static enum status find_token(const struct plan *plan, struct bytes *out)
{
    const char *named = plan_engine_flag(plan, "--token");
    struct run_dir run_dir = {.lock_fd = -1};
    struct token token;

    if (!plan->has_engine)
        return OK;
    if (!named)
        TRY(run_dir_open(NULL, &run_dir));
    AUTO_MEM char *path = named ? mem_strdup(named) : mem_printf("%s/token", run_dir.path);
    enum status status =
        access(path, F_OK) == 0 ? token_read(path, &token) : token_create(path, &token);

    explicit_bzero(&token, sizeof token);
    if (status == OK)
        status = file_read(path, TOKEN_MAX_BYTES, out);
    run_dir_close(&run_dir);
    return status;
}

/* ---- signals --------------------------------------------------------------------------------- */

static bool is_ignored(int signal)
{
    struct sigaction action;

    return sigaction(signal, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

static int open_signals(void)
{
    static const int ours[] = {SIGINT,  SIGTERM, SIGQUIT, SIGHUP,
                               SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT};
    sigset_t heard, blocked;

    sigemptyset(&heard);
    for (size_t i = 0; i < COUNT_OF(ours); i++)
        if (!is_ignored(ours[i])) /* nohup, or a shell that runs us in the background */
            sigaddset(&heard, ours[i]);
    blocked = heard;
    sigaddset(&blocked, SIGTTIN); /* a read of the terminal then fails, and does not stop us */
    sigaddset(&blocked, SIGTTOU);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &heard, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* We end with whoever started us, unless we were started to outlive it. */
static int open_parent(void)
{
    pid_t parent = getppid();

    if (is_ignored(SIGHUP) || getsid(0) == getpid() || parent <= 1)
        return -1;
    return pidfd_open(parent, 0);
}

static void stop_ourselves(struct launch *launch)
{
    job_pause(launch->job);
    output_flush(&launch->output);
    raise(SIGSTOP); /* SIGCONT is told by signal_fd afterwards */
}

static void take_signal(struct launch *launch, const struct signalfd_siginfo *info)
{
    switch (info->ssi_signo) {
    case SIGINT:
    case SIGTERM:
    case SIGQUIT:
        job_stop(launch->job, (int)info->ssi_signo);
        break;
    case SIGHUP:
        if (info->ssi_code == SI_KERNEL)
            job_stop_soon(launch->job, "the terminal is gone");
        else
            job_roll(launch->job);
        break;
    case SIGTSTP:
        stop_ourselves(launch);
        break;
    case SIGCONT:
        job_resume(launch->job);
        break;
    default:
        job_signal(launch->job, (int)info->ssi_signo);
    }
}

static void take_signals(struct launch *launch)
{
    struct signalfd_siginfo info;

    while (read(launch->signal_fd, &info, sizeof info) == sizeof info)
        take_signal(launch, &info);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Not from a terminal while another job has it. */
static bool may_read_input(const struct launch *launch)
{
    return job_wants_input(launch->job) &&
           (!isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) == getpgrp());
}

static void take_input(struct launch *launch)
{
    char text[PARCEL_MAX_OUTPUT];
    ssize_t size = read(STDIN_FILENO, text, sizeof text);

    if (size < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    job_input(launch->job, (struct text){text, size > 0 ? (size_t)size : 0});
}

static void pat_watchdog(struct launch *launch)
{
    if (launch->watchdog_ms == 0 || clock_now_ns() < launch->watchdog_ns)
        return;
    notify("WATCHDOG=1");
    launch->watchdog_ns = clock_deadline_ns(launch->watchdog_ms);
}

enum { FD_SIGNALS, FD_PARENT, FD_INPUT, FD_OUTPUT, NUM_FDS = FD_OUTPUT + OUTPUT_NUM_FDS };

static void turn(struct launch *launch, struct pollfd *fds)
{
    int64_t deadline_ns =
        MIN(job_deadline_ns(launch->job), launch->watchdog_ms ? launch->watchdog_ns : INT64_MAX);

    fds[FD_SIGNALS] = (struct pollfd){.fd = launch->signal_fd, .events = POLLIN};
    fds[FD_PARENT] = (struct pollfd){.fd = launch->parent_fd, .events = POLLIN};
    fds[FD_INPUT] =
        (struct pollfd){.fd = may_read_input(launch) ? STDIN_FILENO : -1, .events = POLLIN};
    output_poll(&launch->output, fds + FD_OUTPUT);
    job_poll(launch->job, fds + NUM_FDS);
    if (poll(fds, NUM_FDS + job_num_fds(launch->job), clock_left_ms(deadline_ns)) < 0)
        for (size_t i = 0; i < NUM_FDS + job_num_fds(launch->job); i++)
            fds[i].revents = 0; /* EINTR */
    if (fds[FD_SIGNALS].revents)
        take_signals(launch);
    if (fds[FD_PARENT].revents) {
        close(launch->parent_fd);
        launch->parent_fd = -1;
        launch->is_orphan = true;
        job_stop_soon(launch->job, "the process that started the launcher has ended");
    }
    if (fds[FD_INPUT].revents)
        take_input(launch);
    job_turn(launch->job, fds + NUM_FDS);
    output_flush(&launch->output);
    job_send(launch->job);
    pat_watchdog(launch);
}

static enum status run_job(struct launch *launch, const struct job_options *options, int *code_out)
{
    TRY(job_new(options, &launch->job));

    AUTO_MEM struct pollfd *fds = mem_new_array(struct pollfd, NUM_FDS + job_num_fds(launch->job));
    while (!job_is_over(launch->job))
        turn(launch, fds);
    *code_out = job_exit_code(launch->job);
    job_report(launch->job);
    return OK;
}

/* All is over but what a slow reader has not taken yet; a signal ends us now as it would any
 * program. */
static void flush_to_the_end(struct launch *launch)
{
    sigset_t none;

    output_flush(&launch->output);
    if (launch->is_orphan)
        return;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    while (!output_is_empty(&launch->output)) {
        struct pollfd fds[OUTPUT_NUM_FDS];

        output_poll(&launch->output, fds);
        poll(fds, OUTPUT_NUM_FDS, -1);
        output_flush(&launch->output);
    }
}

static enum status launch_all(struct launch *launch, int *code_out)
{
    const struct launch_options *options = &launch->options;
    AUTO_MEM char *listen = NULL;
    AUTO_CLOSE(bytes) struct bytes token = {0};

    TRY(plan_make(options, &launch->plan));
    TRY(find_listen(&launch->plan, &listen));
    TRY(find_token(&launch->plan, &token));

    bool is_tagged =
        options->tagging == TAG_ALWAYS ||
        (options->tagging == TAG_AUTO && (launch->plan.count > 1 || isatty(STDOUT_FILENO)));

    output_open(&(struct output_options){is_tagged, options->timestamps, options->output_folder},
                &launch->output);
    enum status status = run_job(launch,
                                 &(struct job_options){
                                     .settings = options,
                                     .plan = &launch->plan,
                                     .output = &launch->output,
                                     .token = {(const char *)token.data, token.size},
                                     .listen = listen,
                                     .whole_lines = is_tagged || options->timestamps,
                                 },
                                 code_out);
    job_free(launch->job);
    descendants_kill(clock_deadline_ns(LEFTOVERS_MS));
    flush_to_the_end(launch);
    output_close(&launch->output);
    return status;
}

static int print_help(void)
{
    AUTO_CLOSE(bytes) struct bytes help = {0};

    launch_options_help(&help);
    fwrite(help.data, 1, help.size, stdout);
    return EXIT_CLEAN;
}

int cmd_launch(int argc, char **argv)
{
    struct launch launch = {.parent_fd = open_parent()};
    int code = EXIT_CLEAN;
    enum status status = launch_options_parse(argc, argv, &launch.options);

    if (status == OK && launch.options.wants_help) {
        launch_options_close(&launch.options);
        return print_help();
    }
    if (status == OK) {
        descendants_adopt();
        launch.watchdog_ms = notify_watchdog_ms();
        launch.signal_fd = open_signals();
        status = launch_all(&launch, &code);
    }
    if (status != OK) {
        fprintf(stderr, "tandem launch: %s\n", fail_text());
        code = exit_code_of(status);
    }
    plan_close(&launch.plan);
    launch_options_close(&launch.options);
    return code;
}

int cmd_launch_agent(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return agent_run_guarded();
}
