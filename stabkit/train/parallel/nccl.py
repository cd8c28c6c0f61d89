"""NCCL's settings that decide the order of sums, fixed so that the same step gives the same bits.

NCCL chooses an algorithm and a protocol for each call by the size of the message, the topology and
its own version, and each sums in another order. Sums in the switch (NVLS) may differ from one call
to the next (NVIDIA/nccl#1497), and torch's deterministic mode turns off these alone.
"""

import os

PINNED = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple", "NCCL_NVLS_ENABLE": "0"}
# Others that change how a message is cut, or in which order the processes form a ring.
CHOOSERS = (
    *("NCCL_BUFFSIZE", "NCCL_NTHREADS", "NCCL_COLLNET_ENABLE", "NCCL_CROSS_NIC"),
    *("NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS"),
    *("NCCL_GRAPH_FILE", "NCCL_TOPO_FILE", "NCCL_TUNER_PLUGIN", "NCCL_TUNER_CONFIG_FILE"),
    *("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE", "NCCL_NET"),
)


def pin_nccl() -> None:
    """Set what the user has not set. It has no effect on a process group that exists."""
    for name, value in PINNED.items():
        os.environ.setdefault(name, value)


def nccl_settings() -> str:
    """Return the settings in force, ours and the user's, as `meta.json` holds them."""
    names = (*PINNED, *CHOOSERS)
    return ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
