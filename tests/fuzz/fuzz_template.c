/* A template from hostile bytes, rendered with a fixed conversation under small limits. */
#include "engine/text/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char conversation[] =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9 \\\"you\\\"\"},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"a\":[1,2.5,true]}]}],"
        "\"tools\":null,\"bos_token\":\"<s>\",\"add_generation_prompt\":true,\"n\":-3}";
    static const struct template_limits limits = {
        .max_steps = 20000, .max_depth = 20, .max_output_bytes = 1 << 18, .now_s = 1};
    static json_t *context;
    AUTO_FREE(template) struct template *t = NULL;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    if (!context)
        context = json_loads(conversation, 0, NULL);
    ASSERT(context);
    if (template_new((const char *)data, size, &t) != OK)
        return 0;
    if (template_render(t, context, &limits, &out) == OK) {
        /* What was paid for bounds what came out. */
        ASSERT(out.size <= (size_t)limits.max_output_bytes);
    } else {
        ASSERT(out.size == 0 && fail_text()[0]);
    }
    return 0;
}
