"""In which numbers and by which kernels a step is computed."""

from typing import Literal

from stabkit.config.section import Section


class ComputeConfig(Section):
    """Each of these changes a run's last bits at least, and so its id; none makes a resumed run
    differ from an unbroken one.

    `precision` of products: `fp32`, `tf32` (CUDA: float32 with 10 bits of mantissa inside products
    and convolutions), `bf16` and `fp16` (autocast; weights, gradients and optimizer stay float32,
    fp16 with a scaled loss). `compile` compiles the backbones (torch.compile, each shape for
    itself). `channels_last` is a layout of convolutions' weights and inputs. `fused_optimizer`
    updates in one kernel (adamw, sgd).
    """

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    fused_optimizer: bool = False
