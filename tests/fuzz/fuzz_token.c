/*
 * fuzz_token: any bytes as a token file: refused with a sentence, or two different pairs of keys.
 */
#include "proto/wire/curve.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    struct token token;

    if (fd < 0) {
        fd = memfd_create("fuzz.token", MFD_CLOEXEC);
        ASSERT(fd >= 0 && fchmod(fd, 0600) == 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    if (token_read(path, &token) != OK) {
        ASSERT(fail_text()[0] != '\0');
        return 0;
    }
    ASSERT(curve_key_is_valid(token.engine.secret_key) &&
           curve_key_is_valid(token.engine.public_key) &&
           curve_key_is_valid(token.worker.secret_key) &&
           curve_key_is_valid(token.worker.public_key));
    ASSERT(strcmp(token.engine.secret_key, token.worker.secret_key) != 0);
    return 0;
}
