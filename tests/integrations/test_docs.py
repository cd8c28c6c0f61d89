"""Every Python block of docs/monitor.md runs as it stands, and records something."""

import re
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import stabkit

PAGE = (Path(__file__).parents[2] / "docs" / "monitor.md").read_text(encoding="utf-8")
BLOCKS = [
    (found.start(), found[1]) for found in re.finditer(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
]
NEEDS = ("lightning", "transformers", "lightly")


def title(at: int) -> str:
    """Return the heading of a block, and its number where there are several."""
    head = re.findall(r"^#+ (.*)$", PAGE[:at], re.M)[-1]
    return f"{head} @{PAGE[:at].count(chr(10)) + 1}"


def needs_framework(code: str) -> bool:
    """Return whether a block trains with Lightning or Hugging Face."""
    return "integrations" in code


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2,
        num_classes=4,
    )  # fmt: skip
    return model


def small_set() -> torch.utils.data.TensorDataset:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(32, 3, 16, 16, generator=g)
    return torch.utils.data.TensorDataset(images, torch.randint(4, (32,), generator=g))


def small_loader() -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(small_set(), batch_size=8)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def predict_heldout(model: nn.Module) -> tuple[Tensor, Tensor]:
    images, labels = small_set()[:8]
    with torch.no_grad():
        return model(images).argmax(1), labels


def small_trainer(_: nn.Module) -> Any:
    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_vit()

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": loss_of(self.model, images, labels)}

    rows = [{"images": image, "labels": label} for image, label in small_set()]
    args = TrainingArguments(
        "hf", report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        num_train_epochs=1,
    )  # fmt: skip
    return Trainer(Wrapped(), args, train_dataset=rows)  # type: ignore[arg-type]


# what the page says is the reader's; of those a block gets the ones that it names
GIVEN: dict[str, Callable[[nn.Module], Any]] = {
    "model": lambda model: model,
    "optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    "loader": lambda _: small_loader(),
    "loss_of": lambda _: loss_of,
    "predict_heldout": lambda _: predict_heldout,
    "trainer": small_trainer,
}


def test_the_page_says_which_names_are_the_readers() -> None:
    said = PAGE[PAGE.index("From here on") : PAGE.index("Go to:")]
    assert set(re.findall(r"`(\w+)[`(]", said)) == {"torch", "stabkit", *GIVEN}


def test_links_within_the_page_lead_somewhere() -> None:
    heads = re.findall(r"^## (.*)$", PAGE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) <= anchors
    for path in re.findall(r"\]\(([\w./]+\.md)\)", PAGE):
        assert (Path(__file__).parents[2] / "docs" / path).exists(), path


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated")
@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize(
    ("at", "code"),
    [
        pytest.param(*b, id=title(b[0]), marks=[pytest.mark.frameworks] * needs_framework(b[1]))
        for b in BLOCKS
    ],
)
def test_block(at: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS:
        asked = f"from {package}" in code or (package == "transformers" and "huggingface" in code)
        if asked and find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install {package}")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:  # what torchrun sets
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if "init_process_group" in code:
        for name, value in {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "0", "WORLD_SIZE": "1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
    compiled = compile(code, f"docs/monitor.md:{PAGE[:at].count(chr(10)) + 2}", "exec")
    model = small_vit()
    names = {name: make(model) for name, make in GIVEN.items() if re.search(rf"\b{name}\b", code)}
    try:
        exec(compiled, {"__name__": "__main__", "torch": torch, "stabkit": stabkit, **names})
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if "import" in code or "loader" in code:
        run = stabkit.open_run(next((tmp_path / "runs").iterdir()))
        assert len(run.signals()), "nothing was recorded"
        kinds = set(run.log()["kind"]) if len(run.log()) else set()
        assert kinds.isdisjoint({"signal_failed", "monitor_failed", "write_failed"})
