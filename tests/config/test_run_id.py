"""What decides a run decides its id; defaults are fixed."""

from stabkit.config import RunConfig, differences, load_config, run_id, save_config, validate
from tests.conftest import small_config


def test_eps_of_lamb_is_its_own_unless_given() -> None:
    assert load_config("tiny", ["optim.name=lamb"]).optim.eps == 1e-6
    assert load_config("tiny", ["optim.name=lamb", "optim.eps=1e-8"]).optim.eps == 1e-8


def test_differences_of_two_runs_are_named_with_both_values(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(save_config(small_config()), encoding="utf-8")
    assert differences(path, small_config("runtime.threads=7")) == []
    other = small_config("seed=4", "optim.lr=0.5", "runtime.threads=7")
    assert differences(path, other) == [
        "seed: 0 there, 4 asked",
        "optim.lr: 0.004 there, 0.5 asked",
    ]
    path.write_text(
        "seed: 0\ndata: {num_train: 99, num_heldout: 9}\nmodel: {name: resnet18, stem: cifar}"
    )
    assert "data.num_train: 99 there, 64 asked" in differences(path, small_config())


def test_run_id_follows_every_decisive_setting_and_nothing_else() -> None:
    base = run_id(small_config())
    decisive = [
        "seed=1",
        "optim.lr=2e-2",
        "data.image_size=32",
        "knn.every=6",
        "views.min_scale=0.2",
    ]
    assert len({base, *(run_id(small_config(change)) for change in decisive)}) == len(decisive) + 1
    harmless = ("threads=2", "device=cpu", "checkpoint_every=9", "runs_per_gpu=4")
    for change in (f"runtime.{setting}" for setting in harmless):
        assert run_id(small_config(change)) == base
    assert run_id(small_config("optim.beta2=0.999")) == base, (
        "a default written out is the same run"
    )


def test_released_defaults_never_change() -> None:
    """A run's id leaves defaults out, so a changed default would give old ids a new meaning."""
    minimal = {
        "data": {"num_train": 64, "num_heldout": 10},
        "model": {"patch_size": 8, "width": 64, "depth": 1, "heads": 1},
    }
    config = validate(RunConfig, minimal, "test")
    assert config.model_dump(exclude={"runtime"}) == {
        "seed": 0,
        "data": {
            "name": "synthetic",
            "path": None,
            "image_size": 32,
            "num_train": 64,
            "num_heldout": 10,
            "download": False,
        },
        "views": {"min_scale": 0.08, "blur_sigma": (0.1, 2.0)},
        "model": {
            "name": "vit",
            "patch_size": 8,
            "width": 64,
            "depth": 1,
            "heads": 1,
            "freeze_patch_embed": False,
            "stem": "patch",
            "patch_norm": "none",
            "positions": "sincos",
            "pool": "token",
            "mlp_norm": "layer",
            "qk_norm": False,
        },
        "method": {
            "name": "moco",
            "hidden": 4096,
            "out": 256,
            "projector_layers": 3,
            "head_norm": None,
            "predictor": True,
            "predictor_norm": None,
            "temperature": 0.2,
            "scale_loss": True,
            "momentum": 0.99,
            "momentum_schedule": "cosine",
            "queue": 0,
            "prototypes": 3000,
            "sinkhorn": True,
            "sinkhorn_eps": 0.05,
            "freeze_prototypes_steps": 313,
        },
        "optim": {
            "name": "adamw",
            "lr": 1.5e-4,
            "lr_rule": "linear",
            "weight_decay": 0.1,
            "decay_all": True,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "momentum": 0.9,
            "trust": 1e-3,
            "warmup_steps": 0,
            "schedule": "cosine",
            "clip": "none",
            "clip_at": None,
            "skip_nonfinite": False,
        },
        "train": {"batch": 64, "steps": 700},
        "compute": {
            "precision": "fp32",
            "compile": False,
            "channels_last": False,
            "fused_optimizer": False,
        },
        "fault": {"until": 0, "scale": 1e-3, "first": None, "lead": 0},
        "branch": None,
        "knn": {
            "every": 10,
            "k": 200,
            "temperature": 0.07,
            "queries": 1000,
            "bank": 1000,
            "fifo": 0.1,
        },
    }
