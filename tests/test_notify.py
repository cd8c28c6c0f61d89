"""Alerts reach a real server and a real command, and a bad one holds nothing up."""

import json
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stabkit
from stabkit import notify
from stabkit.cli import main, watch
from stabkit.notify import Notifier, check_target
from stabkit.rundir import RunDir
from stabkit.sweep.status import Row

PATIENCE_S = 120.0
EVIL = "$(touch gone); `touch gone`\n; touch gone # \u202e"


class Server(ThreadingHTTPServer):
    """Remembers what is posted; answers at once, never, or with an error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[dict[str, Any]] = []
        self.status = 200
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def target(self) -> str:
        return f"webhook:http://127.0.0.1:{self.server_address[1]}/secret-token"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.go_on.wait(20)
        self.server.received.append(json.loads(content))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.go_on.set()
    running.shutdown()
    thread.join()
    running.server_close()


def command(script: Path, *words: str) -> str:
    return f"command: {shlex.join([sys.executable, '-S', str(script), *words])}"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Return a script that keeps its input and the variables that it got."""
    file = tmp_path / "keep.py"
    file.write_text(
        "import json, os, sys\n"
        "mine = {k: v for k, v in os.environ.items() if k.startswith('STABKIT_')}\n"
        "with open(sys.argv[1], 'w') as out: json.dump([json.load(sys.stdin), mine], out)\n"
    )
    return file


def test_a_webhook_gets_the_event_as_json(server: Server) -> None:
    said: list[str] = []
    notifier = Notifier(said.append)
    notifier.send(server.target, {"text": EVIL, "step": 7, "facts": {"depth": 0.1}})
    assert notifier.wait(PATIENCE_S)
    assert server.received == [{"text": EVIL, "step": 7, "facts": {"depth": 0.1}}]
    assert said == []


def test_a_command_gets_its_values_by_input_and_variables_and_never_by_a_shell(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    notifier = Notifier(said.append)
    message = {"text": EVIL, "step": 7, "layer": None}
    notifier.send(command(script, "out.json", "$(touch gone);", "`touch gone`"), message)
    assert notifier.wait(PATIENCE_S)
    assert said == []
    given, variables = json.loads((tmp_path / "out.json").read_text())
    assert given == message
    assert variables["STABKIT_STEP"] == "7"
    assert "$(touch gone)" in variables["STABKIT_TEXT"]
    assert "\n" not in variables["STABKIT_TEXT"]
    assert "STABKIT_LAYER" not in variables
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("status", [302, 500])
def test_a_webhook_that_fails_is_said_once_without_its_secret(server: Server, status: int) -> None:
    server.status = status
    said: list[str] = []
    notifier = Notifier(said.append)
    for step in range(3):
        notifier.send(server.target, {"step": step})
    assert notifier.wait(PATIENCE_S)
    assert len(server.received) == 3, "each is tried; a redirect is not followed"
    assert said == [f"the webhook at 127.0.0.1 failed: it answered {status}"]


def test_a_target_that_hangs_holds_up_nobody_and_what_waits_is_bounded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "WEBHOOK_S", 0.3)
    server.go_on.clear()
    said: list[str] = []
    notifier = Notifier(said.append)
    began = time.monotonic()
    sent = 10 * notify.MOST_WAITING
    for step in range(sent):
        notifier.send(server.target, {"step": step})
    assert time.monotonic() - began < sent * notify.WEBHOOK_S / 4, "it waited for the answers"
    assert notifier._queue.qsize() <= notify.MOST_WAITING
    assert not notifier.wait(0.6), "it does not wait for longer"
    while len(said) < 2 and time.monotonic() - began < PATIENCE_S:
        time.sleep(0.01)
    assert sorted(said) == [
        f"more than {notify.MOST_WAITING} alerts wait; the newest are dropped",
        "the webhook at 127.0.0.1 failed: it took too long",
    ]


def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "COMMAND_S", 0.5)
    said: list[str] = []
    notifier = Notifier(said.append)
    child = "import time; time.sleep(1.5); open('gone', 'w')"
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', {child!r}], cwd={str(tmp_path)!r})\n"
        "time.sleep(60)\n"
    )
    notifier.send(command(slow), {"step": 1})
    notifier.send("command: no-such-program-here", {"step": 1})
    assert notifier.wait(PATIENCE_S)
    assert len(said) == 2
    assert said[0].endswith("failed: it took too long")
    assert said[1].startswith("the command no-such-program-here failed:")
    time.sleep(1.5)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "target", ["webhook:file:///etc/passwd", "webhook:", "command: ", "command: 'open", "mail:me"]
)
def test_a_target_that_cannot_be_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"webhook|command|quotation"):
        check_target(target)


