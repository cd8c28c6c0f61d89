"""Train MoCo v3 on a ViT as in a one-file script: no logging, no saving, no settings."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stabkit.config import RunConfig
from stabkit.config.schedule import lr_at, momentum_at
from stabkit.train.data.batches import Batch
from stabkit.train.state import TrainState


class Handwritten:
    """A training whose call is one step. It starts from a copy of the weights of `state`.

    The plain loop uses the defaults of torch and timm. With `tuned`, attention on a CPU is plain
    products, and the optimizer and the momentum update handle all tensors in one call.
    """

    def __init__(
        self, config: RunConfig, state: TrainState, batches: Sequence[Batch], tuned: bool
    ) -> None:
        self.config, self.batches, self.tuned, self.step = config, batches, tuned, 0
        device = batches[0].view1.device
        model, method, size = config.model, config.method, config.data.image_size
        shape = (
            {"embed_dim": model.width, "depth": model.depth, "num_heads": model.heads}
            if model.width
            else {}
        )
        vit = VisionTransformer(
            img_size=size, patch_size=model.patch_size, num_classes=0, **shape
        )  # fmt: skip
        if tuned and device.type == "cpu":
            for block in vit.blocks:
                block.attn.fused_attn = False
        self.online = nn.ModuleDict(
            {
                "backbone": vit,
                "projector": mlp([vit.embed_dim, method.hidden, method.hidden, method.out]),
                "predictor": mlp([method.out, method.hidden, method.out]),
            }
        ).to(device)
        self.online.load_state_dict(state.model.online.state_dict())
        vit.pos_embed.requires_grad_(False)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.target.load_state_dict(state.model.target.state_dict(), strict=False)
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            [p for p in self.online.parameters() if p.requires_grad],
            weight_decay=optim.weight_decay,
            foreach=True if tuned else None,
        )
        bf16 = config.compute.precision == "bf16"
        self.autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    def loss(self, view1: Tensor, view2: Tensor, momentum: float) -> Tensor:
        query1, query2 = self._query(view1), self._query(view2)
        with torch.no_grad():
            self._follow(momentum)
            key1, key2 = self._key(view1), self._key(view2)
        return self._contrast(query1, key2) + self._contrast(query2, key1)

    def __call__(self) -> None:
        config, steps = self.config, self.config.train.steps
        batch = self.batches[self.step % len(self.batches)]
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.step, steps, config.optim, config.train.batch)
        with self.autocast:
            loss = self.loss(batch.view1, batch.view2, momentum_at(self.step, steps, config.method))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def check_same_loss(self, state: TrainState) -> None:
        """Raise ValueError unless both losses are equal. It moves the statistics of batch norm."""
        batch = self.batches[0]
        with torch.no_grad():
            ours = state.model(batch.view1, batch.view2, batch.labels, 1.0, 0).loss.item()
            theirs = self.loss(batch.view1, batch.view2, 1.0).item()
        if abs(ours - theirs) > 1e-4 * abs(ours):
            raise ValueError(f"the hand-written loss is {theirs}, ours {ours}: not the same method")

    def _query(self, view: Tensor) -> Tensor:
        return self.online["predictor"](self.online["projector"](self.online["backbone"](view)))

    def _key(self, view: Tensor) -> Tensor:
        return self.target["projector"](self.target["backbone"](view))

    def _follow(self, momentum: float) -> None:
        slow = [p for part in ("backbone", "projector") for p in self.target[part].parameters()]
        fast = [p for part in ("backbone", "projector") for p in self.online[part].parameters()]
        if self.tuned:
            torch._foreach_lerp_(slow, fast, 1 - momentum)
            return
        for one, other in zip(slow, fast, strict=True):
            one.mul_(momentum).add_(other, alpha=1 - momentum)

    def _contrast(self, query: Tensor, key: Tensor) -> Tensor:
        temperature = self.config.method.temperature
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
        target = torch.arange(len(query), device=query.device)
        return 2 * temperature * F.cross_entropy(logits, target)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out, affine=not last)]
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
