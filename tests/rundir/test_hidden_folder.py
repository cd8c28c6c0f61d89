"""A folder is made hidden, and shown when it is whole."""

from pathlib import Path

from stabkit.rundir import hidden_folder


def test_a_hidden_folder_of_a_killed_process_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out, dead = tmp_path / "out", tmp_path / f".out.{'0' * 16}.tmp"
    theirs = [tmp_path / n for n in (".out.tmp", ".out.0123.tmp", f".other.{'0' * 16}.tmp")]
    for folder in (dead, *theirs):
        (folder / "layers").mkdir(parents=True)
    link = tmp_path / f".out.{'1' * 16}.tmp"
    link.symlink_to(theirs[0])
    with hidden_folder(out) as alive:
        assert not dead.exists()
        with hidden_folder(out) as other:
            assert alive.exists()
            (other / "layers").mkdir()
            other.rename(out)
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        link.name,
        *(folder.name for folder in theirs),
    }
