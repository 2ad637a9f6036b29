from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from homeostat.config.model import PretrainedModelConfig, TinyModelConfig
from homeostat.errors import HomeostatError
from homeostat.models import hub, load
from homeostat.models.load import (
    BaseModel,
    fingerprint,
    load_pretrained,
    resolve_device,
    resolve_dtype,
)
from homeostat.models.tiny import load_tiny

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 80, 33, 12, 200]])
# The HTTP library that the installed huggingface_hub raises errors of: httpx or its successor.
hub_http = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def tiny(seed: int = 0) -> BaseModel:
    return load_tiny(TinyModelConfig(name="tiny_random", init_seed=seed), CPU, torch.float32)


def read(path: str | Path, name: str = "mine") -> BaseModel:
    return load_pretrained(PretrainedModelConfig(name=name, path=str(path)), CPU, torch.float32)


def refusal(path: str | Path) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(HomeostatError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def hub_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = hub_http.Request("HEAD", "https://huggingface.co/some/model")
    return kind("no", response=hub_http.Response(status, request=request))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The tiny model in a folder, as save_pretrained writes it."""
    base = tiny()
    base.model.save_pretrained(tmp_path / "model")
    base.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_local_folder_has_the_same_logits(saved: Path) -> None:
    found, base = read(saved), tiny()
    with torch.no_grad():
        assert torch.equal(found.model(IDS).logits, base.model(IDS).logits)
    assert found.name == "mine"
    assert found.tokenizer.chat_template == base.tokenizer.chat_template
    assert found.tokenizer("é 🙂")["input_ids"] == base.tokenizer("é 🙂")["input_ids"]


def test_loaded_model_is_frozen_and_in_evaluation_mode(saved: Path) -> None:
    model = read(saved).model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_dtype_is_the_one_asked_for(saved: Path) -> None:
    config = PretrainedModelConfig(name="mine", path=str(saved))
    model = load_pretrained(config, CPU, torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_missing_path_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert f"model.path={tmp_path / 'nowhere'} does not exist" in message


@pytest.mark.parametrize("path", ["./nowhere", "../nowhere", "~/nowhere"])
def test_path_is_named_as_it_was_given(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert f"model.path={path} does not exist" in refusal(path)


def test_missing_gguf_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere.gguf")
    assert f"model.path={tmp_path / 'nowhere.gguf'} is not a file" in message


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert f"no model could be read from {tmp_path}: " in refusal(tmp_path)


def test_model_without_a_chat_template_is_named(saved: Path) -> None:
    tokenizer = tiny().tokenizer
    tokenizer.chat_template = None
    (saved / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(saved)
    assert "model mine has no chat template" in refusal(saved)


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("not here"),
        hub_http.ConnectError("no route"),
        hub_http.ProxyError("the proxy says no"),
    ],
    ids=lambda error: f"{type(error).__module__.partition('.')[0]}.{type(error).__name__}",
)
def test_unreachable_hub_is_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> str:
        raise error

    monkeypatch.setattr("homeostat.models.hub.hf_hub_download", fail)
    message = refusal("some/model")
    assert "model mine (some/model) is not cached here and the hub cannot be reached" in message


def test_hub_model_is_refused_offline_without_patching() -> None:
    """With HF_HUB_OFFLINE=1 the hub library itself says what it says without a network."""
    message = refusal("homeostat-tests/there-is-no-such-model")
    assert "(homeostat-tests/there-is-no-such-model) is not cached here" in message


def test_gated_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> str:
        raise hub_error(GatedRepoError, 403)

    monkeypatch.setattr("homeostat.models.hub.hf_hub_download", fail)
    assert "model mine (some/model) is gated" in refusal("some/model")


def test_unknown_hub_model_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> str:
        raise hub_error(HfHubHTTPError, 404)

    monkeypatch.setattr("homeostat.models.hub.hf_hub_download", fail)
    assert "the hub has no model some/model for you" in refusal("some/model")


def test_impossible_hub_id_is_one_sentence() -> None:
    assert "the hub has no model not/a/hub/id for you" in refusal("not/a/hub/id")


@pytest.mark.parametrize("answers", [True, False])
def test_hub_model_is_asked_for_in_its_revision_and_only_of_a_hub_that_answers(
    answers: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    base = tiny()

    def download(path: str, file: str, revision: str | None, **options: Any) -> str:
        assert options["local_files_only"] is not answers
        asked.append((path, file, revision))
        return str(saved / file)

    def read_hub(
        path: str, _dtype: torch.dtype, revision: str | None, quantization: object, **options: bool
    ) -> tuple[Any, Any, tuple[str, ...]]:
        assert quantization is None
        asked.append((path, revision, options))
        return base.model, base.tokenizer, ()

    monkeypatch.setattr(hub, "_hub_answers", lambda _config: answers)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(load, "read_folder", read_hub)
    config = PretrainedModelConfig(name="mine", path="some/model", revision="v2")
    load_pretrained(config, CPU, torch.float32)
    cached_only = {"cached_only": not answers}
    assert asked == [("some/model", "config.json", "v2"), ("some/model", "v2", cached_only)]


def test_four_bit_needs_cuda(saved: Path) -> None:
    config = PretrainedModelConfig(name="mine", path=str(saved), quantization="4bit")
    with pytest.raises(HomeostatError, match="4bit needs a CUDA device and this run is on cpu"):
        load_pretrained(config, CPU, torch.float32)


def test_four_bit_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda _name: None)
    with pytest.raises(HomeostatError, match=r"pip install 'homeostat\[quant\]'"):
        load.four_bit(torch.device("cuda"), torch.bfloat16)


def test_four_bit_is_asked_for_on_the_device_it_is_made_on(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches transformers; the quantised model itself needs a GPU."""
    asked: dict[str, Any] = {}
    base = tiny()

    def from_pretrained(**options: Any) -> Any:
        asked.update(options)
        nothing: tuple[str, ...] = ()
        kinds = ("missing_keys", "mismatched_keys", "unexpected_keys")
        return base.model, dict.fromkeys(kinds, nothing)

    monkeypatch.setattr(load, "find_spec", lambda _name: object())
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    wanted = load.four_bit(torch.device("cuda"), torch.bfloat16)
    load.read_folder(str(saved), torch.bfloat16, quantization=wanted)
    assert asked["quantization_config"] is wanted
    assert asked["device_map"] == {"": "cuda"}
    assert wanted.bnb_4bit_quant_type == "nf4"
    assert wanted.bnb_4bit_compute_dtype == torch.bfloat16


def test_four_bit_does_not_go_with_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "four_bit", lambda *_: object())
    config = PretrainedModelConfig(name="mine", path=str(tmp_path / "m.gguf"), quantization="4bit")
    with pytest.raises(HomeostatError, match="4bit does not go with a GGUF file"):
        load_pretrained(config, CPU, torch.float32)


