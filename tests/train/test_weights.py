from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from stabkit.config import RunConfig, save_config
from stabkit.rundir import ForeignFolderError, RunDir
from stabkit.train.loop import train
from stabkit.train.state import build_state
from stabkit.train.weights import export, fill, fresh_backbone, import_run, load_backbone
from tests.conftest import small_config, tree

CPU = torch.device("cpu")
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    rundir = RunDir(tmp_path_factory.mktemp("weights") / "run")
    train(small_config("train.steps=3", "optim.warmup_steps=0"), rundir)
    return rundir


def timm_vit() -> VisionTransformer:
    vit = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    return vit.eval()


def official(config: RunConfig, module: str = "module.") -> dict[str, Tensor]:
    """Return weights under the names of the authors' code, with projectors at `.head`."""
    model = build_state(config, 1, CPU).model
    state: dict[str, Tensor] = {}
    for name, ours in (("base_encoder", model.online), ("momentum_encoder", model.target)):
        parts = dict(ours.named_children())
        for key, tensor in parts["backbone"].state_dict().items():
            state[f"{module}{name}.{key}"] = tensor
        for key, tensor in parts["projector"].state_dict().items():
            state[f"{module}{name}.head.{key}"] = tensor
    for key, tensor in model.online.predictor.state_dict().items():
        state[f"{module}predictor.{key}"] = tensor
    return state


