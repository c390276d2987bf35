#include "tests/support/expect.h"

#include "proto/base/file_map.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

struct scratch {
    char path[64];
    int fd;
};

/* A file of three pages of the letter x. */
static struct scratch scratch_open(void)
{
    struct scratch scratch = {.path = "/tmp/tandem-test-XXXXXX"};

    scratch.fd = mkstemp(scratch.path);
    assert_true(scratch.fd >= 0);
    for (int i = 0; i < 3 * PAGE; i++)
        assert_int_equal(write(scratch.fd, "x", 1), 1);
    return scratch;
}

static void scratch_close(struct scratch *scratch)
{
    unlink(scratch->path);
    close(scratch->fd);
}

static void a_file_is_read_where_it_lies(void **state)
{
    AUTO_CLOSE(scratch) struct scratch scratch = scratch_open();
    struct file_map map;

    (void)state;
    expect_ok(file_map_open(scratch.path, &map));
    assert_int_equal(map.bytes, 3 * PAGE);
    assert_int_equal(map.data[3 * PAGE - 1], 'x');
    file_map_drop_pages(&map, 0, 3 * PAGE);
    assert_int_equal(map.data[PAGE], 'x');
    file_map_drop_pages(&map, PAGE + 1, PAGE + 2);
    assert_int_equal(map.data[PAGE], 'x');
    file_map_close(&map);
    assert_null(map.data);
    file_map_close(&map);
}

static void what_cannot_be_mapped_is_refused(void **state)
{
    AUTO_CLOSE(scratch) struct scratch scratch = scratch_open();
    struct file_map map;

    (void)state;
    expect_fails(file_map_open("/no/such/file", &map), ERR_NOT_FOUND, "No such file");
    expect_fails(file_map_open("/", &map), ERR_UNSUPPORTED, "is not a regular file");
    assert_int_equal(ftruncate(scratch.fd, 0), 0);
    expect_fails(file_map_open(scratch.path, &map), ERR_CORRUPT, "is empty");
}

/* What a child said on stderr before it ended; its status as waitpid tells it. */
static int run_child(void (*body)(const struct scratch *scratch), const struct scratch *scratch,
                     char words[static 512])
{
    int fds[2], status;
    ssize_t size;

    assert_int_equal(pipe(fds), 0);
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        body(scratch);
        _exit(77);
    }
    close(fds[1]);
    size = read(fds[0], words, 511);
    words[size > 0 ? size : 0] = '\0';
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void read_behind_the_end(const struct scratch *scratch)
{
    struct file_map map;

    if (file_map_open(scratch->path, &map) != OK || ftruncate(scratch->fd, PAGE) != 0)
        _exit(78);
    _exit(*(const volatile uint8_t *)&map.data[2 * PAGE]);
}

static void a_file_that_is_cut_short_is_named_and_ends_the_process(void **state)
{
    AUTO_CLOSE(scratch) struct scratch scratch = scratch_open();
    AUTO_MEM char *sentence = mem_printf("tandem: %s was cut short while it was open\n",
                                         scratch.path);
    char words[512];
    int status = run_child(read_behind_the_end, &scratch, words);

    (void)state;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 1);
    assert_string_equal(words, sentence);
}

static void read_behind_the_end_of_another(const struct scratch *scratch)
{
    struct file_map map;
    void *other = mmap(NULL, 3 * PAGE, PROT_READ, MAP_SHARED, scratch->fd, 0);

    if (other == MAP_FAILED || file_map_open(scratch->path, &map) != OK)
        _exit(78);
    file_map_close(&map); /* catches nothing from here on */
    if (ftruncate(scratch->fd, PAGE) != 0)
        _exit(78);
    _exit(*(volatile uint8_t *)((uint8_t *)other + 2 * PAGE));
}

static void other_bus_errors_take_their_course(void **state)
{
    AUTO_CLOSE(scratch) struct scratch scratch = scratch_open();
    char words[512];
    int status = run_child(read_behind_the_end_of_another, &scratch, words);

    (void)state;
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
    assert_null(strstr(words, "cut short"));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_file_is_read_where_it_lies),
    cmocka_unit_test(what_cannot_be_mapped_is_refused),
    cmocka_unit_test(a_file_that_is_cut_short_is_named_and_ends_the_process),
    cmocka_unit_test(other_bus_errors_take_their_course),
};
TEST_MAIN(tests)
