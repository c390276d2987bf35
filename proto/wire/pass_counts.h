/*
 * pass_counts: what became of a rank's passes through its model, since its process began. A device that can't record
 * launches all.
 */
#ifndef PROTO_WIRE_PASS_COUNTS_H
#define PROTO_WIRE_PASS_COUNTS_H

#include <stdint.h>

struct pass_counts {
    int64_t recorded_first, recorded_later; /* recordings that were made: before the first step, and in one */
    int64_t replayed, launched;             /* passes that ran: as one of these, and kernel by kernel */
};

#endif
