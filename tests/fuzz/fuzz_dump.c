/*
 * fuzz_dump: any bytes as the dump of a failed step: refused with a sentence, or plans and masks of which every
 * column can be read.
 */
#include "engine/core/step_dump.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static void read_all(const struct step_dump *dump)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    message_body_print(&scheduler_output_type, &dump->before, 0, &text);
    for (int32_t i = 0; i < dump->num_steps; i++) {
        message_body_print(&scheduler_output_type, &dump->steps[i].plan, 0, &text);
        message_body_print(&grammar_output_type, &dump->steps[i].masks, 0, &text);
        (void)scheduler_num_masks(&dump->steps[i].plan);
        if (scheduler_output_check(&dump->steps[i].plan, 512, 8192) != OK)
            ASSERT(fail_text()[0] != '\0');
    }
    ASSERT(dump->cause && dump->verb && dump->config && dump->status != OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    AUTO_CLOSE(step_dump) struct step_dump dump = {0};

    if (fd < 0) {
        fd = memfd_create("fuzz.json", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    if (step_dump_read(path, &dump) == OK)
        read_all(&dump);
    else
        ASSERT(fail_text()[0] != '\0');
    return 0;
}
