from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import homeostat
from homeostat.errors import HomeostatError
from homeostat.models import cache as cache_module
from homeostat.models.adapters import Policy
from homeostat.models.cache import cache_folder, code_digest, file_sha256, identity, remembered


@pytest.fixture
def counter() -> Callable[[], Any]:
    """Computes another figure every time."""
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"calls": len(calls), "missing": None, "pair": (1.5, "é")}

    return compute


def kept(number: int) -> dict[str, Any]:
    """As JSON has it, whether it was computed or found."""
    return {"calls": number, "missing": None, "pair": [1.5, "é"]}


def test_remembered_is_computed_once(counter: Callable[[], Any], cache: Path) -> None:
    assert remembered("kind", {"a": 1, "b": [2]}, counter) == kept(1)
    assert remembered("kind", {"b": [2], "a": 1}, counter) == kept(1)
    (path,) = (cache / "kind").iterdir()
    assert path.suffix == ".json"


@pytest.mark.usefixtures("cache")
def test_other_recipe_or_kind_is_computed_again(counter: Callable[[], Any]) -> None:
    recipes = [["a", 1], ["a", 2], [1, "a"], ["a", None], ["a", "1"]]
    for number, recipe in enumerate(recipes, start=1):
        assert remembered("kind", recipe, counter) == kept(number)
    assert remembered("other", recipes[0], counter) == kept(6)
    assert [remembered("kind", recipe, counter)["calls"] for recipe in recipes] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("cache")
def test_other_code_computes_again(
    counter: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remembered("kind", 1, counter) == kept(1)
    monkeypatch.setattr(cache_module, "code_digest", lambda: "other code")
    assert remembered("kind", 1, counter) == kept(2)


def test_nothing_is_remembered_of_what_failed(counter: Callable[[], Any], cache: Path) -> None:
    def fail() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remembered("kind", 1, fail)
    assert not list(cache.rglob("*.json"))
    assert remembered("kind", 1, counter) == kept(1)


def test_code_digest_is_that_of_every_source_of_the_package() -> None:
    root = Path(homeostat.__file__).parent
    names = sorted(root.rglob("*.py"))
    assert root / "models" / "cache.py" in names
    told = b"".join(p.relative_to(root).as_posix().encode() + p.read_bytes() for p in names)
    assert code_digest() == hashlib.sha256(told).hexdigest()


def test_code_digest_changes_with_names_and_contents_of_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "package"
    (root / "models").mkdir(parents=True)
    source, data = root / "models" / "cache.py", root / "note.txt"
    monkeypatch.setattr(cache_module, "__file__", str(source))

    def digest() -> str:
        return str(code_digest.__wrapped__())

    source.write_text("a = 1")
    found = [digest()]
    source.write_text("a = 2")
    found.append(digest())
    (root / "top.py").write_text("")
    found.append(digest())
    (root / "top.py").rename(root / "models" / "top.py")
    found.append(digest())
    assert len(set(found)) == 4
    data.write_text("no source")
    assert digest() == found[-1]
    # where the package lies does not matter
    root.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "elsewhere/models/cache.py"))
    assert digest() == found[-1]


def test_cache_folder_is_made_below_the_users_choice(cache: Path) -> None:
    assert cache_folder("probes", "key") == cache / "probes" / "key"
    assert (cache / "probes" / "key").is_dir()
    assert cache_folder() == cache


def test_cache_folder_that_cannot_be_made_is_named(cache: Path) -> None:
    cache.write_text("a file is in the way")
    with pytest.raises(HomeostatError, match=f"the cache folder {cache}/probes cannot be made"):
        cache_folder("probes")


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def damage(folder: Path, pattern: str) -> list[Path]:
    """Cut every file of a kind in its middle; returns them."""
    found = list(folder.rglob(pattern))
    for path in found:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return found


def test_damaged_entry_is_computed_and_kept_again(
    counter: Callable[[], Any], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remembered("kind", 1, counter)
    (path,) = damage(cache, "*.json")
    assert remembered("kind", 1, counter) == kept(2)
    assert f"The cache entry {path} is damaged; computing it again." in capsys.readouterr().err
    assert remembered("kind", 1, counter) == kept(2)


def fail_to_write(_path: Path, _text: str) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_what_cannot_be_kept_is_computed_and_said_once(
    counter: Callable[[], Any],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    remembered("kind", 0, counter)
    monkeypatch.setattr(cache_module, "write_text", fail_to_write)
    assert remembered("kind", 0, counter) == kept(1)
    assert capsys.readouterr().err == ""
    assert remembered("kind", 1, counter) == kept(2)
    assert remembered("kind", 2, counter) == kept(3)
    said = capsys.readouterr().err
    assert said.count("cannot be written (Read-only file system)") == 1
    assert str(cache) in said
    assert len(list(cache.rglob("*.json"))) == 1


def test_cache_folder_that_cannot_be_made_stops_no_computation(
    counter: Callable[[], Any], cache: Path
) -> None:
    cache.write_text("a file is in the way")
    assert remembered("kind", 1, counter) == kept(1)


def other_template(policy: Policy) -> None:
    policy.tokenizer.chat_template = "Answer tersely. " + policy.tokenizer.chat_template


def other_end(policy: Policy) -> None:
    policy.base.model.generation_config.eos_token_id = 5


def other_words(policy: Policy) -> None:
    policy.tokenizer.add_tokens(["homeostasis"])


def other_dtype(policy: Policy) -> None:
    policy.base.model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [other_template, other_end, other_words, other_dtype])
def test_identity_changes_with_all_that_the_model_reads_with(
    change: Callable[[Policy], None], make_policy: Callable[..., Policy]
) -> None:
    before, policy = identity(make_policy()), make_policy()
    assert identity(policy) == before
    changed = make_policy()
    change(changed)
    assert identity(changed) != before


def test_identity_does_not_follow_the_adapter(
    make_policy: Callable[..., Policy], stir: Callable[[Policy], None]
) -> None:
    policy = make_policy()
    before = identity(policy)
    stir(policy)
    assert identity(policy) == before
