/*
 * sample_parcels: one of each kind that a side sends, with something in each field.
 */
#ifndef TESTS_SUPPORT_SAMPLE_PARCELS_H
#define TESTS_SUPPORT_SAMPLE_PARCELS_H

#include "engine/launch/parcel.h"

void sample_parcels_write(bool is_from_agent, struct bytes *out);

#endif
