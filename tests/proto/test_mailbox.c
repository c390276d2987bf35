#include "tests/support/expect.h"

#include "proto/base/clock.h"
#include "proto/base/mailbox.h"

#include <poll.h>

struct letter {
    int sender, number;
    struct mail mail;
};

static bool is_readable(const struct mailbox *box)
{
    struct pollfd readable = {.fd = mailbox_fd(box), .events = POLLIN};

    return poll(&readable, 1, 0) == 1;
}

static void the_descriptor_is_readable_exactly_while_mail_waits(void **state)
{
    (void)state;
    struct letter letters[2] = {{.number = 1}, {.number = 2}};
    struct mailbox box;

    expect_ok(mailbox_open(&box, 4));
    assert_false(is_readable(&box));
    expect_ok(mailbox_push(&box, &letters[0].mail));
    expect_ok(mailbox_push(&box, &letters[1].mail));
    assert_ptr_equal(mailbox_pop(&box), &letters[0].mail);
    assert_true(is_readable(&box));
    assert_ptr_equal(mailbox_pop(&box), &letters[1].mail);
    assert_false(is_readable(&box));
    assert_null(mailbox_pop(&box));
    expect_ok(mailbox_push(&box, &letters[0].mail));
    assert_ptr_equal(mailbox_wait(&box, 0), &letters[0].mail);
    mailbox_close(&box);
}

static void a_full_or_shut_box_refuses_and_keeps_what_is_inside(void **state)
{
    (void)state;
    struct letter letters[2];
    struct mailbox box;

    expect_ok(mailbox_open(&box, 1));
    expect_ok(mailbox_push(&box, &letters[0].mail));
    expect_fails(mailbox_push(&box, &letters[1].mail), ERR_FULL, "has 1 mails, which is its limit");
    mailbox_shut(&box);
    expect_fails(mailbox_push(&box, &letters[1].mail), ERR_CLOSED, "shut");
    assert_ptr_equal(mailbox_wait(&box, clock_deadline_ns(-1)), &letters[0].mail);
    assert_null(mailbox_wait(&box, clock_deadline_ns(-1))); /* and does not park */
    assert_true(is_readable(&box));
    mailbox_close(&box);
}

static void waiting_ends_at_the_deadline(void **state)
{
    (void)state;
    struct mailbox box;
    int64_t start = clock_now_ns();

    expect_ok(mailbox_open(&box, 1));
    assert_null(mailbox_wait(&box, clock_deadline_ns(20)));
    assert_in_range(clock_now_ns() - start, 20000000, 2000000000);
    mailbox_close(&box);
}

enum { NUM_SENDERS = 4, NUM_LETTERS = 5000 };
struct sender {
    struct mailbox *box;
    int id;
    struct letter letters[NUM_LETTERS];
};

static void *send_all(void *argument)
{
    struct sender *sender = argument;

    for (int i = 0; i < NUM_LETTERS; i++) {
        sender->letters[i] = (struct letter){.sender = sender->id, .number = i};
        while (mailbox_push(sender->box, &sender->letters[i].mail) == ERR_FULL)
            sched_yield();
    }
    return NULL;
}

static void letters_of_each_sender_arrive_once_and_in_order(void **state)
{
    (void)state;
    struct sender *senders = mem_new_array(struct sender, NUM_SENDERS);
    pthread_t threads[NUM_SENDERS];
    int next[NUM_SENDERS] = {0};
    struct mailbox box;

    expect_ok(mailbox_open(&box, 64));
    for (int i = 0; i < NUM_SENDERS; i++) {
        senders[i].box = &box;
        senders[i].id = i;
        assert_int_equal(pthread_create(&threads[i], NULL, send_all, &senders[i]), 0);
    }
    for (int i = 0; i < NUM_SENDERS * NUM_LETTERS; i++) {
        struct mail *mail = mailbox_wait(&box, clock_deadline_ns(60000));

        assert_non_null(mail);
        struct letter *letter = MAIL_ITEM(mail, struct letter, mail);
        assert_int_equal(letter->number, next[letter->sender]++);
    }
    for (int i = 0; i < NUM_SENDERS; i++)
        pthread_join(threads[i], NULL);
    assert_null(mailbox_pop(&box));
    mailbox_close(&box);
    mem_free(senders);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_descriptor_is_readable_exactly_while_mail_waits),
    cmocka_unit_test(a_full_or_shut_box_refuses_and_keeps_what_is_inside),
    cmocka_unit_test(waiting_ends_at_the_deadline),
    cmocka_unit_test(letters_of_each_sender_arrive_once_and_in_order),
};
TEST_MAIN(tests)
