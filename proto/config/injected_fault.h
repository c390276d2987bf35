/*
 * injected_fault: a failure that somebody ordered, for drills and tests of what follows one.
 *
 *     --inject-fault step=12,rank=1,verb=execute_model,kind=error
 *
 * Thread: any.
 */
#ifndef PROTO_CONFIG_INJECTED_FAULT_H
#define PROTO_CONFIG_INJECTED_FAULT_H

#include "proto/base/status.h"

#include <stdint.h>

enum fault_kind { FAULT_NONE, FAULT_ERROR, FAULT_EXIT, FAULT_HANG };
enum fault_verb { FAULT_IN_PREPARE_INPUTS, FAULT_IN_EXECUTE_MODEL, FAULT_IN_SAMPLE };

struct injected_fault {
    enum fault_kind kind; /* FAULT_NONE: none was ordered */
    enum fault_verb verb; /* execute_model, if none is named */
    int64_t step;
    int32_t rank; /* 0, if none is named */
};

/* NULL: none. ERR_INVALID names the part that does not fit, and what would. */
MUST_USE enum status injected_fault_parse(const char *text, struct injected_fault *out);

/* Is this the time and the place? Then FAULT_ERROR fails in the name of the drill, FAULT_EXIT ends
 * the process at once, FAULT_HANG never returns. */
MUST_USE enum status injected_fault_strike(const struct injected_fault *fault, int32_t rank,
                                           int64_t step, enum fault_verb verb);

#endif
