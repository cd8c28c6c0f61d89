"""A real SLURM cluster of two nodes on this machine, private and for a while.

Everything of it (configuration, keys, state, sockets, logs) lies in one folder and on free ports,
so that a SLURM installed or running here is not touched. All its processes descend from one guard
(this file run as a script), which ends them when the process that asked for the cluster closes a
pipe or dies, however it dies: jobs and daemons outlive neither a failed nor a killed test run.
"""

import ctypes
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Debian keeps the daemons where a user's PATH need not lead.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
READY_S = 300
SOCKET_PATH_MAX = 107  # sun_path of sockaddr_un on Linux, less its end
PR_SET_CHILD_SUBREAPER = 36

SLURM_CONF = """\
ClusterName=stabkit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
DefMemPerNode=1500
JobRequeue=1
MaxArraySize=5
KillWait=30
MinJobAge=600
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000,bf_interval=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs=4 RealMemory=8000
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1
PartitionName=grace Nodes=n[1-2] PriorityTier=1 GraceTime=20
PartitionName=high Nodes=n[1-2] PriorityTier=10
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge/socket
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""


@dataclass(frozen=True)
class Cluster:
    """`env` is what a process needs to talk to it."""

    folder: Path
    env: dict[str, str]

    def command(self, *words: str) -> str:
        """Return what it prints. Raises RuntimeError with what it complains of."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr}")
        return done.stdout

    def state(self, job_id: str) -> str:
        """As squeue has it, of jobs that have ended too."""
        return self.command("squeue", "-t", "all", "-h", "-j", job_id, "-o", "%T").strip()

    def release(self, job_id: str) -> None:
        """Start a requeued job now: while it is PENDING it would wait two minutes.

        A node refuses, as already killed, a job that comes back within the second of its end.
        """
        self.command("scontrol", "update", f"JobId={job_id}", "StartTime=now+2seconds")


