"""Settings that are valid one by one, but have no effect together."""

from stabkit.config.run import RunConfig, RuntimeConfig

DOWNLOADED = ("cifar10", "cifar100", "stl10")


def without_effect(config: RunConfig) -> list[str]:
    """List every setting without effect, with what would be right.

    Only requests are checked: a run that was made before a rule existed stays readable.
    """
    problems = []
    steps, data, knn, runtime = config.train.steps, config.data, config.knn, config.runtime
    phases = {"optim.warmup_steps": config.optim.warmup_steps}
    if config.fault.until:
        phases["fault.until"] = config.fault.until
    if config.method.name == "swav":
        phases["method.freeze_prototypes_steps"] = config.method.freeze_prototypes_steps
    for key, phase in phases.items():
        # A run of one step is an untrained model, for comparison: it has no phases.
        if phase > steps > 1:
            problems.append(
                f"{key} {phase} exceeds train.steps {steps}: it would not end during training; "
                f"should be {steps} or less"
            )
    if knn.k > knn.bank:
        problems.append(f"knn.k {knn.k} exceeds knn.bank {knn.bank}: should be {knn.bank} or less")
    if data.num_train and config.train.batch > data.num_train and data.name != "synthetic":
        problems.append(f"train.batch {config.train.batch} exceeds data.num_train {data.num_train}")
    if data.path is not None and data.name == "synthetic":
        problems.append(
            f"data.path {data.path!r} does nothing for synthetic data; leave it out, or set "
            "data.name to the kind of data in that folder"
        )
    if data.download and data.name not in DOWNLOADED:
        known = " or ".join(DOWNLOADED)
        problems.append(f"data.download does nothing for {data.name} data: only for {known}")
    default = RuntimeConfig.model_fields["signals_every"].default
    if runtime.signals_every != default and not runtime.signals:
        problems.append(
            f"runtime.signals_every {runtime.signals_every} does nothing without runtime.signals"
        )
    return problems
