#include "tests/support/expect.h"

#include "tests/support/sample_parcels.h"

/* What is read, written again. */
static void echo(struct parcel_reader *reader, bool is_from_agent, struct bytes *out, int *count)
{
    struct parcel parcel;
    bool found = true;

    while (found) {
        expect_ok(parcel_reader_next(reader, is_from_agent, &parcel, &found));
        if (found) {
            parcel_write(out, &parcel);
            ++*count;
        }
    }
}

static void all_kinds_arrive_as_they_were_sent_however_they_are_cut(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++)
        for (size_t piece = 1; piece < 2000; piece = piece * 3 + 1) {
            AUTO_CLOSE(parcel_reader) struct parcel_reader reader = {0};
            AUTO_CLOSE(bytes) struct bytes sent = {0};
            AUTO_CLOSE(bytes) struct bytes again = {0};
            int count = 0;

            sample_parcels_write(side, &sent);
            for (size_t at = 0; at < sent.size; at += piece) {
                parcel_reader_add(&reader, sent.data + at, MIN(piece, sent.size - at));
                echo(&reader, side, &again, &count);
            }
            assert_int_equal(count, side ? 10 : 9);
            assert_int_equal(again.size, sent.size);
            assert_memory_equal(again.data, sent.data, sent.size);
        }
}

static enum status read_one(const uint8_t *data, size_t size, bool is_from_agent)
{
    AUTO_CLOSE(parcel_reader) struct parcel_reader reader = {0};
    struct parcel parcel;
    bool found;

    parcel_reader_add(&reader, data, size);
    enum status status = parcel_reader_next(&reader, is_from_agent, &parcel, &found);
    if (status == OK)
        assert_false(found); /* it waits for more */
    return status;
}

static void what_is_no_parcel_of_that_side_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        bool is_from_agent;
        const char *part;
    } cases[] = {
        {"Welcome\n", 8, true, "kind 111 is no parcel of an agent"},
        {"\0\0\0\0\x08", 5, false, "kind 8 is no parcel of the launcher"},
        {"\0\0\0\0\x03", 5, true, "kind 3 is no parcel of an agent"},
        {"\xff\xff\xff\x7f\x11", 5, true, "BEAT of 2147483647 bytes, 1048576 are the most"},
        {"\x01\0\0\0\x11\0", 6, true, "bytes are left behind the last field"},
        {"\x02\0\0\0\x03\x00\x00", 7, false, "SIGNAL of 2 bytes"},    /* signal 0 */
        {"\x02\0\0\0\x03\xfe\x09", 7, false, "SIGNAL of 2 bytes"},    /* process -2 */
        {"\x03\0\0\0\x0b\x00\x03\xc4", 8, true, "OUTPUT of 3 bytes"}, /* stream 3 */
    };

    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect_fails(
            read_one((const uint8_t *)cases[i].bytes, cases[i].size, cases[i].is_from_agent),
            ERR_CORRUPT, cases[i].part);
    expect_ok(read_one((const uint8_t *)"\x05\0\0\0\x0b\x00", 6, true));
}

static void words_of_a_program_are_checked(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes bytes = {0};
    const struct text words[] = {{"a\0b", 3}};
    struct parcel parcel = {
        .kind = PARCEL_START, .binding = {.cores_per_rank = 1}, .local_world = 1};

    parcel_write(&bytes, &parcel);
    expect_fails(read_one(bytes.data, bytes.size, false), ERR_CORRUPT, "a program has no name");
    bytes.size = 0;
    parcel.words = words;
    parcel.num_words = 1;
    parcel_write(&bytes, &parcel);
    expect_fails(read_one(bytes.data, bytes.size, false), ERR_CORRUPT, "a word has a NUL in it");
}

/* Who speaks, then all that it says. TANDEM_TEST_CORPUS=FOLDER writes the files anew. */
static void the_samples_are_the_fuzzer_s_corpus(void **state)
{
    (void)state;
    const char *folder = getenv("TANDEM_TEST_CORPUS");

    for (int side = 0; side < 2; side++) {
        AUTO_MEM char *path = mem_printf("%s%s/%s", folder ? folder : getenv("TANDEM_TEST_DATA"),
                                         folder ? "" : "/fuzz/parcel", side ? "agent" : "launcher");
        AUTO_CLOSE(bytes) struct bytes wanted = {0};
        uint8_t first = (uint8_t)side, found[1024];
        FILE *file = fopen(path, folder ? "wb" : "rb");

        assert_non_null(file);
        bytes_append(&wanted, &first, 1);
        sample_parcels_write(side, &wanted);
        if (folder) {
            assert_int_equal(fwrite(wanted.data, 1, wanted.size, file), wanted.size);
        } else {
            assert_int_equal(fread(found, 1, sizeof found, file), wanted.size);
            assert_memory_equal(found, wanted.data, wanted.size);
        }
        fclose(file);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(all_kinds_arrive_as_they_were_sent_however_they_are_cut),
    cmocka_unit_test(what_is_no_parcel_of_that_side_is_refused),
    cmocka_unit_test(words_of_a_program_are_checked),
    cmocka_unit_test(the_samples_are_the_fuzzer_s_corpus),
};
TEST_MAIN(tests)