def test_fingerprint_follows_from_the_weights(saved: Path) -> None:
    assert tiny().fingerprint == tiny().fingerprint
    assert tiny(seed=1).fingerprint != tiny().fingerprint
    assert read(saved, name="a").fingerprint == read(saved, name="b").fingerprint


def test_fingerprint_changes_with_every_weight() -> None:
    model = tiny().model
    seen = [fingerprint(model)]
    for weight in model.parameters():
        weight.data.mul_(1.01)
        seen.append(fingerprint(model))
    assert len(seen) > 30
    assert len(set(seen)) == len(seen)


def test_fingerprint_changes_with_the_architecture() -> None:
    model = tiny().model
    before = fingerprint(model)
    model.config.rms_norm_eps *= 2
    assert fingerprint(model) != before


def be_here(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_unavailable_device_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_here(monkeypatch, cuda=False, mps=False)
    with pytest.raises(HomeostatError, match=f"device={name} is not on this machine.*: cpu "):
        resolve_device(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_automatic_device(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_here(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device(expected) == torch.device(expected)
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("name", "device", "bf16", "expected"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "mps", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float32),
        ("float16", "cpu", False, torch.float16),
        ("float32", "cuda", True, torch.float32),
    ],
)
def test_dtype(
    name: str, device: str, bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert resolve_dtype(name, torch.device(device)) == expected
