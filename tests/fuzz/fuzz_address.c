/*
 * fuzz_address: any bytes as the file that holds an engine's address: refused with a sentence, or one word.
 */
#include "proto/wire/rendezvous.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    char endpoint[RENDEZVOUS_MAX_ENDPOINT + 1];

    if (fd < 0) {
        fd = memfd_create("fuzz.address", MFD_CLOEXEC);
        ASSERT(fd >= 0 && fchmod(fd, 0600) == 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    if (rendezvous_look_up(path, endpoint) != OK) {
        ASSERT(fail_text()[0] != '\0');
        return 0;
    }
    ASSERT(strlen(endpoint) > 0 && strlen(endpoint) <= size && !strpbrk(endpoint, " \n\t"));
    return 0;
}
