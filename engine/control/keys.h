/*
 * keys: the files of the control socket's keys.
 *
 * A list says who may come in over tcp, a line each; what follows a # that stands alone is a comment (a key
 * may have one in it):
 *
 *     PUBLIC_KEY ROLE [NAME]        roles: read, operate, admin
 *
 * A key file (mode 0600) is one side's pair, and, for a client, the public key of its engine:
 *
 *     public PUBLIC_KEY
 *     secret SECRET_KEY
 *     server PUBLIC_KEY
 *
 * Thread: any; a list is constant once it is read.
 */
#ifndef ENGINE_CONTROL_KEYS_H
#define ENGINE_CONTROL_KEYS_H

#include "engine/control/commands.h"
#include "proto/wire/curve.h"

enum { CONTROL_MAX_KEYS = 1024, CONTROL_MAX_KEY_NAME = 63, CONTROL_MAX_KEYS_BYTES = 256 << 10 };

struct control_key {
    char public_key[CURVE_KEY_CHARS + 1];
    enum control_role role;
    char name[CONTROL_MAX_KEY_NAME + 1]; /* the key's beginning where the list has none */
};

struct control_keys {
    struct control_key *keys; /* [num_keys] */
    size_t num_keys;
};

/* ERR_INVALID: "PATH, line 3: what is wrong". ERR_IO, ERR_NOT_FOUND. */
MUST_USE enum status control_keys_read(const char *path, struct control_keys *out);
/* The same of a text, which `name` names in sentences. */
MUST_USE enum status control_keys_parse(const char *name, const char *text, size_t size,
                                        struct control_keys *out);
void control_keys_close(struct control_keys *keys); /* zeroed is fine */
/* NULL: it is not in the list. */
const struct control_key *control_keys_find(const struct control_keys *keys,
                                            const char *public_key);

struct control_key_file {
    struct curve_pair pair;
    char server[CURVE_KEY_CHARS + 1]; /* "": the file has none */
};

/* ERR_INVALID: "PATH, line 3: what is wrong", or others may read it. ERR_IO, ERR_NOT_FOUND. */
MUST_USE enum status control_key_file_read(const char *path, struct control_key_file *out);
/* A new pair into a new file of mode 0600. server: NULL, or what its line `server` is to say. ERR_INVALID:
 * the file is there already. */
MUST_USE enum status control_key_file_create(const char *path, const char *server,
                                             struct control_key_file *out);

#endif
