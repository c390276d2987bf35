#include "tests/support/expect.h"

#include "engine/cmd/line_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

struct piped { /* a reader of what the test writes */
    struct line_reader reader;
    int in;
};

static struct piped piped_open(void)
{
    int fds[2];

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    return (struct piped){.reader = {.fd = fds[0]}, .in = fds[1]};
}

static void end_of(struct piped *piped)
{
    close(piped->in);
    piped->in = -1;
}

static void piped_close(struct piped *piped)
{
    if (piped->in >= 0)
        close(piped->in);
    close(piped->reader.fd);
    line_reader_close(&piped->reader);
}

static void say(struct piped *piped, const char *text)
{
    assert_int_equal(write(piped->in, text, strlen(text)), strlen(text));
}

static void expect_line(struct piped *piped, int32_t number, const char *text)
{
    size_t size;
    const char *line = line_reader_next(&piped->reader, &size);

    assert_non_null(line);
    assert_string_equal(line, text);
    assert_int_equal(size, strlen(text));
    assert_int_equal(piped->reader.number, number);
}

static void expect_none(struct piped *piped, bool at_end)
{
    size_t size;

    assert_null(line_reader_next(&piped->reader, &size));
    assert_int_equal(piped->reader.at_end, at_end);
    assert_int_equal(piped->reader.error, 0);
}

static void a_line_is_there_when_it_is_whole(void **state)
{
    AUTO_CLOSE(piped) struct piped piped = piped_open();

    (void)state;
    expect_none(&piped, false);
    say(&piped, "fir");
    expect_none(&piped, false);
    expect_none(&piped, false);
    say(&piped, "st\nsecond\nthi");
    expect_line(&piped, 1, "first");
    expect_line(&piped, 2, "second");
    expect_none(&piped, false);
    say(&piped, "rd\n");
    expect_line(&piped, 3, "third");
    end_of(&piped);
    expect_none(&piped, true);
    expect_none(&piped, true);
}

static void the_last_line_needs_no_newline(void **state)
{
    AUTO_CLOSE(piped) struct piped piped = piped_open();

    (void)state;
    say(&piped, "a\nb");
    end_of(&piped);
    expect_line(&piped, 1, "a");
    expect_line(&piped, 2, "b");
    expect_none(&piped, true);
}

static void blank_lines_are_counted_and_passed_over(void **state)
{
    AUTO_CLOSE(piped) struct piped piped = piped_open();

    (void)state;
    say(&piped, "\n \t\r\n a\r\n\n\n  b\n ");
    end_of(&piped);
    expect_line(&piped, 3, " a\r");
    expect_line(&piped, 6, "  b");
    expect_none(&piped, true);
}

static void a_byte_order_mark_is_no_part_of_the_first_line(void **state)
{
    static const struct {
        const char *text, *line;
        int32_t number;
    } rows[] = {
        {"\xEF\xBB\xBF{}\n", "{}", 1},
        {"\xEF\xBB\xBF\n\n{}\n", "{}", 3},
        {"\xEF\xBB{}\n", "\xEF\xBB{}", 1},
        {"{}\n", "{}", 1},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(piped) struct piped piped = piped_open();

        say(&piped, rows[i].text);
        expect_line(&piped, rows[i].number, rows[i].line);
        say(&piped, "\xEF\xBB\xBF{}\n");
        expect_line(&piped, rows[i].number + 1, "\xEF\xBB\xBF{}");
    }
}

static void a_line_may_be_longer_than_what_is_read_at_once(void **state)
{
    enum { SIZE = 1 << 20 };
    AUTO_MEM char *path = mem_strdup("/tmp/tandem-test-lines.XXXXXX"), *text = mem_alloc(SIZE + 1);
    struct line_reader reader = {.fd = mkstemp(path)};
    size_t size;

    (void)state;
    memset(text, 'x', SIZE);
    for (int i = 0; i < 3; i++)
        assert_int_equal(dprintf(reader.fd, "%s\n%d\n", text, i), SIZE + 3);
    lseek(reader.fd, 0, SEEK_SET);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(line_reader_next(&reader, &size), text);
        assert_int_equal(size, SIZE);
        assert_int_equal(atoi(line_reader_next(&reader, &size)), i);
    }
    assert_null(line_reader_next(&reader, &size));
    assert_true(reader.at_end);
    unlink(path);
    close(reader.fd);
    line_reader_close(&reader);
}

static void what_cannot_be_read_is_told_apart_from_the_end(void **state)
{
    struct line_reader reader = {.fd = open("/tmp", O_RDONLY | O_CLOEXEC)};
    size_t size;

    (void)state;
    assert_null(line_reader_next(&reader, &size));
    assert_true(reader.at_end);
    assert_int_equal(reader.error, EISDIR);
    close(reader.fd);
    line_reader_close(&reader);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_line_is_there_when_it_is_whole),
    cmocka_unit_test(the_last_line_needs_no_newline),
    cmocka_unit_test(blank_lines_are_counted_and_passed_over),
    cmocka_unit_test(a_byte_order_mark_is_no_part_of_the_first_line),
    cmocka_unit_test(a_line_may_be_longer_than_what_is_read_at_once),
    cmocka_unit_test(what_cannot_be_read_is_told_apart_from_the_end),
};
TEST_MAIN(tests)
