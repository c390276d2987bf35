/* A host file: whatever it says, names that are kept can be words of a command line. */
#include "engine/launch/hosts.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_CLOSE(host_list) struct host_list list = {0};
    enum status status = host_list_add_text(&list, "hosts", (const char *)data, size);

    ASSERT(status == OK || status == ERR_INVALID);
    ASSERT(list.count <= MAX_HOSTS);
    for (int32_t i = 0; i < list.count; i++) {
        const struct host *host = &list.hosts[i];

        ASSERT(host->name[0] != '\0' && host->name[0] != '-' &&
               strlen(host->name) <= MAX_HOST_NAME);
        ASSERT(!strpbrk(host->name, " \t\n\r;'\"$`\\&|<>()"));
        ASSERT(host->slots >= 1 && host->slots <= MAX_SLOTS && host->max_slots >= host->slots);
    }
    return 0;
}
