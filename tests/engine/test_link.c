/* The engine's end of the wire, over a channel that brings what the test has put there. */
#include "tests/support/expect.h"

#include "engine/executor/link.h"
#include "proto/base/build_id.h"
#include "proto/base/clock.h"

#include <fcntl.h>
#include <unistd.h>

enum { EPOCH = 3, MAX_FRAMES = 8 };

/* ---- a channel ------------------------------------------------------------------------------ */

struct script {
    struct channel channel;
    struct {
        const char *peer;
        struct frame *frame;
    } inbox[MAX_FRAMES];
    int32_t num_frames, num_read;
    int32_t num_sent;
    bool refuses; /* sends */
    bool is_cut;  /* nobody is connected */
    int64_t now_ns;
};

static struct script *of(struct channel *channel)
{
    return CONTAINER_OF(channel, struct script, channel);
}

static enum status send_frame(struct channel *channel, const char *peer, struct frame *frame)
{
    (void)frame;
    if (of(channel)->refuses)
        return fail(ERR_FULL, "%s does not read", peer);
    if (of(channel)->is_cut)
        return fail(ERR_CLOSED, "worker %s is not connected", peer);
    of(channel)->num_sent++;
    return OK;
}

static bool recv_frame(struct channel *channel, struct received *out)
{
    struct script *script = of(channel);

    if (script->num_read == script->num_frames)
        return false;
    snprintf(out->peer, sizeof out->peer, "%s", script->inbox[script->num_read].peer);
    out->data = script->inbox[script->num_read].frame->bytes.data;
    out->size = script->inbox[script->num_read++].frame->bytes.size;
    return true;
}

static void pass_time(struct channel *channel, struct pollfd *fds, size_t num_fds,
                      int64_t deadline_ns)
{
    (void)fds;
    (void)num_fds;
    of(channel)->now_ns = deadline_ns;
}

static int32_t none(struct channel *channel)
{
    (void)channel;
    return 0;
}

static void leave_alone(struct channel *channel)
{
    (void)channel;
}

static const struct channel_ops ops = {.send = send_frame,
                                       .recv = recv_frame,
                                       .poll = pass_time,
                                       .num_disconnects = none,
                                       .free = leave_alone};

static void open_script(struct script *script, int32_t world, struct link *link)
{
    *script = (struct script){.channel.ops = &ops, .now_ns = 1};
    clock_simulate(&script->now_ns);
    link_open(&script->channel, world, EPOCH, link);
}

/* All have joined. */
static void open_with_ranks(struct script *script, int32_t world, struct link *link)
{
    open_script(script, world, link);
    for (int32_t rank = 0; rank < world; rank++) {
        rendezvous_name(rank, EPOCH, link->rendezvous.ranks[rank].peer);
        link->rendezvous.ranks[rank].is_joined = true;
        link->rendezvous.num_joined++;
    }
}

static void close_script(struct script *script, struct link *link)
{
    link_close(link);
    for (int32_t i = 0; i < script->num_frames; i++)
        frame_drop(script->inbox[i].frame);
    clock_simulate(NULL);
}

static void bring(struct script *script, const char *peer, const struct message_type *type,
                  int64_t step, const void *body)
{
    struct frame *frame = frame_new();

    assert_true(script->num_frames < MAX_FRAMES);
    expect_ok(message_encode(type, EPOCH, step, body, &frame->bytes));
    script->inbox[script->num_frames].peer = peer;
    script->inbox[script->num_frames++].frame = frame;
}

static void bring_reply(struct script *script, const char *peer, int32_t rank, int64_t id)
{
    bring(script, peer, &reply_type, -1, &(struct reply){.id = id, .rank = rank, .text = ""});
}

/* ---- promises ------------------------------------------------------------------------------- */

static void a_rank_that_cannot_be_welcomed_is_named(void **state)
{
    struct script script;
    struct link link;

    (void)state;
    open_script(&script, 2, &link);
    script.refuses = true;
    bring(&script, "1:3", &hello_type, -1,
          &(struct hello){
              .rank = 1, .world = 2, .host = "h", .boot_id = "b", .build_id = build_id_text()});
    expect_fails(link_gather(&link, NULL, NULL, "{}", INT64_MAX), ERR_FULL,
                 "rank 1: 1:3 does not read");
    close_script(&script, &link);
}

