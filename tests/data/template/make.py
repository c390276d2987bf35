#!/usr/bin/env python3
"""Makes cases.jsonl and chat_*.jsonl beside it: what Jinja2 renders, in the way of transformers.

usage: make.py            (needs jinja2 3.1)
       make.py REFERENCE  also cuts chat_smollm2.jsonl and chat_gemma3.jsonl out of a folder that
                          has smollm2/ and gemma3/, each with chat.jsonl and chat_template.jinja

A row is {name, template, context, expected} or {…, error: true} where Jinja2 fails, too, or
{…, error: "text"} where raise_exception says that. Of the families (written for this test in the
style of the usual templates) a row has `file` and `conversation`, a key of conversations.json.
"""
import json
import os
import re
import sys
from datetime import datetime, timezone

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = 1753500000  # what test_template.c gives strftime_now, in UTC


class Generation(jinja2.ext.Extension):
    """{% generation %} marks the assistant's part; it renders its body in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Raised(Exception):
    pass


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(form):
    return datetime.fromtimestamp(NOW, timezone.utc).strftime(form)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


def add_answer(out, template, context):
    try:
        out["expected"] = environment().from_string(template).render(**context)
    except Raised as e:
        out["error"] = str(e)
    except Exception:
        out["error"] = True
    return out


def write(name, rows):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        for r in rows:
            f.write(json.dumps(r, ensure_ascii=False) + "\n")
    errors = sum("error" in r for r in rows)
    print(f"{name}: {len(rows)} rows, {errors} of them errors")


def small_cases():
    """small.txt: a line is 'name template' (Python escapes not read), '\\n' written as ⏎."""
    context = json.load(open(os.path.join(HERE, "context.json"), encoding="utf-8"))
    rows = []
    for line in open(os.path.join(HERE, "small.txt"), encoding="utf-8"):
        line = line.rstrip("\n")
        if line and not line.startswith("# "):
            name, template = line.split(" ", 1)
            template = template.replace("⏎", "\n")
            used = {k: v for k, v in context.items() if re.search(rf"\b{k}\b", template)}
            out = {"name": name, "template": template, "context": used}
            rows.append(add_answer(out, template, used))
    return rows


def family_cases():
    """families/NAME.jinja with every conversation of conversations.json."""
    conversations = json.load(open(os.path.join(HERE, "conversations.json"), encoding="utf-8"))
    folder = os.path.join(HERE, "families")
    rows = []
    for name in sorted(os.listdir(folder)):
        template = open(os.path.join(folder, name), encoding="utf-8").read()
        for title, context in conversations.items():
            out = {"name": f"{name[:-6]}/{title}", "file": name, "conversation": title}
            rows.append(add_answer(out, template, context))
    return rows


def cut_chat(reference, model, bos):
    folder = os.path.join(reference, model)
    template = open(os.path.join(folder, "chat_template.jinja"), encoding="utf-8").read()
    rows = [{"template": template, "bos_token": bos}]
    for line in open(os.path.join(folder, "chat.jsonl"), encoding="utf-8"):
        case = json.loads(line)
        for render in case["renders"]:
            render.pop("ids", None)
        rows.append(case)
    write(f"chat_{model}.jsonl", rows)


if __name__ == "__main__":
    rows = small_cases() + family_cases()
    assert len({r["name"] for r in rows}) == len(rows), "a name is used twice"
    write("cases.jsonl", rows)
    if len(sys.argv) > 1:
        cut_chat(sys.argv[1], "smollm2", "<|im_start|>")
        cut_chat(sys.argv[1], "gemma3", "<bos>")
