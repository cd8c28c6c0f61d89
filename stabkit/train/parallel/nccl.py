"""NCCL's settings that decide the order of sums, fixed so that the same step gives the same bits.

NCCL chooses an algorithm and a protocol for each call by the size of the message, the topology and
its own version, and each sums in another order. Sums in the switch (NVLS) may differ from one call
to the next (NVIDIA/nccl#1497), and torch's deterministic mode turns off these alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

PINNED = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple", "NCCL_NVLS_ENABLE": "0"}
# Others that change how a message is cut, or in which order the processes form a ring.
CHOOSERS = (
    *("NCCL_BUFFSIZE", "NCCL_NTHREADS", "NCCL_COLLNET_ENABLE", "NCCL_CROSS_NIC"),
    *("NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS"),
    *("NCCL_GRAPH_FILE", "NCCL_TOPO_FILE", "NCCL_TUNER_PLUGIN", "NCCL_TUNER_CONFIG_FILE"),
    *("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE", "NCCL_NET"),
    *("NCCL_MIN_NRINGS", "NCCL_MAX_NRINGS", "NCCL_CTA_POLICY", "NCCL_NCHANNELS_PER_NET_PEER"),
    *("NCCL_IB_HCA", "NCCL_SOCKET_IFNAME", "NCCL_NET_PLUGIN", "NCCL_NET_GDR_LEVEL"),
    *("NCCL_PXN_DISABLE", "NCCL_MNNVL_ENABLE"),
)
SITE_FILE = Path("/etc/nccl.conf")


def pin_nccl() -> None:
    """Set what the user has not set. It has no effect on a process group that exists."""
    for name, value in PINNED.items():
        os.environ.setdefault(name, value)


def nccl_settings() -> str:
    """Return the settings in force, ours and the user's, as `meta.json` holds them.

    NCCL takes what the environment does not set from its files.
    """
    found = dict(_in_files()) | os.environ
    return ", ".join(f"{name}={found[name]}" for name in (*PINNED, *CHOOSERS) if name in found)


def _in_files() -> Iterator[tuple[str, str]]:
    """Yield the settings in NCCL's files; a later one wins."""
    own = os.environ.get("NCCL_CONF_FILE") or os.path.expanduser("~/.nccl.conf")
    for file in (SITE_FILE, Path(own)):
        lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
        for line in lines:
            name, sep, value = line.partition("=")
            if sep and not line.startswith("#"):
                yield name, value
