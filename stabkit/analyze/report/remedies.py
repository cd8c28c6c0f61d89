"""List what to try against instability: each remedy as data, with evidence for and against it."""

from stabkit.analyze.report.remedy import Evidence, Remedy

REMEDIES = (
    Remedy(
        "Freeze the patch projection",
        "Leave the random first layer untrained: requires_grad_(False), never zeroed gradients, "
        "since weight decay would then shrink the layer to nothing.",
        {"model.freeze_patch_embed": True},
        "model.{patch}.requires_grad_(False)  # before the optimizer is made",
        {"patch_first": 3, "dips": 2, "nonfinite": 1},
        (
            Evidence(
                "MoCo v3, ViT-B, 100 epochs: +0.4, +0.6 and +1.7 points at base rates 0.5, 1.0 and "
                "1.5e-4 (best 73.4), so the more the less stable the run was.",
                "mocov3-4.2",
            ),
            Evidence("SimCLR +0.8 and BYOL +1.3 points; SwAV 65.8 to 66.4.", "mocov3-4.2"),
        ),
        (
            Evidence(
                "It eases the trouble and does not end it: at a rate that is too large training is "
                "unstable all the same, and the authors doubt that the first layer is the cause.",
                "mocov3-4.2",
            ),
            Evidence("Contrastive image-text training: smoother curves, no gain.", "declip#9"),
            Evidence("A convolutional stem is stable without it.", "moco-v3#18"),
            Evidence(
                "A projection onto fewer channels than a patch has values loses information when "
                "it is random (a 16 x 16 patch has 768, ViT-S 384 channels)."
            ),
        ),
        instead_of=False,
        needs=("patch_embed",),
    ),
    Remedy(
        "Lower the learning rate",
        "Half of what it was.",
        {"optim.lr": None},
        "lr={lr}  # where the optimizer is made; {lr_note}",
        {
            "collapsed": 3, "nonfinite": 3, "dips": 3, "bursts": 2, "loss_spikes": 3,
            "loss_left": 3, "stuck": 3,
        },
        (
            Evidence(
                "MoCo v3 at batch 4096: 72.2 at a base rate of 1.0e-4, 71.7 with more dips at "
                "1.5e-4.",
                "mocov3-4.1",
                "patch_embed",
            ),
            Evidence("Lowering it by a tenth at the event was enough several times.", "opt"),
            Evidence("The rate is the strongest lever on instability at small scale.",
                     "wortsman-small"),
        ),
        (
            Evidence("Too small costs more than the dips: 70.4 at 0.5e-4.", "mocov3-4.1",
                     "patch_embed"),
            Evidence(
                "A rate that is too small needs more steps to the same loss: that falls slowly, "
                "where one of a rate that is too large stays."
            ),
        ),
        toward="less",
        factor=0.5,
    ),
    Remedy(
        "Lower β2",
        "A second moment that forgets sooner cannot go stale; in AdamW-type optimizers.",
        {"optim.beta2": 0.95},
        "betas=(0.9, {beta2})  # where the optimizer is made{beta2_note}",
        {
            "bursts": 2, "patch_first": 2, "dips": 1, "nonfinite": 1, "loss_spikes": 2,
            "loss_left": 1,
        },
        (
            Evidence(
                "Spikes come when the second moment underestimates the squared gradients, and are "
                "fewer with a smaller β2.",
                "wortsman-clip",
            ),
            Evidence("A large β2 sets off spikes even in one dimension.", "adam-spikes"),
            Evidence(
                "A ViT by MoCo v3's recipe lost its spikes with 0.98 and a global clip at 0.5, "
                "where freezing the patch projection hurt.",
                "mulan",
                "patch_embed",
            ),
        ),
        (
            Evidence("0.95 did not help a run of 104 billion parameters.", "bigscience"),
            Evidence("The published ViT recipe of MoCo v3 keeps 0.999.", "mocov3-5",
                     "patch_embed"),
        ),
        toward="less",
        needs=("adam",),
    ),
    Remedy(
        "StableAdamW",
        "AdamW whose step in a layer shrinks when its second moment is too small for the gradient.",
        {"optim.name": "stable_adamw"},
        "from stabkit.train.optim.stable_adamw import StableAdamW\n\n"
        "optimizer = StableAdamW(\n"
        "    model.parameters(), lr=lr, betas=betas, eps=1e-6, weight_decay=weight_decay\n"
        ")  # in place of AdamW, with its values",
        {"patch_first": 2, "bursts": 2, "dips": 1, "loss_spikes": 2},
        (
            Evidence(
                "CLIP ViT-H trains without loss spikes, and better than with gradient clipping.",
                "wortsman-clip",
            ),
        ),
        (
            Evidence(
                "The moments still take up the spike; only this step is held back.", "olmo#266"
            ),
            Evidence("NaN with an eps of 1e-8, none with 1e-6, in one report.", "dinomaly#8"),
        ),
        instead_of="adamw",
        needs=("adam",),
    ),
    Remedy(
        "Clip the patch projection at a small threshold",
        "The threshold is in units of the layer's own running norm: Adam does not feel a constant "
        "rescale, so that an absolute one does nothing, or freezes.",
        {"optim.clip": "patch_embed", "optim.clip_at": 1.5},
        "usual = {usual}  # once, before the loop{usual_note}\n\n"
        "norm = torch.nn.utils.clip_grad_norm_(\n"
        "    model.{patch}.parameters(), 1.5 * usual\n"
        ")  # before optimizer.step()\n"
        "usual = 0.97 * usual + 0.03 * min(float(norm), 1.5 * usual)",
        {"patch_first": 2, "dips": 1},
        (
            Evidence("Helps if the threshold is small enough.", "mocov3-4.2"),
        ),
        (
            Evidence("Its limit is the frozen layer, which is simpler.", "mocov3-4.2"),
        ),
        instead_of="none",
        needs=("patch_embed",),
    ),
    Remedy(
        "Longer warm-up",
        "Twice what it was.",
        {"optim.warmup_steps": None},
        "warmup = torch.optim.lr_scheduler.LinearLR(\n"
        "    optimizer, start_factor=1e-3, total_iters={warmup}\n"
        ")  # {warmup_note}\n\n"
        "optimizer.step()\n"
        "warmup.step()",
        {"early": 2, "collapsed": 1},
        (
            Evidence(
                "Its main effect is to reach a region that bears larger rates.", "warmup"
            ),
            Evidence("Recommended when trouble comes early.", "playbook"),
        ),
        (
            Evidence("MoCo v3 dips in spite of 40 epochs of warm-up out of 100.", "mocov3-4.1",
                     "patch_embed"),
            Evidence("No help for a run of 104 billion parameters.", "bigscience"),
        ),
        toward="more",
        factor=2.0,
    ),
    Remedy(
        "QK-norm",
        "Normalise queries and keys in every head, so that attention logits cannot grow.",
        {"model.qk_norm": True},
        "self.q_norm = torch.nn.LayerNorm(head_dim)  # in every attention\n"
        "self.k_norm = torch.nn.LayerNorm(head_dim)\n\n"
        "q, k = self.q_norm(q), self.k_norm(k)  # before q @ k.transpose(-2, -1)",
        {"nonfinite": 3, "bursts": 1, "collapsed": 1, "loss_spikes": 1, "loss_left": 2},
        (
            Evidence("Cures growing attention logits at small scale.", "wortsman-small"),
            Evidence(
                "A 32 billion run lost its spikes only by this, after clipping, skipping and "
                "other optimizers had failed.",
                "marin#1368",
            ),
            Evidence("Attention that gets too sharp goes with unstable training.", "zhai"),
        ),
        (
            Evidence("Evidence is from language models and supervised ViTs; none from MoCo v3.",
                     about="patch_embed"),
            Evidence("Put into a trained model it costs a passing rise of the loss.",
                     "marin#1368"),
        ),
        instead_of=False,
        needs=("attention",),
    ),
    Remedy(
        "Convolutional stem",
        "Four 3 x 3 convolutions in place of the patch projection.",
        {"model.stem": "conv", "model.freeze_patch_embed": False, "model.patch_norm": "none"},
        "widths = [3, dim // 8, dim // 4, dim // 2, dim]  # for patches of 16\n"
        "stem = []\n"
        "for before, after in zip(widths, widths[1:]):\n"
        "    stem.append(torch.nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))\n"
        "    stem += [torch.nn.BatchNorm2d(after), torch.nn.ReLU()]\n"
        "model.patch_embed.proj = torch.nn.Sequential(*stem, torch.nn.Conv2d(dim, dim, 1))  # timm",
        {"patch_first": 2, "dips": 1},
        (
            Evidence("+1 to 2 points, and stable without a frozen layer.", "moco-v3#18"),
            Evidence("Bears a wider range of rates and weight decays.", "xiao"),
        ),
        (
            Evidence("It may be the BN and ReLU in it that help, not convolution.", "scaled-relu"),
            Evidence("Another architecture: no longer a plain ViT."),
        ),
        instead_of="patch",
        needs=("patch_embed",),
    ),
    Remedy(
        "Smaller batch",
        "Half of what it was; the linear rule halves the rate with it.",
        {"train.batch": None},
        "batch_size=batch_size // 2  # of the DataLoader\n"
        "lr=lr / 2  # where the optimizer is made",
        {"dips": 1, "collapsed": 1},
        (
            Evidence(
                "MoCo v3, base rate 1.0e-4: 72.6 at batch 2048, 72.2 at 4096, 69.7 at 6144; smooth "
                "up to 2048, large dips at 6144.",
                "mocov3-4.1",
                "patch_embed",
            ),
        ),
        (
            Evidence("71.5 at batch 1024: too small costs as well.", "mocov3-4.1", "patch_embed"),
            Evidence(
                "The rate changes along: 6144 at base 1.0e-4 has the rate of 4096 at 1.5e-4, which "
                "ends 2.0 points higher.",
                about="patch_embed",
            ),
        ),
        toward="less",
        factor=0.5,
    ),
    Remedy(
        "Clip the total gradient norm",
        "At about the 90th percentile of the norms that a healthy stretch has.",
        {"optim.clip": "global", "optim.clip_at": 1.0},
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before optimizer.step()"
        "{clip_note}",
        {"bursts": 1, "nonfinite": 1, "loss_spikes": 2, "loss_left": 2},
        (
            Evidence("Common at 1.0 in language models.", "palm"),
            Evidence("Its percentile rule comes from here.", "playbook"),
        ),
        (
            Evidence("About 20 spikes in spite of it.", "palm"),
            Evidence("Spikes begin in few parameters, which a total hides.", "olmo#266"),
            Evidence("Clips more than half of the steps? Then a lower rate does it.", "playbook"),
        ),
        instead_of="none",
    ),
    Remedy(
        "ZClip",
        "Clip the total norm only where it stands out of its own recent values.",
        {"optim.clip": "zclip", "optim.clip_at": 2.5},
        "norm = torch.nn.utils.clip_grad_norm_(\n"
        "    model.parameters(), mean + 2.5 * std\n"
        ")  # before optimizer.step(); running mean and deviation of the norms so far",
        {"bursts": 1, "loss_spikes": 1},
        (
            Evidence("Language models of a billion parameters at a high rate.", "zclip"),
        ),
        (
            Evidence("It acts on the total norm only."),
            Evidence("There is no evidence from self-supervised ViTs.", about="patch_embed"),
        ),
        instead_of="none",
    ),
    Remedy(
        "Go back before the event and leave out its data",
        "Continue from a state some 100 steps before the event, and pass over the next 200 to 500 "
        "batches.",
        {},
        "checkpoint = torch.load(file)  # the last one before step {onset}\n"
        "model.load_state_dict(checkpoint[\"model\"])\n"
        "optimizer.load_state_dict(checkpoint[\"optimizer\"])\n"
        "batches = itertools.islice(loader, seen, None)  # seen: those of this epoch up to the end "
        "of the event",
        {"at_once": 3, "loss_spikes": 2, "loss_left": 3},
        (
            Evidence("The spikes did not come back in the same place.", "palm"),
            Evidence("A batch with a large loss raises the gradients of all layers in one step."),
        ),
        (
            Evidence(
                "The same batches did no harm from another state: it takes both, and the next such "
                "meeting is not prevented.",
                "palm",
            ),
        ),
    ),
    Remedy(
        "BN in the heads",
        "After every layer of projector and predictor; simplest against collapse.",
        {"method.head_norm": "batch"},
        "torch.nn.BatchNorm1d(width)  # after every torch.nn.Linear(…, width) of the heads",
        {"collapsed": 2},
        (
            Evidence("76.5 with, 74.4 without, and without it only batch 2048 converged.",
                     "mocov3-5"),
        ),
        (
            Evidence("MoCo v3's recipe has it already; SwAV's heads have none."),
        ),
        instead_of="none",
        needs=("heads",),
        own_of=("moco", "simclr"),
    ),
    Remedy(
        "Pass over non-finite steps",
        "A step whose gradient is not finite leaves nothing behind.",
        {"optim.skip_nonfinite": True},
        "norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf)  # clips nothing\n"
        "if torch.isfinite(norm):\n"
        "    optimizer.step()",
        {"nonfinite": 2},
        (
            Evidence("Keeps one bad step from ending a run; mixed precision does so by itself."),
        ),
        (
            Evidence("Hides a symptom; skipping large steps did not shorten recovery.",
                     "marin#1368"),
        ),
        instead_of=False,
    ),
)  # fmt: skip

# what was tried on the patch projection without effect
NO_HELP = Evidence(
    "BatchNorm or WeightNorm on the patch projection: no effect on stability.", "mocov3-4.2"
)
