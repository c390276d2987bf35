"""A few "hosts" on this machine: namespaces of network, name, mounts and IPC, joined by a bridge of their own.

    with hosts.Hosts(3) as group:               # h1, h2, h3; skips the test where it is not possible
        group.run("h2", "hostname")             # as subprocess.run
        rank = group.start("h3", PROGRAM, ...)  # as subprocess.Popen
        group.cut("h3")                         # silence, as of a pulled cable; group.restore("h3")
        group.rsh                               # a program: rsh HOST COMMAND..., like ssh

    hosts.py N COMMAND...    runs the command beside N hosts, with their rsh in $HOSTS_RSH; 77: not possible here

Each host has an address of its own (group.address), /etc/hosts with all of them, and an empty /dev/shm. /tmp, the
other files and the process ids are the machine's. A cut link is seen only by what crosses it: rsh does not.

Nothing has a name outside: the namespaces belong to holders, which end with this process or by close(), and to
what runs in them, which close() ends. So nothing is left, and nothing of anybody else's is touched.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

NETWORK = "10.77.0"
TOOLS = ("ip", "nsenter", "unshare", "mount", "hostname")
NAMESPACES = ("--net", "--uts", "--mount", "--ipc")


class NotPossible(unittest.SkipTest):
    """Why there are no hosts here."""


def _check():
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        raise NotPossible("hosts are network namespaces: only root makes them")
    if missing:
        raise NotPossible(f"hosts are network namespaces: {', '.join(missing)} missing (iproute2, util-linux)")


class Hosts:
    def __init__(self, count=2):
        _check()
        self.names = [f"h{i}" for i in range(1, count + 1)]
        self.folder = tempfile.mkdtemp(prefix="tandem-hosts-")
        self.rsh = os.path.join(self.folder, "rsh")
        self._holders = {}
        self._started = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def address(self, host):
        return f"{NETWORK}.1{self.names.index(host) + 1}"

    def pid(self, host):
        """A process that is there as long as the host is."""
        return self._holders[host].pid

    # ---- what runs in a host --------------------------------------------------------------------

    def command(self, host, *args):
        return ["nsenter", "-t", str(self._holders[host].pid), *NAMESPACES, "--", *map(str, args)]

    def run(self, host, *args, **options):
        return subprocess.run(self.command(host, *args), **options)

    def start(self, host, *args, **options):
        process = subprocess.Popen(self.command(host, *args), **options)
        self._started.append(process)
        return process

    # ---- its link -------------------------------------------------------------------------------

    def cut(self, host):
        """From now on nothing arrives, in either direction; nobody is told."""
        self._ip("switch", "link", "set", f"to-{host}", "nomaster")

    def restore(self, host):
        self._ip("switch", "link", "set", f"to-{host}", "master", "bridge")

    def part(self, host, other):
        """The same between these two alone, as of a firewall; group.join(...) ends it."""
        self._ip(host, "route", "add", "blackhole", f"{self.address(other)}/32")

    def join(self, host, other):
        self._ip(host, "route", "del", "blackhole", f"{self.address(other)}/32")

    # ---- making and ending ----------------------------------------------------------------------

    def _ip(self, where, *args):
        done = subprocess.run(["nsenter", "-t", str(self._holders[where].pid), "--net", "ip", *args],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise NotPossible(f"ip {' '.join(args)}: {done.stderr.strip()}")

    def _hold(self, name, *setup):
        """A process that owns namespaces until its stdin ends."""
        script = " && ".join([*setup, "echo ready && exec cat"])
        holder = subprocess.Popen(["unshare", *NAMESPACES, "--propagation", "private", "sh", "-c", script],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True)
        self._holders[name] = holder
        if holder.stdout.readline() != "ready\n":
            raise NotPossible(f"no namespaces here: {holder.stderr.read().strip()}")

    def _make(self):
        table = os.path.join(self.folder, "hosts")
        with open(table, "w") as f:
            f.write("127.0.0.1 localhost\n")
            f.writelines(f"{self.address(h)} {h}\n" for h in self.names)
        self._hold("switch")
        self._ip("switch", "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        self._ip("switch", "link", "set", "bridge", "up")
        for host in self.names:
            self._hold(host, f"hostname {host}", f"mount --bind {table} /etc/hosts",
                       "mount -t tmpfs tmpfs /dev/shm")
            self._ip("switch", "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0",
                     "netns", str(self._holders[host].pid))
            self.restore(host)
            self._ip("switch", "link", "set", f"to-{host}", "up")
            self._ip(host, "link", "set", "lo", "up")
            self._ip(host, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self._ip(host, "link", "set", "eth0", "up")
        self._write_rsh()

    def _write_rsh(self):
        """Like ssh: options are passed over, the environment is not carried over, sh gets the words."""
        cases = "\n".join(f"{h}) pid={self._holders[h].pid};;" for h in self.names)
        with open(self.rsh, "w") as f:
            f.write(f"""#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do
    case $1 in -o | -p | -l | -i | -F) shift 2 ;; *) shift ;; esac
done
host=${{1#*@}}
shift
case $host in
{cases}
*) echo "rsh: $host: no such host" >&2; exit 255 ;;
esac
exec nsenter -t "$pid" {' '.join(NAMESPACES)} env -i HOME="$HOME" PATH="$PATH" sh -c "$*"
""")
        os.chmod(self.rsh, 0o755)

    def _inhabitants(self):
        """Processes in our hosts' networks, whoever started them: launchers start some that we never see."""
        ours = set()
        for holder in self._holders.values():
            try:
                ours.add(os.readlink(f"/proc/{holder.pid}/ns/net"))
            except OSError:
                pass
        ours.discard(os.readlink("/proc/self/ns/net"))
        holders = {holder.pid for holder in self._holders.values()}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/net") in ours and int(pid) not in holders:
                    yield int(pid)
            except OSError:
                pass  # it has ended meanwhile

    def close(self):
        """Ends all that runs in the hosts, then the hosts."""
        while inhabitants := list(self._inhabitants()):
            for pid in inhabitants:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.01)
        for process in self._started:
            process.kill()  # it may not have come into its host yet
            process.wait()
        for holder in self._holders.values():
            holder.stdin.close()
            holder.wait()
            holder.stdout.close()
            holder.stderr.close()
        self._holders.clear()
        self._started.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def require():
    """For a test that is nothing without hosts: ends it as skipped, with the reason."""
    try:
        Hosts(1).close()
    except NotPossible as why:
        print(why)
        sys.exit(77)


def main():
    try:
        group = Hosts(int(sys.argv[1]))
    except NotPossible as why:
        print(why, file=sys.stderr)
        return 77
    with group:
        return subprocess.run(sys.argv[2:], env={**os.environ, "HOSTS_RSH": group.rsh}).returncode


if __name__ == "__main__":
    sys.exit(main())
