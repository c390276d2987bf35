/*
 * output_builder: collects the events of one step into an engine_output.
 * Thread: core builds; whoever polls the engine frees.
 */
#ifndef ENGINE_CORE_OUTPUT_BUILDER_H
#define ENGINE_CORE_OUTPUT_BUILDER_H

#include "engine/core/request.h"
#include "proto/base/mailbox.h"

struct output_builder {
    struct output_node *node; /* NULL until the first event */
    int32_t capacity;
    int64_t now_ns; /* of the first event, and so of all: a step brings them at once */
};

/* An engine_output on its way through a mailbox, with the memory of all its events; or the answer to an
 * order, which has no events. */
struct output_node {
    struct mail mail;
    struct arena arena;
    struct engine_output output;

    engine_listener *listener; /* NULL: these are events */
    void *user;
    enum status status;
    const char *text; /* in the arena */
};

/* An answer for `listener`. */
struct output_node *output_node_answer(engine_listener *listener, void *user, enum status status,
                                       const char *text);

/* The arena that an event's arrays are to live in. */
struct arena *output_builder_arena(struct output_builder *builder);
/* Room for so many more events at once. */
void output_builder_reserve(struct output_builder *builder, int32_t more);
/* Adds an event about `request`, its id and times filled in. Valid until the next add. */
struct engine_event *output_builder_add(struct output_builder *builder,
                                        const struct request *request);
/* What was collected, or NULL when there is none; the builder is empty again. */
struct output_node *output_builder_take(struct output_builder *builder);

#endif
