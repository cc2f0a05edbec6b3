"""What the Hub remembers: repositories, commits, large files, users, requests."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.hub.faults import Fault
from tests.hub.xet import XetStore

LARGE = (".safetensors", ".bin", ".png")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


class Answer(Exception):
    """Ends a request early with an error the Hub client understands."""

    def __init__(self, status: int, code: str = "", message: str = "", commit: str = "") -> None:
        super().__init__(code)
        named = {"X-Error-Code": code, "X-Repo-Commit": commit, "X-Error-Message": message or code}
        self.status, self.headers = status, {key: text for key, text in named.items() if text}


def blob_id(data: bytes) -> str:
    """The id git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file at a commit; `xet` is None for what Xet does not hold.

    `held` (SHA-256, bytes) stands for a content that only the Xet store has.
    """

    data: bytes
    large: bool
    xet: str | None = None
    held: tuple[str, int] | None = None

    @property
    def sha256(self) -> str:
        """The digest large files are named by."""
        return self.held[0] if self.held else hashlib.sha256(self.data).hexdigest()

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.held[1] if self.held else len(self.data)

    def describe(self, path: str) -> dict[str, Any]:
        """The listing entry."""
        size = self.size
        if not self.large:
            return {"type": "file", "path": path, "size": size, "oid": blob_id(self.data)}
        pointer = POINTER.format(self.sha256, size).encode()
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": size, "pointerSize": len(pointer)}
        entry = {"type": "file", "path": path, "size": size, "oid": blob_id(pointer), "lfs": lfs}
        return entry | ({"xetHash": self.xet} if self.xet else {})


@dataclass(frozen=True)
class Commit:
    """A tree and where it came from. The id follows from the content of the whole history."""

    entries: dict[str, Entry]
    title: str = "initial commit"
    parent: str | None = None

    @property
    def id(self) -> str:
        """40 hex digits."""
        digest = hashlib.sha1(f"{self.parent}\0{self.title}".encode())
        for path, entry in sorted(self.entries.items()):
            digest.update(path.encode() + b"\0" + entry.sha256.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class User:
    """Who a token belongs to. A fine-grained token lists (entity, permission) pairs in `scopes`."""

    name: str
    role: Literal["read", "write", "fineGrained"] = "write"
    orgs: tuple[str, ...] = ()
    scopes: tuple[tuple[str, str], ...] = ()

    def may_write(self, repo_id: str) -> bool:
        """Return whether the token may change a repository."""
        owner = repo_id.split("/")[0]
        if self.role == "fineGrained":
            return any(
                entity in (owner, repo_id) and permission == "repo.write"
                for entity, permission in self.scopes
            )
        return self.role == "write" and owner in (self.name, *self.orgs)


@dataclass
class Repository:
    """A model repository. `token` makes it private to one caller, `gated` keeps its files shut.

    `xet`: large files can be copied to another repository on the server.
    """

    gated: bool = False
    token: str | None = None
    owner: str | None = None
    private: bool = False
    xet: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Entry] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        """The head of main."""
        return self.refs["main"]

    @property
    def files(self) -> dict[str, bytes]:
        """The files on main."""
        return {path: e.data for path, e in self.commits[self.commit].entries.items()}

    def add(self, commit: Commit, ref: str = "main") -> str:
        """Store a commit and move a ref to it."""
        self.commits[commit.id] = commit
        self.refs[ref] = commit.id
        self.stored |= {e.sha256: e for e in commit.entries.values() if e.large}
        return commit.id

    def find(self, revision: str | None) -> str | None:
        """The commit a branch, pull request or (short) commit id means."""
        wanted = revision or "main"
        if wanted in self.refs:
            return self.refs[wanted]
        return next((id for id in self.commits if len(wanted) > 6 and id.startswith(wanted)), None)


@dataclass(frozen=True)
class Request:
    """A request that was answered: bytes of bodies only, `received` from the client."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int
    received: int = 0


@dataclass
class Hub:
    """Repositories by id, users by token, the request log, and switches for misbehaviour.

    Without users nobody is asked who they are. `part_bytes`: larger files are sent in parts.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ignore_ranges: bool = False
    failure: int | None = None
    part_bytes: int | None = None
    url: str = ""
    store: XetStore | None = None
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def add(self, repo_id: str, files: dict[str, bytes], **options: Any) -> Repository:
        """Store a repository with one commit."""
        found = self.repositories[repo_id] = Repository(**options)
        entries = {}
        known = self.store.files() if self.store else {}
        for path, data in files.items():
            large = path.endswith(LARGE)
            digest = hashlib.sha256(data).hexdigest()
            xet = known[digest][0] if digest in known else digest
            entries[path] = Entry(data, large, xet if large and found.xet else None)
        found.add(Commit(entries))
        return found

    def sent(self, suffix: str = "") -> int:
        """Body bytes sent for all paths that end with `suffix`."""
        return sum(item.sent for item in self.log if item.path.endswith(suffix))

    def received(self, pattern: str = "") -> int:
        """Body bytes received for all paths that contain `pattern`."""
        return sum(item.received for item in self.log if pattern in item.path)
