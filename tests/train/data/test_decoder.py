"""Compare the process that decodes with Pillow; kill it, its parent, and a request on its way."""

import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stabkit.cli import main
from stabkit.train.data import batches, decoder, decoding_process
from stabkit.train.data.decoding_process import ByteRange
from stabkit.train.data.errors import DecoderError
from stabkit.train.data.image_set import ImageSet
from stabkit.train.data.load import load_data
from tests.conftest import SMALL
from tests.train.data.test_image_cache import assert_same_images, make_source

pytestmark = pytest.mark.processes


@pytest.fixture
def fresh() -> Iterator[None]:
    """Start and end the test without a process that decodes."""
    decoder._end()
    yield
    decoder._end()


def jpegs(count: int, size: tuple[int, int] = (64, 48)) -> list[ByteRange | bytes]:
    generator = np.random.default_rng(count)
    made: list[ByteRange | bytes] = []
    for i in range(count):
        noise = generator.integers(0, 256, (size[0] + i % 3, size[1], 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", quality=90, subsampling=i % 3)
        made.append(buffer.getvalue())
    return made


def by_pillow(image: ByteRange | bytes) -> torch.Tensor:
    assert isinstance(image, bytes)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(image)))).permute(2, 0, 1)


def pixels(images: list[ByteRange | bytes]) -> list[torch.Tensor]:
    results = decoder.decoded(images)
    assert all(isinstance(result, torch.Tensor) for result in results)
    return results  # type: ignore[return-value]


def pid() -> int:
    assert decoder._running
    return decoder._running.popen.pid


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_order_and_bits_are_those_of_pillow_whatever_the_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "usable_cores", lambda: threads)
    images = jpegs(40)
    for _ in range(2):  # in new memory, then in memory that was used before
        assert all(map(torch.equal, pixels(images), map(by_pillow, images)))
    assert [size[:2] for size in decoder.decoded_sizes(images[:2])] == [(64, 48), (65, 48)]


def test_what_is_held_stays_while_more_is_decoded() -> None:
    images = jpegs(8)
    held = [pixels(images[i:]) for i in range(5)]
    held[1][0].zero_()  # a caller may write to what it has
    for i in (0, 2, 3, 4):
        assert all(map(torch.equal, held[i], map(by_pillow, images[i:])))


def test_memory_is_used_again_and_given_back() -> None:
    images = jpegs(8)
    held = [pixels(images) for _ in range(6)]
    many = len(os.listdir(f"/proc/{pid()}/fd"))
    del held
    for _ in range(20):
        pixels(images)
    assert len(os.listdir(f"/proc/{pid()}/fd")) <= many - 3
    assert not any("stabkit" in name for name in os.listdir("/dev/shm"))


def test_a_bad_image_is_told_from_its_neighbors() -> None:
    good = jpegs(1)[0]
    first, second, third, fourth = decoder.decoded([good, b"broken", ByteRange("/no/where"), good])
    assert isinstance(first, torch.Tensor)
    assert isinstance(fourth, torch.Tensor)
    assert str(second).startswith("not an image that Pillow can decode (cannot identify image file")
    assert str(third).startswith("cannot be read ([Errno 2] No such file")
    assert [type(one) for one in decoder.decoded([b""])] == [str]  # no pixels, no memory
    assert decoder.decoded([]) == []


@pytest.mark.usefixtures("fresh")
def test_a_killed_process_is_noticed_before_and_during_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = r"pid \d+\) was killed by SIGKILL; the kernel kills .* goes on from its last checkpoint"
    images = jpegs(2)
    pixels(images)
    os.kill(pid(), signal.SIGKILL)
    with pytest.raises(DecoderError, match=said):
        decoder.decoded(images)
    pixels(images)  # a new process

    received = decoder._Process.receive

    def kill_first(process: Any) -> Any:
        process.popen.kill()
        return received(process)

    monkeypatch.setattr(decoder._Process, "receive", kill_first)
    with pytest.raises(DecoderError, match=said):
        decoder.decoded(jpegs(200, (400, 300)))


