/*
 * region: the memory that the engine shares with one grammar process.
 *
 * It holds the grammar as it was written, what compiling it came to, and a place for each output that
 * follows it: the token to move on by, and the mask that came of it. The engine asks by raising
 * num_posted of a place and adding its number to the ring; the process answers by raising num_done.
 * A place that is asked is the process's, else the engine's.
 *
 * Both sides map the same layout, for they are one build. What the process writes is only looked at
 * as numbers: a region that a library has run wild in costs its own requests alone.
 *
 * Thread: see process.h and host.h.
 */
#ifndef ENGINE_GRAMMAR_REGION_H
#define ENGINE_GRAMMAR_REGION_H

#include "engine/engine.h"
#include "engine/grammar/spec.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/types.h>

enum { REGION_SENTENCE = 512, START_ANEW = -1 };

/* Where one output stands. */
struct region_place {
    /* the engine's */
    token_id token;            /* to move on by; START_ANEW: nothing was put out yet */
    _Atomic int64_t posted_ns; /* when it was asked; 0: it was answered, and that was seen */
    _Atomic uint32_t num_posted;
    /* the process's */
    _Atomic uint32_t num_done;
    int32_t status; /* enum status */
    int64_t begin_ns, end_ns;
    char sentence[128]; /* of a failure */
};

struct region {
    int64_t bytes; /* of all */
    int32_t num_places;
    int32_t num_words; /* of a mask */

    /* the grammar */
    enum grammar_kind kind;
    int32_t backend; /* in backends[] */
    bool disable_any_whitespace, disable_additional_properties, lenient;
    int64_t text_size, pattern_size; /* pattern_size -1: none */

    /* what it came to; written before it is told */
    int32_t status;
    int64_t compile_ns;
    int64_t private_bytes; /* memory of the process alone */
    char sentence[REGION_SENTENCE];

    /* questions: place numbers, num_places of them at most at a time */
    _Atomic uint32_t num_posted;
    _Atomic uint32_t num_sleepers; /* threads of the process that wait for num_posted to move */
    _Atomic bool engine_waits;     /* the bell is to be rung when nothing is left to answer */
};

static inline int64_t region_align(int64_t bytes)
{
    return (bytes + 63) & ~(int64_t)63;
}

static inline int64_t region_places_at(void)
{
    return region_align(sizeof(struct region));
}

static inline int64_t region_ring_at(int32_t num_places)
{
    return region_align(region_places_at() + num_places * (int64_t)sizeof(struct region_place));
}

static inline int64_t region_text_at(int32_t num_places)
{
    return region_align(region_ring_at(num_places) + num_places * (int64_t)sizeof(int32_t));
}

/* Behind the text and the pattern, each with a NUL. */
static inline int64_t region_masks_at(const struct region *region)
{
    return region_align(region_text_at(region->num_places) + region->text_size + 1 +
                        MAX(region->pattern_size, 0) + 1);
}

static inline int64_t region_mask_stride(const struct region *region)
{
    return region_align(region->num_words * (int64_t)sizeof(uint32_t));
}

static inline struct region_place *region_place(struct region *region, int32_t i)
{
    return (struct region_place *)((char *)region + region_places_at()) + i;
}

static inline _Atomic int32_t *region_ring(struct region *region)
{
    return (_Atomic int32_t *)((char *)region + region_ring_at(region->num_places));
}

static inline char *region_text(struct region *region)
{
    return (char *)region + region_text_at(region->num_places);
}

static inline char *region_pattern(struct region *region)
{
    return region_text(region) + region->text_size + 1;
}

static inline uint32_t *region_mask(struct region *region, int32_t place)
{
    return (uint32_t *)((char *)region + region_masks_at(region) +
                        place * region_mask_stride(region));
}

/* A thread of a grammar process goes on when no other wants its core; 0: the one that calls. A low priority
 * would not do: a thread that wakes up waits for the slice of one that is only nice. */
static inline void region_give_way(pid_t thread_id)
{
    sched_setscheduler(thread_id, SCHED_IDLE, &(struct sched_param){0});
}

/* ---- the dialogue of the engine and the host, one message a packet ---------------------------- */

/* Starts a process for the region whose descriptor comes with it. */
struct host_order {
    int64_t id;
    int32_t backend;
};

enum host_news_kind {
    NEWS_REFUSED,  /* no process was started: status and sentence say why */
    NEWS_STARTED,  /* value: its pid */
    NEWS_COMPILED, /* the region has what it came to */
    NEWS_ENDED     /* value: as of waitpid */
};

struct host_news {
    int64_t id;
    enum host_news_kind kind;
    int32_t value;
    int32_t status;
    char sentence[REGION_SENTENCE];
};

#endif
