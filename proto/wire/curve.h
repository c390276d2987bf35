/*
 * curve: who may speak with whom over tcp, by keys.
 *
 * Every tcp:// socket is encrypted by CURVE: the side that listens holds a pair, the side that connects
 * knows its public key and has a pair of its own. ZAP then asks, for each peer that has shown that it
 * holds its secret key, whether it may come in. Keys are text, Z85.
 *
 * A token is what an engine and its ranks share: a small file of mode 0600 with the secrets of both,
 *
 *     tandem-token 1
 *     engine-secret Z85
 *     worker-secret Z85
 *
 * from which the public keys follow. Lines that are empty or begin with # are passed over.
 *
 * Thread: any; struct zap belongs to the thread that started it, and its callback runs on a thread of its
 * own.
 */
#ifndef PROTO_WIRE_CURVE_H
#define PROTO_WIRE_CURVE_H

#include "proto/base/memory.h"

enum {
    CURVE_KEY_CHARS = 40,
    TOKEN_MAX_BYTES = 4096, /* of a token file */
};

/* ---- keys ------------------------------------------------------------------------------------ */

struct curve_pair {
    char public_key[CURVE_KEY_CHARS + 1], secret_key[CURVE_KEY_CHARS + 1]; /* Z85 */
};

/* A new one, of random numbers. ERR_MISSING: this libzmq has no CURVE. */
MUST_USE enum status curve_pair_new(struct curve_pair *out);
/* 40 characters of Z85 that stand for 32 bytes. */
bool curve_key_is_valid(const char *key);

/* Before the socket is bound, and after zap_start for its context: it takes only peers that know
 * mine->public_key and that the ZAP handler lets in. Where no handler runs ZeroMQ lets in everyone who
 * knows that key, so the handler must outlive the socket. ERR_MISSING: this libzmq has no CURVE. */
MUST_USE enum status curve_as_server(void *socket, const struct curve_pair *mine);
/* Before the socket connects. ERR_INVALID: server_public is no key. */
MUST_USE enum status curve_as_client(void *socket, const struct curve_pair *mine,
                                     const char *server_public);

/* ---- the token -------------------------------------------------------------------------------- */

struct token {
    struct curve_pair engine, worker;
};

/* ERR_NOT_FOUND: there is no such file; the sentence says how to make one. ERR_IO. ERR_INVALID: others
 * than its owner may read it, or it is neither ours nor root's. One of root's may be for a group to read, where
 * we are not root: so a Secret of Kubernetes or a credential of systemd comes, with mode 0440. ERR_CORRUPT, ERR_UNSUPPORTED (a later version):
 * "PATH, line N: why"; no sentence quotes a secret. */
MUST_USE enum status token_read(const char *path, struct token *out);
/* Makes new keys and the file. ERR_INVALID: it is there already, and stays as it is. ERR_IO. */
MUST_USE enum status token_create(const char *path, struct token *out);

/* ---- ZAP: who may come in ------------------------------------------------------------------------ */

/* Called on the ZAP thread, for a peer that has shown that it holds this key's secret. Of one that is let
 * in, zmq_msg_gets(message, "User-Id") is its public key in each message. */
typedef bool (*zap_allow)(void *user, const char *public_key);

struct zap;

/* One for a ZeroMQ context, before its sockets are bound; `user` must outlive it. ERR_IO. */
MUST_USE enum status zap_start(void *context, zap_allow allow, void *user, struct zap **out);
/* How many peers it has turned away. Any thread. */
int64_t zap_num_refused(const struct zap *zap);
/* After zmq_close of the sockets that it guards, before zmq_ctx_term, which would wait for it. NULL is
 * fine. */
void zap_free(struct zap *zap);
DEFINE_AUTO_FREE(zap)

#endif
