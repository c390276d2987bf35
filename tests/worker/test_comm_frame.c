#include "tests/support/expect.h"

#include "worker/comm_frame.h"

static const struct comm_hello ours = {
    .session = 0x1234, .epoch = 7, .rank = 1, .world = 4, .buffer_bytes = 4096};

static void write_frame(enum comm_kind kind, int64_t bytes, char *out)
{
    comm_frame_write_header(kind, 3, bytes, out);
}

static void a_frame_is_what_was_written(void **state)
{
    char bytes[COMM_HEADER_BYTES + COMM_HELLO_BYTES];
    struct comm_frame frame;
    struct comm_hello hello;

    (void)state;
    write_frame(COMM_HELLO, COMM_HELLO_BYTES, bytes);
    comm_hello_write(&ours, bytes + COMM_HEADER_BYTES);
    expect_ok(comm_frame_read(bytes, sizeof bytes, &frame));
    assert_int_equal(frame.kind, COMM_HELLO);
    assert_int_equal(frame.exchange, 3);
    assert_ptr_equal(frame.payload, bytes + COMM_HEADER_BYTES);
    expect_ok(comm_hello_read(&frame, &hello));
    assert_int_equal(hello.session, ours.session);
    assert_int_equal(hello.epoch, ours.epoch);
    assert_int_equal(hello.rank, ours.rank);
    assert_int_equal(hello.world, ours.world);
    assert_int_equal(hello.buffer_bytes, ours.buffer_bytes);
    bytes[COMM_HEADER_BYTES] = 'T';
    expect_fails(comm_hello_read(&frame, &hello), ERR_MISMATCH, "does not begin with tdmcomm1");
}

static void what_does_not_hold_together_is_refused(void **state)
{
    char bytes[COMM_HEADER_BYTES + 64] = {0};
    struct comm_frame frame;

    (void)state;
    expect_fails(comm_frame_read(bytes, 15, &frame), ERR_CORRUPT, "15 bytes, a header has 16");
    write_frame(NUM_COMM_KINDS, 0, bytes);
    expect_fails(comm_frame_read(bytes, 16, &frame), ERR_CORRUPT, "kind 8");
    write_frame(COMM_SUM, 8, bytes);
    expect_fails(comm_frame_read(bytes, 16 + 16, &frame), ERR_CORRUPT,
                 "a sum of 16 bytes says that it has 8");
    write_frame(COMM_SUM, -1, bytes);
    expect_fails(comm_frame_read(bytes, 16 + 16, &frame), ERR_CORRUPT, "says that it has -1");
    write_frame(COMM_BARRIER, 8, bytes);
    expect_fails(comm_frame_read(bytes, 16 + 8, &frame), ERR_CORRUPT,
                 "a barrier of 8 bytes, it has 0 to 0");
    write_frame(COMM_GATHER, 7, bytes);
    expect_fails(comm_frame_read(bytes, 16 + 7, &frame), ERR_CORRUPT, "a gather of 7 bytes");
    write_frame(COMM_HELLO, 47, bytes);
    expect_fails(comm_frame_read(bytes, 16 + 47, &frame), ERR_CORRUPT, "a hello of 47 bytes");
}

static void a_refusal_is_printable(void **state)
{
    char bytes[COMM_HEADER_BYTES + 6], text[COMM_MAX_SENTENCE + 1];
    struct comm_frame frame;

    (void)state;
    write_frame(COMM_REFUSED, 6, bytes);
    memcpy(bytes + COMM_HEADER_BYTES, "no\n\x1b[m", 6);
    expect_ok(comm_frame_read(bytes, sizeof bytes, &frame));
    comm_refusal_read(&frame, text);
    assert_string_equal(text, "no??[m");
}

static void a_hello_of_another_group_is_refused_by_what_differs(void **state)
{
    struct comm_hello theirs = ours;

    (void)state;
    expect_fails(comm_hello_check(&ours, &theirs), ERR_MISMATCH,
                 "rank 1 of 4 ranks says hello to rank 1");
    theirs.rank = 4;
    expect_fails(comm_hello_check(&ours, &theirs), ERR_MISMATCH, "rank 4 of 4 ranks");
    theirs.rank = -1;
    expect_fails(comm_hello_check(&ours, &theirs), ERR_MISMATCH, "rank -1 of 4 ranks");
    theirs.rank = 3;
    expect_ok(comm_hello_check(&ours, &theirs));
    theirs.epoch = 6;
    expect_fails(comm_hello_check(&ours, &theirs), ERR_MISMATCH, "rank 3 is of epoch 6, not 7");
    theirs.session = 1;
    expect_fails(comm_hello_check(&ours, &theirs), ERR_MISMATCH, "of job 0000000000000001");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_frame_is_what_was_written),
    cmocka_unit_test(what_does_not_hold_together_is_refused),
    cmocka_unit_test(a_refusal_is_printable),
    cmocka_unit_test(a_hello_of_another_group_is_refused_by_what_differs),
};
TEST_MAIN(tests)
