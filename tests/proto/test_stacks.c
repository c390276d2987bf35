/* Stacks of other processes and of this one. Without libdw there are no frames, and what needs them is passed over. */
#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/base/stacks.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static bool has_libdw;

/* So that a function keeps its frame. */
#define STAY __attribute__((noinline, noclone))

static atomic_int is_over, turns; /* never; that a compiler doesn't know */

STAY static void sleep_in_a_place_with_a_name(void)
{
    prctl(PR_SET_NAME, "sleeper");
    while (!is_over)
        pause();
}

STAY static void turn_in_a_place_with_a_name(void)
{
    prctl(PR_SET_NAME, "spinner");
    while (!is_over)
        turns++;
}

/* A child in this function, once it is there. */
static pid_t start(void (*function)(void), const char *name)
{
    pid_t pid = fork();
    char path[64], comm[32] = "";

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        function();
    }
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    for (int64_t deadline_ns = clock_deadline_ns(20000);
         strncmp(comm, name, strlen(name)) != 0 && clock_now_ns() < deadline_ns; usleep(1000)) {
        FILE *file = fopen(path, "r");

        assert_non_null(file);
        assert_non_null(fgets(comm, sizeof comm, file));
        fclose(file);
    }
    usleep(20000); /* from its name to its place */
    return pid;
}

static char state_of(pid_t pid)
{
    char path[64], line[256], state;
    FILE *file;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    file = fopen(path, "r");
    assert_non_null(file);
    assert_non_null(fgets(line, sizeof line, file));
    fclose(file);
    state = strrchr(line, ')')[2];
    return state;
}

