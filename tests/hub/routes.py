"""A request as the routes see it, and a table that finds the one that answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.hub.state import Answer, Commit, Hub, Repository, User

Reply = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Call:
    """A request: `path` is unquoted, `token` what the caller showed."""

    hub: Hub
    method: str
    path: str
    query: dict[str, str]
    token: str | None
    range: str | None
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> User:
        """Who calls. Raises Answer for nobody."""
        if self.token is None or self.token not in self.hub.users:
            raise Answer(401, message="Invalid username or password.")
        return self.hub.users[self.token]

    def open(self, repo_id: str) -> Repository:
        """Return a repository the caller may see."""
        found = self.hub.repositories.get(repo_id)
        if found is not None and found.token is not None and found.token != self.token:
            found = None
        if found is not None and found.private:
            user = self.hub.users.get(self.token or "")
            owner = repo_id.split("/")[0]
            if user is None or owner not in (user.name, *user.orgs):
                found = None
        if found is None:
            raise Answer(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return found

    def at(self, repo_id: str, revision: str | None) -> tuple[Repository, str, Commit]:
        """Return a repository the caller may see, a commit's id and the commit."""
        repository = self.open(repo_id)
        commit = repository.find(revision)
        if commit is None:
            raise Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit, repository.commits[commit]

    def writable(self, repo_id: str) -> Repository:
        """Return a repository the caller may change."""
        repository = self.open(repo_id)
        if not self.user.may_write(repo_id):
            raise Answer(403, message="you must use a write token to upload to a repository")
        return repository


@dataclass
class Routes:
    """Answers by method and path pattern, the first that matches."""

    table: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = field(default_factory=list)

    def on(self, method: str, pattern: str) -> Callable[[Callable[..., Reply]], Any]:
        """Register a function for paths that match whole; it gets the call and the groups.

        `{id}` stands for a repository's name, `{rev}` for a revision.
        """
        for mark, wild in (("{id}", r"([^/]+/[^/]+)"), ("{rev}", r"(refs/pr/\d+|[^/]+)")):
            pattern = pattern.replace(mark, wild)

        def register(function: Callable[..., Reply]) -> Callable[..., Reply]:
            self.table.append((method, re.compile(pattern), function))
            return function

        return register

    def answer(self, call: Call) -> Reply | None:
        """Return the answer of the first route that matches."""
        method = "GET" if call.method == "HEAD" else call.method
        for wanted, pattern, function in self.table:
            found = pattern.fullmatch(call.path)
            if wanted == method and found:
                return function(call, *found.groups())
        return None


def as_json(value: Any, status: int = 200, kind: str = "application/json") -> Reply:
    """A JSON answer."""
    return status, {"Content-Type": kind}, json.dumps(value).encode()
