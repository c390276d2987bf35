"""What system tests share: where the program is, a tiny model, and how to run the one on the other.

Environment (set by meson): TANDEM_PROGRAM the program, TANDEM_MAKE_TINY_MODEL the maker of tiny models; without it
those of build/ are meant. TANDEM_TEST_PATIENCE: how many times as long as on a quiet machine all may take.
TANDEM_TEST_SANITIZED: "1" where the program is built with a sanitizer, and takes several times as long.
"""
import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

_BUILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "build")
PROGRAM = os.environ.get("TANDEM_PROGRAM") or os.path.normpath(os.path.join(_BUILD, "tandem"))
_MAKE_TINY_MODEL = os.environ.get("TANDEM_MAKE_TINY_MODEL") or os.path.join(
    _BUILD, "tests", "make_tiny_model")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_folder = tempfile.mkdtemp(prefix="tandem-test-")
os.environ.setdefault("TANDEM_DUMP_DIR", _folder)  # steps that fail in tests are nobody's concern
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
# What a test starts ends with it, too, when it is told to end: by a timeout, mostly.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
# Under nohup it would be ignored by all that a test starts, and it is what a launcher ends by.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def within(seconds):
    """How long what takes so long at most on a quiet machine may take on this one."""
    return seconds * float(os.environ.get("TANDEM_TEST_PATIENCE", "1"))


def reduced(count, by):
    """So many tokens; of a sanitized program a part of them, which takes it about as long."""
    return -(-count // by) if os.environ.get("TANDEM_TEST_SANITIZED") == "1" else count


def deploy(name):
    """A path in the folder deploy."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", name)


def path(name):
    """A path for a file of this test."""
    return os.path.join(_folder, name)


def make_tiny_model(name="tiny.gguf", architecture="llama", chat_template=CHAT_TEMPLATE,
                    max_position=256, num_heads=4, num_kv_heads=2, seed=0):
    subprocess.run([_MAKE_TINY_MODEL, path(name), architecture, chat_template,
                    str(max_position), str(num_heads), str(num_kv_heads), str(seed)], check=True)
    return path(name)


def write(name, data):
    with open(path(name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path(name)


def write_lines(name, requests):
    """A file of requests; one that is a str is a line as it stands."""
    return write(name, "".join((r if isinstance(r, str) else json.dumps(r)) + "\n"
                               for r in requests))


def run(*args, stdin=b"", timeout=60, env=None, cwd=None):
    """Runs `tandem ARGS` to its end: (exit status, stdout, stderr)."""
    done = subprocess.run([PROGRAM, *map(str, args)], input=stdin, capture_output=True,
                          timeout=timeout, env=env, cwd=cwd)
    return done.returncode, done.stdout.decode(), done.stderr.decode()
