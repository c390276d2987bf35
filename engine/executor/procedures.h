/*
 * procedures: what the calls of ranks (worker.h) mean to the engine that has them carried out.
 *
 * Thread: any.
 */
#ifndef ENGINE_EXECUTOR_PROCEDURES_H
#define ENGINE_EXECUTOR_PROCEDURES_H

#include "proto/base/memory.h"

enum procedure_effect {
    PROCEDURE_NO_EFFECT,
    PROCEDURE_SLEEP,    /* every request and all KV are lost, and no step can run */
    PROCEDURE_WAKE_UP,  /* steps can run again */
    PROCEDURE_LOAD,     /* a model of this path is, or is being, loaded beside the one in use */
    PROCEDURE_EXCHANGE, /* that takes the place of the one in use, or the other way round; every request and all KV
                           are lost */
};

struct procedure {
    enum procedure_effect effect;
    bool drops_weights;     /* PROCEDURE_SLEEP */
    char path[4096];        /* PROCEDURE_LOAD; "": it is too long for one */
    const char *wants_spare; /* PROCEDURE_EXCHANGE: what all ranks must say of the weights beside, "loaded" */
};

/* Once all ranks have carried it out. */
void procedure_read(const char *name, const char *args, struct procedure *out);

/* Have all ranks weights beside those in use that are `wanted`, and the same? replies: what reload_weights
 * {"phase": "status"} brought. ERR_MISMATCH names the first rank that differs. */
MUST_USE enum status procedure_check_spares(const char *replies, const char *wanted);
/* Is no rank loading any more? Then the same as procedure_check_spares of "loaded", or why a rank could not load. */
MUST_USE enum status procedure_check_loads(const char *replies, bool *are_over_out);
/* Of the weights that rank 0 has in use; "": it does not tell. */
void procedure_read_fingerprint(const char *replies, char out[static 17]);

#endif
