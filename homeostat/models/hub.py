"""Models on the hub: whether one can be had, found out in seconds."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP library that the hub's client uses, whichever that is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from homeostat.config.model import PretrainedModelConfig
from homeostat.errors import HomeostatError
from homeostat.models.suitable import require_known_model


def require_on_hub(config: PretrainedModelConfig) -> bool:
    """Whether the hub answers; what it has of the model can then be read, else what is cached.

    Raises:
        HomeostatError: Within seconds: the model is neither cached nor to be fetched.
    """
    instead = (
        "Connect, log in with `hf auth login` if the model is gated, or use model=smollm2_135m, "
        "or model=local model.path=<folder or GGUF file>."
    )
    reachable = _hub_answers(config)
    try:
        config_file = hf_hub_download(
            config.path,
            "config.json",
            revision=config.revision,
            etag_timeout=5,
            local_files_only=not reachable,
        )
    except GatedRepoError as error:
        raise HomeostatError(
            f"model {config.name} ({config.path}) is gated: accept its licence on the hub first. "
            f"{instead}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HomeostatError(_unreachable(config, instead)) from error
    except EntryNotFoundError as error:
        raise HomeostatError(
            f"{config.path} on the hub has no config.json, so it is no model; an adapter must be "
            "merged into its base first."
        ) from error
    except (HfHubHTTPError, ValueError) as error:
        raise HomeostatError(
            f"the hub has no model {config.path} for you ({type(error).__name__}). {instead}"
        ) from error
    except HTTPError as error:
        raise HomeostatError(_unreachable(config, instead)) from error
    require_known_model(Path(config_file), config.path)
    return reachable


def _hub_answers(config: PretrainedModelConfig) -> bool:
    """Whether the hub says anything at all; asked once, where its own client asks for 32 s."""
    try:
        get_session().head(hf_hub_url(config.path, "config.json"), timeout=5)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    except ValueError:
        return True  # an id that cannot be, which the next question says better
    return True


def _unreachable(config: PretrainedModelConfig, instead: str) -> str:
    return (
        f"model {config.name} ({config.path}) is not cached here and the hub cannot be reached. "
        f"{instead}"
    )
