/*
 * slot_table: which request goes by which number on the wire.
 *
 * Workers know a request by its slot, from the plan in which it is new until a later plan tells them to forget the slot.
 * Plans tell that first, so a slot may be taken again as soon as it was dropped.
 *
 * Thread: core only.
 */
#ifndef ENGINE_CORE_SLOT_TABLE_H
#define ENGINE_CORE_SLOT_TABLE_H

#include "engine/core/request.h"
#include "proto/wire/messages.h"

struct slot_table {
    struct request **requests; /* [num_slots] NULL: free */
    int32_t *free;             /* [num_free] a stack */
    int32_t num_free;
    int32_t *finished; /* [num_finished] dropped, and the workers have not been told */
    int32_t num_finished;
};

void slot_table_init(struct slot_table *table, int32_t num_slots);
void slot_table_close(struct slot_table *table);

/* Gives the request a slot; one must be free. */
void slot_table_take(struct slot_table *table, struct request *request);
/* Takes it back: no step in flight has a row for the request. One without a slot is fine. */
void slot_table_drop(struct slot_table *table, struct request *request);

/* The plan tells the workers of the slots that were dropped since the last one that did; they live in the arena. */
void slot_table_tell(struct slot_table *table, struct arena *arena, struct scheduler_output *plan);
/* There is nobody to be told: the workers know of no slot. */
void slot_table_forget_finished(struct slot_table *table);

#endif
