/*
 * What kernels/cuda/nccl.cu wants of <nccl.h>, found in its place: names and numbers are NCCL's. The library is
 * emulated_nccl.cc, for processes of one machine:
 *
 *  - A communicator never blocks: to meet, and each exchange, goes on when the call returns. An exchange has its place
 *    on the stream only at the first look (ncclCommGetAsyncError) behind it, and is told to have it at the second; who
 *    begins another one before is refused. Two threads in it at a time end the process.
 *  - Ranks add up each in an order of its own, beginning with its own part.
 *  - Two ranks of one GPU are refused, as NCCL does.
 *  - An exchange is captured with the stream, if its place is there before the capture ends, and done whenever the
 *    graph is launched. All ranks are to do the same, in numbers, types and sizes, and to launch what they captured
 *    together: "Whether an operation launch is graph-captured is considered a collective property" (NCCL's user
 *    guide). Anything else ends the process, where NCCL may hang or give what it likes.
 *  - A stream waits for a rank that is gone until it is aborted, and has junk then. Its peers, which have not been
 *    aborted, have junk from there on in the place of what has not come: an aborted kernel sends what it has not got.
 *  - An abort returns when all graphs are gone that have an exchange of the communicator, and not before.
 *
 * Environment, read at the first call:
 *  EMULATED_NCCL_FAULT  NAME or NAME:N, or either with @GPU behind: for the process whose current device this is,
 *                       only. version, it is another; init, to meet fails at once; never, this rank does not come,
 *                       or the Nth time that it should; async:N, the Nth exchange never ends, and the communicator
 *                       tells of an error
 *  EMULATED_NCCL_MEMORY bytes of its device that a communicator takes to meet, 0
 *  EMULATED_NCCL_COUNTS a file: each communicator adds a line when it is gone, of four numbers: its rank, how many sums
 *                       and how many gathers it did, and how many of both were replays
 *
 * Not here: sums of other types than double and uint32, gathers of others than float and uint32.
 */
#ifndef TESTS_CUDA_NCCL_H
#define TESTS_CUDA_NCCL_H

#include "tests/cuda/emulated_simt.h"

#include <limits.h>

extern "C" {
#define NCCL_MAJOR         2
#define NCCL_MINOR         28
#define NCCL_PATCH         9
#define NCCL_VERSION_CODE  22809
#define NCCL_UNIQUE_ID_BYTES 128

typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[NCCL_UNIQUE_ID_BYTES];
} ncclUniqueId;

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7
} ncclResult_t;

typedef enum { ncclSum = 0 } ncclRedOp_t;
typedef enum { ncclUint32 = 3, ncclFloat32 = 7, ncclFloat = 7, ncclFloat64 = 8, ncclDouble = 8 } ncclDataType_t;

/* As of 2.14: later ones are longer, and size says so. */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER {sizeof(ncclConfig_t), 0xcafebeef, NCCL_VERSION_CODE, INT_MIN}

ncclResult_t ncclGetVersion(int *version);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int world, ncclUniqueId id, int rank, ncclConfig_t *config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);
ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclCommAbort(ncclComm_t comm);
}

#endif
