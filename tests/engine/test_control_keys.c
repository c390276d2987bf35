/* Lists of keys and key files of the control socket: what is taken, and which line is not. */
#include "tests/support/expect.h"

#include "engine/control/keys.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static enum status parse(const char *text, struct control_keys *out)
{
    return control_keys_parse("keys", text, strlen(text), out);
}

static void a_list_says_who_may_what(void **state)
{
    (void)state;
    AUTO_CLOSE(control_keys) struct control_keys keys = {0};
    struct curve_pair a, b, c;

    expect_ok(curve_pair_new(&a));
    expect_ok(curve_pair_new(&b));
    expect_ok(curve_pair_new(&c));

    AUTO_MEM char *text = mem_printf("# who may\n\n%s admin alice # the first\n\t%s\tread \r\n",
                                     a.public_key, b.public_key);
    expect_ok(parse(text, &keys));
    assert_int_equal(keys.num_keys, 2);
    assert_int_equal(control_keys_find(&keys, a.public_key)->role, ROLE_ADMIN);
    assert_string_equal(control_keys_find(&keys, a.public_key)->name, "alice");
    assert_int_equal(control_keys_find(&keys, b.public_key)->role, ROLE_READ);
    assert_memory_equal(control_keys_find(&keys, b.public_key)->name + 4, b.public_key, 8);
    assert_null(control_keys_find(&keys, c.public_key));
    assert_null(control_keys_find(&keys, ""));
}

static void a_wrong_line_is_named(void **state)
{
    (void)state;
    struct control_keys keys;
    struct curve_pair a;

    expect_ok(curve_pair_new(&a));

    const struct {
        char *text;
        const char *sentence;
    } rows[] = {
        {mem_strdup(""), "keys has no key"},
        {mem_strdup("# only words\n"), "keys has no key"},
        {mem_printf("%s\n", a.public_key), "keys, line 1: PUBLIC_KEY ROLE [NAME] is expected, 1 words"},
        {mem_printf("\n%s read a b\n", a.public_key), "keys, line 2: PUBLIC_KEY ROLE [NAME] is expected, at "
                                                      "least 4 words"},
        {mem_printf("%s root\n", a.public_key),
         "keys, line 1: 'root' is no role; the roles are read, operate and admin"},
        {mem_printf("%s none\n", a.public_key), "'none' is no role"},
        {mem_printf("\n\n%.39s read\n", a.public_key), "is no key: 40 characters of Z85 are"},
        {mem_printf("%s read\n%s admin\n", a.public_key, a.public_key),
         "keys, line 2: this key stands in the list before"},
        {mem_printf("%s read %065d\n", a.public_key, 0), "a name of 65 bytes, the limit is 63"},
        {mem_printf("%s read a\x1b[2J\n", a.public_key), "of ASCII only"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        expect_fails(parse(rows[i].text, &keys), ERR_INVALID, rows[i].sentence);
        mem_free(rows[i].text);
    }
    expect_fails(control_keys_parse("keys", "a\0b", 3, &keys), ERR_INVALID,
                 "keys, line 1: a NUL byte");
    expect_fails(control_keys_read("/no/such/file", &keys), ERR_IO, "/no/such/file");
}

static void a_key_file_is_its_owners_alone(void **state)
{
    (void)state;
    AUTO_MEM char *path = mem_printf("/tmp/tandem-test-key-%d", (int)getpid());
    struct control_key_file made, read;
    struct curve_pair server;
    struct stat info;

    expect_ok(curve_pair_new(&server));
    expect_ok(control_key_file_create(path, server.public_key, &made));
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    expect_ok(control_key_file_read(path, &read));
    assert_string_equal(read.pair.secret_key, made.pair.secret_key);
    assert_string_equal(read.pair.public_key, made.pair.public_key);
    assert_string_equal(read.server, server.public_key);

    expect_fails(control_key_file_create(path, NULL, &made), ERR_INVALID, "is there already");
    assert_int_equal(chmod(path, 0640), 0);
    expect_fails(control_key_file_read(path, &read), ERR_INVALID, "has mode 0640");
    unlink(path);
    expect_fails(control_key_file_read(path, &read), ERR_NOT_FOUND, path);
    expect_fails(control_key_file_create(path, "no key", &made), ERR_INVALID, "is no key");
    assert_int_equal(access(path, F_OK), -1);
}

static void a_wrong_key_file_tells_no_secret(void **state)
{
    (void)state;
    AUTO_MEM char *path = mem_printf("/tmp/tandem-test-key-%d", (int)getpid());
    struct control_key_file read;
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"", "public is missing"},
        {"secret hush\n", "line 1: secret is no key"},
        {"public\n", "line 1: a name and one key are expected"},
        {"\nsecrte 1\n", "line 2: the names are public, secret and server"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        FILE *file = fopen(path, "w");

        assert_non_null(file);
        fputs(rows[i].text, file);
        fclose(file);
        chmod(path, 0600);
        expect_fails(control_key_file_read(path, &read), ERR_INVALID, rows[i].sentence);
        assert_null(strstr(fail_text(), "hush"));
    }
    unlink(path);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_list_says_who_may_what),
    cmocka_unit_test(a_wrong_line_is_named),
    cmocka_unit_test(a_key_file_is_its_owners_alone),
    cmocka_unit_test(a_wrong_key_file_tells_no_secret),
};
TEST_MAIN(tests)
