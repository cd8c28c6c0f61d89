"""Build small trainings: a real forward, backward and AdamW step each."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stabkit.config import RunConfig, read_base, validate, with_settings
from stabkit.config.schedule import lr_at, momentum_at
from stabkit.monitor.probe.probe import Probe
from stabkit.train.data.batches import make_batch, read_batch
from stabkit.train.data.load import load_data
from stabkit.train.methods.moco import info_nce
from stabkit.train.state import build_state

BATCHES = 4  # made beforehand and used in turn, so that the step does not include making them

PROBED = 16  # samples


@dataclass
class Training:
    """A training step in parts: `model` is monitored, and `loss(step)` runs it forward.

    `sample_losses` is the same forward with one loss for each sample, if the training has such
    losses. `probe` is what signals beyond the basic level look at.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    batch: int
    loss: Callable[[int], Tensor]
    probe: Probe
    sample_losses: Callable[[int], Tensor] | None = None
    step: int = 0


def tiny(device: torch.device, batch: int | None) -> Training:
    """Build the `tiny` preset: MoCo v3, ViT of width 64, depth 6, 4 heads, patch 8 of 32 pixels."""
    settings = {"data.num_train": 512, "data.num_heldout": 64, "train.batch": batch or 64}
    config = validate(RunConfig, with_settings(read_base("tiny"), settings), "benchmark")
    images, _ = load_data(config.data)
    state = build_state(config, len(images), device)
    batches = [
        make_batch(config, read_batch(config, images, step), device) for step in range(BATCHES)
    ]

    def loss(step: int) -> Tensor:
        for group in state.optimizer.param_groups:
            group["lr"] = lr_at(step, config.train.steps, config.optim, config.train.batch)
        made = batches[step % BATCHES]
        momentum = momentum_at(step, config.train.steps, config.method)
        out: Tensor = state.model(made.view1, made.view2, made.labels, momentum, step).loss
        return out

    view1, view2 = batches[0].view1[:PROBED], batches[0].view2[:PROBED]

    def probe_loss(online: nn.Module) -> Tensor:
        with torch.no_grad():
            key1, key2 = state.model.target(view1), state.model.target(view2)
        temperature = config.method.temperature
        one, two = online(view1)[2], online(view2)[2]
        return info_nce(one, key2, temperature) + info_nce(two, key1, temperature)

    probe = Probe(
        view1, view2, lambda either, view: either.backbone(view), probe_loss, state.model.target
    )
    model, optimizer = state.model.online, state.optimizer
    return Training("tiny", model, optimizer, device, config.train.batch, loss, probe)


def vits(device: torch.device, batch: int | None) -> Training:
    """Build timm's ViT-S/16 at 224 pixels, supervised; on a GPU 256 images a step in bfloat16."""
    model = timm.create_model("vit_small_patch16_224", num_classes=1000)
    return _supervised("vits", model, device, batch or (256 if device.type == "cuda" else 8), 224)


def vitb(device: torch.device, batch: int | None) -> Training:
    """Build the same as `vits` with timm's ViT-B/16."""
    model = timm.create_model("vit_base_patch16_224", num_classes=1000)
    return _supervised("vitb", model, device, batch or (256 if device.type == "cuda" else 8), 224)


def vit(device: torch.device, batch: int | None) -> Training:
    """Build timm's ViT-Ti (width 192, depth 12) on 64 patches of 32 pixels: 5.4 M parameters."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=100)
    return _supervised("vit", model, device, batch or 16, 32)


def gpt(device: torch.device, batch: int | None) -> Training:
    """Build a GPT (width 192, depth 6, 6 heads) on 64 bytes a sample: 2.7 M parameters."""
    model = GPT().to(device)
    batch = batch or 8
    text = [torch.randint(0, 256, (batch, GPT.CONTEXT + 1), device=device) for _ in range(BATCHES)]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, betas=(0.9, 0.95), weight_decay=0.1)

    def sample_losses(step: int) -> Tensor:
        return next_byte_losses(model, text[step % BATCHES])

    def probe_loss(model: nn.Module) -> Tensor:
        return next_byte_losses(model, text[0][:PROBED]).mean()

    probe = Probe(
        text[0][:PROBED, 1:], text[1][:PROBED, 1:], lambda model, x: model(x).mean(1), probe_loss
    )

    def loss(step: int) -> Tensor:
        return sample_losses(step).mean()

    return Training("gpt", model, optimizer, device, batch, loss, probe, sample_losses)


class GPT(nn.Module):
    """A decoder of torch's own layers, normalized before attention and MLP."""

    CONTEXT, WIDTH, DEPTH, HEADS = 64, 192, 6, 6

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, self.WIDTH)
        self.positions = nn.Embedding(self.CONTEXT, self.WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.WIDTH, self.HEADS, 4 * self.WIDTH, 0.0, "gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(self.DEPTH)
        )  # fmt: skip
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, 256, bias=False)
        self.head.weight = self.tokens.weight
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, x_BT: Tensor) -> Tensor:
        """Return logits, [B, T, 256]."""
        length = x_BT.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, x_BT.device)
        h_BTC = self.tokens(x_BT) + self.positions.weight[:length]
        for block in self.blocks:
            h_BTC = block(h_BTC, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(h_BTC))
        return logits


def next_byte_losses(model: nn.Module, text: Tensor) -> Tensor:
    """Return one loss for each sample, [B]."""
    logits = model(text[:, :-1])
    losses = F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none")
    return losses.mean(1)


def mlp(device: torch.device, batch: int | None) -> Training:
    """Build three linear layers, which every peer can handle and whose step costs very little."""
    layers = [nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(nn.Flatten(), *layers)
    return _supervised("mlp", model, device, batch or 64, 32)


def _supervised(
    name: str, model: nn.Module, device: torch.device, batch: int, size: int
) -> Training:
    model.to(device)
    images = [torch.randn(batch, 3, size, size, device=device) for _ in range(BATCHES)]
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05, foreach=True)
    half = device.type == "cuda"

    def sample_losses(step: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return F.cross_entropy(model(images[step % BATCHES]), labels, reduction="none")

    def loss(step: int) -> Tensor:
        return sample_losses(step).mean()

    def probe_loss(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(images[0][:PROBED]), labels[:PROBED])

    probe = Probe(images[0][:PROBED], images[1][:PROBED], loss=probe_loss)
    return Training(name, model, optimizer, device, batch, loss, probe, sample_losses)


TRAININGS = {"tiny": tiny, "vit": vit, "gpt": gpt, "vits": vits, "vitb": vitb, "mlp": mlp}


def build(name: str, device: torch.device, batch: int | None) -> Training:
    """Build a training; weights, batches and therefore losses are the same each time."""
    torch.manual_seed(0)
    return TRAININGS[name](device, batch)
