#include "tests/support/expect.h"

#include "engine/launch/hosts.h"

static enum status read_text(const char *text, struct host_list *list)
{
    return host_list_add_text(list, "file", text, strlen(text));
}

static void lines_of_mpirun_and_hydra_are_read(void **state)
{
    (void)state;
    AUTO_CLOSE(host_list) struct host_list list = {0};

    expect_ok(read_text("# all of them\n\nn1 slots=4 max_slots=8 # fast\n\troot@n2.local:3\r\nn3",
                        &list));
    assert_int_equal(list.count, 3);
    assert_string_equal(list.hosts[0].name, "n1");
    assert_int_equal(list.hosts[0].slots, 4);
    assert_int_equal(list.hosts[0].max_slots, 8);
    assert_string_equal(list.hosts[1].name, "root@n2.local");
    assert_int_equal(list.hosts[1].slots, 3);
    assert_string_equal(list.hosts[2].name, "n3");
    assert_int_equal(list.hosts[2].slots, 1);
    assert_int_equal(list.hosts[2].line, 5);
}

static void the_command_line_names_hosts_too(void **state)
{
    (void)state;
    AUTO_CLOSE(host_list) struct host_list list = {0};

    expect_ok(host_list_add_words(&list, "a:2,b"));
    assert_int_equal(list.count, 2);
    assert_int_equal(list.hosts[0].slots, 2);
    expect_fails(host_list_add_words(&list, "c,,d"), ERR_INVALID,
                 "--host: a host's name is missing");
    expect_fails(host_list_add_words(&list, "b"), ERR_INVALID, "b is named twice; say b:2");
}

static void a_bad_line_is_named_by_its_number(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"a\nb slots=0\n", "file, line 2: slots= must be 1 to 1024, not '0'"},
        {"a slots=\n", "line 1: slots= must be 1 to 1024, not ''"},
        {"a slots=99999999999999999999\n", "must be 1 to 1024"},
        {"a slots=4 max_slots=2\n", "max_slots=2 is less than the 4 slots"},
        {"a cores=3\n", "'cores=3' is neither slots=N nor max_slots=N"},
        {"a\n\n-b\n", "line 3: '-b' is no name of a host: byte 0 is 0x2d"},
        {"a;rm\n", "byte 1 is 0x3b"},
        {":4\n", "a host's name is missing"},
        {"a:x\n", "the slots behind the colon must be a number, not 'x'"},
        {"a\nb\na\n", "line 3: host a is named twice, in line 1 too"},
    };

    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        AUTO_CLOSE(host_list) struct host_list list = {0};

        expect_fails(read_text(cases[i].text, &list), ERR_INVALID, cases[i].part);
    }
}

static void a_long_name_and_too_many_hosts_are_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(host_list) struct host_list list = {0};
    AUTO_CLOSE(bytes) struct bytes text = {0};
    AUTO_MEM char *name = mem_printf("%0300d", 1);

    expect_fails(read_text(name, &list), ERR_INVALID, "a host's name has 300 letters, 255");
    for (int i = 0; i <= MAX_HOSTS; i++)
        bytes_printf(&text, "h%d\n", i);
    expect_fails(read_text(bytes_text(&text), &list), ERR_INVALID,
                 "file, line 257: more than 256 hosts");
}

static void this_machine_is_known(void **state)
{
    (void)state;
    assert_true(host_is_local("localhost"));
    assert_true(host_is_local("127.0.0.1"));
    assert_false(host_is_local("somewhere.else"));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(lines_of_mpirun_and_hydra_are_read),
    cmocka_unit_test(the_command_line_names_hosts_too),
    cmocka_unit_test(a_bad_line_is_named_by_its_number),
    cmocka_unit_test(a_long_name_and_too_many_hosts_are_refused),
    cmocka_unit_test(this_machine_is_known),
};
TEST_MAIN(tests)
