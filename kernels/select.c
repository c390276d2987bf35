#include "kernels/cpu/device.h"
#include "kernels/ref/ref.h"

#include "proto/base/memory.h"

#include <string.h>

/* Best first. A row is a table of kernels and whether this CPU can run it. */
static const struct isa_row {
    const struct kernels *kernels;
} isas[] = {
    {&kernels_ref},
};

const char *const *device_isas(void)
{
    static const char *names[COUNT_OF(isas) + 1];

    for (size_t i = 0; i < COUNT_OF(isas); i++)
        names[i] = isas[i].kernels->name;
    return names;
}

/* NULL: none of that name. */
static const struct kernels *find_isa(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(isas); i++)
        if (!name || strcmp(name, isas[i].kernels->name) == 0)
            return isas[i].kernels;
    return NULL;
}

enum status device_open(const struct device_options *options, struct device **out)
{
    const struct kernels *kernels = find_isa(options->isa);

    if (strcmp(options->name, "cpu") != 0)
        return fail(ERR_UNSUPPORTED, "no device \"%s\" in this build: there is \"cpu\"", options->name);
    if (!kernels)
        return fail(ERR_UNSUPPORTED, "instruction set \"%s\" is not here: there is ref", options->isa);
    if (options->num_threads < 1)
        return fail(ERR_INVALID, "%d threads", options->num_threads);

    struct device *dev = mem_new(struct device);

    dev->kernels = kernels;
    *out = dev;
    return OK;
}
