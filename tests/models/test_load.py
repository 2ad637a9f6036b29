from __future__ import annotations

import importlib
import json
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import tiny_config
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, T5Config
from transformers.utils import logging as transformers_logging

from homeostat.config.model import PretrainedModelConfig
from homeostat.errors import HomeostatError
from homeostat.models import hub, load
from homeostat.models.load import (
    BaseModel,
    fingerprint,
    load_pretrained,
)
from homeostat.models.quiet import quiet
from homeostat.models.tiny import load_tiny

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 80, 33, 12, 200]])
# The HTTP library that the installed huggingface_hub raises errors of: httpx or its successor.
hub_http = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def tiny(seed: int = 0) -> BaseModel:
    return load_tiny(tiny_config(init_seed=seed), CPU, torch.float32)


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


@pytest.mark.parametrize("place", [0, 12_345, -1])
def test_fingerprint_changes_with_one_value_anywhere(place: int) -> None:
    model = tiny().model
    before = fingerprint(model)
    model.get_input_embeddings().weight.data.view(-1)[place % 8_000] += 1e-6
    assert fingerprint(model) != before


def test_fingerprint_changes_when_two_values_change_places() -> None:
    model = tiny().model
    before = fingerprint(model)
    flat = model.get_input_embeddings().weight.data.view(-1)
    flat[[3, 77]] = flat[[77, 3]]
    assert fingerprint(model) != before


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_weights(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Give the weights other names; those renamed to None are left out."""
    path = folder / "model.safetensors"
    named = {rename(name): weight for name, weight in load_file(path).items()}
    named.pop(None, None)
    save_file(named, path, metadata={"format": "pt"})


def test_checkpoint_without_the_models_weights_is_refused(saved: Path) -> None:
    rename_weights(saved, lambda name: f"_orig_mod.{name}")
    message = refusal(saved)
    assert f"the checkpoint in {saved} has no weights for " in message
    assert "save it again as a whole language model" in message


def test_checkpoint_without_one_weight_is_refused_by_its_name(saved: Path) -> None:
    lost = "model.layers.2.mlp.up_proj.weight"
    rename_weights(saved, lambda name: None if name == lost else name)
    assert f"has no weights for {lost}, which would be random" in refusal(saved)


def test_weights_of_another_shape_are_refused_by_their_name(saved: Path) -> None:
    edit(saved / "config.json", intermediate_size=48)
    assert re.search(r"of another shape than its config says for model\.layers\.", refusal(saved))


def test_tied_head_is_not_missing(saved: Path) -> None:
    names = load_file(saved / "model.safetensors")
    assert not any("lm_head" in name for name in names)
    assert read(saved).unused == ()


def add_weight(folder: Path, name: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path) | {name: torch.zeros(1, 32)}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("head", ["score.weight", "v_head.summary.weight"])
def test_head_of_another_kind_of_model_is_refused_by_its_name(head: str, saved: Path) -> None:
    add_weight(saved, head)
    assert f"has a head that no language model uses, {head}" in refusal(saved)


def test_weights_without_a_place_are_kept_as_unused(saved: Path) -> None:
    add_weight(saved, "vision_tower.patch.weight")
    assert read(saved).unused == ("vision_tower.patch.weight",)


def test_adapter_is_refused_with_what_to_do(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("{}")
    message = refusal(saved)
    assert f"model.path={saved} holds a PEFT adapter; merge it into its base first" in message


def test_model_with_an_adapter_in_it_is_refused() -> None:
    base = tiny()
    get_peft_model(base.model, PeftLoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(HomeostatError, match="mine holds a PEFT adapter"):
        load.finish(base.model, base.tokenizer, tiny_config(name="mine"), CPU)


def test_code_of_a_model_is_never_run_nor_asked_about(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = saved / "ran"
    (saved / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(saved / "config.json", auto_map=code, model_type="made_up")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user is asked"))
    assert f"{saved} needs code of its own (auto_map in its config.json)" in refusal(saved)
    assert not ran.exists()


def test_own_code_of_a_known_architecture_is_left_alone(saved: Path) -> None:
    (saved / "own.py").write_text("raise AssertionError")
    edit(saved / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    assert type(read(saved).model).__name__ == "LlamaForCausalLM"


def test_folder_without_tokenizer_is_one_sentence(saved: Path) -> None:
    for path in (*saved.glob("tokenizer*"), *saved.glob("special_tokens*")):
        path.unlink()
    assert f"no model could be read from {saved}: it has no tokenizer" in refusal(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_file_of_a_folder_is_one_sentence(name: str, saved: Path) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    message = refusal(saved)
    assert f"no model could be read from {saved}: " in message
    assert message.endswith(".")


def test_model_that_is_no_language_model_is_named(saved: Path) -> None:
    T5Config(d_model=16, num_layers=1, d_ff=16, num_heads=2, d_kv=8).save_pretrained(saved)
    message = refusal(saved)
    assert f"{saved} holds a t5 model, which is no causal language model" in message
    assert "llama" in message


def test_state_space_model_is_refused_before_its_weights_are_read(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=300).save_pretrained(saved)
    message = refusal(saved)
    assert "a mamba model, which cannot be used here: it carries a state from token to" in message
    assert "gpt_neox" in message


@pytest.mark.parametrize("name", ["cut.gguf", "CUT.GGUF"])
def test_gguf_that_ends_in_its_header_is_damaged(name: str, tmp_path: Path) -> None:
    header = b"GGUF" + struct.pack("<IQQ", 3, 5, 3) + struct.pack("<Q", 20) + b"general.arch"
    (tmp_path / name).write_bytes(header)
    message = refusal(tmp_path / name)
    assert f"no model could be read from {tmp_path / name}: it is damaged or incomp" in message
    assert message.endswith("; if the file was cut short, fetch it again.")


def test_file_that_only_has_the_name_of_a_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    assert "page.gguf is not a GGUF file" in refusal(tmp_path / "page.gguf")


def test_file_of_another_kind_is_not_said_to_be_absent(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"weights")
    assert "weights.bin is a file whose name does not end in .gguf" in refusal(
        tmp_path / "weights.bin"
    )


def test_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            assert timeout <= 10
            asked.append(url)
            raise hub_http.ConnectError("no route")

    monkeypatch.setattr(hub, "get_session", Session)
    message = refusal("homeostat-tests/there-is-no-such-model")
    assert "is not cached here and the hub cannot be reached" in message
    assert len(asked) == 1


def test_an_error_is_said_up_to_its_first_full_stop() -> None:
    error = OSError("We could not connect to\nhttps://hub.co to load it.\nCheck your connection.")
    assert load.first_sentence(error) == "We could not connect to https://hub.co to load it"


def test_notices_of_libraries_are_shown_only_if_loading_fails(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def notice() -> None:
        transformers_logging.get_logger("transformers.tests").warning("a notice")
        warnings.warn("a warning", FutureWarning, stacklevel=1)

    edit(saved / "config.json", pad_token_id=10_000)  # transformers has something to say about it
    read(saved)
    with quiet():
        notice()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(KeyError), quiet():
        raise KeyError(notice())
    assert capfd.readouterr().err == "a notice\na warning\n"
