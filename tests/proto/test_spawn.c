#include "tests/support/expect.h"
#include "tests/support/told.h"

#include "proto/base/clock.h"
#include "proto/base/memory.h"
#include "proto/base/spawn.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static int run(const char *script, const char *const *env, const int *fds, int num_fds)
{
    const char *argv[] = {"/bin/sh", "-c", script, NULL};
    struct spawn_options options = {.argv = argv, .env = env, .fds = fds, .num_fds = num_fds};
    struct child child;
    int status = -1;

    expect_ok(spawn(&options, &child));
    assert_true(child_wait(&child, clock_deadline_ns(20000), &status));
    child_close(&child);
    return status;
}

static void the_end_of_a_child_is_told(void **state)
{
    (void)state;
    char text[64];

    assert_string_equal(child_status_text(run("exit 3", NULL, NULL, 0), text), "exit status 3");
    assert_string_equal(child_status_text(run("kill -9 $$", NULL, NULL, 0), text),
                        "signal 9 (Killed)");
}

static void who_has_the_pidfd_alone_learns_of_the_end_too(void **state)
{
    static const struct {
        const char *script, *end;
        int signal;
    } rows[] = {{"exit 3", "exit status 3", 0}, {"exec sleep 100", "signal 9 (Killed)", SIGKILL}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const char *argv[] = {"/bin/sh", "-c", rows[i].script, NULL};
        struct pollfd ended = {.events = POLLIN};
        int status = -1, waited = -1;
        struct child child;
        pid_t pid = 0;
        char text[64];

        expect_ok(spawn(&(struct spawn_options){.argv = argv}, &child));
        ended.fd = child.pidfd;
        if (rows[i].signal) {
            assert_false(child_has_ended(child.pidfd, &pid, &status));
            child_signal(&child, rows[i].signal);
        }
        assert_int_equal(poll(&ended, 1, 20000), 1);
        assert_true(child_has_ended(child.pidfd, &pid, &status));
        assert_int_equal(pid, child.pid);
        assert_string_equal(child_status_text(status, text), rows[i].end);
        assert_true(child_wait(&child, clock_now_ns(), &waited)); /* it is still there to be waited for */
        assert_int_equal(waited, status);
        assert_false(child_has_ended(child.pidfd, &pid, &status));
        child_close(&child);
    }
}

static void a_program_that_does_not_exist_is_named(void **state)
{
    (void)state;
    const char *argv[] = {"/no/such/program", NULL};
    struct spawn_options options = {.argv = argv};
    struct child child;

    expect_fails(spawn(&options, &child), ERR_IO,
                 "/no/such/program cannot be started: No such file or directory");
}

static void it_has_only_the_descriptors_it_was_given_and_our_environment(void **state)
{
    (void)state;
    const char *env[] = {"TANDEM_TEST_A=new", NULL};
    int given = open("/dev/null", O_RDONLY | O_CLOEXEC), other = dup(given);

    setenv("TANDEM_TEST_A", "old", 1);
    setenv("TANDEM_TEST_B", "b", 1);
    setenv("NOTIFY_SOCKET", "/of/our/supervisor", 1);
    AUTO_MEM char *script =
        mem_printf("test $TANDEM_TEST_A$TANDEM_TEST_B$NOTIFY_SOCKET = newb && test -e /proc/self/fd/%d && "
                   "! test -e /proc/self/fd/%d", given, other);
    assert_int_equal(run(script, env, &given, 1), 0);
    unsetenv("NOTIFY_SOCKET");
    close(given);
    close(other);
}

