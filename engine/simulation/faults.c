#include "engine/simulation/faults.h"

#include "proto/wire/messages.h"

#include <string.h>

/* What is not seen at once: a process that ends, whose last words are waited for; one that is
 * silent, after 10 s, which are looked for every second, and begin with its last message, which may
 * be a late one of up to 3 s; an answer that does not come, after the deadline of a step or of a
 * start. What is wrong with a message is seen when it comes, and what comes next may be some time
 * away. */
enum { SOON_MS = 1000, SILENCE_MS = 6500, LATE_MS = 700000 };

static const struct {
    const char *name;
    enum fault_end end;
    int32_t notice_ms;
} kinds[NUM_FAULT_KINDS] = {
    [FAULT_NONE] = {"no fault", ENDS_WELL},
    [FAULT_RANK_DIES] = {"a rank that dies", ENDS_EPOCH, SOON_MS},
    [FAULT_RANK_HANGS] = {"a rank that hangs", ENDS_EPOCH, SILENCE_MS},
    [FAULT_RANK_FAILS] = {"a rank that fails", ENDS_EPOCH, SOON_MS},
    [FAULT_RANK_IS_FULL] = {"a rank that does not read", ENDS_EPOCH, LATE_MS},
    [FAULT_LOSE] = {"a lost message", ENDS_EPOCH, LATE_MS},
    [FAULT_DUPLICATE] = {"a message that comes twice", ENDS_EPOCH, LATE_MS},
    [FAULT_DELAY] = {"a late message", ENDS_WELL},
    [FAULT_TRUNCATE] = {"a message cut off", ENDS_EPOCH, LATE_MS},
    [FAULT_FLIP_BIT] = {"a message with a bit flipped", ENDS_EITHER},
    [FAULT_WRONG_EPOCH] = {"a message of the epoch before", ENDS_EPOCH, LATE_MS},
    [FAULT_WRONG_BUILD] = {"a message of another build", ENDS_EPOCH, LATE_MS},
    [FAULT_WRONG_STEP] = {"a message of another step", ENDS_EPOCH, LATE_MS},
    [FAULT_WRONG_FIELD] = {"a message that contradicts what is known", ENDS_EPOCH, LATE_MS},
    [FAULT_STRANGER] = {"a message of a stranger", ENDS_WELL},
    [FAULT_CALL_FAILS] = {"a call without memory", ENDS_EPOCH, LATE_MS},
};

const char *fault_name(enum fault_kind kind)
{
    return kinds[kind].name;
}

enum fault_end fault_end(enum fault_kind kind)
{
    return kinds[kind].end;
}

int64_t fault_notice_ns(enum fault_kind kind)
{
    return (int64_t)kinds[kind].notice_ms * 1000000;
}

enum fault_kind fault_plan_next(struct fault_plan *plan)
{
    const struct planned_fault *fault = &plan->faults[plan->num_taken];

    plan->num_frames++;
    if (plan->num_taken == plan->num_faults || plan->num_frames < fault->at_frame)
        return FAULT_NONE;
    plan->num_taken++;
    return fault->kind;
}

void fault_plan_note(struct fault_plan *plan, enum fault_kind kind, int64_t now_ns)
{
    plan->num_injected[kind]++;
    if (fault_end(kind) == ENDS_EPOCH && plan->fatal == FAULT_NONE) {
        plan->fatal = kind;
        plan->fatal_ns = now_ns;
    }
    if (fault_end(kind) == ENDS_EITHER)
        plan->is_tainted = true;
}

void fault_plan_cure(struct fault_plan *plan, int64_t now_ns)
{
    plan->cured = plan->fatal;
    plan->cured_fatal_ns = plan->fatal_ns;
    plan->cured_notice_ns = now_ns;
    plan->fatal = FAULT_NONE;
}

/* ---- bytes ---------------------------------------------------------------------------------- */

static struct frame *copy(const struct frame *frame)
{
    struct frame *copy = frame_new();

    bytes_append(&copy->bytes, frame->bytes.data, frame->bytes.size);
    return copy;
}

static struct frame *truncate_frame(const struct frame *frame, struct random *random)
{
    struct frame *spoilt = copy(frame);

    spoilt->bytes.size = (size_t)random_below(random, (int32_t)frame->bytes.size);
    return spoilt;
}

static struct frame *flip_bit(const struct frame *frame, struct random *random)
{
    struct frame *spoilt = copy(frame);
    int32_t bit = random_below(random, (int32_t)frame->bytes.size * 8);

    spoilt->bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    return spoilt;
}

/* ---- messages ------------------------------------------------------------------------------- */

static struct frame *encode(const struct message *message)
{
    struct frame *frame = frame_new();

    if (message_encode(message->type, message->header.epoch, message->header.step, message->body,
                       &frame->bytes) != OK)
        ASSERT(false, "%s", fail_text()); /* it was decoded a moment ago */
    return frame;
}

/* The build's hash is in every header, 8 bytes behind their tag: another one. */
static struct frame *wrong_build(const struct frame *frame, const struct message *message)
{
    struct frame *spoilt = copy(frame);

