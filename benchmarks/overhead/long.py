"""Check that a long training under the Monitor does not grow in memory; time the writer.

If the rows of 80,000 steps were kept, they would be 80,000 tensors of some 400 bytes: 30 MiB.
"""

import resource
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import torch
from torch import nn

import stabkit
from stabkit.store.schema import SIGNALS
from stabkit.store.writer import Writer

RSS_LIMIT = 8.0 * 2**20  # bytes, over the last four fifths of the steps
TRACED_LIMIT = 2.0**18  # bytes, over the same part of a fifth as many steps
PARTS = 5


def long_run(steps: int, device: torch.device) -> bool:
    """Print how memory grew. Return whether it stayed within the limits."""
    resident = memory(steps, device, traced=False)
    traced = memory(steps // PARTS, device, traced=True)
    print(writer_rate())
    met = True
    for what, found, limit in (
        (f"resident, {steps} steps", resident, RSS_LIMIT),
        (f"Python's, {steps // PARTS} steps", traced, TRACED_LIMIT),
    ):
        grown = found[-1] - found[0]
        met &= grown <= limit
        mib = ", ".join(f"{value / 2**20:.1f}" for value in found)
        said = f"{what}: {mib} MiB after each fifth; grown by {grown / 2**20:.2f} MiB"
        print(f"{said}, at most {limit / 2**20}: {'met' if grown <= limit else 'NOT met'}")
    return met


def memory(steps: int, device: torch.device, traced: bool) -> list[int]:
    """Return the bytes after each fifth of the steps: resident and on the device, or Python's."""
    layers = [nn.Linear(8, 8) for _ in range(4)]
    model = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    batch = torch.randn(4, 8, device=device)
    found: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        monitor = stabkit.Monitor(model, optimizer, folder)
        began = time.perf_counter()
        if traced:
            tracemalloc.start()
        for step in range(1, steps + 1):
            loss = model(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss)
            if step % (steps // PARTS) == 0:
                found.append(tracemalloc.get_traced_memory()[0] if traced else held(device))
        tracemalloc.stop()
        seconds = time.perf_counter() - began
        monitor.close()
        norms = stabkit.open_run(folder).signals()["grad_norm"].count()
        if norms != steps * len(layers):
            raise RuntimeError(f"{norms} gradient norms of {steps} steps x {len(layers)} layers")
        if not traced:
            size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
            print(f"{steps} steps in {seconds:.0f} s, {size / steps:.0f} bytes a step on disk")
    return found


def writer_rate(flushes: int = 100, steps: int = 50, layers: int = 20, signals: int = 8) -> str:
    """Say how many rows a second the store's writer makes durable, one part file an interval."""
    rng = np.random.default_rng(0)
    names = [*SIGNALS, *(f"signal_{i}" for i in range(signals - len(SIGNALS)))]
    drawn = rng.lognormal(size=(len(names), steps, layers)).astype(np.float32)
    values = dict(zip(names, drawn, strict=True))
    missing = dict.fromkeys(names, np.zeros((steps, layers), dtype=bool))
    of_layers = [f"blocks.{i}" for i in range(layers)]
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder), "benchmark")
        began, used = time.perf_counter(), time.process_time()
        for flush in range(flushes):
            writer.add_layers(np.arange(steps) + flush * steps, of_layers, values, missing)
            writer.flush()
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
    rows = flushes * steps * layers
    rate = f"{rows / seconds:,.0f} rows of {signals} signals a second"
    return f"the writer: {rate}, synced to disk; {rows / cpu:,.0f} a second of CPU time"


def held(device: torch.device) -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return pages * resource.getpagesize() + allocated