static void a_reply_counts_once_for_each_rank(void **state)
{
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 2, &link);
    bring_reply(&script, "1:3", 1, 1);
    bring_reply(&script, "0:3", 0, 1);
    expect_ok(link_call_all(&link, "rest", "{}", INT64_MAX));
    assert_int_equal(script.num_sent, 2);

    bring_reply(&script, "1:3", 1, 2);
    bring_reply(&script, "1:3", 1, 2);
    expect_fails(link_call_all(&link, "rest", "{}", INT64_MAX), ERR_MISMATCH,
                 "rank 1 replies to rest twice");

    bring_reply(&script, "0:3", 0, 2);
    expect_fails(link_call_all(&link, "rest", "{}", INT64_MAX), ERR_MISMATCH,
                 "rank 0: reply instead of the reply to rest");
    close_script(&script, &link);
}

static void an_answer_to_another_step_is_refused(void **state)
{
    static const struct model_runner_output answer = {.num_rows = 1};
    const struct model_runner_output *output;
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 2, &link);
    bring(&script, "0:3", &model_runner_output_type, 7, &answer);
    bring(&script, "0:3", &model_runner_output_type, 7, &answer);
    bring(&script, "1:3", &model_runner_output_type, 8, &answer);
    expect_ok(link_collect(&link, 7, INT64_MAX, &output));
    assert_int_equal(output->num_rows, 1);
    expect_fails(link_collect(&link, 8, INT64_MAX, &output), ERR_MISMATCH,
                 "rank 0: model_runner_output of step 7 instead of rank 0's answer to step 8");
    expect_fails(link_collect(&link, 8, INT64_MAX, &output), ERR_MISMATCH,
                 "rank 1: model_runner_output of step 8 instead of rank 0's answer to step 8");
    close_script(&script, &link);
}

static void silence_and_deadlines_end_the_wait(void **state)
{
    const struct model_runner_output *output;
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 2, &link);
    expect_fails(link_collect(&link, 7, clock_deadline_ns(3400), &output), ERR_TIMEOUT,
                 "the ranks did not answer in time");
    bring(&script, "0:3", &heartbeat_type, -1, &(struct heartbeat){.step = -1, .waits_for = -1});
    expect_fails(link_collect(&link, 7, INT64_MAX, &output), ERR_TIMEOUT,
                 "rank 1 (process 0) has been silent for 3.");
    assert_int_equal(link.failed_rank, 1);
    close_script(&script, &link);
}

static void bring_beat(struct script *script, const char *peer, int64_t step, int64_t progress,
                       int32_t waits_for)
{
    bring(script, peer, &heartbeat_type, step,
          &(struct heartbeat){.step = step, .progress = progress, .waits_for = waits_for});
}

/* Awaits the answer to step 7 for so long, and then forgets what was brought for it. */
static enum status collect_for(struct script *script, struct link *link, int32_t ms)
{
    const struct model_runner_output *output;
    enum status status = link_collect(link, 7, clock_deadline_ns(ms), &output);

    for (int32_t i = 0; i < script->num_frames; i++)
        frame_drop(script->inbox[i].frame);
    script->num_frames = script->num_read = 0;
    return status;
}

/* Rank 0, which waits for rank 1, beats and does not get ahead; so does rank 1 if it is heard. */
static enum status pass_a_second(struct script *script, struct link *link, bool is_heard)
{
    bring_beat(script, "0:3", 7, 40, 1);
    if (is_heard)
        bring_beat(script, "1:3", 7, 40, -1);
    return collect_for(script, link, 1000);
}

/* Rank 1 is this process, which runs: if it is not heard, somebody else has its core. */
static void a_rank_that_would_run_has_more_time(void **state)
{
    struct script script;
    struct link link;
    int seconds;

    (void)state;
    open_with_ranks(&script, 2, &link);
    link.ranks[1].pidfd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    link.rendezvous.ranks[1].pid = getpid();
    link.small_step_ns = 1e6;
    expect_fails(pass_a_second(&script, &link, true), ERR_TIMEOUT, "the ranks did not answer in time");
    for (seconds = 0; seconds < 20; seconds++)
        expect_fails(pass_a_second(&script, &link, false), ERR_TIMEOUT, "the ranks did not answer in time");
    expect_fails(pass_a_second(&script, &link, true), ERR_TIMEOUT, "the ranks did not answer in time");
    for (seconds = 0; link.failed_rank < 0 && seconds < 40; seconds++)
        assert_int_equal(pass_a_second(&script, &link, false), ERR_TIMEOUT);
    assert_int_equal(link.failed_rank, 1);
    assert_int_equal(seconds, 30);
    assert_non_null(strstr(fail_text(), "has been silent for 30."));
    close_script(&script, &link);
}