static void it_starts_where_it_is_told_with_what_it_is_given(void **state)
{
    (void)state;
    const char *argv[] = {"/bin/sh", "-c", "pwd; cat; echo e >&2; grep Cpus_allowed_list /proc/self/status", NULL};
    int in[2], out[2], err[2], status = -1;
    char text[256] = "", letter = 0;
    cpu_set_t one, ours;
    struct child child;

    assert_int_equal(pipe2(in, O_CLOEXEC) + pipe2(out, O_CLOEXEC) + pipe2(err, O_CLOEXEC), 0);
    assert_int_equal(sched_getaffinity(0, sizeof ours, &ours), 0);
    CPU_ZERO(&one);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &ours))
        cpu++;
    CPU_SET(cpu, &one);
    expect_ok(spawn(&(struct spawn_options){.argv = argv,
                                            .stdio = (int[]){in[0], out[1], err[1]},
                                            .directory = "/usr",
                                            .cpus = &one},
                    &child));
    close(in[0]);
    close(out[1]);
    close(err[1]);
    assert_int_equal(write(in[1], "given\n", 6), 6);
    close(in[1]);
    assert_true(child_wait(&child, clock_deadline_ns(20000), &status));
    child_close(&child);
    assert_int_equal(status, 0);
    assert_true(read(out[0], text, sizeof text - 1) > 0);
    AUTO_MEM char *wanted = mem_printf("/usr\ngiven\nCpus_allowed_list:\t%d\n", cpu);
    assert_string_equal(text, wanted);
    assert_int_equal(read(err[0], &letter, 1), 1);
    assert_int_equal(letter, 'e');
    close(out[0]);
    close(err[0]);
    expect_fails(spawn(&(struct spawn_options){.argv = argv, .directory = "/no/such"}, &child), ERR_IO,
                 "/bin/sh cannot be started in /no/such: No such file");
}

static void its_lines_come_out_with_the_prefix(void **state)
{
    (void)state;
    const char *argv[] = {"/bin/sh", "-c", "echo one; echo two >&2; printf three", NULL};
    struct spawn_options options = {.argv = argv, .prefix = "w.1"};
    struct told told = told_begin();
    struct child child;
    int status;
    enum status spawned = spawn(&options, &child);

    if (spawned == OK) {
        child_wait(&child, clock_deadline_ns(20000), &status);
        child_close(&child);
    }
    AUTO_MEM char *text = told_text(told);
    expect_ok(spawned);
    assert_string_equal(text, "[w.1] one\n[w.1] two\n[w.1] three\n");
}

/* We spawn a child that spawns a grandchild through spawn(), kill the child, and watch the grandchild. */
static void a_child_dies_with_its_parent(void **state)
{
    (void)state;
    int ends[2];
    pid_t grandchild = 0;

    assert_int_equal(pipe(ends), 0);
    pid_t parent = fork();
    if (parent == 0) {
        const char *argv[] = {"/bin/sleep", "100", NULL};
        struct spawn_options options = {.argv = argv};
        struct child child;

        if (spawn(&options, &child) != OK || write(ends[1], &child.pid, sizeof child.pid) < 0)
            _exit(1);
        pause();
    }
    assert_int_equal(read(ends[0], &grandchild, sizeof grandchild), sizeof grandchild);
    AUTO_MEM char *path = mem_printf("/proc/%d/cmdline", grandchild);
    kill(parent, SIGKILL);
    waitpid(parent, NULL, 0);
    /* Dead or, until its new parent looks, a zombie: its command line is gone. */
    int64_t deadline = clock_deadline_ns(5000);
    char byte;
    for (bool is_gone = false; !is_gone;) {
        int fd = open(path, O_RDONLY);

        is_gone = fd < 0 || read(fd, &byte, 1) <= 0;
        if (fd >= 0)
            close(fd);
        assert_true(clock_now_ns() < deadline);
        usleep(2000);
    }
    close(ends[0]);
    close(ends[1]);
}

static void a_child_that_still_runs_is_killed_on_close(void **state)
{
    (void)state;
    const char *argv[] = {"/bin/sleep", "100", NULL};
    struct spawn_options options = {.argv = argv};
    struct child child;
    int status;

    expect_ok(spawn(&options, &child));
    pid_t pid = child.pid;
    assert_false(child_wait(&child, clock_deadline_ns(5), &status));
    child_close(&child);
    assert_int_equal(kill(pid, 0), -1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_end_of_a_child_is_told),
    cmocka_unit_test(who_has_the_pidfd_alone_learns_of_the_end_too),
    cmocka_unit_test(a_program_that_does_not_exist_is_named),
    cmocka_unit_test(it_has_only_the_descriptors_it_was_given_and_our_environment),
    cmocka_unit_test(it_starts_where_it_is_told_with_what_it_is_given),
    cmocka_unit_test(its_lines_come_out_with_the_prefix),
    cmocka_unit_test(a_child_dies_with_its_parent),
    cmocka_unit_test(a_child_that_still_runs_is_killed_on_close),
};
TEST_MAIN(tests)
