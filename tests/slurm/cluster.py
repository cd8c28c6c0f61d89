"""A real SLURM cluster of two nodes on this machine, private and for a while.

Everything of it (configuration, keys, state, sockets, logs) lies in one folder, on free ports, so
that a SLURM which is installed and running here is not touched; all its processes end with it.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "squeue": "slurm-client",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
}
READY_S = 60
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

SLURM_CONF = """
ClusterName=stabkit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
DefMemPerNode=512
JobRequeue=1
MaxArraySize=5
KillWait=3
UnkillableStepTimeout=20
MinJobAge=600
ReturnToService=2
CompleteWait=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,sched_interval=1,bf_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
{accounting}
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{d_ports}] CPUs=4 RealMemory=8000
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1
PartitionName=high Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF
PartitionName=grace Nodes=n[1-2] PriorityTier=1 GraceTime=60
"""

ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge/socket
"""

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={db_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


@dataclass(frozen=True)
class Cluster:
    """`env` is what a command needs to talk to it."""

    folder: Path
    env: dict[str, str]

    def command(self, *words: str) -> str:
        """What a SLURM command prints. Raises RuntimeError with what it complains of."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def state(self, job_id: str) -> str:
        """As `squeue` has it, of jobs that ended too; empty for one it has never heard of."""
        return self.command("squeue", "-t", "all", "-h", "-j", job_id, "-o", "%T").strip()

    def release(self, job_id: str) -> None:
        """A requeued job waits two minutes; not this one."""
        self.command("scontrol", "update", f"JobId={job_id}", "StartTime=now")


def missing() -> str | None:
    """Why no cluster can be started here; None when it can."""
    if sys.platform != "linux" or os.getuid() != 0:
        return "a private SLURM cluster is started as root on Linux"
    absent = [package for tool, package in PACKAGES.items() if not shutil.which(tool, path=PATH)]
    if absent:
        return f"needs SLURM's daemons: apt-get install --no-install-recommends {' '.join(absent)}"
    return None


@contextmanager
def running_cluster(accounting: bool = False) -> Iterator[Cluster]:
    """Two nodes, partitions `low`, `high` (which preempts) and `grace` (preempted slowly).

    Raises RuntimeError with the end of a log when it does not come up.
    """
    # short, as the path of a socket may be, and open to the users of munge and of the database
    folder = Path(tempfile.mkdtemp(prefix="stabkit-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    ports = _free_ports(5)
    names = {
        "folder": str(folder),
        "host": socket.gethostname().split(".")[0],
        "ctld_port": str(ports[0]),
        "dbd_port": str(ports[1]),
        "db_port": str(ports[2]),
        "d_ports": f"{ports[3]},{ports[4]}",
    }
    names["accounting"] = (ACCOUNTING if accounting else "").format_map(names)
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format_map(names))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    cluster = Cluster(folder, env | {"SLURM_CONF": str(conf), "PATH": PATH})
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _start_munge(folder, stack)
        if accounting:
            _start_database(names, folder, cluster, stack)
        (folder / "state").mkdir()
        # before the daemons, so that it acts after them: whatever a job leaves behind ends too
        stack.callback(_kill_all_of, folder)
        _daemon(["slurmctld", "-D", "-f", str(conf)], cluster, stack)
        for node in ("n1", "n2"):
            (folder / f"spool-{node}").mkdir()
            _daemon(["slurmd", "-D", "-N", node, "-f", str(conf)], cluster, stack)
        _wait(lambda: _idle(cluster), folder, "slurmctld.log", "two idle nodes")
        yield cluster
        for job in cluster.command("squeue", "-h", "-o", "%i").split():
            cluster.command("scancel", "--signal=KILL", job)
            cluster.command("scancel", job)


def _idle(cluster: Cluster) -> bool:
    try:
        return cluster.command("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle"] * 2
    except RuntimeError:
        return False


def _start_munge(folder: Path, stack: ExitStack) -> None:
    home = folder / "munge"
    home.mkdir(mode=0o755)
    key = home / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = pwd.getpwnam("munge")
    for path in (home, key):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    options = {
        "key-file": "key",
        "socket": "socket",
        "pid-file": "pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    words = [f"--{option}={home / name}" for option, name in options.items()]
    _process(
        ["munged", "--foreground", *words], dict(os.environ), folder / "munged.out", stack, "munge"
    )
    _wait(lambda: (home / "socket").exists(), folder, "munged.out", "the socket of munge")


def _start_database(
    names: dict[str, str], folder: Path, cluster: Cluster, stack: ExitStack
) -> None:
    data = folder / "db"
    data.mkdir()
    shutil.chown(data, "mysql", "mysql")
    options = [f"--datadir={data}", "--user=mysql", "--skip-name-resolve"]
    install = [
        "mariadb-install-db",
        "--no-defaults",
        *options,
        "--auth-root-authentication-method=normal",
    ]
    subprocess.run(install, check=True, capture_output=True)
    sock = data / "socket"
    quick = [
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-log-file-size=8M",
        "--skip-networking=0",
    ]
    where = [f"--socket={sock}", f"--port={names['db_port']}", "--bind-address=127.0.0.1"]
    server = ["mariadbd", "--no-defaults", *options, *where, *quick, f"--pid-file={data}/pid"]
    _process(server, cluster.env, folder / "mariadbd.log", stack)
    sql = (
        "create database slurm_acct_db; create user slurm@'127.0.0.1' identified by 'slurm'; "
        "grant all on slurm_acct_db.* to slurm@'127.0.0.1';"
    )
    client = ["mariadb", "--no-defaults", f"--socket={sock}", "-u", "root", "-e"]

    def answers(text: str) -> bool:
        return subprocess.run([*client, text], capture_output=True, check=False).returncode == 0

    _wait(lambda: answers("select 1"), folder, "mariadbd.log", "the database")
    assert answers(sql)
    conf = folder / "slurmdbd.conf"
    conf.write_text(SLURMDBD_CONF.format_map(names))
    conf.chmod(0o600)
    _daemon(["slurmdbd", "-D"], cluster, stack)
    sacctmgr = ["sacctmgr", "-i", "add", "cluster", "stabkit"]

    def added() -> bool:
        done = subprocess.run(sacctmgr, env=cluster.env, capture_output=True, check=False)
        return done.returncode == 0

    _wait(added, folder, "slurmdbd.log", "slurmdbd")


def _daemon(words: Sequence[str], cluster: Cluster, stack: ExitStack) -> None:
    out = cluster.folder / f"{words[0]}-{len(list(cluster.folder.glob('*.out')))}.out"
    _process(words, cluster.env, out, stack)


def _process(
    words: Sequence[str],
    env: dict[str, str],
    out: Path,
    stack: ExitStack,
    user: str | None = None,
) -> None:
    with out.open("ab") as log:
        process = subprocess.Popen(
            words,
            env=env | {"PATH": PATH},
            stdout=log,
            stderr=log,
            user=user,
            start_new_session=True,
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _kill_all_of(folder: Path) -> None:
    """Processes whose environment or command line names the folder: jobs and their helpers."""
    for pid in processes_of(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def processes_of(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def _wait(ready: Callable[[], bool], folder: Path, log: str, what: str) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if time.monotonic() > deadline:
            path = folder / log
            tail = path.read_text(errors="replace")[-2000:] if path.exists() else "(no log)"
            raise RuntimeError(f"{what} did not come up in {READY_S} s; {log} ends:\n{tail}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return sorted(ports)
