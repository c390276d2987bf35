/*
 * fuzz_trace: any bytes as a trace file: refused with a sentence, or a timeline that can be reported and
 * drawn.
 */
#include "engine/trace/report.h"
#include "engine/trace/svg.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static void tell_all(const struct timeline *timeline)
{
    AUTO_CLOSE(report) struct report report = {0};
    AUTO_CLOSE(bytes) struct bytes text = {0}, picture = {0};
    json_t *json;

    report_make(timeline, &report);
    report_print(&report, &text);
    json = report_to_json(&report);
    ASSERT(json);
    json_decref(json);
    if (svg_draw(timeline, &(struct svg_options){.from_step = -1, .num_steps = 3, .num_ranks = 2},
                 &picture) != OK)
        ASSERT(fail_text()[0] != '\0');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    AUTO_CLOSE(timeline) struct timeline timeline = {0};

    if (fd < 0) {
        fd = memfd_create("fuzz.json", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    ASSERT(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    if (timeline_read(path, &timeline) == OK)
        tell_all(&timeline);
    else
        ASSERT(fail_text()[0] != '\0');
    return 0;
}
