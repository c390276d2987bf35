#include "engine/core/output_builder.h"

#include "proto/base/clock.h"

#include <string.h>

static struct output_node *node_of(struct output_builder *builder)
{
    if (!builder->node) {
        builder->node = mem_new(struct output_node);
        builder->capacity = 0;
    }
    return builder->node;
}

struct arena *output_builder_arena(struct output_builder *builder)
{
    return &node_of(builder)->arena;
}

struct engine_event *output_builder_add(struct output_builder *builder,
                                        const struct request *request)
{
    struct output_node *node = node_of(builder);
    struct engine_event *events = (struct engine_event *)node->output.events;

    if (node->output.num_events == builder->capacity) {
        int32_t capacity = builder->capacity ? builder->capacity * 2 : 8;
        struct engine_event *larger = arena_alloc(&node->arena, sizeof *larger * (size_t)capacity);

        if (builder->capacity)
            memcpy(larger, events, sizeof *larger * (size_t)builder->capacity);
        node->output.events = events = larger;
        builder->capacity = capacity;
    }

    struct engine_event *event = &events[node->output.num_events++];

    *event = (struct engine_event){
        .id = request->id,
        .stop_token = -1,
        .num_cached_tokens = request->num_cached,
        .queued_ns = request->queued_ns,
        .scheduled_ns = request->scheduled_ns,
        .now_ns = clock_now_ns(),
    };
    return event;
}

struct output_node *output_builder_take(struct output_builder *builder)
{
    struct output_node *node = builder->node;

    *builder = (struct output_builder){0};
    return node;
}

void engine_output_free(struct engine_output *output)
{
    if (!output)
        return;
    struct output_node *node = CONTAINER_OF(output, struct output_node, output);

    arena_close(&node->arena);
    mem_free(node);
}
