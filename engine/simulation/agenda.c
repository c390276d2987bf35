#include "engine/simulation/agenda.h"

static bool is_before(const struct event *a, const struct event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->number < b->number;
}

static void rise(struct agenda *agenda, int32_t at)
{
    struct event event = agenda->heap[at];

    for (; at > 0 && is_before(&event, &agenda->heap[(at - 1) / 2]); at = (at - 1) / 2)
        agenda->heap[at] = agenda->heap[(at - 1) / 2];
    agenda->heap[at] = event;
}

static void sink(struct agenda *agenda, int32_t at)
{
    struct event event = agenda->heap[at];

    for (;;) {
        int32_t child = 2 * at + 1;

        if (child + 1 < agenda->num_events &&
            is_before(&agenda->heap[child + 1], &agenda->heap[child]))
            child++;
        if (child >= agenda->num_events || is_before(&event, &agenda->heap[child]))
            break;
        agenda->heap[at] = agenda->heap[child];
        at = child;
    }
    agenda->heap[at] = event;
}

void agenda_close(struct agenda *agenda)
{
    for (int32_t i = 0; i < agenda->num_events; i++)
        frame_drop(agenda->heap[i].frame);
    mem_free(agenda->heap);
    *agenda = (struct agenda){0};
}

void agenda_add(struct agenda *agenda, const struct event *event)
{
    ASSERT(event->at_ns >= agenda->now_ns);
    if (agenda->num_events == agenda->capacity) {
        agenda->capacity = MAX(64, agenda->capacity * 2);
        agenda->heap = mem_resize(agenda->heap, sizeof *agenda->heap * (size_t)agenda->capacity);
    }
    agenda->heap[agenda->num_events] = *event;
    agenda->heap[agenda->num_events].number = agenda->num_added++;
    rise(agenda, agenda->num_events++);
}

int64_t agenda_next_ns(const struct agenda *agenda)
{
    return agenda->num_events > 0 ? agenda->heap[0].at_ns : INT64_MAX;
}

const void *agenda_step(struct agenda *agenda)
{
    ASSERT(agenda->num_events > 0);
    struct event event = agenda->heap[0];

    agenda->heap[0] = agenda->heap[--agenda->num_events];
    if (agenda->num_events > 0)
        sink(agenda, 0);
    agenda->now_ns = event.at_ns;
    agenda->num_happened++;
    event.happen(event.owner, &event);
    frame_drop(event.frame);
    return event.owner;
}

void agenda_forget(struct agenda *agenda, const void *owner)
{
    int32_t num_left = 0;

    for (int32_t i = 0; i < agenda->num_events; i++) {
        if (agenda->heap[i].owner == owner)
            frame_drop(agenda->heap[i].frame);
        else
            agenda->heap[num_left++] = agenda->heap[i];
    }
    agenda->num_events = num_left;
    for (int32_t i = num_left / 2; i-- > 0;)
        sink(agenda, i);
}
