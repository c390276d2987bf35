#!/usr/bin/env python3
"""An engine on this node of a Ray cluster, and its ranks in a placement group.

    python3 tandem_ray.py --ranks 4 --gpus-per-rank 1 -- --model m.gguf

Ray places the ranks and tells when one has died; what they compute goes over their own sockets. tandem, the
model and the token have the same path on all nodes. A rank that ends is started again where it was, and streams
wait for it; SIGTERM lets the engine finish what runs. The exit status is the engine's; 75: there was no room, or
a rank ended again and again.
"""
import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

NO_HOPE = 75
FINAL = {2, 76, 77, 126, 127}  # a setting, another build, a key, no program: the same again would not help
WINDOW_S = 60                  # in which a rank may end --restarts times
PR_SET_PDEATHSIG = 1


def start(words, signal_of_death):
    """A process that gets this signal when the thread that called this is gone."""
    prctl = ctypes.CDLL(None).prctl
    return subprocess.Popen(words, stdin=subprocess.DEVNULL,
                            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal_of_death))


@ray.remote(max_restarts=0, max_concurrency=2)
class Rank:
    """A place for one process. Its output goes where Ray has its actors' go: to the driver, too."""

    def __init__(self):
        self.process = None

    def node(self):
        return ray.util.get_node_ip_address()

    def run(self, words):
        """Until it ends; its exit status, or 128 + the signal. This thread stays as long as the process."""
        try:
            self.process = start(words, signal.SIGKILL)
        except FileNotFoundError:
            return 127
        except PermissionError:
            return 126
        self.process.wait()
        return status_of(self.process)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()


class Ranks:
    """All of them, each in its bundle of the group."""

    def __init__(self, options, group, words):
        self.options, self.group, self.words = options, group, words
        self.ends = {}  # rank: when its processes ended lately
        actors = [self.actor(bundle) for bundle in range(options.ranks)]
        nodes = ray.get([actor.node.remote() for actor in actors])
        here = ray.util.get_node_ip_address()
        # Neighbours have neighbouring ranks, and the engine's node comes first.
        self.bundles = sorted(range(options.ranks), key=lambda bundle: (nodes[bundle] != here, nodes[bundle], bundle))
        self.actors = [actors[bundle] for bundle in self.bundles]
        self.running = {}  # what Ray will tell of: rank
        for rank in range(options.ranks):
            self.run(rank)

    def actor(self, bundle):
        return Rank.options(num_cpus=self.options.cpus_per_rank, num_gpus=self.options.gpus_per_rank,
                            scheduling_strategy=PlacementGroupSchedulingStrategy(
                                self.group, placement_group_bundle_index=bundle)).remote()

    def run(self, rank):
        self.running[self.actors[rank].run.remote([
            *self.words, "--rank", str(rank), "--world", str(self.options.ranks)])] = rank

    def ended(self, seconds):
        """Waits so long for ranks to end: [(rank, exit status)]."""
        if not self.running:
            time.sleep(seconds)
        done, _ = ray.wait(list(self.running), timeout=seconds) if self.running else ([], [])
        found = []
        for answer in done:
            rank = self.running.pop(answer)
            try:
                found.append((rank, ray.get(answer)))
            except ray.exceptions.RayActorError:  # it took its process along
                self.actors[rank] = self.actor(self.bundles[rank])
                found.append((rank, 128 + signal.SIGKILL))
        return found

    def has_hope(self, rank):
        now = time.monotonic()
        ends = [end for end in self.ends.get(rank, []) if end > now - WINDOW_S] + [now]
        self.ends[rank] = ends
        return len(ends) <= self.options.restarts

    def stop(self):
        """The engine has told them to end, or is gone, which they notice; a last word to those that do not."""
        end = time.monotonic() + 5
        while self.running and time.monotonic() < end:
            self.ended(0.2)
        for rank in self.running.values():
            self.actors[rank].stop.remote()
        while self.running and time.monotonic() < end + 5:
            self.ended(0.2)


def status_of(process):
    return 128 - process.returncode if process.returncode < 0 else process.returncode


def serve(engine, ranks):
    """Until the engine ends, or there is no hope: the exit status."""
    while engine.poll() is None:
        for rank, status in ranks.ended(0.2):
            if engine.poll() is not None or stopping:
                continue
            print(f"tandem_ray: rank {rank} has ended with {status}", file=sys.stderr, flush=True)
            if status in FINAL or not ranks.has_hope(rank):
                engine.terminate()
                engine.wait()
                return status if status in FINAL else NO_HOPE
            ranks.run(rank)
    return status_of(engine)


stopping = False


def on_signal(engine):
    def tell(*_):
        global stopping
        stopping = True
        engine.terminate()
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, tell)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     usage="tandem_ray.py --ranks N [OPTION]... -- OPTION OF TANDEM SERVE...")
    parser.add_argument("--address", default="auto", help="the Ray cluster (auto)")
    parser.add_argument("--ranks", type=int, required=True, metavar="N")
    parser.add_argument("--cpus-per-rank", type=float, default=1, metavar="X", help="(1)")
    parser.add_argument("--gpus-per-rank", type=float, default=0, metavar="X", help="(0)")
    parser.add_argument("--strategy", default="PACK", help="of the placement group (PACK)",
                        choices=["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="to wait for room (60)")
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="of one rank within 60 s (3)")
    parser.add_argument("--listen", metavar="tcp://IP:PORT", help="where ranks join (a port of this node)")
    parser.add_argument("--token", default="tandem.token", metavar="FILE", help="made if it is not there (tandem.token)")
    parser.add_argument("--tandem", default=os.environ.get("TANDEM_PROGRAM") or "tandem", metavar="PROGRAM")
    parser.add_argument("serve", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    program = shutil.which(options.tandem)
    if options.ranks < 1:
        parser.error(f"--ranks is {options.ranks}")
    if not program:
        parser.error(f"no {options.tandem}: put it in PATH, or give --tandem")
    options.tandem, options.token = os.path.abspath(program), os.path.abspath(options.token)
    return options


def main():
    options = parse()
    ray.init(address=options.address, logging_level="ERROR")
    bundle = {"CPU": options.cpus_per_rank} | ({"GPU": options.gpus_per_rank} if options.gpus_per_rank else {})
    group = placement_group([bundle] * options.ranks, strategy=options.strategy)
    try:
        if not ray.wait([group.ready()], timeout=options.timeout)[0]:
            print(f"tandem_ray: no room for {options.ranks} times {bundle}, {options.strategy}, within "
                  f"{options.timeout} s; the cluster has {ray.cluster_resources()}", file=sys.stderr)
            return NO_HOPE
        folder = tempfile.mkdtemp()
        try:
            address_file = os.path.join(folder, "address")
            engine = start([options.tandem, "serve", "--executor", "distributed", "--tp", str(options.ranks),
                            "--listen", options.listen or f"tcp://{ray.util.get_node_ip_address()}:0",
                            "--address-file", address_file, "--token", options.token, *options.serve],
                           signal.SIGTERM)
            on_signal(engine)
            while not os.path.exists(address_file) and engine.poll() is None:
                time.sleep(0.05)
            if engine.poll() is not None:
                return status_of(engine)
            with open(address_file) as file:
                address = file.read().strip()
        finally:
            shutil.rmtree(folder)
        ranks = Ranks(options, group, [options.tandem, "worker", "--engine", address, "--token", options.token])
        status = serve(engine, ranks)
        ranks.stop()
        return status
    finally:
        remove_placement_group(group)


if __name__ == "__main__":
    sys.exit(main())
