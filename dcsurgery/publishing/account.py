"""Who pushes, and whether they may: asked before anything large is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dcsurgery.errors import PublishError
from dcsurgery.publishing.failures import NOTHING, hub_calls, offline

if TYPE_CHECKING:
    from huggingface_hub import HfApi

WRITE_TOKEN = (
    "make a token with write access in your Hub settings, then `hf auth login`, or pass it in "
    "HF_TOKEN"
)


@dataclass(frozen=True)
class Account:
    """The owner of a token, and what the token is good for.

    `permissions` of a fine-grained token: by the user, organisation or repository it is scoped to;
    None when the Hub did not say.
    """

    name: str
    orgs: tuple[str, ...]
    role: str
    permissions: dict[str, list[str]] | None = field(default=None, repr=False)

    def may_write(self, repo_id: str) -> bool:
        """Return whether the token can have write access to a repository of that name."""
        owner = repo_id.split("/")[0]
        if self.role == "fineGrained" and self.permissions is not None:
            granted = [p for who in ("", owner, repo_id) for p in self.permissions.get(who, [])]
            return any("write" in permission for permission in granted)
        return self.role != "read"


def connect(token: str | None) -> HfApi:
    """Return a client that carries the token: the given one, HF_TOKEN, or that of `hf auth login`.

    Raises PublishError when there is none, or the machine is offline by request.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise offline()
    found = token or get_token()
    if not found:
        raise PublishError(f"no Hub token was found; {NOTHING}", hint=WRITE_TOKEN)
    return HfApi(token=found)


def who_am_i(api: HfApi) -> Account:
    """Return the account of the client's token. Raises PublishError when the Hub refuses it."""
    with hub_calls("the Hub"):
        found: dict[str, Any] = api.whoami()
    token = found.get("auth", {}).get("accessToken", {})
    orgs = tuple(org["name"] for org in found.get("orgs", ()))
    return Account(found["name"], orgs, token.get("role", "write"), _permissions(token))


def _permissions(token: dict[str, Any]) -> dict[str, list[str]] | None:
    fine = token.get("fineGrained")
    if not isinstance(fine, dict) or "scoped" not in fine:
        return None
    granted: dict[str, list[str]] = {"": list(fine.get("global", ()))}
    for scope in fine["scoped"]:
        name = scope.get("entity", {}).get("name", "")
        granted.setdefault(name, []).extend(scope.get("permissions", ()))
    return granted


def full_name(repo_id: str, account: Account) -> str:
    """Return "owner/name", the account's own for a bare name."""
    return repo_id if "/" in repo_id else f"{account.name}/{repo_id}"


def require_write(account: Account, repo_id: str, *, exists: bool, create_pr: bool) -> None:
    """Raise PublishError when this token cannot do what is asked, as far as the Hub tells.

    A pull request needs no right to the branch, and others may have shared an existing repository.
    """
    if account.role == "read":
        raise PublishError(f"the token of {account.name} is read-only; {NOTHING}", hint=WRITE_TOKEN)
    if create_pr and exists:
        return
    if not account.may_write(repo_id):
        raise PublishError(
            f"the fine-grained token of {account.name} has no write permission for {repo_id}; "
            f"{NOTHING}",
            hint=f"give it `repo.write` for {repo_id.split('/')[0]} in your Hub settings",
        )
    owner = repo_id.split("/")[0]
    if not exists and owner not in (account.name, *account.orgs):
        raise PublishError(
            f"{account.name} cannot create {repo_id}: {owner} is neither this account nor one of "
            f"its organisations; {NOTHING}",
            hint=f"push to {account.name}/{repo_id.split('/')[1]}",
        )
