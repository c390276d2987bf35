/* A datagram on a notify socket: whatever it says, the words kept are printable and end in time. */
#include "proto/base/notify.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct notice notice;

    notice_parse((const char *)data, size, &notice);
    ASSERT(strlen(notice.status) <= NOTICE_MAX_STATUS);
    ASSERT(notice.has_status || notice.status[0] == '\0');
    for (const char *c = notice.status; *c; c++)
        ASSERT((unsigned char)*c >= ' ' && *c != 0x7f);
    return 0;
}