def missing() -> str | None:
    """Why no cluster can be started here; None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a private SLURM cluster needs Linux and root"
    lacking = {package for tool, package in PACKAGES.items() if not shutil.which(tool, path=PATH)}
    if lacking:
        packages = " ".join(sorted(lacking))
        return f"no SLURM here: apt-get install --no-install-recommends {packages}"
    return None


@contextmanager
def running_cluster(folder: Path, accounting: bool = False) -> Iterator[Cluster]:
    """Two idle nodes; partitions `low`, `grace` (jobs are warned) and `high`, which preempts both.

    The folder goes when the cluster does. Its path must be short, for sockets, and open to the
    users of munge and MariaDB. Raises RuntimeError with the end of a log if no cluster comes up.
    """
    if len(str(folder / "munge/socket")) > SOCKET_PATH_MAX:
        raise ValueError(f"{folder}: too long for a socket; have {SOCKET_PATH_MAX} characters")
    # A test run may itself be a job of another SLURM, whose variables would speak for it.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "SRUN_"))}
    env |= {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    guard = subprocess.Popen(
        [sys.executable, __file__, json.dumps([str(folder), accounting])],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C ends the tests first
    )
    assert guard.stdout is not None
    try:
        said = guard.stdout.readline()
        if said != "ready\n":
            raise RuntimeError(said + guard.stdout.read())
        yield Cluster(folder, env)
    finally:
        guard.communicate()  # closes its input, and waits


def processes_of(folder: Path) -> list[str]:
    """Command lines of what runs with the folder in its arguments, environment or open files."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            marks = words + (process / "environ").read_bytes()
            marks += b" ".join(os.readlink(fd).encode() for fd in (process / "fd").iterdir())
        except OSError:  # ended meanwhile
            continue
        if str(folder).encode() in marks:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def _guard(folder: Path, accounting: bool) -> None:
    """Start everything, say `ready`, and end everything when the input ends."""
    # Whatever the daemons and jobs leave behind becomes a child of this process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        _start(folder, accounting)
        # Nobody waits for the children that jobs leave. Ended ones would stay in /proc, which SLURM
        # reads for every job: after a thousand jobs that is most of its work.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        sys.stdin.read()
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(error)
    finally:
        _end_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, accounting: bool) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    ports = _free_ports(4)
    values = {
        "folder": folder,
        "host": socket.gethostname().split(".")[0],
        "ctld_port": ports[0],
        "dbd_port": ports[1],
        "node_ports": f"{ports[2]},{ports[3]}",
    }
    conf = SLURM_CONF + (ACCOUNTING if accounting else "")
    (folder / "slurm.conf").write_text(conf.format_map(values))
    _start_munge(folder / "munge")
    if accounting:
        dbd_conf = folder / "slurmdbd.conf"
        dbd_conf.touch(0o600)
        dbd_conf.write_text(SLURMDBD_CONF.format_map(values))
        _start_accounting(folder)
    (folder / "state").mkdir()
    daemons = [_daemon(folder / "slurmctld.log", "slurmctld", "-D")]
    _wait(lambda: _listens(ports[0]), daemons)  # sinfo asks one that does not for ten seconds
    for node in ("n1", "n2"):
        (folder / f"spool-{node}").mkdir()
        daemons.append(_daemon(folder / f"slurmd-{node}.log", "slurmd", "-D", "-N", node))
    idle = ("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
    _wait(lambda: _output(*idle).split() == ["idle", "idle"], daemons)


def _start_munge(home: Path) -> None:
    home.mkdir()
    key = home / "key"
    key.touch(0o400)
    key.write_bytes(os.urandom(128))
    munge = pwd.getpwnam("munge")
    for path in (home, key):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    names = ("key", "pid", "log", "seed")
    files = [f"--{name}-file={home / name}" for name in names]
    words = ["munged", "--foreground", f"--socket={home / 'socket'}", *files]
    daemon = _daemon(home.parent / "munged.log", *words, user="munge")
    _wait((home / "socket").exists, [daemon])


def _start_accounting(folder: Path) -> None:
    """MariaDB, which root may use through its socket, and slurmdbd in front of it."""
    data = folder / "mariadb"
    data.mkdir()
    shutil.chown(data, "mysql", "mysql")
    # Nothing here needs to outlive a crash, or much room.
    options = (
        "--no-defaults",
        "--user=mysql",
        f"--datadir={data}",
        "--innodb-log-file-size=4M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
    )
    install = subprocess.run(
        ["mariadb-install-db", *options, "--skip-test-db"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if install.returncode:
        raise RuntimeError(f"mariadb-install-db failed:\n{install.stdout[-2000:]}")
    os.environ["MYSQL_UNIX_PORT"] = str(data / "socket")  # has slurmdbd find it
    server = ("mariadbd", *options, "--skip-networking", f"--socket={data / 'socket'}")
    database = _daemon(folder / "mariadbd.log", *server)
    _wait(lambda: _output("mariadb-admin", "--no-defaults", "ping") != "", [database])
    slurmdbd = _daemon(folder / "slurmdbd.log", "slurmdbd", "-D")
    _wait(lambda: _output("sacctmgr", "-i", "add", "cluster", "stabkit") != "", [slurmdbd])


@dataclass(frozen=True)
class _Daemon:
    process: "subprocess.Popen[bytes]"
    log: Path


def _daemon(log: Path, *words: str, user: str | None = None) -> _Daemon:
    with log.open("ab") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, user=user
        )
    return _Daemon(process, log)


def _output(*words: str) -> str:
    """Empty when it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _wait(ready: Callable[[], bool], daemons: list[_Daemon]) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        ended = [daemon for daemon in daemons if daemon.process.poll() is not None]
        if not ended and time.monotonic() < deadline:
            time.sleep(0.05)
            continue
        what = "ended" if ended else f"not ready after {READY_S} s"
        lines = [f"no SLURM cluster: {what}"]
        for daemon in ended or daemons:
            lines += [f"{daemon.log.name}:", daemon.log.read_text(errors="replace")[-2000:]]
        raise RuntimeError("\n".join(lines))


def _end_descendants() -> None:
    """Again and again, as a process may fork between being found and being killed."""
    while True:
        for pid in _descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


def _descendants(ancestor: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # "pid (name) state parent ...", where a name may have spaces and brackets
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(process.name))
    found = list(children.get(ancestor, []))
    for pid in found:  # grows as it goes
        found += children.get(pid, [])
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    """Below those Linux gives to outgoing connections, so that none takes one meanwhile."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return sorted(ports)


if __name__ == "__main__":
    _folder, _accounting = json.loads(sys.argv[1])
    _guard(Path(_folder), _accounting)