def trained(folder: Path, target: str | None) -> list[torch.Tensor]:
    """Train six steps, the fourth with a loss that is not finite; return the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with stabkit.Monitor(model, optimizer, folder, flush_every=1) as monitor:
        if target:
            monitor.on("nonfinite", target)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().sum()
            loss.backward()
            optimizer.step()
            monitor.log(loss=loss.detach() * (float("nan") if step == 3 else 1.0))
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_monitor_alerts_and_trains_as_without(server: Server, tmp_path: Path) -> None:
    weights = trained(tmp_path / "with", server.target)
    assert all(map(torch.equal, weights, trained(tmp_path / "without", None)))
    (message,) = server.received
    assert (message["kind"], message["state"]) == ("nonfinite", "confirmed")
    assert message["run"] == str(tmp_path / "with")
    assert message["text"].startswith("stabkit: with: loss not finite at step 3")


def test_a_dead_webhook_is_told_in_the_log_of_the_run(tmp_path: Path) -> None:
    trained(tmp_path / "run", "webhook:http://127.0.0.1:9/token")
    events = RunDir(tmp_path / "run").read_entries()
    (failed,) = [event for event in events if event["kind"] == "alert_failed"]
    assert failed["reason"].startswith("the webhook at 127.0.0.1 failed")
    assert "token" not in json.dumps(events)


def test_the_monitor_refuses_a_wrong_target(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stabkit.Monitor(model, optimizer, tmp_path / "run") as monitor:
        with pytest.raises(ValueError, match="begins with http"):
            monitor.on("dip", "webhook:ftp://example.org")
        with pytest.raises(ValueError, match="webhook:URL or command: WORDS"):
            monitor.on("dip", "mail")


def test_watch_sends_what_is_new_until_no_run_is_under_way(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").mkdir()
    rows = iter(
        [
            [Row("a", "unstable", 10, 100, events={"spike": 1}, path="a")],
            [Row("a", "unstable", 50, 100, events={"spike": 1, "dip": 1}, path="a")],
            [Row("a", "unstable", 60, 100, events={"spike": 1, "dip": 1}, path="a")],
            [Row("a", "failed", 61, 100, events={"dip": 1}, reason=EVIL, path="a")],
        ]
    )
    monkeypatch.setattr(watch, "status_rows", lambda folder: next(rows))
    words = ["watch", str(tmp_path / "runs"), "--alert", server.target, "--every", "0.1"]
    assert main(words) == 0
    assert [(m["kind"], m["step"]) for m in server.received] == [("dip", 50), ("failed", 61)]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "stabkit: a: 1 dip so far (step 50)"
    assert second.startswith("stabkit: a: failed: $(touch gone)")


@pytest.mark.parametrize(("begin", "end", "told"), [(0, 32, ["dip", "done"]), (32, 36, ["done"])])
def test_watch_tells_once_of_a_dip_in_a_loop_that_asked_for_nothing(
    begin: int, end: int, told: list[str],
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder, labels = tmp_path / "runs" / "mine", np.zeros(500, dtype=int)

    def train(monitor: stabkit.Monitor, steps: range) -> None:
        for step in steps:
            right = 0.3 if 20 <= step < 25 else 0.6
            monitor.log_eval("val_acc", labels + (np.arange(500) >= 500 * right), labels)
            optimizer.zero_grad()
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()

    if begin:
        with stabkit.Monitor(model, optimizer, folder) as monitor:
            train(monitor, range(begin))
    rows_of = watch.status_rows
    monitor = stabkit.Monitor(model, optimizer, folder, first_step=begin)
    train(monitor, range(begin, begin + 2))
    monitor.flush()  # a folder without rows is no run
    left = [range(begin + 2, end)]

    def looked(runs: Path) -> list[Row]:
        rows = rows_of(runs)
        if left:  # after the first look
            train(monitor, left.pop())
            monitor.close()
        return rows

    monkeypatch.setattr(watch, "status_rows", looked)
    words = ["watch", str(tmp_path / "runs"), "--alert", server.target, "--every", "0.1"]
    assert main(words) == 0
    assert [m["kind"] for m in server.received] == told
    status = RunDir(folder).read_status()
    assert status is not None
    assert status.events == {"dip": 1}


def test_watch_says_so_if_no_run_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(watch, "status_rows", lambda folder: [Row("a", "done", 9, 9, path="a")])
    assert main(["watch", str(tmp_path / "runs"), "--alert", "command: cat"]) == 0
    assert "runs: no run is under way" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alert", "webhook:nowhere"], "--alert: a webhook is an address"),
        (["--on", "snow"], "--on snow: unknown kind of news; there are: dip"),
        (["--every", "0"], "--every 0: seconds"),
    ],
)
def test_watch_refuses_wrong_requests(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    assert main(["watch", str(tmp_path / "runs"), *words]) == 2
    assert said in capsys.readouterr().err
