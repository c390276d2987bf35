#include "worker/models/architecture.h"

#include <string.h>

/* A new model is a file and a row. */
static const struct architecture *const architectures[] = {
    &gemma3,
    &llama,
    &qwen2,
    &qwen3,
};

enum status architecture_find(const char *name, const struct architecture **out)
{
    AUTO_CLOSE(bytes) struct bytes known = {0};

    for (size_t i = 0; i < COUNT_OF(architectures); i++) {
        if (strcmp(architectures[i]->name, name) == 0) {
            *out = architectures[i];
            return OK;
        }
        bytes_printf(&known, "%s%s", i ? ", " : "", architectures[i]->name);
    }
    return fail(ERR_UNSUPPORTED, "\"%s\" models are not supported; there are %s", name,
                bytes_text(&known));
}
