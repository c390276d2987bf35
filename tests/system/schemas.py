"""JSON schemas of all sorts, made from a seed: what people send, in small.

Strings and arrays are bounded, so that a small model gets to the end of them.
"""
import random

WORDS = "name age city price status tags owner score email date items note level code title kind".split()


def string(rng, depth):
    kind = rng.randrange(7)
    if kind == 0:
        return {"type": "string", "enum": rng.sample(WORDS, rng.randint(1, 6))}
    if kind == 1:
        return {"type": "string", "pattern": rng.choice(
            [r"^[A-Z]{2}-[0-9]{3,5}$", r"^(yes|no|maybe)$", r"^[a-f0-9]{8}$", r"^\+[1-9][0-9]{6,12}$"])}
    if kind == 2:
        return {"type": "string", "format": rng.choice(
            ["date", "date-time", "time", "email", "uuid", "ipv4"])}
    low = rng.randint(0, 4)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(1, 20)}


def number(rng, depth):
    kind = rng.choice(["integer", "number"])
    low = rng.randint(-1000, 1000)
    schema = {"type": kind, "minimum": low, "maximum": low + rng.randint(0, 5000)}
    if kind == "number" and rng.random() < 0.3:
        schema = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
    return schema


def constant(rng, depth):
    return {"const": rng.choice(["fixed", 42, True, None, {"a": 1}, [1, "b"]])}


def boolean(rng, depth):
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}


def array(rng, depth):
    low = rng.randint(0, 2)
    if rng.random() < 0.2:
        return {"type": "array", "prefixItems": [schema_of(rng, depth - 1) for _ in range(rng.randint(1, 3))],
                "items": False, "minItems": 1}
    return {"type": "array", "items": schema_of(rng, depth - 1), "minItems": low,
            "maxItems": low + rng.randint(0, 3)}


def object_(rng, depth):
    names = rng.sample(WORDS, rng.randint(1, 4))
    schema = {"type": "object", "properties": {name: schema_of(rng, depth - 1) for name in names},
              "required": rng.sample(names, rng.randint(0, len(names))),
              "additionalProperties": False}
    if rng.random() < 0.15:
        schema["description"] = "what it is — with “quotes” and an emoji 🙂"
    return schema


def any_of(rng, depth):
    return {"anyOf": [schema_of(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


LEAVES = [string, number, constant, boolean]
BRANCHES = [array, object_, any_of]


def schema_of(rng, depth):
    return rng.choice(LEAVES if depth <= 0 or rng.random() < 0.5 else BRANCHES)(rng, depth)


def with_definitions(rng):
    """A schema whose parts are elsewhere."""
    return {"$defs": {"part": object_(rng, 1)}, "type": "object",
            "properties": {"first": {"$ref": "#/$defs/part"},
                           "more": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}},
            "required": ["first"], "additionalProperties": False}


def tree(rng):
    """A schema that names itself."""
    return {"$defs": {"node": {"type": "object", "properties": {
        "value": number(rng, 0), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value", "next"], "additionalProperties": False}}, "$ref": "#/$defs/node"}


def schemas(count, seed=1):
    rng = random.Random(seed)
    for i in range(count):
        if i % 10 == 7:
            yield with_definitions(rng)
        elif i % 20 == 9:
            yield tree(rng)
        else:
            yield object_(rng, 3)
