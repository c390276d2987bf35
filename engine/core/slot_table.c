#include "engine/core/slot_table.h"

#include <string.h>

void slot_table_init(struct slot_table *table, int32_t num_slots)
{
    *table = (struct slot_table){
        .requests = mem_new_array(struct request *, (size_t)num_slots),
        .free = mem_new_array(int32_t, (size_t)num_slots),
        .finished = mem_new_array(int32_t, (size_t)num_slots),
    };
    for (int32_t slot = num_slots; slot-- > 0;)
        table->free[table->num_free++] = slot;
}

void slot_table_close(struct slot_table *table)
{
    mem_free(table->requests);
    mem_free(table->free);
    mem_free(table->finished);
}

void slot_table_take(struct slot_table *table, struct request *request)
{
    request->slot = table->free[--table->num_free];
    table->requests[request->slot] = request;
}

void slot_table_drop(struct slot_table *table, struct request *request)
{
    if (request->slot < 0)
        return;
    table->requests[request->slot] = NULL;
    table->finished[table->num_finished++] = request->slot;
    table->free[table->num_free++] = request->slot;
    request->slot = -1;
}

void slot_table_tell(struct slot_table *table, struct arena *arena, struct scheduler_output *plan)
{
    int32_t *finished = arena_new_array(arena, int32_t, (size_t)table->num_finished);

    memcpy(finished, table->finished, (size_t)table->num_finished * sizeof *finished);
    plan->finished_slots = finished;
    plan->num_finished_slots = table->num_finished;
    table->num_finished = 0;
}

void slot_table_forget_finished(struct slot_table *table)
{
    table->num_finished = 0;
}
