#include "engine/launch/agent.h"

#include "engine/cmd/exit_code.h"
#include "engine/launch/crew.h"
#include "engine/launch/descendants.h"
#include "proto/base/build_id.h"
#include "proto/base/clock.h"
#include "proto/wire/rendezvous.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MAX_OUTPUT_ON_ITS_WAY = 256 << 10,
    ORPHANS_MS = 1000, /* that processes have from SIGTERM to SIGKILL when the launcher is gone */
    KILLED_MS = 1500,  /* that they have to disappear */
};

struct agent {
    struct leash leash;
    struct run_dir run_dir;
    struct crew *crew;
    int signal_fd;
    bool beats, is_paused;
    bool is_ending;
    int64_t kill_ns; /* when those left are killed; INT64_MAX: never */
    size_t output_on_its_way;
};

/* ---- the end --------------------------------------------------------------------------------- */

static void end_soon(struct agent *agent, int64_t kill_ms)
{
    agent->is_ending = true;
    agent->kill_ns = MIN(agent->kill_ns, clock_deadline_ns(kill_ms));
}

/* The launcher is gone, so there is nobody to serve. A stopped process must wake up to end. */
static void give_up(struct agent *agent)
{
    if (!agent->is_ending) {
        crew_signal(agent->crew, PARCEL_ALL, SIGTERM);
        crew_signal(agent->crew, PARCEL_ALL, SIGCONT);
    }
    end_soon(agent, ORPHANS_MS);
    leash_drop(&agent->leash);
    agent->output_on_its_way = 0;
}

/* ---- parcels --------------------------------------------------------------------------------- */

static enum status take_job(struct agent *agent, const struct parcel *parcel)
{
    const char *ours = build_id_text();

    if (parcel->other.size != strlen(ours) ||
        memcmp(parcel->other.data, ours, parcel->other.size) != 0)
        return fail(ERR_MISMATCH, "the launcher is build %.*s, this is %.12s",
                    (int)MIN(parcel->other.size, 12u), parcel->other.data, ours);
    agent->beats = parcel->number & JOB_BEATS;
    return crew_set_job(agent->crew, parcel);
}

static enum status take_parcel(struct agent *agent, const struct parcel *parcel)
{
    agent->is_paused = false;
    switch (parcel->kind) {
    case PARCEL_JOB:
        return take_job(agent, parcel);
    case PARCEL_START:
        if (!agent->is_ending)
            crew_start(agent->crew, parcel);
        return OK;
    case PARCEL_SIGNAL:
        crew_signal(agent->crew, parcel->process, (int)parcel->number);
        return OK;
    case PARCEL_INPUT:
        crew_input(agent->crew, parcel->process, parcel->text);
        return OK;
    case PARCEL_TAKEN:
        agent->output_on_its_way -= MIN((size_t)parcel->number, agent->output_on_its_way);
        return OK;
    case PARCEL_ADDRESS:
        return crew_set_address(agent->crew, parcel->text);
    case PARCEL_PAUSE:
        agent->is_paused = true;
        return OK;
    case PARCEL_QUIT:
        end_soon(agent, parcel->number);
        return OK;
    default: /* PARCEL_BEAT */
        return OK;
    }
}

static enum status take_parcels(struct agent *agent)
{
    struct parcel parcel;
    bool found;

    TRY(leash_fill(&agent->leash));
    for (;;) {
        TRY(leash_next(&agent->leash, &parcel, &found));
        if (!found)
            return OK;
        TRY(take_parcel(agent, &parcel));
    }
}

/* A launcher that is there is told why. */
static void report(struct agent *agent, enum status status)
{
    if (status == ERR_CLOSED)
        return;
    leash_send(&agent->leash, &(struct parcel){.kind = PARCEL_FAULT, .text = text_of(fail_text())});
    if (leash_flush(&agent->leash) != OK)
        leash_drop(&agent->leash);
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Processes that lost their parents come to us; those of the crew are left to it. */
static void reap_strays(const struct agent *agent)
{
    siginfo_t info = {0};

    while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid &&
           !crew_has(agent->crew, info.si_pid)) {
        waitpid(info.si_pid, NULL, 0);
        info.si_pid = 0;
    }
}

static int64_t next_deadline(const struct agent *agent)
{
    int64_t deadline_ns = MIN(agent->kill_ns, crew_deadline_ns(agent->crew));

    if (agent->beats && !agent->is_paused && leash_is_open(&agent->leash))
        deadline_ns = MIN(deadline_ns, leash_deadline_ns(&agent->leash));
    return deadline_ns;
}

enum { FD_LEASH_IN, FD_LEASH_OUT, FD_SIGNALS, NUM_FDS };

