/*
 * Ranges of NVTX, in a domain of their own: what a thread of the host does, beside what the GPU does, in Nsight.
 * The name is that of the verb, so that Nsight adds them up by it, and the payload is the step. Without a tool that
 * listens a range costs a comparison.
 */
#include "kernels/cuda/state.h"

#if __has_include(<nvtx3/nvToolsExt.h>)

#include <nvtx3/nvToolsExt.h>

static nvtxDomainHandle_t our_domain()
{
    static const nvtxDomainHandle_t domain = nvtxDomainCreateA("tandem");

    return domain;
}

static void begin_range(const char *name, int64_t step)
{
    nvtxEventAttributes_t range = {};

    range.version = NVTX_VERSION;
    range.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    range.messageType = NVTX_MESSAGE_TYPE_ASCII;
    range.message.ascii = name;
    range.payloadType = NVTX_PAYLOAD_TYPE_INT64;
    range.payload.llValue = step;
    nvtxDomainRangePushEx(our_domain(), &range);
}

static void end_range()
{
    nvtxDomainRangePop(our_domain());
}

void ranges_prepare()
{
    our_domain();
}

const struct cuda_range_table range_table = {begin_range, end_range};

#else

void ranges_prepare()
{
}

const struct cuda_range_table range_table = {};

#endif