    for (size_t at = 0; at + 9 <= spoilt->bytes.size; at++)
        if (spoilt->bytes.data[at] == 0xcf) {
            spoilt->bytes.data[at + 8] ^= 1;
            return spoilt;
        }
    (void)message;
    frame_drop(spoilt); /* a build without an id */
    return NULL;
}

static bool has_step(const struct message *message)
{
    return message->type == &scheduler_output_type || message->type == &execute_model_type ||
           message->type == &grammar_output_type || message->type == &model_runner_output_type;
}

/* In a list that was decoded: it is nobody else's. */
static void set(const int32_t *list, int32_t i, int32_t value)
{
    ((int32_t *)(uintptr_t)list)[i] = value;
}

/* A plan has many columns, and each says something that its receiver can check. */
static bool spoil_plan(struct scheduler_output *plan, struct random *random)
{
    int32_t row = random_below(random, plan->num_rows);

    switch (random_below(random, 6)) {
    case 0: /* a slot that there is not */
        set(plan->slots, row, plan->slots[row] + 1000);
        return true;
    case 1: /* computed further than it is */
        set(plan->num_computed_tokens, row, plan->num_computed_tokens[row] + 1);
        return !scheduler_output_find_new(plan, plan->slots[row]);
    case 2: /* more tokens than the step has */
        set(plan->num_scheduled_tokens, row, plan->num_scheduled_tokens[row] + 1);
        return true;
    case 3: /* one row fewer */
        plan->num_rows--;
        return true;
    case 4: /* a block that there is not */
        if (plan->num_new_block_ids == 0)
            return false;
        set(plan->new_block_ids, 0, plan->new_block_ids[0] + 1000000);
        return true;
    default: /* a row twice */
        if (plan->num_rows < 2)
            return false;
        set(plan->slots, 0, plan->slots[1]);
        return true;
    }
}

static bool spoil_masks(struct grammar_output *grammar, struct random *random)
{
    int32_t row;

    if (grammar->num_rows == 0)
        return false;
    row = random_below(random, grammar->num_rows);
    switch (random_below(random, 4)) {
    case 0: /* the mask of another step */
        set(grammar->positions, row, grammar->positions[row] - 1);
        return true;
    case 1: /* of another request */
        set(grammar->slots, row, grammar->slots[row] + 1);
        return true;
    case 2: /* a mask that there is not */
        set(grammar->bitmask_rows, row, grammar->num_bitmask_rows);
        return true;
    default: /* one row without its mask */
        grammar->num_rows--;
        return true;
    }
}

static bool spoil_answer(struct model_runner_output *answer, struct random *random)
{
    int32_t row = answer->num_sampled > 0 ? random_below(random, answer->num_sampled) : 0;

    if (answer->num_sampled == 0 || random_chance(random, 20)) {
        answer->num_rows++;
        return true;
    }
    switch (random_below(random, 4)) {
    case 0:
        set(answer->slots, row, answer->slots[row] + 1);
        return true;
    case 3: /* the token of another step */
        set(answer->positions, row, answer->positions[row] + 1);
        return true;
    case 1: /* no token of any vocabulary */
        set(answer->sampled_token_ids, row, 1 << 20);
        return true;
    default: /* one token fewer than rows that sample */
        answer->num_sampled--;
        answer->num_logprobs -= answer->logprob_counts[answer->num_sampled];
        return true;
    }
}

static bool spoil_body(struct message *message, struct random *random)
{
    void *body = message->body;

    if (message->type == &scheduler_output_type)
        return spoil_plan(body, random);
    if (message->type == &grammar_output_type)
        return spoil_masks(body, random);
    if (message->type == &model_runner_output_type)
        return spoil_answer(body, random);
    if (message->type == &reply_type) {
        ((struct reply *)body)->id++;
        return true;
    }
    return false;
}

static struct frame *spoil_message(enum fault_kind kind, const struct frame *frame,
                                   struct random *random)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct message message;

    if (message_decode(frame->bytes.data, frame->bytes.size, &arena, &message) != OK)
        return NULL; /* another fault has struck it before */
    switch (kind) {
    case FAULT_WRONG_BUILD:
        return wrong_build(frame, &message);
    case FAULT_WRONG_EPOCH:
        message.header.epoch--;
        return message.type == &hello_type ? NULL : encode(&message); /* that has none */
    case FAULT_WRONG_STEP:
        message.header.step += random_chance(random, 50) ? 1 : -1;
        return has_step(&message) ? encode(&message) : NULL;
    default:
        return spoil_body(&message, random) ? encode(&message) : NULL;
    }
}

struct frame *fault_spoil(enum fault_kind kind, const struct frame *frame, struct random *random)
{
    switch (kind) {
    case FAULT_TRUNCATE:
        return truncate_frame(frame, random);
    case FAULT_FLIP_BIT:
        return flip_bit(frame, random);
    default:
        return spoil_message(kind, frame, random);
    }
}
