#include "proto/wire/tcp.h"

#include <errno.h>
#include <ifaddrs.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char prefix[] = "tcp://";

enum { MAX_HOST = 253, MAX_PORT = 65535 };

bool tcp_is_endpoint(const char *endpoint)
{
    return strncmp(endpoint, prefix, strlen(prefix)) == 0;
}

bool tcp_is_ipv6(const struct tcp_address *address)
{
    return address->address.ss_family == AF_INET6;
}

bool tcp_is_any(const struct tcp_address *address)
{
    return tcp_is_ipv6(address)
               ? IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)&address->address)->sin6_addr)
               : ((const struct sockaddr_in *)&address->address)->sin_addr.s_addr == INADDR_ANY;
}

/* ---- words ---------------------------------------------------------------------------------------- */

struct words {
    char host[MAX_HOST + 1];
    char port[6];
    bool is_bracketed;
};

static enum status no_endpoint(const char *endpoint, const char *why)
{
    return fail(ERR_INVALID, "'%.80s' is no endpoint: %s; use tcp://HOST:PORT or tcp://[IPv6]:PORT",
                endpoint, why);
}

static enum status split_port(const char *endpoint, const char *port, bool listens,
                              struct words *words)
{
    size_t size = strlen(port);
    long number = 0;

    if (size < 1 || size > 5 || strspn(port, "0123456789") != size)
        return no_endpoint(endpoint, "a port is a number from 0 to 65535");
    number = strtol(port, NULL, 10);
    if (number > MAX_PORT)
        return no_endpoint(endpoint, "a port is a number from 0 to 65535");
    if (number == 0 && !listens)
        return no_endpoint(endpoint, "port 0 is nobody's");
    memcpy(words->port, port, size + 1);
    return OK;
}

static enum status split(const char *endpoint, bool listens, struct words *words)
{
    const char *host = endpoint + strlen(prefix), *colon = strrchr(endpoint, ':'), *end = colon;

    ASSERT(tcp_is_endpoint(endpoint));
    if (colon < host)
        return no_endpoint(endpoint, "the port is missing");
    words->is_bracketed = *host == '[';
    if (words->is_bracketed) {
        if (colon - host < 3 || colon[-1] != ']')
            return no_endpoint(endpoint, "a bracket is missing");
        host++;
        end--;
    }
    if (end <= host || end - host > MAX_HOST)
        return no_endpoint(endpoint, "a host has 1 to 253 characters");
    if (!words->is_bracketed && memchr(host, ':', (size_t)(end - host)))
        return no_endpoint(endpoint, "an IPv6 address stands in brackets");
    memcpy(words->host, host, (size_t)(end - host));
    words->host[end - host] = '\0';
    return split_port(endpoint, colon + 1, listens, words);
}

/* ---- addresses ------------------------------------------------------------------------------------- */

static void set_port(struct tcp_address *address, const char *text)
{
    in_port_t port = htons((uint16_t)strtol(text, NULL, 10));

    if (tcp_is_ipv6(address))
        ((struct sockaddr_in6 *)&address->address)->sin6_port = port;
    else
        ((struct sockaddr_in *)&address->address)->sin_port = port;
}

/* The interface's first address of the family. */
static bool find_on_interface(const char *name, sa_family_t family, struct tcp_address *out)
{
    struct ifaddrs *all = NULL;
    bool is_found = false;

    if (getifaddrs(&all) != 0)
        return false;
    for (const struct ifaddrs *at = all; at && !is_found; at = at->ifa_next) {
        if (!at->ifa_addr || at->ifa_addr->sa_family != family || strcmp(at->ifa_name, name) != 0)
            continue;
        out->size = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
        memcpy(&out->address, at->ifa_addr, out->size);
        is_found = true;
    }
    freeifaddrs(all);
    return is_found;
}

static bool find_by_name(const struct words *words, int family, int *error_out,
                         struct tcp_address *out)
{
    struct addrinfo hints = {.ai_family = family,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = words->is_bracketed ? AI_NUMERICHOST : 0},
                    *found = NULL;

