/*
 * Bytes that came as a frame: decode must refuse or give a message; what it gives survives
 * encode and decode, and JSON, and prints.
 *
 * The corpus is one frame of every message type; tests/proto/test_message writes it anew with
 * TANDEM_TEST_CORPUS=tests/data/fuzz/message, and fails when it no longer decodes.
 */
#include "proto/wire/messages.h"

#include <string.h>

static void check_again(const struct message *message, struct arena *arena)
{
    AUTO_CLOSE(bytes) struct bytes frame = {0}, text = {0};
    struct message again;

    ASSERT(message_encode(message->type, message->header.epoch, message->header.step,
                          message->body, &frame) == OK, "%s", fail_text());
    ASSERT(message_decode(frame.data, frame.size, arena, &again) == OK, "%s", fail_text());
    ASSERT(message_equal(message->type, message->body, again.body));
    message_print(message, &text);

    json_t *json = message_to_json(message);
    ASSERT(json && message_from_json(json, arena, &again) == OK, "%s", fail_text());
    ASSERT(message_equal(message->type, message->body, again.body));
    json_decref(json);
}

/* A slice of masks of the whole vocabulary fits its rank, when they fit the vocabulary. */
static enum status check_masks(const struct grammar_output *masks)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct grammar_output slice;

    TRY(grammar_output_slice(masks, 70, 29, &arena, &slice));
    TRY(grammar_output_check(masks, 0, 100));
    ASSERT(grammar_output_check(&slice, 70, 29) == OK, "%s", fail_text());
    return OK;
}

static void check_step(const struct message *message)
{
    enum status status = OK;

    if (message->type == &scheduler_output_type)
        status = scheduler_output_check(message->body, 256, 2048);
    else if (message->type == &grammar_output_type)
        status = check_masks(message->body);
    else if (message->type == &model_runner_output_type)
        status = model_runner_output_check(message->body);
    ASSERT(status == OK || status == ERR_MISMATCH);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_CLOSE(arena) struct arena arena = {0};
    struct message message;

    if (message_decode(data, size, &arena, &message) != OK)
        return 0;
    check_step(&message);
    check_again(&message, &arena);
    return 0;
}
