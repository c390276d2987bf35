/*
 * What kernels/cuda/ranges.cu wants of <nvtx3/nvToolsExt.h>, found in its place: names and numbers are NVTX's. The
 * tool that listens is a file, which EMULATED_NVTX names: a line for each call, "PID TID push DOMAIN NAME PAYLOAD"
 * or "PID TID pop DOMAIN". What is not as NVTX wants it ends the process.
 */
#ifndef TESTS_CUDA_NVTX3_NVTOOLSEXT_H
#define TESTS_CUDA_NVTX3_NVTOOLSEXT_H

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NVTX_VERSION                  3
#define NVTX_EVENT_ATTRIB_STRUCT_SIZE ((uint16_t)sizeof(nvtxEventAttributes_t))

enum { NVTX_PAYLOAD_UNKNOWN = 0, NVTX_PAYLOAD_TYPE_INT64 = 2 };
enum { NVTX_MESSAGE_UNKNOWN = 0, NVTX_MESSAGE_TYPE_ASCII = 1 };

typedef struct {
    uint16_t version, size;
    uint32_t category;
    int32_t colorType;
    uint32_t color;
    int32_t payloadType, reserved0;
    union {
        uint64_t ullValue;
        int64_t llValue;
    } payload;
    int32_t messageType;
    union {
        const char *ascii;
    } message;
} nvtxEventAttributes_t;

typedef const char *nvtxDomainHandle_t;

static inline nvtxDomainHandle_t nvtxDomainCreateA(const char *name)
{
    return name;
}

/* One write, so that lines of processes do not mix. */
static inline void emulated_nvtx_tell(const char *line, int length)
{
    const char *path = getenv("EMULATED_NVTX");
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;

    if (file >= 0 && write(file, line, (size_t)length) != length)
        abort();
    if (file >= 0)
        close(file);
}

static inline int nvtxDomainRangePushEx(nvtxDomainHandle_t domain, const nvtxEventAttributes_t *range)
{
    char line[256];

    if (range->version != NVTX_VERSION || range->size != sizeof *range ||
        range->messageType != NVTX_MESSAGE_TYPE_ASCII || range->payloadType != NVTX_PAYLOAD_TYPE_INT64) {
        fprintf(stderr, "emulated NVTX: a range's attributes are not as they are read\n");
        abort();
    }
    emulated_nvtx_tell(line, snprintf(line, sizeof line, "%d %ld push %s %s %lld\n", getpid(), syscall(SYS_gettid),
                                      domain, range->message.ascii, (long long)range->payload.llValue));
    return 0;
}

static inline int nvtxDomainRangePop(nvtxDomainHandle_t domain)
{
    char line[256];

    emulated_nvtx_tell(line, snprintf(line, sizeof line, "%d %ld pop %s\n", getpid(), syscall(SYS_gettid), domain));
    return 0;
}

#endif