static void a_rank_that_holds_more_than_there_is_has_failed(void **state)
{
    static const struct heartbeat beat = {.step = -1, .memory = {.weights_bytes = 5, .free_bytes = 6}},
                                  bad = {.step = -1, .memory = {.free_bytes = -6}};
    const struct model_runner_output *output;
    struct engine_worker workers[2];
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 2, &link);
    bring(&script, "1:3", &heartbeat_type, -1, &beat);
    bring(&script, "1:3", &heartbeat_type, -1, &bad);
    expect_fails(link_collect(&link, 7, INT64_MAX, &output), ERR_MISMATCH,
                 "rank 1: free_bytes of a heartbeat is -6; 0 to 1125899906842624 can be");
    assert_int_equal(link.failed_rank, 1);
    assert_int_equal(link_workers(&link, workers, 2), 2);
    assert_int_equal(workers[1].memory.weights_bytes, 5);
    assert_int_equal(workers[1].memory.free_bytes, 6);
    assert_int_equal(workers[0].memory.weights_bytes, 0);
    close_script(&script, &link);
}

/* Both beat; neither gets ahead. The one that waits was given a step more. */
static void of_two_that_stand_still_the_one_that_waits_for_nobody_hangs(void **state)
{
    static const struct model_runner_output answer = {.num_rows = 1, .execute_ns = 2000000};
    const struct model_runner_output *output;
    struct script script;
    struct link link;
    enum status status = OK;
    int num_looks = 0;

    (void)state;
    open_with_ranks(&script, 2, &link);
    link_note_step(&link, 6, 1);
    bring(&script, "0:3", &model_runner_output_type, 6, &answer);
    expect_ok(link_collect(&link, 6, INT64_MAX, &output));
    link_note_step(&link, 7, 1);
    do {
        bring_beat(&script, "0:3", 8, 40, 1);
        bring_beat(&script, "1:3", 7, 40, -1);
        status = collect_for(&script, &link, 500);
    } while (status == ERR_TIMEOUT && link.failed_rank < 0 && ++num_looks < 20);
    assert_int_equal(status, ERR_TIMEOUT);
    assert_string_equal(fail_text(), "rank 1 (process 0) hangs in step 7: its device has stood still for 3.8 s");
    assert_int_equal(link.failed_rank, 1);
    close_script(&script, &link);
}

static void a_device_that_gets_ahead_may_take_its_time(void **state)
{
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 1, &link);
    link.small_step_ns = 1e6;
    link_note_step(&link, 7, 1);
    for (int64_t i = 0; i < 60; i++) {
        bring_beat(&script, "0:3", 7, i, -1);
        expect_fails(collect_for(&script, &link, 500), ERR_TIMEOUT, "the ranks did not answer in time");
    }
    close_script(&script, &link);
}

/* A step of many tokens may stay in one layer as long as all of them take. */
static void a_long_step_has_time_for_its_tokens(void **state)
{
    static const struct model_runner_output answer = {.num_rows = 1, .execute_ns = 1000000000};
    const struct model_runner_output *output;
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 1, &link);
    link_note_step(&link, 6, 1000); /* a millisecond each */
    bring(&script, "0:3", &model_runner_output_type, 6, &answer);
    expect_ok(link_collect(&link, 6, INT64_MAX, &output));
    link_note_step(&link, 7, 4000);
    link.rendezvous.ranks[0].is_joined = false; /* no matter of silence */
    link.ranks[0].heartbeat = (struct heartbeat){.step = 7, .waits_for = -1};
    expect_fails(link_collect(&link, 7, clock_deadline_ns(11000), &output), ERR_TIMEOUT,
                 "the ranks did not answer in time");
    expect_fails(link_collect(&link, 7, clock_deadline_ns(1000), &output), ERR_TIMEOUT,
                 "hangs in step 7: its device has stood still for 11.");
    close_script(&script, &link);
}

