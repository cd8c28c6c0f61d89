"""SLURM's commands as small scripts on PATH: they keep a queue in files, and run nothing.

They show what is submitted and how the launcher acts on what the queue says, on any machine. What
SLURM itself does is tested on the real one, in tests/slurm.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

SBATCH = """#!/bin/bash
cd "{folder}"
[ -e refuse ] && {{ echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1; }}
[ -e killed ] && kill -9 $$
id=$(( $(cat last) + 1 )); echo $id > last
cp "${{@: -1}}" script-$id.sh
env > environment-$id
name=$(sed -n 's/^#SBATCH --job-name=//p' script-$id.sh)
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' script-$id.sh)
if [ -z "$last" ]; then echo "$id|PENDING|Priority|$name" >> queue
else for i in $(seq 0 $last); do echo "${{id}}_$i|PENDING|Priority|$name" >> queue; done; fi
[ -e die ] && kill -9 $PPID
[ -e wait ] && read < wait
echo "Submitted batch job $id"
"""
SQUEUE = """#!/bin/bash
[ -e "{folder}/down" ] && {{ echo "Unable to contact controller" >&2; exit 1; }}
case "$*" in *--all*|*-j*) ;; *) exit 0 ;; esac  # else jobs in hidden partitions are not shown
cat "{folder}/queue"
"""
SCANCEL = """#!/bin/bash
for id in "$@"; do echo $id >> "{folder}/canceled"; sed -i "/^$id|/d" "{folder}/queue"; done
"""
SCONTROL = """#!/bin/bash
[ -e "{folder}/down" ] && exit 1
echo "MaxArraySize            = 4"
"""
SACCT = """#!/bin/bash
cat "{folder}/accounting"
"""


@dataclass(frozen=True)
class FakeSlurm:
    """Its folder holds `queue`, a script for each submission, and switches: die, wait, down, …"""

    folder: Path

    def scripts(self) -> list[str]:
        paths = sorted(self.folder.glob("script-*.sh"), key=lambda p: int(p.stem.split("-")[1]))
        return [path.read_text() for path in paths]

    def queue(self) -> list[str]:
        return [line.split("|")[0] for line in (self.folder / "queue").read_text().splitlines()]

    def end(self, *job_ids: str) -> None:
        """As if these jobs had ended."""
        lines = (self.folder / "queue").read_text().splitlines()
        kept = [line + "\n" for line in lines if line.split("|")[0] not in job_ids]
        (self.folder / "queue").write_text("".join(kept))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    folder = tmp_path / "slurm"
    (folder / "bin").mkdir(parents=True)
    commands = {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "scontrol": SCONTROL}
    for name, text in (commands | {"sacct": SACCT, "srun": "#!/bin/bash\n"}).items():
        path = folder / "bin" / name
        path.write_text(text.format(folder=folder))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (folder / "last").write_text("10")
    for name in ("queue", "accounting"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return FakeSlurm(folder)