    *error_out = getaddrinfo(words->host, NULL, &hints, &found);
    if (*error_out != 0)
        return false;
    memcpy(&out->address, found->ai_addr, found->ai_addrlen);
    out->size = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

static bool find(const struct words *words, bool listens, int *error_out, struct tcp_address *out)
{
    if (listens && strcmp(words->host, "*") == 0) {
        *(struct sockaddr_in *)&out->address = (struct sockaddr_in){.sin_family = AF_INET};
        out->size = sizeof(struct sockaddr_in);
        return true;
    }
    if (!words->is_bracketed && listens && if_nametoindex(words->host) > 0 &&
        (find_on_interface(words->host, AF_INET, out) ||
         find_on_interface(words->host, AF_INET6, out)))
        return true;
    return (!words->is_bracketed && find_by_name(words, AF_INET, error_out, out)) ||
           find_by_name(words, AF_INET6, error_out, out);
}

enum status tcp_resolve(const char *endpoint, bool listens, struct tcp_address *out)
{
    struct words words;
    int error = 0;

    *out = (struct tcp_address){0};
    TRY(split(endpoint, listens, &words));
    if (!find(&words, listens, &error, out))
        return fail(ERR_NOT_FOUND, "%s: who is '%s'? %s", endpoint, words.host,
                    gai_strerror(error));
    set_port(out, words.port);
    return OK;
}

void tcp_print(const struct tcp_address *address, char out[static TCP_MAX_TEXT + 1])
{
    char host[64] = "?", port[6] = "0";

    getnameinfo((const struct sockaddr *)&address->address, address->size, host, sizeof host, port,
                sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(out, TCP_MAX_TEXT + 1, tcp_is_ipv6(address) ? "tcp://[%s]:%s" : "tcp://%s:%s", host,
             port);
}

/* ---- listening --------------------------------------------------------------------------------------- */

static bool bind_and_listen(int fd, int backlog, struct tcp_address *address)
{
    static const int yes = 1;

    address->size = sizeof address->address;
    /* What is left of the last engine's connections must not keep the next one from its port. */
    return setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0 &&
           bind(fd, (struct sockaddr *)&address->address,
                tcp_is_ipv6(address) ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in)) == 0 &&
           listen(fd, backlog) == 0 &&
           getsockname(fd, (struct sockaddr *)&address->address, &address->size) == 0;
}

enum status tcp_listen(const char *endpoint, int backlog, int *fd_out,
                       struct tcp_address *bound_out)
{
    int fd;

    TRY(tcp_resolve(endpoint, true, bound_out));
    fd = socket(bound_out->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || !bind_and_listen(fd, backlog, bound_out)) {
        enum status status = fail(ERR_IO, "%s cannot be listened on: %m", endpoint);

        if (fd >= 0)
            close(fd);
        return status;
    }
    *fd_out = fd;
    return OK;
}

bool tcp_drop_knocks(int fd, bool drops)
{
    static struct sock_filter nothing_passes[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
    static const struct sock_fprog program = {COUNT_OF(nothing_passes), nothing_passes};

    return (drops ? setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program)
                  : setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &(int){0}, sizeof(int))) == 0;
}

/* A datagram socket that is connected sends nothing, and has the address that it would send from. */
enum status tcp_own_address(const char *endpoint, char out[static TCP_MAX_TEXT + 1])
{
    struct tcp_address peer, own = {.size = sizeof own.address};

    if (!tcp_is_endpoint(endpoint)) {
        snprintf(out, TCP_MAX_TEXT + 1, "tcp://127.0.0.1:0");
        return OK;
    }
    TRY(tcp_resolve(endpoint, false, &peer));

    int fd = socket(peer.address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool is_found = fd >= 0 && connect(fd, (struct sockaddr *)&peer.address, peer.size) == 0 &&
                    getsockname(fd, (struct sockaddr *)&own.address, &own.size) == 0;
    enum status status = is_found ? OK : fail(ERR_IO, "no address of ours reaches %s: %m", endpoint);

    if (fd >= 0)
        close(fd);
    TRY(status);
    if (tcp_is_ipv6(&own))
        ((struct sockaddr_in6 *)&own.address)->sin6_port = 0;
    else
        ((struct sockaddr_in *)&own.address)->sin_port = 0;
    tcp_print(&own, out);
    return OK;
}