/* It may be on its way back to where it was. */
static void expect_state(pid_t pid, char state)
{
    for (int i = 0; i < 5000 && state_of(pid) != state; i++)
        usleep(1000);
    assert_int_equal(state_of(pid), state);
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void expect_part(struct bytes *text, const char *part)
{
    if (!strstr(bytes_text(text), part))
        fail_msg("\"%s\" is not in:\n%s", part, bytes_text(text));
}

static void expect_frame(struct bytes *text, const char *function)
{
    if (has_libdw)
        expect_part(text, function);
    else
        expect_part(text, "libdw1");
}

static void a_child_is_where_it_sleeps_and_sleeps_on(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = start(sleep_in_a_place_with_a_name, "sleeper");

    (void)state;
    expect_ok(stacks_of_process(pid, &text));
    expect_part(&text, " (sleeper), ");
    expect_part(&text, " sleeper, sleeping");
    expect_frame(&text, " sleep_in_a_place_with_a_name+0x");
    expect_state(pid, 'S');
    end(pid);
}

static void a_child_that_runs_runs_on(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = start(turn_in_a_place_with_a_name, "spinner");

    (void)state;
    expect_ok(stacks_of_process(pid, &text));
    expect_part(&text, " spinner, running");
    expect_frame(&text, " turn_in_a_place_with_a_name+0x");
    expect_state(pid, 'R');
    end(pid);
}

static void a_child_that_is_stopped_stays_so(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = start(sleep_in_a_place_with_a_name, "sleeper");
    int status;

    (void)state;
    kill(pid, SIGSTOP);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    expect_ok(stacks_of_process(pid, &text));
    expect_part(&text, " sleeper, stopped");
    expect_frame(&text, " sleep_in_a_place_with_a_name+0x");
    expect_state(pid, 'T');
    kill(pid, SIGCONT);
    expect_state(pid, 'S');
    end(pid);
}

static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;

STAY static void wait_at_a_door_with_a_name(void)
{
    pthread_mutex_lock(&door);
    pthread_mutex_unlock(&door);
}

static void *wait_as_a_thread(void *user)
{
    pthread_setname_np(pthread_self(), "waiter");
    atomic_store((atomic_int *)user, 1);
    wait_at_a_door_with_a_name();
    return NULL;
}

STAY static void look_at_ourselves_in_a_place_with_a_name(struct bytes *text)
{
    expect_ok(stacks_of_process(getpid(), text));
}

static void we_see_our_own_threads(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    atomic_int is_there = 0;
    pthread_t thread;

    (void)state;
    stacks_allow(getppid());
    pthread_mutex_lock(&door);
    assert_int_equal(pthread_create(&thread, NULL, wait_as_a_thread, &is_there), 0);
    while (!is_there)
        usleep(1000);
    usleep(20000);
    look_at_ourselves_in_a_place_with_a_name(&text);
    pthread_mutex_unlock(&door);
    pthread_join(thread, NULL);
    expect_part(&text, " waiter, sleeping");
    expect_frame(&text, " wait_at_a_door_with_a_name+0x");
    expect_frame(&text, " look_at_ourselves_in_a_place_with_a_name+0x");
}

/* A thread has one tracer. */
static void where_frames_are_refused_a_line_says_so(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = start(sleep_in_a_place_with_a_name, "sleeper"), tracer = fork();

    (void)state;
    if (tracer == 0) {
        ptrace(PTRACE_SEIZE, pid, NULL, NULL);
        prctl(PR_SET_NAME, "tracer");
        for (;;)
            pause();
    }
    usleep(50000);
    expect_ok(stacks_of_process(pid, &text));
    expect_part(&text, " sleeper, sleeping");
    expect_part(&text, has_libdw ? "  no frames: the system does not let us stop it" : "libdw1");
    end(tracer);
    end(pid);
}

static void a_process_that_is_gone_is_refused(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = fork();
    siginfo_t info;

    (void)state;
    if (pid == 0)
        _exit(0);
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    expect_fails(stacks_of_process(pid, &text), ERR_NOT_FOUND, "has ended");
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    expect_fails(stacks_of_process(pid, &text), ERR_NOT_FOUND, "there is no process");
    expect_fails(stacks_of_process(0, &text), ERR_NOT_FOUND, "there is no process 0");
    expect_fails(stacks_of_process(-7, &text), ERR_NOT_FOUND, "there is no process -7");
    assert_int_equal(text.size, 0);
}

STAY static int descend(int depth)
{
    if (depth > 0)
        return descend(depth - 1) + turns;
    sleep_in_a_place_with_a_name();
    return 0;
}

static void descend_deeply(void)
{
    descend(1000);
}

static void a_deep_stack_is_cut_off(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = start(descend_deeply, "sleeper");

    (void)state;
    expect_ok(stacks_of_process(pid, &text));
    if (has_libdw) {
        expect_part(&text, "  #63 ");
        assert_null(strstr(bytes_text(&text), "  #64 "));
        expect_part(&text, "  ...\n");
    }
    end(pid);
}

static void *sleep_as_a_thread(void *user)
{
    for (;;)
        pause();
    return user;
}

static void start_many_threads(void)
{
    pthread_t thread;
    pthread_attr_t small;

    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 1 << 17);
    for (int i = 0; i < STACKS_MAX_THREADS + 10; i++)
        pthread_create(&thread, &small, sleep_as_a_thread, NULL);
    sleep_in_a_place_with_a_name();
}

static void of_too_many_threads_the_rest_are_counted(void **state)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    pid_t pid = start(start_many_threads, "sleeper");

    (void)state;
    expect_ok(stacks_of_process(pid, &text));
    assert_true(text.size <= STACKS_MAX_BYTES);
    expect_part(&text, "threads\n");
    expect_part(&text, "\nand 1"); /* 11, or more under a sanitizer */
    end(pid);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_is_where_it_sleeps_and_sleeps_on),
        cmocka_unit_test(a_child_that_runs_runs_on),
        cmocka_unit_test(a_child_that_is_stopped_stays_so),
        cmocka_unit_test(we_see_our_own_threads),
        cmocka_unit_test(where_frames_are_refused_a_line_says_so),
        cmocka_unit_test(a_process_that_is_gone_is_refused),
        cmocka_unit_test(a_deep_stack_is_cut_off),
        cmocka_unit_test(of_too_many_threads_the_rest_are_counted),
    };

    has_libdw = dlopen("libdw.so.1", RTLD_LAZY) != NULL;
    if (!has_libdw)
        print_message("no libdw: frames are not looked for\n");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