def save_official(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    torch.save({"epoch": 300, "arch": "vit_tiny", "state_dict": state, **more}, path)
    return path


def outputs(module: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        features: Tensor = module.eval()(IMAGES)
    return features


@pytest.mark.lengthy
@pytest.mark.parametrize("encoder", ["online", "target"])
def test_an_export_loads_strictly_into_timm_and_computes_the_same(
    trained: RunDir, tmp_path: Path, encoder: str
) -> None:
    count = export(trained, tmp_path / "out" / "vit.pt", encoder)  # type: ignore[arg-type]
    weights = torch.load(tmp_path / "out" / "vit.pt", weights_only=True)
    assert len(weights) == count
    vit = timm_vit()
    vit.load_state_dict(weights, strict=True)
    backbone, step = load_backbone(trained, CPU, encoder)  # type: ignore[arg-type]
    assert step == 3
    # timm may fuse attention, ours does not on a CPU: sums in another order
    torch.testing.assert_close(outputs(vit), outputs(backbone), rtol=1e-5, atol=1e-5)
    stored = torch.load(trained.checkpoint_file, weights_only=True)["model"]
    assert all(t.equal(stored[f"{encoder}.backbone.{name}"]) for name, t in weights.items())
    other = {"online": "target", "target": "online"}[encoder]
    moved = "blocks.0.mlp.fc1.weight"
    assert not weights[moved].equal(stored[f"{other}.backbone.{moved}"])


@pytest.mark.lengthy
def test_weight_norm_is_exported_as_the_product(tmp_path: Path) -> None:
    config = small_config("model.patch_norm=weight", "train.steps=2", "optim.warmup_steps=0")
    train(config, RunDir(tmp_path / "run"))
    export(RunDir(tmp_path / "run"), tmp_path / "vit.pt")
    vit = timm_vit()
    vit.load_state_dict(torch.load(tmp_path / "vit.pt", weights_only=True), strict=True)
    backbone, _ = load_backbone(RunDir(tmp_path / "run"), CPU)
    torch.testing.assert_close(outputs(vit), outputs(backbone), rtol=1e-5, atol=1e-5)


def test_an_export_is_imported_as_the_same_backbone(trained: RunDir, tmp_path: Path) -> None:
    export(trained, tmp_path / "a.pt")
    config = small_config("seed=5", "data.num_train=32")
    imported = RunDir(tmp_path / "imported")
    import_run(tmp_path / "a.pt", config, imported)
    export(imported, tmp_path / "b.pt")
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)
    status = imported.read_status()
    assert status is not None
    assert (status.state, status.step) == ("done", 0)
    assert status.reason == "imported from a.pt"


@pytest.mark.parametrize("module", ["module.", ""])
def test_official_checkpoints_are_imported_without_their_heads(tmp_path: Path, module: str) -> None:
    state = official(small_config("seed=11"), module)
    for name in state:  # the encoders differ, as after training; zeros would hide a mix-up
        if "momentum_encoder" in name and state[name].is_floating_point():
            state[name] = state[name] + 0.01
    path = save_official(tmp_path / "vit.pth.tar", state)
    rundir = RunDir(tmp_path / "run")
    import_run(path, small_config("seed=0"), rundir)
    for encoder, theirs in (("online", "base_encoder"), ("target", "momentum_encoder")):
        backbone, step = load_backbone(rundir, CPU, encoder)  # type: ignore[arg-type]
        assert step == 0
        for name, tensor in backbone.state_dict().items():
            assert tensor.equal(state[f"{module}{theirs}.{name}"]), name
    assert rundir.read_meta()["imported"]["arch"] == "vit_tiny"


@pytest.mark.lengthy
def test_an_official_resnet_hangs_its_projector_at_fc(tmp_path: Path) -> None:
    config = small_config(
        "model.name=resnet18",
        "model.stem=cifar",
        *(f"model.{k}=null" for k in ("patch_size", "width", "depth", "heads")),
    )
    weights = fresh_backbone(config, CPU).state_dict()
    state = {f"module.base_encoder.{name}": tensor + 1 for name, tensor in weights.items()}
    state |= {"module.base_encoder.fc.0.weight": torch.zeros(4, 512)}
    import_run(save_official(tmp_path / "r50.pth.tar", state), config, RunDir(tmp_path / "run"))
    backbone, _ = load_backbone(RunDir(tmp_path / "run"), CPU)
    assert all(t.equal(weights[name] + 1) for name, t in backbone.state_dict().items())
    with pytest.raises(ValueError, match="holds no target backbone"):
        load_backbone(RunDir(tmp_path / "run"), CPU, "target")


@pytest.mark.lengthy
@pytest.mark.parametrize("method", ["simclr", "byol", "swav", "supervised"])
def test_backbones_of_every_method_are_found(tmp_path: Path, method: str) -> None:
    config = small_config(f"method.name={method}", "train.steps=1", "optim.warmup_steps=0")
    train(config, RunDir(tmp_path))
    backbone, step = load_backbone(RunDir(tmp_path), CPU)
    stored = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["model"]
    assert step == 1
    for name, tensor in backbone.state_dict().items():
        assert tensor.equal(stored[f"online.backbone.{name}"]), name


def test_every_kind_of_mismatch_is_refused_and_listed(tmp_path: Path) -> None:
    state = official(small_config())
    del state["module.base_encoder.blocks.1.norm1.bias"]
    state["module.base_encoder.blocks.7.norm1.bias"] = torch.zeros(16)
    state["module.base_encoder.pos_embed"] = torch.zeros(1, 197, 16)
    path = save_official(tmp_path / "bad.pth", state)
    rundir = RunDir(tmp_path / "run")
    with pytest.raises(ValueError, match="does not fit") as caught:
        import_run(path, small_config(), rundir)
    message = str(caught.value)
    assert "1 missing: blocks.1.norm1.bias" in message
    assert "1 unexpected: blocks.7.norm1.bias" in message
    assert "1 of another shape: pos_embed [1, 197, 16], should be [1, 5, 16]" in message
    assert "bad.pth" in message
    assert not rundir.path.exists(), "nothing is left behind"


def test_the_wrong_prefix_is_refused_not_ignored(tmp_path: Path) -> None:
    """Loading without strictness left users with 5% from a randomly initialized ViT."""
    plain = fresh_backbone(small_config(), CPU).state_dict()
    torch.save({f"encoder.{name}": t for name, t in plain.items()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"30 missing: cls_token.* and 22 more\n.*30 unexpected"):
        import_run(tmp_path / "a.pth", small_config(), RunDir(tmp_path / "run"))
    state = official(small_config()) | {"module.queue": torch.zeros(4)}
    path = save_official(tmp_path / "b.pth", state)
    with pytest.raises(ValueError, match="no known part of MoCo v3: queue"):
        import_run(path, small_config(), RunDir(tmp_path / "run"))


def test_a_classifier_is_no_backbone(tmp_path: Path) -> None:
    plain = fresh_backbone(small_config(), CPU).state_dict() | {"head.weight": torch.zeros(10, 16)}
    torch.save(plain, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"1 unexpected: head\.weight"):
        import_run(tmp_path / "a.pth", small_config(), RunDir(tmp_path / "run"))


def test_a_wrong_number_of_heads_is_caught_though_every_shape_fits(tmp_path: Path) -> None:
    path = save_official(tmp_path / "a.pth", official(small_config()), arch="vit_small")
    with pytest.raises(ValueError, match=r"vit_small has 12 attention heads.* has 2; set model\.h"):
        import_run(path, small_config(), RunDir(tmp_path / "run"))


def test_files_that_could_run_code_or_are_no_weights_are_refused(tmp_path: Path) -> None:
    rundir = RunDir(tmp_path / "run")
    torch.save({"state_dict": {"a": print}}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "numbers.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name, message in (
        ("code.pth", "it is damaged, or holds code"),
        ("text.pth", "it is damaged, or holds code"),
        ("numbers.pth", "holds no weights"),
        ("list.pth", "holds list, not a dictionary"),
    ):
        with pytest.raises(ValueError, match=message):
            import_run(tmp_path / name, small_config(), rundir)
    assert not rundir.path.exists()


def test_filling_is_all_or_nothing() -> None:
    backbone, other = (fresh_backbone(small_config(f"seed={s}"), CPU) for s in (0, 1))
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    weights = other.state_dict()
    weights.pop("norm.bias")
    with pytest.raises(ValueError, match="x: does not fit this backbone"):
        fill(backbone, weights, "x")
    assert all(t.equal(before[name]) for name, t in backbone.state_dict().items())


def test_a_checkpoint_of_another_configuration_is_not_evaluated(
    trained: RunDir, tmp_path: Path
) -> None:
    copy = RunDir(tmp_path)
    copy.checkpoint_file.parent.mkdir()
    copy.checkpoint_file.write_bytes(trained.checkpoint_file.read_bytes())
    copy.config_file.write_text(save_config(small_config("train.steps=4")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"belongs to run \w{8}, .*config.yaml is \w{8}"):
        load_backbone(copy, CPU)


def test_an_imported_run_is_not_overwritten(trained: RunDir, tmp_path: Path) -> None:
    export(trained, tmp_path / "a.pt")
    content = trained.checkpoint_file.read_bytes()
    with pytest.raises(ForeignFolderError, match="is a run already"):
        import_run(tmp_path / "a.pt", small_config(), trained)
    assert trained.checkpoint_file.read_bytes() == content


def official_names() -> set[str]:
    """Return the authors' tensor names of a ViT with two blocks, copied from their files."""
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj", "norm", *(f"blocks.{i}.{m}" for i in (0, 1) for m in block)]
    return {"cls_token", "pos_embed"} | {f"{m}.{k}" for m in modules for k in ("weight", "bias")}


def test_our_names_are_those_of_the_official_files() -> None:
    assert set(fresh_backbone(small_config(), CPU).state_dict()) == official_names()
    conv = fresh_backbone(small_config("model.stem=conv"), CPU).state_dict()
    stem = {name for name in conv if name.startswith("patch_embed")}
    # convolution, BN, ReLU three times for patches of 8, then the 1x1 convolution with its bias
    layers = {"0": ("weight",), "3": ("weight",), "6": ("weight",), "9": ("weight", "bias")}
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers |= dict.fromkeys(("1", "4", "7"), norms)
    assert stem == {f"patch_embed.proj.{i}.{k}" for i, keys in layers.items() for k in keys}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnets_names_are_torchvisions(name: str) -> None:
    theirs = getattr(torchvision.models, name)().state_dict()
    ours = fresh_backbone(resnet_config(name), CPU).state_dict()
    assert set(ours) == {key for key in theirs if not key.startswith("fc.")}


def resnet_config(name: str) -> RunConfig:
    none = (f"model.{k}=null" for k in ("patch_size", "width", "depth", "heads"))
    return small_config(f"model.name={name}", "model.stem=imagenet", *none)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50x1_bit"])
def test_an_exported_resnet_loads_strictly_into_timm(name: str, tmp_path: Path) -> None:
    config = resnet_config(name)
    rundir = RunDir(tmp_path / "run")
    torch.save(fresh_backbone(config, CPU).state_dict(), tmp_path / "weights.pt")
    import_run(tmp_path / "weights.pt", config, rundir)
    export(rundir, tmp_path / "out.pt")
    theirs = timm.create_model(name, num_classes=0)
    theirs.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True), strict=True)
    backbone, _ = load_backbone(rundir, CPU)
    assert outputs(theirs).equal(outputs(backbone))


def test_a_small_official_vit_without_its_name_still_needs_12_heads(tmp_path: Path) -> None:
    sizes = ["model.width=384", "model.depth=1", "method.hidden=8"]
    state = official(small_config(*sizes, "model.heads=12"))
    torch.save({"state_dict": state}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"ViT of width 384 has 12 .* set model.heads=12"):
        import_run(
            tmp_path / "vit.pth", small_config(*sizes, "model.heads=6"), RunDir(tmp_path / "run")
        )


def test_no_message_advises_to_load_unsafely(trained: RunDir, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> object:
            return print, ("ran",)

    torch.save({"state_dict": Trap()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="holds code") as caught:
        import_run(tmp_path / "code.pth", small_config(), RunDir(tmp_path / "run"))
    assert "weights_only" not in str(caught.value)


def test_a_checkpoint_is_not_overwritten_by_its_export_and_imports_are_not_trained(
    trained: RunDir, tmp_path: Path
) -> None:
    before = tree(trained.path)
    own = ("config.yaml", "status.json", "layers/part-000000.parquet")
    for file in (trained.checkpoint_file, *(trained.path / name for name in own)):
        with pytest.raises(ForeignFolderError, match="is a file of the run"):
            export(trained, file)
    assert tree(trained.path) == before
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export(trained, tmp_path)
    assert not list(tmp_path.glob(".*"))
    export(trained, tmp_path / "w.pt")
    config = small_config("train.steps=3", "optim.warmup_steps=0")
    rundir = RunDir(tmp_path / "imported")
    import_run(tmp_path / "w.pt", config, rundir)
    rundir.status_file.unlink()
    with pytest.raises(ValueError, match="imported weights"):
        train(config, rundir)
