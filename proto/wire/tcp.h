/*
 * tcp: what tcp://HOST:PORT means, and a socket that listens there.
 *
 * HOST is an IPv4 address, an IPv6 address in brackets, a name, or where one listens also an interface's
 * name or * (all of this host's IPv4 addresses). A name that has an IPv4 address means that one: an engine
 * on 127.0.0.1 is found as localhost.
 *
 * Thread: any.
 */
#ifndef PROTO_WIRE_TCP_H
#define PROTO_WIRE_TCP_H

#include "proto/base/memory.h"

#include <sys/socket.h>

enum { TCP_MAX_TEXT = 95 }; /* characters of an endpoint with a numeric address */

struct tcp_address {
    struct sockaddr_storage address;
    socklen_t size;
};

bool tcp_is_endpoint(const char *endpoint); /* begins with tcp:// */
/* May ask the network who HOST is. ERR_INVALID: no endpoint; port 0 is one only where one listens.
 * ERR_NOT_FOUND: the name is not known. */
MUST_USE enum status tcp_resolve(const char *endpoint, bool listens, struct tcp_address *out);
bool tcp_is_ipv6(const struct tcp_address *address);
bool tcp_is_any(const struct tcp_address *address); /* all of this host's: where one listens, not where one is found */
/* "tcp://10.0.0.1:7070", "tcp://[::1]:7070". */
void tcp_print(const struct tcp_address *address, char out[static TCP_MAX_TEXT + 1]);

/* Where this host is reached by whoever is at this endpoint: tcp://IP:0. Of one that is not tcp: this host's own. */
MUST_USE enum status tcp_own_address(const char *endpoint, char out[static TCP_MAX_TEXT + 1]);

/* A socket that listens, and the address that it has got where the port was 0. The caller closes it.
 * ERR_IO: "tcp://10.0.0.1:7070 cannot be listened on: why"; and as above. */
MUST_USE enum status tcp_listen(const char *endpoint, int backlog, int *fd_out,
                                struct tcp_address *bound_out);
/* From now on the kernel drops whoever knocks at a socket that listens (his own knocks again after 1 s), or does so no
 * more. Connections that are there stay; one that is let in at this moment may be deaf. false: errno. */
bool tcp_drop_knocks(int fd, bool drops);

#endif
