/*
 * faults: what goes wrong in a simulation, on purpose.
 *
 * A fault strikes at the n-th frame that the network carries: that frame, the rank it belongs to,
 * or the engine's next call. A row says what must come of it.
 *
 * Thread: that of the simulation.
 */
#ifndef ENGINE_SIMULATION_FAULTS_H
#define ENGINE_SIMULATION_FAULTS_H

#include "engine/simulation/random.h"
#include "proto/wire/channel.h"

enum fault_kind {
    FAULT_NONE,
    FAULT_RANK_DIES,
    FAULT_RANK_HANGS,
    FAULT_RANK_FAILS,   /* and says so */
    FAULT_RANK_IS_FULL, /* does not read: sends to it are refused */
    FAULT_LOSE,
    FAULT_DUPLICATE,
    FAULT_DELAY,
    FAULT_TRUNCATE,
    FAULT_FLIP_BIT,
    FAULT_WRONG_EPOCH,
    FAULT_WRONG_BUILD,
    FAULT_WRONG_STEP,
    FAULT_WRONG_FIELD, /* one that makes the message contradict what its receiver knows */
    FAULT_STRANGER,    /* a frame of somebody who is no rank */
    FAULT_CALL_FAILS,  /* the engine's next call of its executor, for want of memory */
    NUM_FAULT_KINDS
};

enum fault_end {
    ENDS_WELL,   /* nobody notices */
    ENDS_EPOCH,  /* the engine fails, and says why */
    ENDS_EITHER, /* the same, or it changed nothing that can be told: tokens may be wrong */
};

struct planned_fault {
    enum fault_kind kind;
    int64_t at_frame;
};

const char *fault_name(enum fault_kind kind);
enum fault_end fault_end(enum fault_kind kind);
/* ENDS_EPOCH: how long it takes at most until the engine has noticed. */
int64_t fault_notice_ns(enum fault_kind kind);

/* The faults of a run, through all of its epochs. */
enum { MAX_FAULTS = 4 };
struct fault_plan {
    struct planned_fault faults[MAX_FAULTS]; /* in order of at_frame */
    int32_t num_faults, num_taken;
    int64_t num_frames; /* that were sent */
    int64_t num_injected[NUM_FAULT_KINDS];
    struct random random;  /* how they strike */
    enum fault_kind fatal; /* the first that ends this epoch; FAULT_NONE: none has struck */
    int64_t fatal_ns;      /* when */
    enum fault_kind cured; /* the one whose ranks were replaced last, with the times of both */
    int64_t cured_fatal_ns, cured_notice_ns;
    bool is_tainted;       /* one has struck after which tokens may be wrong */
};

/* A frame is sent: the fault that strikes it, or FAULT_NONE. */
enum fault_kind fault_plan_next(struct fault_plan *plan);
/* It has struck. */
void fault_plan_note(struct fault_plan *plan, enum fault_kind kind, int64_t now_ns);

/* It has been noticed, and ranks are being replaced: what strikes from now on is the next epoch's. */
void fault_plan_cure(struct fault_plan *plan, int64_t now_ns);

/* The frame with the fault in it, a new one; NULL: it can't be made in this frame. For kinds that
 * change a frame. */
struct frame *fault_spoil(enum fault_kind kind, const struct frame *frame, struct random *random);

#endif
