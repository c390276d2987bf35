/* `tandem token` and `tandem worker` as a launcher runs them, where there is no engine. */
#include "tests/support/expect.h"

#include "proto/base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs a command line of a shell, in which $T is the program; appends stdout and stderr. */
static int run(const char *line, struct bytes *out)
{
    AUTO_MEM char *command = mem_printf("unset TANDEM_RANK RANK OMPI_COMM_WORLD_RANK PMI_RANK\n"
                                        "T='%s'\n(%s) 2>&1", getenv("TANDEM_PROGRAM"), line);
    FILE *pipe = popen(command, "r");
    size_t n;
    int status;

    assert_non_null(pipe);
    while ((n = fread(bytes_reserve(out, 4096), 1, 4096, pipe)) > 0)
        out->size += n;
    status = pclose(pipe);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void expect_run(const char *line, int exit_status, const char *part)
{
    AUTO_CLOSE(bytes) struct bytes out = {0};
    int found = run(line, &out);

    if (!strstr(bytes_text(&out), part))
        fail_msg("%s: \"%s\" lacks \"%s\"", line, bytes_text(&out), part);
    assert_int_equal(found, exit_status);
}

static void a_token_is_made_once(void **state)
{
    char dir[] = "/tmp/tandem-test-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    AUTO_MEM char *path = mem_printf("%s/token", dir), *make = mem_printf("$T token %s", path),
                  *join = mem_printf("$T worker --engine file:%s/none --token %s --join-timeout 0.3",
                                     dir, path);
    expect_run(join, 2, "'tandem token /tmp/tandem-test-");
    expect_run(make, 0, "");
    expect_run(make, 2, "is there already");
    expect_run(join, 124, "no engine for 0.3 s: ");
    unlink(path);
    rmdir(dir);
    expect_run("$T token", 2, "one FILE is expected");
    expect_run("$T token /no/such/folder/x", 74, "cannot be made: No such file");
}

static void a_rank_that_cannot_be_says_which_variable_is_wrong(void **state)
{
    (void)state;
    expect_run("$T worker", 2, "--engine is missing");
    expect_run("TANDEM_RANK=1 $T worker --engine ipc:///x", 2,
               "TANDEM_RANK is set and TANDEM_WORLD_SIZE is not");
    expect_run("RANK=2 WORLD_SIZE=2 $T worker --engine ipc:///x", 2,
               "RANK is 2 and WORLD_SIZE is 2: ranks are numbered from 0 to 1");
    expect_run("$T worker --rank 3 --engine ipc:///x", 2, "rank 3 does not exist among 1 ranks");
    expect_run("RANK=x WORLD_SIZE=2 $T worker --rank 1 --world 2 --engine ipc:///x --join-timeout 0.1",
               124, "nobody listens there"); /* what is said outright needs no variables */
    expect_run("$T worker --engine tcp://127.0.0.1:1", 2, "--token is missing");
    expect_run("TANDEM_ENGINE=ipc:///x RANK=1 WORLD_SIZE=3 $T worker --join-timeout 0.1", 124,
               "error worker.1 ");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_token_is_made_once),
    cmocka_unit_test(a_rank_that_cannot_be_says_which_variable_is_wrong),
};
TEST_MAIN(tests)