/* What was said in an earlier epoch is not for this one. */
static void messages_of_an_earlier_epoch_are_dropped(void **state)
{
    static const struct model_runner_output answer = {.num_rows = 1};
    const struct model_runner_output *output;
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 1, &link);
    bring(&script, "0:3", &model_runner_output_type, 7, &answer);
    bring(&script, "0:3", &fault_type, -1, &(struct fault){.code = ERR_INTERNAL, .text = "old"});
    link_begin(&link, EPOCH + 1);
    expect_fails(link_collect(&link, 7, clock_deadline_ns(50), &output), ERR_TIMEOUT, "in time");
    assert_int_equal(script.num_read, 2);
    close_script(&script, &link);
}

static void a_process_waits_for_a_place_until_its_old_holder_is_known_to_be_gone(void **state)
{
    struct hello hello = {.rank = 1, .world = 2, .pid = 77, .host = "h", .boot_id = "b",
                          .build_id = build_id_text()};
    const struct model_runner_output *output;
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 2, &link);
    bring(&script, "1:9", &hello_type, -1, &hello);
    expect_fails(link_collect(&link, 7, clock_deadline_ns(50), &output), ERR_TIMEOUT, "in time");
    assert_int_equal(script.num_sent, 2); /* a look at the old one, and a refusal */

    script.is_cut = true; /* the old one's connection */
    bring(&script, "1:9", &hello_type, -1, &hello);
    expect_fails(link_collect(&link, 7, clock_deadline_ns(50), &output), ERR_CLOSED,
                 "rank 1 (process 0) is gone");
    assert_int_equal(link.failed_rank, 1);
    script.is_cut = false;
    link_lose(&link, 1);
    link_begin(&link, EPOCH + 1);
    expect_fails(link_gather(&link, NULL, NULL, "{}", clock_deadline_ns(50)), ERR_TIMEOUT,
                 "0 of 2 ranks have loaded the model");
    assert_string_equal(link.rendezvous.ranks[1].peer, "1:9");
    assert_int_equal(link.rendezvous.ranks[1].pid, 77);
    close_script(&script, &link);
}

static void strangers_are_not_heard(void **state)
{
    static const struct model_runner_output answer = {.num_rows = 1};
    const struct model_runner_output *output;
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 1, &link);
    bring(&script, "0:2", &model_runner_output_type, 7, &answer); /* of the epoch before */
    bring(&script, "5:3", &model_runner_output_type, 7, &answer);
    expect_fails(link_collect(&link, 7, clock_deadline_ns(50), &output), ERR_TIMEOUT, "in time");
    assert_int_equal(script.num_read, 2);
    close_script(&script, &link);
}

static void who_comes_while_another_thing_is_done_is_let_in_later(void **state)
{
    struct hello hello = {.rank = 1, .world = 2, .pid = 77, .host = "h", .boot_id = "b",
                          .build_id = build_id_text()};
    struct script script;
    struct link link;

    (void)state;
    open_with_ranks(&script, 2, &link);
    link_lose(&link, 1);
    bring(&script, "1:9", &hello_type, -1, &hello);
    bring_reply(&script, "0:3", 0, 1);
    expect_ok(link_call(&link, 0, 1, "rest", "{}", INT64_MAX, NULL, &(bool){false}));
    expect_fails(link_gather(&link, NULL, NULL, "{}", clock_deadline_ns(50)), ERR_TIMEOUT,
                 "0 of 2 ranks have loaded the model");
    assert_string_equal(link.rendezvous.ranks[1].peer, "1:9");
    close_script(&script, &link);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_that_cannot_be_welcomed_is_named),
        cmocka_unit_test(a_reply_counts_once_for_each_rank),
        cmocka_unit_test(an_answer_to_another_step_is_refused),
        cmocka_unit_test(silence_and_deadlines_end_the_wait),
        cmocka_unit_test(a_rank_that_would_run_has_more_time),
        cmocka_unit_test(a_rank_that_holds_more_than_there_is_has_failed),
        cmocka_unit_test(of_two_that_stand_still_the_one_that_waits_for_nobody_hangs),
        cmocka_unit_test(a_device_that_gets_ahead_may_take_its_time),
        cmocka_unit_test(a_long_step_has_time_for_its_tokens),
        cmocka_unit_test(messages_of_an_earlier_epoch_are_dropped),
        cmocka_unit_test(who_comes_while_another_thing_is_done_is_let_in_later),
        cmocka_unit_test(a_process_waits_for_a_place_until_its_old_holder_is_known_to_be_gone),
        cmocka_unit_test(strangers_are_not_heard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
