/*
 * fuzz_control_keys: any bytes as a list of keys of the control socket: refused with a sentence, or keys,
 * each with a role and a name that a log can hold.
 */
#include "engine/control/keys.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    AUTO_CLOSE(control_keys) struct control_keys keys = {0};

    if (control_keys_parse("keys", (const char *)data, size, &keys) != OK) {
        ASSERT(*fail_text());
        return 0;
    }
    ASSERT(keys.num_keys > 0 && keys.num_keys <= CONTROL_MAX_KEYS);
    for (size_t i = 0; i < keys.num_keys; i++) {
        const struct control_key *key = &keys.keys[i];

        ASSERT(curve_key_is_valid(key->public_key) && *key->name);
        ASSERT(key->role >= ROLE_READ && key->role <= ROLE_ADMIN);
        ASSERT(control_keys_find(&keys, key->public_key) == key);
        for (const char *c = key->name; *c; c++)
            ASSERT(*c >= ' ' && *c <= '~');
    }
    return 0;
}
