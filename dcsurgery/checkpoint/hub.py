"""The Hub through huggingface_hub: listings, byte ranges, and its errors in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dcsurgery.errors import CheckpointError, CheckpointNotFoundError, DcSurgeryError

TIMEOUT_S = 30.0


class HubUnreachableError(CheckpointNotFoundError):
    """No answer from the Hub, or none wanted: only what is cached can be opened."""


@dataclass(frozen=True)
class HubListing:
    """A repository at one commit: file name -> bytes, and -> SHA-256 for large files."""

    commit: str
    sizes: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)


@contextmanager
def hub_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the Hub client raises into CheckpointError, without tokens or tracebacks."""
    try:
        yield
    except DcSurgeryError:
        raise
    except Exception as error:
        raise _translate(error, repo_id, revision) from error


def _translate(error: Exception, repo_id: str, revision: str | None) -> CheckpointError:
    from huggingface_hub import errors
    from huggingface_hub.errors import HFValidationError

    at = f" at revision {revision}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{repo_id} is gated and this account has no access",
            hint=f"accept its terms on its Hub page, then `hf auth login` ({repo_id})",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointNotFoundError(
            f"{repo_id} has no revision {revision!r}", hint="leave --revision out for the newest"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return HubUnreachableError(
            f"{repo_id}{at} is not complete in the local cache, and the Hub cannot be reached",
            hint="check the network and HF_HUB_OFFLINE, or pass a local folder",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return CheckpointNotFoundError(
            f"{repo_id}{at} lacks a file that is needed", hint="check the repository's file list"
        )
    if isinstance(error, errors.RepositoryNotFoundError | HFValidationError):
        return CheckpointNotFoundError(
            f"neither a folder nor a Hub model is named {repo_id}",
            hint="check the spelling; for a private model run `hf auth login` first",
        )
    return _translate_failure(error, f"{repo_id}{at}")


def _translate_failure(error: Exception, wanted: str) -> CheckpointError:
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "no status"
        refused = status in (401, 403)
        return CheckpointError(
            f"the Hub answered {status} when asked for {wanted}",
            hint="log in again with `hf auth login`, or unset HF_TOKEN" if refused else "try again",
        )
    if isinstance(error, ConnectionError) or "httpx" in type(error).__module__:
        return HubUnreachableError(
            f"the Hub cannot be reached for {wanted} ({type(error).__name__})",
            hint="check the network and HF_HUB_OFFLINE, or pass a local folder",
        )
    return CheckpointError(
        f"the Hub did not deliver {wanted} ({type(error).__name__})",
        hint="check the disk and the network and try again; DCSURGERY_DEBUG=1 shows the details",
    )


def list_repository(repo_id: str, revision: str | None) -> HubListing:
    """Return the files of a model repository and the commit they belong to.

    Raises CheckpointNotFoundError or CheckpointError.
    """
    with hub_errors(repo_id, revision):
        from huggingface_hub import HfApi

        info = HfApi().model_info(
            repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_S
        )
        files = info.siblings or []
        sizes = {item.rfilename: item.size or 0 for item in files}
        digests = {item.rfilename: item.lfs.sha256 for item in files if item.lfs}
        return HubListing(commit=str(info.sha), sizes=sizes, digests=digests)


def read_range(repo_id: str, commit: str, name: str, start: int, length: int) -> bytes:
    """Return `length` bytes of a file from `start`, by one HTTP range request.

    Raises CheckpointError when the Hub answers with anything else.
    """
    if not length:
        return b""
    with hub_errors(repo_id, commit):
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        wanted = f"bytes={start}-{start + length - 1}"
        request = get_session().stream(
            "GET",
            hf_hub_url(repo_id, name, revision=commit),
            headers={**build_hf_headers(), "Range": wanted, "Accept-Encoding": "identity"},
            follow_redirects=True,
            timeout=TIMEOUT_S,
        )
        body = bytearray()
        with request as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            # A server may ignore the range and send the whole file: stop when there is enough.
            if response.status_code == 206 or start == 0:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) >= length:
                        break
    if len(body) < length:
        raise CheckpointError(
            f"the Hub sent {len(body)} of {length} bytes of {name}",
            hint="try again; a proxy in between may not support range requests",
        )
    return bytes(body[:length])


def fetch_file(repo_id: str, revision: str | None, name: str) -> Path:
    """Download one small file of a model into huggingface_hub's cache and return its path there.

    Raises CheckpointNotFoundError or CheckpointError.
    """
    with hub_errors(repo_id, revision):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo_id, name, revision=revision))
