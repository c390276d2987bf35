#include "tests/support/expect.h"

#include "proto/base/build_id.h"
#include "proto/base/clock.h"
#include "proto/wire/rendezvous.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* As it comes out of message_decode. */
static struct message received(const struct message_type *type, const void *body, uint32_t epoch)
{
    return (struct message){
        .header = {.type = type->id, .build = build_id_hash(), .epoch = epoch, .step = -1},
        .type = type,
        .body = (void *)body};
}

static enum status hello_of(struct rendezvous *r, const char *peer, struct hello hello,
                            uint32_t epoch)
{
    struct message message = received(&hello_type, &hello, epoch);

    return rendezvous_hello(r, peer, &message);
}

static struct hello good_hello(int32_t rank)
{
    return (struct hello){.rank = rank,
                          .world = 2,
                          .pid = 100 + rank,
                          .host = "h",
                          .boot_id = "b",
                          .build_id = build_id_text()};
}

static enum status ready_of(struct rendezvous *r, const char *peer, int32_t rank,
                            const char *fingerprint)
{
    struct ready ready = {.rank = rank, .fingerprint = fingerprint, .max_num_blocks = 10 + rank};
    struct message message = received(&ready_type, &ready, r->epoch);

    return rendezvous_ready(r, peer, &message);
}

static void ranks_join_and_become_ready(void **state)
{
    (void)state;
    AUTO_CLOSE(rendezvous) struct rendezvous r;

    rendezvous_init(&r, 2, 3);
    expect_ok(hello_of(&r, "1:3", good_hello(1), 3));
    expect_ok(hello_of(&r, "0:3", good_hello(0), 3));
    assert_int_equal(r.num_joined, 2);
    expect_ok(ready_of(&r, "0:3", 0, "m"));
    assert_false(rendezvous_is_complete(&r));
    expect_ok(ready_of(&r, "1:3", 1, "m"));
    assert_true(rendezvous_is_complete(&r));
    assert_int_equal(r.ranks[1].ready.max_num_blocks, 11);
    assert_int_equal(r.ranks[1].pid, 101);
}

static void who_does_not_fit_is_refused_with_both_values(void **state)
{
    (void)state;
    AUTO_CLOSE(rendezvous) struct rendezvous r;
    struct hello other_build = good_hello(1), other_world = good_hello(1), far = good_hello(5),
                 twin = good_hello(0);

    rendezvous_init(&r, 2, 3);
    other_build.build_id = "0123";
    other_world.world = 4;
    twin.pid = 999;
    expect_ok(hello_of(&r, "0:3", good_hello(0), 3));
    expect_fails(hello_of(&r, "1:3", other_build, 3), ERR_MISMATCH,
                 "rank 1 is build 0123, the engine is build ");
    expect_fails(hello_of(&r, "1:3", other_world, 3), ERR_MISMATCH,
                 "rank 1 was started for 4 ranks, the engine has 2");
    expect_fails(hello_of(&r, "5:3", far, 3), ERR_MISMATCH,
                 "rank 5 is not one of the 2 ranks of this engine");
    expect_fails(hello_of(&r, "0:3", twin, 3), ERR_MISMATCH,
                 "rank 0 came twice: process 100 on h, and process 999 on h");
    expect_fails(hello_of(&r, "0:3", good_hello(1), 3), ERR_MISMATCH,
                 "rank 1 connected as '0:3', its name begins with '1:'");
    expect_fails(hello_of(&r, "11:3", good_hello(1), 3), ERR_MISMATCH,
                 "rank 1 connected as '11:3', its name begins with '1:'");
    assert_int_equal(r.num_joined, 1);
    expect_fails(ready_of(&r, "1:3", 1, "m"), ERR_MISMATCH, "rank 1 is ready without a hello");
    expect_ok(hello_of(&r, "1:3", good_hello(1), 3));
    expect_ok(ready_of(&r, "0:3", 0, "model-a"));
    expect_fails(ready_of(&r, "0:3", 0, "model-a"), ERR_MISMATCH, "rank 0 is ready twice");
    expect_fails(ready_of(&r, "1:3", 1, "model-b"), ERR_MISMATCH,
                 "rank 1 has loaded model model-b, rank 0 model model-a");
}

static void a_rank_that_is_lost_leaves_its_place_to_another_process(void **state)
{
    (void)state;
    AUTO_CLOSE(rendezvous) struct rendezvous r;
    struct hello other = good_hello(1);

    other.pid = 999;
    rendezvous_init(&r, 2, 3);
    expect_ok(hello_of(&r, "0:7", good_hello(0), 0));
    expect_ok(hello_of(&r, "1:7", good_hello(1), 0));
    expect_ok(ready_of(&r, "0:7", 0, "m"));
    expect_ok(ready_of(&r, "1:7", 1, "m"));
    rendezvous_lose(&r, 1);
    rendezvous_begin(&r, 4);
    assert_int_equal(r.num_joined, 1);
    assert_int_equal(rendezvous_find(&r, "0:7"), 0);
    assert_int_equal(rendezvous_find(&r, "1:7"), -1);
    expect_fails(ready_of(&r, "1:7", 1, "m"), ERR_MISMATCH, "rank 1 is ready without a hello");
    expect_ok(hello_of(&r, "1:8", other, 0));
    expect_ok(ready_of(&r, "0:7", 0, "m"));
    expect_fails(ready_of(&r, "1:8", 1, "another"), ERR_MISMATCH,
                 "rank 1 has loaded model another, rank 0 model m");
    expect_ok(ready_of(&r, "1:8", 1, "m"));
    assert_true(rendezvous_is_complete(&r));
    assert_int_equal(r.ranks[1].pid, 999);
}

