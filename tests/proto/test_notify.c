#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "proto/base/notify.h"

#include <unistd.h>

static void what_is_told_arrives(void **state)
{
    (void)state;
    AUTO_MEM char *path = mem_printf("/tmp/tandem-test-notify-%d", getpid());
    struct notify_receiver receiver;
    struct notice notice;

    expect_ok(notify_receiver_open(path, &receiver));
    assert_false(notify_receiver_take(&receiver, &notice));
    setenv("NOTIFY_SOCKET", receiver.path, 1);
    assert_true(notify("STATUS=load %d %%", 62));
    assert_true(notify("READY=1\nWATCHDOG=1"));
    unsetenv("NOTIFY_SOCKET");

    assert_true(notify_receiver_take(&receiver, &notice));
    assert_true(notice.has_status && !notice.is_ready);
    assert_string_equal(notice.status, "load 62 %");
    assert_true(notify_receiver_take(&receiver, &notice));
    assert_true(notice.is_ready && notice.is_watchdog && !notice.is_stopping && !notice.has_status);
    notify_receiver_close(&receiver);
    assert_int_equal(access(path, F_OK), -1);
}

static void nobody_has_to_listen(void **state)
{
    (void)state;
    static const char *const addresses[] = {"", "@", "relative", "/no/such/socket", "vsock:2:1234"};
    AUTO_MEM char *too_long = mem_printf("/%0200d", 1);

    unsetenv("NOTIFY_SOCKET");
    assert_false(notify("READY=1"));
    for (size_t i = 0; i < COUNT_OF(addresses); i++) {
        setenv("NOTIFY_SOCKET", addresses[i], 1);
        assert_false(notify("READY=1"));
    }
    setenv("NOTIFY_SOCKET", too_long, 1);
    assert_false(notify("READY=1"));
    unsetenv("NOTIFY_SOCKET");
}

static void what_is_not_understood_is_passed_over(void **state)
{
    (void)state;
    static const char text[] = "READY=0\nREADY=11\n\n=\nSTATUS\nFDSTORE=1\nSTOPPING=1\nSTATUS=a\x1b[2Jb";
    struct notice notice;

    notice_parse(text, sizeof text - 1, &notice);
    assert_true(!notice.is_ready && notice.is_stopping);
    assert_string_equal(notice.status, "a?[2Jb");
}

static void a_long_status_is_cut_between_letters(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes text = {0};
    struct notice notice;

    bytes_printf(&text, "STATUS=x");
    for (int i = 0; i < 200; i++)
        bytes_printf(&text, "\u00e9");
    notice_parse((const char *)text.data, text.size, &notice);
    assert_int_equal(strlen(notice.status), NOTICE_MAX_STATUS);
    text.size = 0;
    bytes_printf(&text, "STATUS=");
    for (int i = 0; i < 200; i++)
        bytes_printf(&text, "\u00e9");
    notice_parse((const char *)text.data, text.size, &notice);
    assert_int_equal(strlen(notice.status), NOTICE_MAX_STATUS - 1);
}

static void a_path_that_cant_be_a_socket_is_refused(void **state)
{
    (void)state;
    AUTO_MEM char *too_long = mem_printf("/%0200d", 1);
    struct notify_receiver receiver;

    expect_fails(notify_receiver_open(too_long, &receiver), ERR_IO, "it has 201 bytes, 107");
    expect_fails(notify_receiver_open("/no/such/folder/socket", &receiver), ERR_IO,
                 "No such file or directory");
    notify_receiver_close(&receiver);
}

static void systemd_says_how_often_it_wants_to_hear(void **state)
{
    (void)state;
    AUTO_MEM char *ours = mem_printf("%d", getpid());

    unsetenv("WATCHDOG_USEC");
    assert_int_equal(notify_watchdog_ms(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(notify_watchdog_ms(), 15000);
    setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(notify_watchdog_ms(), 0);
    setenv("WATCHDOG_PID", ours, 1);
    assert_int_equal(notify_watchdog_ms(), 15000);
    unsetenv("WATCHDOG_PID");
    unsetenv("WATCHDOG_USEC");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_told_arrives),
    cmocka_unit_test(nobody_has_to_listen),
    cmocka_unit_test(what_is_not_understood_is_passed_over),
    cmocka_unit_test(a_long_status_is_cut_between_letters),
    cmocka_unit_test(a_path_that_cant_be_a_socket_is_refused),
    cmocka_unit_test(systemd_says_how_often_it_wants_to_hear),
};
TEST_MAIN(tests)
