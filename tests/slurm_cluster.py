"""A real Slurm of two nodes on this machine, for one test session: nothing is installed, and nothing is left behind.

Where Slurm or munge is not there, or does not come up, the tests that ask for it are skipped and say why.
"""

import getpass
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
PATIENCE = 60.0  # seconds for two nodes to be idle; 8 were seen
CONF = """
ClusterName=look
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={work}/munge/munge.sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool/%n
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.%n.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=500 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=500 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """The configuration of a running cluster with nodes n1 and n2, one job each; SLURM_CONF has to name it."""
    found = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for name in DAEMONS}
    lacking = [name for name, path in found.items() if path is None]
    if lacking:
        pytest.skip(f"no {' and no '.join(lacking)} here: apt-get install --no-install-recommends slurm-wlm munge")
    with ExitStack() as running:
        work = Path(tempfile.mkdtemp(prefix="hf-lskd-slurm-"))
        running.callback(shutil.rmtree, work, ignore_errors=True)
        conf = write_files(work)
        key, munge = work / "munge" / "key", work / "munge"
        words = ["--foreground", "--force", "--num-threads=1", f"--key-file={key}", f"--socket={munge}/munge.sock"]
        words += [f"--{name}-file={munge}/{name}" for name in ("pid", "log", "seed")]
        begin(running, [str(found["munged"]), *words], work / "munged.out")
        begin(running, [str(found["slurmctld"]), "-D", "-f", str(conf)], work / "slurmctld.out")
        for node in ("n1", "n2"):
            begin(running, [str(found["slurmd"]), "-D", "-f", str(conf), "-N", node], work / f"slurmd.{node}.out")
        running.callback(end_jobs, conf)
        if not up(conf):
            logs = "\n".join(f"{log.name}: {log.read_text()[-400:]}" for log in sorted(work.glob("*.log")))
            pytest.skip(f"Slurm did not come up in {PATIENCE:.0f} s: {ask(conf, 'sinfo')}\n{logs}")
        yield conf


def write_files(work: Path) -> Path:
    """The folders, the key and the configuration of a cluster that lives in `work`."""
    for name in ("munge", "state", "spool/n1", "spool/n2"):
        (work / name).mkdir(parents=True)
    (work / "munge" / "key").write_bytes(os.urandom(128))
    (work / "munge" / "key").chmod(0o600)
    conf = work / "slurm.conf"
    conf.write_text(CONF.format(host=platform.node(), user=getpass.getuser(), work=work, ports=free_ports(3)))
    return conf


def free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [held_one.getsockname()[1] for held_one in sockets]


def begin(running: ExitStack, words: list[str], log: Path) -> None:
    """Start a daemon in the foreground; it ends with the session."""
    output = running.enter_context(log.open("w"))
    process = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    running.callback(end, process)
    if words[0].endswith("munged"):
        time.sleep(0.5)


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def up(conf: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if ask(conf, "sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"]:
            return True
        time.sleep(0.5)
    return False


def end_jobs(conf: Path) -> None:
    """Cancel what is there, and wait until it is gone: a job's step is no child of ours."""
    ask(conf, "scancel", f"--user={getpass.getuser()}")
    deadline = time.monotonic() + 20
    while ask(conf, "squeue", "--noheader").strip() and time.monotonic() < deadline:
        time.sleep(0.5)


def ask(conf: Path, *words: str) -> str:
    """What one of Slurm's commands says, errors included; nothing when it hangs."""
    try:
        done = subprocess.run(
            words, env={**os.environ, "SLURM_CONF": str(conf)}, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout + done.stderr
