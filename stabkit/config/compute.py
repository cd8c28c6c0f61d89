"""Settings of the numbers and kernels that compute a step."""

from typing import Literal

from stabkit.config.section import Section


class ComputeConfig(Section):
    """How a step is computed.

    Each setting changes at least the last bits of a run, and so its id. None makes a resumed run
    differ from an unbroken one.

    - `precision` of matrix products: `fp32`, `tf32` (CUDA only: float32 with 10 bits of mantissa in
      products and convolutions), `bf16` or `fp16` (autocast; weights, gradients and optimizer stay
      float32, and fp16 scales the loss).
    - `compile`: compile the backbones with torch.compile, once for each shape.
    - `channels_last`: the memory layout of the convolutions' weights and inputs.
    - `fused_optimizer`: update all parameters in one kernel (adamw, sgd).
    """

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    fused_optimizer: bool = False