static void the_run_directory_is_private_and_goes_away_with_its_files(void **state)
{
    (void)state;
    struct run_dir dir;
    struct stat info;

    expect_ok(run_dir_open(NULL, &dir));
    AUTO_MEM char *path = mem_strdup(dir.path), *file = mem_printf("%s/socket", dir.path);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0700);
    close(open(file, O_CREAT | O_WRONLY, 0600));
    run_dir_close(&dir);
    assert_int_equal(access(path, F_OK), -1);
    expect_fails(run_dir_open("/no/such/place", &dir), ERR_IO, "no run directory in /no/such/place");
}

static void what_dead_engines_left_is_swept_and_what_living_ones_use_is_not(void **state)
{
    (void)state;
    char parent[] = "/tmp/tandem-test-XXXXXX";
    struct run_dir living, later;

    assert_non_null(mkdtemp(parent));
    AUTO_MEM char *dead = mem_printf("%s/tandem.1.dead", parent),
                  *other = mem_printf("%s/other", parent);
    mkdir(dead, 0700);
    mkdir(other, 0700);
    expect_ok(run_dir_open(parent, &living));
    expect_ok(run_dir_open(parent, &later));
    assert_int_equal(access(dead, F_OK), -1);
    assert_int_equal(access(other, F_OK), 0);
    assert_int_equal(access(living.path, F_OK), 0);
    run_dir_close(&living);
    run_dir_close(&later);
    rmdir(other);
    assert_int_equal(rmdir(parent), 0);
}

static void *open_and_close(void *parent)
{
    for (int i = 0; i < 300; i++) {
        struct run_dir dir;

        if (run_dir_open(parent, &dir) != OK)
            return mem_strdup(fail_text());
        if (access(dir.path, F_OK) != 0)
            return mem_printf("%s was swept under its owner", dir.path);
        run_dir_close(&dir);
    }
    return NULL;
}

static void engines_that_start_at_once_leave_each_other_alone(void **state)
{
    (void)state;
    char parent[] = "/tmp/tandem-test-XXXXXX";
    pthread_t threads[4];

    assert_non_null(mkdtemp(parent));
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_and_close, parent), 0);
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        void *trouble;

        pthread_join(threads[i], &trouble);
        if (trouble)
            fail_msg("%s", (char *)trouble);
    }
    assert_int_equal(rmdir(parent), 0);
}

/* ---- over a real channel --------------------------------------------------------------------- */

struct joiner {
    char endpoint[128];
    int32_t world;
    enum status status;
    char words[256];
};

static void *join_engine(void *argument)
{
    struct joiner *joiner = argument;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_FREE(channel) struct channel *channel = NULL;
    const struct welcome *welcome = NULL;
    uint32_t epoch;

    joiner->status = channel_connect(joiner->endpoint, "0:1", NULL, &channel);
    if (joiner->status == OK)
        joiner->status = rendezvous_join(channel, 0, joiner->world, clock_deadline_ns(20000), &arena,
                                         &welcome, &epoch);
    if (joiner->status == OK)
        assert_int_equal(epoch, 1);
    snprintf(joiner->words, sizeof joiner->words, "%s",
             joiner->status == OK ? welcome->config : fail_text());
    return NULL;
}

/* What the worker hears when it says it is one of `world` ranks of an engine that has one. */
static struct joiner join_as_one_of(int32_t world)
{
    AUTO_CLOSE(rendezvous) struct rendezvous r;
    AUTO_CLOSE(run_dir) struct run_dir dir;
    AUTO_CLOSE(arena) struct arena arena = {0};
    AUTO_FREE(channel) struct channel *engine = NULL;
    struct joiner joiner = {.world = world};
    struct received in;
    struct message message;
    pthread_t thread;

    rendezvous_init(&r, 1, 1);
    expect_ok(run_dir_open(NULL, &dir));
    snprintf(joiner.endpoint, sizeof joiner.endpoint, "ipc://%s/engine", dir.path);
    expect_ok(channel_listen(joiner.endpoint, NULL, &engine));
    assert_int_equal(pthread_create(&thread, NULL, join_engine, &joiner), 0);
    assert_true(channel_wait(engine, clock_deadline_ns(20000), &in));
    expect_ok(message_decode(in.data, in.size, &arena, &message));
    enum status status = rendezvous_hello(&r, in.peer, &message);
    expect_ok(rendezvous_welcome(&r, engine, in.peer, "{\"tp\": 1}",
                                 status == OK ? NULL : fail_text()));
    pthread_join(thread, NULL);
    return joiner;
}

static void a_worker_gets_the_settings_or_the_reason(void **state)
{
    (void)state;
    struct joiner welcome = join_as_one_of(1), refused = join_as_one_of(3);

    assert_int_equal(welcome.status, OK);
    assert_string_equal(welcome.words, "{\"tp\": 1}");
    assert_int_equal(refused.status, ERR_MISMATCH);
    assert_string_equal(refused.words, "the engine refuses rank 0: rank 0 was started for 3 ranks, "
                        "the engine has 1");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ranks_join_and_become_ready),
    cmocka_unit_test(who_does_not_fit_is_refused_with_both_values),
        cmocka_unit_test(a_rank_that_is_lost_leaves_its_place_to_another_process),
    cmocka_unit_test(the_run_directory_is_private_and_goes_away_with_its_files),
    cmocka_unit_test(what_dead_engines_left_is_swept_and_what_living_ones_use_is_not),
    cmocka_unit_test(engines_that_start_at_once_leave_each_other_alone),
    cmocka_unit_test(a_worker_gets_the_settings_or_the_reason),
};
TEST_MAIN(tests)
