"""A small fixed batch, and a look at the model with it that leaves the training unchanged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stabkit.monitor.probe.attention_logits import widened
from stabkit.monitor.probe.forward import ForwardRecord, record_forward
from stabkit.monitor.probe.teacher import Match, match, taught
from stabkit.monitor.probe.undisturbed import undisturbed, unwrap_model

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """What probe signals look at. Everything is on the model's device.

    - `view1`: a batch of the model's input, [B, ...]; a tuple or a dict holds several arguments.
      8 to 64 samples do.
    - `view2`: the same samples with another augmentation, for `alignment`.
    - `embed`: features [B, D] of a model and a view; the model's output when it is not given.
      Needed where the forward also trains something, such as a momentum encoder.
    - `loss`: a scalar loss of a model on a batch of its own, always the same; for curvature and
      gradients at outputs.
    - `target`: the momentum encoder; what `Monitor(teacher=...)` gives. Its parameters have the
      names of the model's, or of a part of the model. Its features are those of `embed` with the
      target in the place of that part.
    """

    view1: Any
    view2: Any = None
    embed: Callable[[nn.Module, Any], Tensor] | None = None
    loss: Callable[[nn.Module], Tensor] | None = None
    target: nn.Module | None = None


class ProbePass:
    """One look at the model; what several signals need is computed once, when first asked for.

    - `model`: eager and unwrapped (no DDP, no compiled wrapper), in evaluation mode;
    - `probe`: the user's;
    - `layer_of`: the layer of a parameter's name in `model`;
    - `optimizers`: those of the Monitor;
    - `kept`: for what one signal computes and another needs.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        layer_of: Callable[[str], str],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.model = model
        self.probe = probe
        self.layer_of = layer_of
        self.optimizers = optimizers
        self.kept: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Return `compute()`, or what it returned under this name before."""
        if name not in self.kept:
            self.kept[name] = compute()
        value: T = self.kept[name]
        return value

    def forward(self, model: nn.Module, view: Any) -> Any:
        """Return what `embed` makes of a view, or else the model."""
        if self.probe.embed is not None:
            return self.probe.embed(model, view)
        if isinstance(view, Mapping):
            return model(**view)
        return model(*view) if isinstance(view, tuple | list) else model(view)

    @property
    def watched(self) -> ForwardRecord:
        """The forward of `view1`: outputs and attention of every layer."""
        run = lambda: self.forward(self.model, self._view("view1"))  # noqa: E731
        return self.once("watched", lambda: record_forward(self.model, run, self.layer_of))

    @property
    def embedding1(self) -> Tensor:
        """[B, D] of `view1`, without gradients; as all embeddings at least float32.

        Raises ValueError when the features are not [B, D] of at least two samples.
        """
        return self.once("embedding1", self._embedding1)

    @property
    def embedding2(self) -> Tensor:
        """[B, D] of `view2`."""
        view = self._view("view2")
        return self.once("embedding2", lambda: self._features(self.model, view))

    @property
    def target(self) -> nn.Module:
        """The momentum encoder without its wrappers; in whatever mode it is."""
        if self.probe.target is None:
            raise ValueError("Probe: target is not given, which this signal needs")
        return unwrap_model(self.probe.target)

    @property
    def match(self) -> Match:
        """Which part of the model the momentum encoder averages."""
        return self.once("match", lambda: match(self.model, self.target))

    @property
    def target_embedding(self) -> Tensor:
        """[B, D] of `view1` by the momentum encoder."""
        return self.once("target_embedding", self._target_embedding)

    def _embedding1(self) -> Tensor:
        if "watched" in self.kept:  # the same forward has been made
            return _checked(self.watched.result)
        return self._features(self.model, self._view("view1"))

    def _target_embedding(self) -> Tensor:
        found = self.match
        with undisturbed(self.target), taught(self.model, found) as model:
            return self._features(model, self._view("view1"))

    def _features(self, model: nn.Module, view: Any) -> Tensor:
        with torch.no_grad():
            return _checked(self.forward(model, view))

    def _view(self, name: str) -> Any:
        view = getattr(self.probe, name)
        if view is None:
            raise ValueError(f"Probe: {name} is not given, which this signal needs")
        return view


def _checked(features: Any) -> Tensor:
    is_tensor = isinstance(features, Tensor)
    if not is_tensor or features.dim() != 2 or len(features) < 2:
        got = f"shape {tuple(features.shape)}" if is_tensor else f"a {type(features).__name__}"
        raise ValueError(
            f"Probe: features of a view have {got}; needed is [B, D] with at least two samples. "
            "Give Probe(embed=...) a function of model and view that returns it, as "
            "`lambda model, view: model(view).mean(dim=1)` for [B, tokens, D]"
        )
    return widened(features)


@contextmanager
def looking(model: nn.Module) -> Iterator[nn.Module]:
    """Give `model` as a probe may run it: eager, unwrapped, in evaluation mode, without autocast.

    Afterwards modes, buffers and the random generators (Python's, NumPy's, torch's of CPU and of
    the model's CUDA devices) are as they were, also after an error; within, draws are the same at
    every look. Raises RuntimeError when a parameter changed.
    """
    bare = unwrap_model(model)
    with undisturbed(bare):
        yield bare
