/*
 * sample_messages: one well-filled message of every type, for tests of the wire.
 */
#ifndef TESTS_SUPPORT_SAMPLE_MESSAGES_H
#define TESTS_SUPPORT_SAMPLE_MESSAGES_H

#include "proto/wire/messages.h"

struct sample_message {
    const struct message_type *type;
    const void *body;
};

enum { NUM_SAMPLE_MESSAGES = 15 };
/* Constant bodies; the last one has every list empty. */
const struct sample_message *sample_messages(void);

#endif
