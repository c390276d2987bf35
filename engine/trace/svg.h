/*
 * svg: a few steps of a timeline as a picture: a lane a thread, a colour a verb, the steps by their
 * numbers; below it the time around one end of a step, magnified, where the short spans can be
 * read.
 *
 * Plain SVG 1.1: no scripts, no links, nothing loaded.
 *
 * Thread: any.
 */
#ifndef ENGINE_TRACE_SVG_H
#define ENGINE_TRACE_SVG_H

#include "engine/trace/timeline.h"

enum { SVG_MAX_STEPS = 100, SVG_MAX_LANES = 64, SVG_MAX_SPANS = 20000 };

struct svg_options {
    int64_t from_step; /* -1: so that the steps are those in the middle of the trace */
    int32_t num_ranks; /* whose lanes are drawn, the first ones */
    int32_t num_steps; /* 1 to SVG_MAX_STEPS; fewer where the trace ends before */
};

/* Appends the document. ERR_INVALID: no device has worked, it has no such step, or too many lanes
 * or spans for a picture; nothing is appended. */
MUST_USE enum status svg_draw(const struct timeline *timeline, const struct svg_options *options,
                              struct bytes *out);

#endif
