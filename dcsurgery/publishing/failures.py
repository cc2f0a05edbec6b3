"""What the Hub client raises, in one line: what happened, whether anything was committed, what now.

Nothing the client says is passed on unread: it may quote headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dcsurgery.errors import DcSurgeryError, PublishError

NOTHING = "nothing was committed"
AGAIN = "run the same command again: it sends only what is missing"
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]+")
# Status -> what it means here, and what to do. {repo} is the repository that is pushed to.
STATUSES = {
    401: (
        "the Hub does not accept this token (401)",
        "make a token with write access in your Hub settings, then `hf auth login`; "
        "HF_TOKEN, where set, comes first",
    ),
    403: (
        "this token may not write to {repo} (403)",
        "use a token with write access to it, push to a name of your own, or offer it with "
        "--create-pr",
    ),
    404: (
        "there is no {repo} on this Hub, or this token may not see it (404)",
        "check the spelling and which account `hf auth whoami` names",
    ),
    409: ("{repo} is being changed by somebody else (409)", AGAIN),
    412: (
        "{repo} has got another commit since this push began (412)",
        f"look at what was changed, then {AGAIN}",
    ),
    413: ("the Hub refuses a file or commit of this size (413)", "push to a repository of its own"),
    429: ("the Hub limits how often it may be asked (429)", f"wait a few minutes, then {AGAIN}"),
}


@contextmanager
def hub_calls(repo: str, outcome: Callable[[], str] = lambda: NOTHING) -> Iterator[None]:
    """Turn whatever the Hub client raises into a PublishError.

    `outcome` is asked only then and says what became of the commit.
    """
    try:
        yield
    except DcSurgeryError:
        raise
    except Exception as error:
        raise translate(error, repo, outcome()) from error


def translate(error: Exception, repo: str, outcome: str) -> PublishError:
    """Return the PublishError for an exception of the Hub client."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    chain = list(_causes(error))
    for item in chain:
        if isinstance(item, HfHubHTTPError):
            return _by_status(item, repo, outcome)
        if isinstance(item, OfflineModeIsEnabled):
            return offline()
        if isinstance(item, HFValidationError):
            return PublishError(
                f"{repo!r} cannot be the name of a repository; {outcome}",
                hint="write user/name with letters, digits, - _ and .",
            )
    broken = [item for item in chain if _is_network(item)]
    if broken:
        return PublishError(
            f"the connection to the Hub broke ({type(broken[-1]).__name__}); {outcome}", hint=AGAIN
        )
    return PublishError(
        f"the Hub client failed ({type(error).__name__}: {safe(str(error))}); {outcome}",
        hint=f"{AGAIN}; DCSURGERY_DEBUG=1 shows the details",
    )


def offline() -> PublishError:
    """Return the error for a machine that was told to stay offline."""
    return PublishError(
        f"HF_HUB_OFFLINE is set, so the Hub may not be asked; {NOTHING}",
        hint="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE) and run it again",
    )


def safe(text: str) -> str:
    """Return a message's first words without anything that looks like a token."""
    return _TOKEN.sub("***", " ".join(text.split()))[:200]


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status an exception is about, None for other failures."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _is_network(error: BaseException) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or "httpx" in type(error).__module__


def _by_status(error: BaseException, repo: str, outcome: str) -> PublishError:
    status = status_of(error) or 0
    if type(error).__name__ == "RepositoryNotFoundError" and status == 401:
        status = 404  # the Hub's answer to anonymous callers, whatever they ask for
    if status in STATUSES:
        said, hint = STATUSES[status]
        return PublishError(f"{said.format(repo=repo)}; {outcome}", hint=hint)
    if status >= 500:
        return PublishError(f"the Hub failed ({status}); {outcome}", hint=AGAIN)
    message = safe(getattr(error, "server_message", None) or str(error))
    return PublishError(
        f"the Hub refused it ({status}: {message}); {outcome}",
        hint="the message is the Hub's; DCSURGERY_DEBUG=1 shows the request",
    )
