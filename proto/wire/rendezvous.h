/*
 * rendezvous: how an engine and its ranks find each other, and agree.
 *
 * The run directory (mode 0700) holds the engine's socket. A worker says HELLO
 * with what it is; the engine compares protocol, build, world and rank, and
 * answers WELCOME, with its settings or a refusal. When a rank has loaded the
 * model it says READY with the model's fingerprint; all ranks must have the same.
 * A refusal says both values.
 *
 * The epoch is the engine's: it comes with WELCOME, and rises with each set of ranks. Those that live on hear WELCOME
 * once more, and answer READY.
 *
 * Thread: the one that owns the channel.
 */
#ifndef PROTO_WIRE_RENDEZVOUS_H
#define PROTO_WIRE_RENDEZVOUS_H

#include "proto/wire/channel.h"
#include "proto/wire/messages.h"

enum { RENDEZVOUS_MAX_ENDPOINT = 300 }; /* characters: a host's name has up to 253 */

/* ---- the run directory ----------------------------------------------------------------------- */

struct run_dir {
    char *path;
    int lock_fd; /* held while the owner lives: how others know that it does */
};

/* A new directory in `parent`, or with NULL in $XDG_RUNTIME_DIR or /tmp/tandem-UID. Those that
 * dead engines left in there are removed. ERR_IO; ERR_MISMATCH: somebody else owns the place. */
MUST_USE enum status run_dir_open(const char *parent, struct run_dir *out);
/* Removes it with all files in it. */
void run_dir_close(struct run_dir *dir);

/* Tells every such directory in `parent`, whether its owner lives or not. ERR_IO; ERR_MISMATCH. */
MUST_USE enum status run_dir_each(const char *parent, void (*tell)(void *user, const char *path),
                                  void *user);

/* ---- the engine's side ----------------------------------------------------------------------- */

struct rank_info {
    bool is_joined, is_ready;
    char peer[CHANNEL_MAX_NAME + 1]; /* its name on the channel */
    int32_t pid;
    char *host, *boot_id;
    struct ready ready; /* numbers only; the texts are NULL */
};

struct rendezvous {
    int32_t world;
    uint32_t epoch;
    struct rank_info *ranks; /* [world] */
    char *fingerprint;       /* of the first that was ready */
    int32_t fingerprint_rank;
    int32_t num_joined, num_ready;
};

void rendezvous_init(struct rendezvous *rendezvous, int32_t world, uint32_t epoch);
void rendezvous_close(struct rendezvous *rendezvous);

/* The name that a rank connects under: "1:3". A rank that comes again does so under another one: `nonce` is any
 * number that it has not had before. */
void rendezvous_name(int32_t rank, uint32_t nonce, char name_out[static CHANNEL_MAX_NAME + 1]);

/* Is it one that this rank may have? */
bool rendezvous_name_fits(const char *peer, int32_t rank);

/* Which rank has joined as this peer; -1: none. */
int32_t rendezvous_find(const struct rendezvous *rendezvous, const char *peer);
/* Another set of ranks: those that have joined stay in, and are to be welcomed and to say READY again. */
void rendezvous_begin(struct rendezvous *rendezvous, uint32_t epoch);
/* All ranks have another model now: what the first to be ready says is right. */
void rendezvous_forget_model(struct rendezvous *rendezvous);
/* The rank is gone: another process may join in its place. */
void rendezvous_lose(struct rendezvous *rendezvous, int32_t rank);

/* Takes a rank in. On ERR_MISMATCH nothing has changed; tell the peer why by rendezvous_welcome. */
MUST_USE enum status rendezvous_hello(struct rendezvous *rendezvous, const char *peer,
                                      const struct message *message);
/* Answers with the settings, or with a refusal where `refusal` is not NULL. */
MUST_USE enum status rendezvous_welcome(const struct rendezvous *rendezvous,
                                        struct channel *channel, const char *peer,
                                        const char *config, const char *refusal);
/* ERR_MISMATCH: the rank has not joined, was ready before, or has another model. */
MUST_USE enum status rendezvous_ready(struct rendezvous *rendezvous, const char *peer,
                                      const struct message *message);
static inline bool rendezvous_is_complete(const struct rendezvous *rendezvous)
{
    return rendezvous->num_ready == rendezvous->world;
}

/* Writes the endpoint to a file that only its owner may read; whoever reads the path sees all of it, or what was
 * there before. ERR_IO. */
MUST_USE enum status rendezvous_publish(const char *path, const char *endpoint);
/* Reads it back. ERR_NOT_FOUND: it is not there yet; ERR_IO; ERR_INVALID: somebody else has put it there, or can
 * change it; ERR_CORRUPT: something else is in it. */
MUST_USE enum status rendezvous_look_up(const char *path,
                                        char endpoint_out[static RENDEZVOUS_MAX_ENDPOINT + 1]);

/* Tells hosts, and boots of one, apart. */
void rendezvous_read_boot_id(char out[static 64]);

/* ---- the worker's side ----------------------------------------------------------------------- */

/* Says HELLO and waits for WELCOME. ERR_MISMATCH: refused, in the engine's words; ERR_TIMEOUT;
 * ERR_CLOSED: the engine is gone. The welcome lives in `arena`. */
MUST_USE enum status rendezvous_join(struct channel *channel, int32_t rank, int32_t world,
                                     int64_t deadline_ns, struct arena *arena,
                                     const struct welcome **out, uint32_t *epoch_out);

#endif
