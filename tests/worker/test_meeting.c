/* What the engine asks of a rank that is to meet others, where it does not make sense. Meetings that come about are in
 * tests/system. */
#include "tests/support/expect.h"

#include "worker/comm_net.h"
#include "worker/meeting.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct worker_main_options options = {.rank = 1, .world = 3};

static json_t *parse(const char *text)
{
    json_t *args = json_loads(text, 0, NULL);

    assert_non_null(args);
    return args;
}

static enum status open_shared(struct meeting *meeting, const char *text)
{
    json_t *args = parse(text);
    enum status status = meeting_open_shared(meeting, &options, args);

    json_decref(args);
    return status;
}

/* The worker is asked for nothing before the arguments are found to be right. */
static enum status connect_without_worker(struct meeting *meeting, const char *text)
{
    json_t *args = parse(text);
    enum status status = meeting_begin(meeting, &options, NULL, 1, args);

    json_decref(args);
    return status;
}

static void hosts_that_make_no_sense_are_refused(void **state)
{
    static const struct {
        const char *args, *sentence;
    } rows[] = {
        {"{}", "the hosts of 0 ranks, there are 3"},
        {"{\"hosts\": 3}", "the hosts of 0 ranks, there are 3"},
        {"{\"hosts\": [0, 0]}", "the hosts of 2 ranks, there are 3"},
        {"{\"hosts\": [0, 0, 0, 0]}", "the hosts of 4 ranks, there are 3"},
        {"{\"hosts\": [0, \"0\", 0]}", "the first rank on rank 1's host is one from 0 to 1"},
        {"{\"hosts\": [0, 0, 3]}", "the first rank on rank 2's host is one from 0 to 2"},
        {"{\"hosts\": [0, -1, 0]}", "the first rank on rank 1's host is one from 0 to 1"},
        {"{\"hosts\": [0, 4294967296, 0]}", "the first rank on rank 1's host is one from 0 to 1"},
        {"{\"hosts\": [0, 0, 1]}", "rank 1 is the first on rank 2's host, and is not on it"},
    };
    struct meeting meeting = {.shared_fd = -1};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        expect_fails(open_shared(&meeting, rows[i].args), ERR_MISMATCH, rows[i].sentence);
        expect_fails(connect_without_worker(&meeting, rows[i].args), ERR_MISMATCH, rows[i].sentence);
    }
    meeting_close(&meeting);
}

static void a_meeting_that_was_not_prepared_is_refused(void **state)
{
    struct meeting meeting = {.shared_fd = -1};
    struct curve_pair keys;

    (void)state;
    expect_fails(connect_without_worker(&meeting, "{\"hosts\": [0, 0, 0]}"), ERR_MISMATCH,
                 "3 ranks share a host, and rank 1 has not opened their memory");
    expect_fails(connect_without_worker(&meeting, "{\"hosts\": [0, 1, 2]}"), ERR_MISMATCH,
                 "this one does not listen");
    expect_fails(connect_without_worker(&meeting, "{\"hosts\": [0, 1, 2], \"endpoints\": [\"a\"]}"),
                 ERR_MISMATCH, "1 endpoints of 3 ranks");
    expect_fails(connect_without_worker(&meeting,
                                        "{\"hosts\": [0, 1, 2], \"endpoints\": [\"a\", 2, \"c\"]}"),
                 ERR_MISMATCH, "the endpoint of rank 1 is no text");
    expect_ok(curve_pair_new(&keys));
    expect_ok(comm_net_listen("tcp://127.0.0.1:0", &keys, &meeting.net));
    expect_fails(connect_without_worker(&meeting, "{\"hosts\": [0, 1, 2]}"), ERR_MISMATCH,
                 "no endpoints have come");
    meeting_close(&meeting);
    assert_null(meeting.net);
}

static void memory_is_known_by_its_inode(void **state)
{
    struct meeting meeting = {.shared_fd = -1};
    int fd = memfd_create("test", MFD_CLOEXEC);
    struct stat info, opened;

    (void)state;
    assert_int_equal(fstat(fd, &info), 0);

    AUTO_MEM char *right = mem_printf("{\"hosts\": [0, 0, 2], \"memory\": [{\"path\": \"/proc/%d/fd/%d\", "
                                      "\"inode\": %lld}, null, null]}", getpid(), fd, (long long)info.st_ino);
    AUTO_MEM char *another = mem_printf("{\"hosts\": [0, 0, 2], \"memory\": [{\"path\": \"/proc/%d/fd/%d\", "
                                        "\"inode\": %lld}]}", getpid(), fd, (long long)info.st_ino + 1);

    expect_fails(open_shared(&meeting, another), ERR_NOT_FOUND, "is something else here");
    expect_fails(open_shared(&meeting, "{\"hosts\": [0, 0, 0], \"memory\": [{\"path\": \"/proc/0/fd/9\"}]}"),
                 ERR_NOT_FOUND, "/proc/0/fd/9: No such file");
    expect_fails(open_shared(&meeting, "{\"hosts\": [0, 0, 0], \"memory\": [{\"path\": \"/dev/null\", \"inode\": 0}]}"),
                 ERR_NOT_FOUND, "is something else here");
    expect_fails(open_shared(&meeting, "{\"hosts\": [0, 0, 0], \"memory\": [null]}"), ERR_MISMATCH,
                 "no path to memory that rank 1 shares with rank 0");
    assert_int_equal(meeting.shared_fd, -1);

    expect_ok(open_shared(&meeting, right));
    expect_ok(open_shared(&meeting, right)); /* of the next epoch */
    assert_int_equal(fstat(meeting.shared_fd, &opened), 0);
    assert_int_equal(opened.st_ino, info.st_ino);
    expect_ok(open_shared(&meeting, "{\"hosts\": [0, 1, 2]}")); /* alone on its host */
    meeting_close(&meeting);
    close(fd);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(hosts_that_make_no_sense_are_refused),
    cmocka_unit_test(a_meeting_that_was_not_prepared_is_refused),
    cmocka_unit_test(memory_is_known_by_its_inode),
};

TEST_MAIN(tests)
