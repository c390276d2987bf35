/*
 * parcel: what launcher and agents say to each other, over the two pipes of an rsh-like command.
 *
 *     C: JOB, then START of each process        A: HELLO first, then STARTED or REFUSED of each
 *     C: SIGNAL INPUT TAKEN ADDRESS PAUSE QUIT  A: OUTPUT NOTICE ENDED INPUT_TAKEN ADDRESS
 *     both: BEAT, every 500 ms
 *
 * A parcel is the size of its body (4 bytes, little-endian), its kind (1 byte) and the body: the fields of
 * its row in parcel.c, in MessagePack. It comes from outside on both sides: what does not fit its row is
 * refused, sizes before anything is allocated for them.
 *
 * Thread: the owner.
 */
#ifndef ENGINE_LAUNCH_PARCEL_H
#define ENGINE_LAUNCH_PARCEL_H

#include "engine/launch/binding.h"
#include "proto/base/memory.h"

#include <stdint.h>

enum {
    PARCEL_MAX_BODY = 1 << 20,
    PARCEL_MAX_OUTPUT = 32 << 10, /* bytes of one OUTPUT or INPUT */
    PARCEL_MAX_WORDS = 4096,      /* of a command line or an environment */
    PARCEL_MAX_PROCESS = 1024,    /* the number of a process is below */
    PARCEL_ALL = -1,              /* instead of a process: all of them */
};

enum parcel_kind {
    /* from the launcher */
    PARCEL_JOB = 1, /* number: JOB_ flags; text: the token, or ""; other: the launcher's build id */
    PARCEL_START,   /* process, number: START_ flags; text: folder, "" is the agent's; words, variables, place */
    PARCEL_SIGNAL,  /* process or all, number: the signal */
    PARCEL_INPUT,   /* process, text: for its standard input; "" is the end */
    PARCEL_TAKEN,   /* number: bytes of OUTPUT that have been passed on */
    PARCEL_PAUSE,   /* the launcher is about to be stopped: nothing will be heard until it goes on */
    PARCEL_QUIT,    /* end, once no process is left; number: milliseconds until they are killed */
    /* from an agent */
    PARCEL_HELLO,       /* number: its process id; text: its host's name; other: its build id */
    PARCEL_STARTED,     /* process, number: process id; text: where it is bound, "" is nowhere */
    PARCEL_REFUSED,     /* process, number: exit code; text: why it could not be started */
    PARCEL_OUTPUT,      /* process, number: 1 or 2; text: whole lines, or what there is */
    PARCEL_NOTICE,      /* process, number: NOTICE_ flags; text: the words of STATUS= */
    PARCEL_ENDED,       /* process, number: as waitpid tells it */
    PARCEL_INPUT_TAKEN, /* process: more INPUT may come */
    PARCEL_FAULT,       /* text: why the agent gives up */
    /* both */
    PARCEL_ADDRESS, /* text: where the engine listens */
    PARCEL_BEAT,
    NUM_PARCEL_KINDS
};

enum {
    JOB_LINES = 1,      /* output comes in whole lines */
    JOB_HAS_ENGINE = 2, /* processes are told of a token, and of the engine's address */
    JOB_BEATS = 4,      /* both sides must be heard */
};
enum { START_READS_INPUT = 1, START_IS_ENGINE = 2 };
enum { NOTICE_READY = 1, NOTICE_STOPPING = 2, NOTICE_WATCHDOG = 4, NOTICE_STATUS = 8 };

struct text { /* not NUL-terminated */
    const char *data;
    size_t size;
};

/* Which of these are said depends on the kind; the others are zero. */
struct parcel {
    enum parcel_kind kind;
    int32_t process;
    int64_t number;
    struct text text, other;
    const struct text *words, *variables;
    int32_t num_words, num_variables;
    struct binding binding;
    int32_t local_rank, local_world;
};

const char *parcel_name(enum parcel_kind kind);
static inline struct text text_of(const char *s)
{
    return (struct text){s, __builtin_strlen(s)};
}
void parcel_write(struct bytes *out, const struct parcel *parcel);

struct parcel_reader {
    struct bytes bytes;
    size_t at;         /* bytes before it are done */
    struct text *list; /* [2 * PARCEL_MAX_WORDS], made when first needed */
};

void parcel_reader_add(struct parcel_reader *reader, const void *data, size_t size);
/* *found_out false: not all of a parcel is there yet. The parcel borrows until the next call. ERR_CORRUPT: what
 * came is no parcel of this side; the reader is of no use any more. */
MUST_USE enum status parcel_reader_next(struct parcel_reader *reader, bool is_from_agent,
                                       struct parcel *out, bool *found_out);
void parcel_reader_close(struct parcel_reader *reader);

#endif
