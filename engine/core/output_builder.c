#include "engine/core/output_builder.h"

#include "proto/base/clock.h"

#include <string.h>

static struct output_node *node_of(struct output_builder *builder)
{
    if (!builder->node) {
        builder->node = mem_new(struct output_node);
        builder->now_ns = clock_now_ns();
    }
    return builder->node;
}

struct arena *output_builder_arena(struct output_builder *builder)
{
    return &node_of(builder)->arena;
}

void output_builder_reserve(struct output_builder *builder, int32_t more)
{
    struct engine_output *output = &node_of(builder)->output;
    int32_t wanted = output->num_events + more;
    struct engine_event *larger;

    if (wanted <= builder->capacity)
        return;
    builder->capacity = MAX(wanted, builder->capacity * 2);
    larger = arena_alloc(output_builder_arena(builder),
                         sizeof *larger * (size_t)builder->capacity);
    if (output->num_events > 0)
        memcpy(larger, output->events, sizeof *larger * (size_t)output->num_events);
    output->events = larger;
}

struct engine_event *output_builder_add(struct output_builder *builder,
                                        const struct request *request)
{
    output_builder_reserve(builder, 1);

    struct engine_output *output = &builder->node->output;
    struct engine_event *event = (struct engine_event *)&output->events[output->num_events++];

    *event = (struct engine_event){
        .id = request->id,
        .stop_token = -1,
        .num_prompt_tokens = request->num_prompt,
        .num_output_tokens = request_num_output(request),
        .num_cached_tokens = request->num_cached,
        .queued_ns = request->queued_ns,
        .scheduled_ns = request->scheduled_ns,
        .now_ns = builder->now_ns,
    };
    return event;
}

struct output_node *output_builder_take(struct output_builder *builder)
{
    struct output_node *node = builder->node;

    *builder = (struct output_builder){0};
    if (!node || node->output.num_events > 0)
        return node;
    engine_output_free(&node->output); /* room was made, and nothing came */
    return NULL;
}

struct output_node *output_node_answer(engine_listener *listener, void *user, enum status status,
                                       const char *text)
{
    struct output_node *node = mem_new(struct output_node);

    node->listener = listener;
    node->user = user;
    node->status = status;
    node->text = arena_strndup(&node->arena, text, strlen(text));
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