static void turn(struct agent *agent)
{
    AUTO_MEM struct pollfd *fds = mem_new_array(struct pollfd, NUM_FDS + crew_num_fds(agent->crew));
    struct signalfd_siginfo signal_info;
    enum status status = OK;

    fds[FD_LEASH_IN] = (struct pollfd){.fd = agent->leash.in_fd, .events = POLLIN};
    fds[FD_LEASH_OUT] = (struct pollfd){
        .fd = leash_has_more_to_send(&agent->leash) ? agent->leash.out_fd : -1, .events = POLLOUT};
    fds[FD_SIGNALS] = (struct pollfd){.fd = agent->signal_fd, .events = POLLIN};
    size_t num_crew =
        crew_poll(agent->crew, agent->output_on_its_way < MAX_OUTPUT_ON_ITS_WAY, fds + NUM_FDS);

    if (poll(fds, NUM_FDS + num_crew, clock_left_ms(next_deadline(agent))) < 0)
        return; /* EINTR */
    agent->output_on_its_way += crew_turn(agent->crew, fds + NUM_FDS, num_crew);
    reap_strays(agent);
    if (fds[FD_LEASH_IN].revents)
        status = take_parcels(agent);
    if (fds[FD_SIGNALS].revents && read(agent->signal_fd, &signal_info, sizeof signal_info) > 0)
        give_up(agent);
    if (status == OK && leash_is_open(&agent->leash) && agent->beats && !agent->is_paused)
        status = leash_beat(&agent->leash);
    if (status == OK && leash_is_open(&agent->leash))
        status = leash_flush(&agent->leash);
    if (status != OK) {
        report(agent, status);
        give_up(agent);
    }
    if (clock_now_ns() >= agent->kill_ns) {
        crew_signal(agent->crew, PARCEL_ALL, SIGKILL);
        agent->kill_ns = INT64_MAX;
    }
}

static void say_hello(struct agent *agent)
{
    char name[256] = "";

    gethostname(name, sizeof name - 1);
    leash_send(&agent->leash, &(struct parcel){.kind = PARCEL_HELLO,
                                               .number = getpid(),
                                               .text = text_of(name),
                                               .other = text_of(build_id_text())});
}

static int open_signals(void)
{
    static const int ignored[] = {SIGPIPE, SIGUSR1, SIGUSR2, SIGTSTP, SIGTTIN, SIGTTOU};
    sigset_t set;

    for (size_t i = 0; i < COUNT_OF(ignored); i++)
        signal(ignored[i], SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_SETMASK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int agent_run(int in_fd, int out_fd)
{
    struct agent agent = {.kill_ns = INT64_MAX, .signal_fd = open_signals()};

    prctl(PR_SET_NAME, "tandem-agent");
    descendants_adopt();
    leash_open(&agent.leash, in_fd, out_fd, true);
    enum status status = run_dir_open(NULL, &agent.run_dir);
    say_hello(&agent);
    if (status != OK) {
        report(&agent, status);
        return exit_code_of(status);
    }
    agent.crew = crew_new(&agent.leash, agent.run_dir.path);
    /* Until a launcher has said JOB it is waited for, whoever it is. */
    while (!agent.is_ending || crew_num_alive(agent.crew) > 0)
        turn(&agent);
    crew_free(agent.crew);
    descendants_kill(clock_deadline_ns(KILLED_MS));
    if (leash_is_open(&agent.leash) && leash_flush(&agent.leash) != OK)
        status = ERR_CLOSED;
    run_dir_close(&agent.run_dir);
    leash_close(&agent.leash);
    close(agent.signal_fd);
    return exit_code_of(status);
}

/* ---- the guard ------------------------------------------------------------------------------- */

/* The agent's descriptors are the agent's alone: whoever holds the other ends must see it die. */
static void let_go_of_stdio(void)
{
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    dup2(null_fd, STDIN_FILENO);
    dup2(null_fd, STDOUT_FILENO);
    close(null_fd);
}

int agent_run_guarded(void)
{
    static const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGUSR1, SIGUSR2};
    pid_t self = getpid(), agent;
    int wait_status = 0;

    descendants_adopt();
    agent = fork();
    if (agent < 0)
        return EXIT_IO;
    if (agent == 0) {
        int in_fd, out_fd;

        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != self)
            _exit(EXIT_GONE);
        in_fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
        out_fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
        let_go_of_stdio();
        _exit(agent_run(in_fd, out_fd));
    }
    /* What ends the agent's session reaches it too, and it knows best what to do. */
    for (size_t i = 0; i < COUNT_OF(ignored); i++)
        signal(ignored[i], SIG_IGN);
    let_go_of_stdio();
    while (waitpid(agent, &wait_status, 0) < 0 && errno == EINTR)
        continue;
    descendants_kill(clock_deadline_ns(KILLED_MS));
    return exit_code_of_child(wait_status);
}