@pytest.mark.usefixtures("fresh")
def test_an_interrupted_request_does_not_answer_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = jpegs(1, (20, 20)), jpegs(1, (30, 30))

    def interrupted(process: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder._Process, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.decoded(first)
    assert torch.equal(pixels(second)[0], by_pillow(second[0]))


def test_signals_to_the_job_are_left_to_the_training() -> None:
    images = jpegs(2)
    pixels(images)
    before = pid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        os.kill(before, number)
    pixels(images)
    assert pid() == before


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("number", decoding_process.IGNORED)
def test_a_signal_to_the_job_while_it_starts_does_not_end_it(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def signaled(*words: Any, **given: Any) -> Any:
        process = start(*words, **given)
        process.send_signal(number)  # before Python has begun
        return process

    monkeypatch.setattr(subprocess, "Popen", signaled)
    images = jpegs(2)
    assert all(map(torch.equal, pixels(images), map(by_pillow, images)))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.usefixtures("fresh")
def test_too_little_memory_is_no_fault_of_an_image() -> None:
    small = jpegs(1)
    pixels(small)
    before = pid()
    used = re.findall(r"VmSize:\s*(\d+) kB", Path(f"/proc/{before}/status").read_text())
    limit = (int(used[0]) + 40_000) * 1024
    resource.prlimit(before, resource.RLIMIT_AS, (limit, limit))
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(buffer, "PNG", compress_level=1)
    with pytest.raises(DecoderError, match="no memory for the pixels of a batch"):
        decoder.decoded([buffer.getvalue()])
    pixels(small)
    assert pid() != before, "threads of the failed request may still write"


@pytest.mark.usefixtures("fresh")
def test_paths_of_modules_that_are_no_text_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/tmp")])
    pixels(jpegs(1))


def test_a_killed_training_leaves_no_process_and_no_memory(tmp_path: Path) -> None:
    images = load_data(make_source(tmp_path))[0]
    many = np.arange(10).repeat(200)
    before = set(os.listdir("/dev/shm"))
    receiver, sender = os.pipe()
    training = os.fork()
    if training == 0:
        held = [images.load(np.arange(3))]
        helper = os.fork()  # it holds the connection open
        if helper == 0:
            time.sleep(60)
            os._exit(0)
        os.write(sender, b"%d %d" % (pid(), helper))
        while True:
            held.append(images.load(many))
    decoding, helper = map(int, os.read(receiver, 40).split())
    time.sleep(0.3)
    os.kill(training, signal.SIGKILL)  # in the middle of a request
    os.waitpid(training, 0)
    until(lambda: is_gone(decoding))
    os.kill(helper, signal.SIGKILL)
    assert set(os.listdir("/dev/shm")) <= before


def is_gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_forked_process_decodes_with_its_own(tmp_path: Path) -> None:
    images = load_data(make_source(tmp_path))[0]
    images.load(np.arange(3))
    before = pid()
    pids = []
    for _ in range(2):
        receiver, sender = os.pipe()
        child = os.fork()
        if child == 0:
            images.load(np.arange(3))
            os.write(sender, b"%d" % pid())
            os._exit(0)
        pids.append(int(os.read(receiver, 20)))
        assert os.waitpid(child, 0)[1] == 0
    assert len({before, *pids}) == 3
    until(lambda: all(map(is_gone, pids)))
    images.load(np.arange(3))
    assert pid() == before


def test_a_run_whose_decoding_was_killed_fails_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_source(tmp_path / "set")
    words = ["data.name=imagefolder", f"data.path={tmp_path / 'set'}", "train.batch=4"]
    command = ["train", "tiny", "--run-dir", str(tmp_path / "run"), *SMALL, *words]
    read = batches.read_batch

    def killed_at_3(config: Any, images: ImageSet, step: int) -> Any:
        if step == 3:
            os.kill(pid(), signal.SIGKILL)
        return read(config, images, step)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_batch", killed_at_3)
        assert main(command) == 1
    assert "was killed by SIGKILL" in (tmp_path / "run" / "status.json").read_text()
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(command) == 0


def test_it_imports_no_torch() -> None:
    code = "import sys, stabkit.train.data.decoding_process; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_cache_is_built_by_it(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    plain, cached = load_data(source)[0], load_data(source, str(tmp_path / "cache"))[0]
    assert_same_images(cached, plain)
