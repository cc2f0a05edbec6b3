"""Everything that can go wrong while pushing ends in one line that says what was committed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.checkpoint.folders import llava
from tests.hub import Fault, Hub, User, running_hub
from tests.publishing.pusher import NOTHING, Done, Pusher, environment, refused, running_pusher

pytestmark = pytest.mark.slow

BASE = "org/base"
TOKENS = {
    "hf_writer": User("me", orgs=("ours",)),
    "hf_reader": User("me", "read"),
    "hf_narrow": User("me", "fineGrained", scopes=(("me/other", "repo.write"),)),
    "hf_fine": User("me", "fineGrained", scopes=(("me", "repo.write"),)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users |= TOKENS
        hub.add(BASE, llava(shards=3), xet=True)
        yield hub


@pytest.fixture(scope="module")
def pusher(served: Hub, place: Path) -> Iterator[Pusher]:
    with running_pusher(served, place, heavy=False) as pusher:
        yield pusher


@pytest.fixture
def hub(served: Hub) -> Hub:
    """The Hub with nothing but the base on it."""
    served.repositories = {BASE: served.repositories[BASE]}
    served.log.clear()
    served.faults.clear()
    return served


@pytest.fixture(scope="module")
def delta(served: Hub, pusher: Pusher, place: Path) -> Path:
    done = pusher.run("convert", BASE, "-o", place / "delta", "--form", "delta")
    assert done.code == 0, done.err
    return place / "delta"


Push = Callable[..., Done]


@pytest.fixture
def push(pusher: Pusher, delta: Path) -> Push:
    """Push the delta to me/model, unverified; what is said never holds a token."""

    def run(*options: object, repo: str = "me/model", token: str = "hf_writer") -> Done:
        return pusher.run("push", delta, repo, "--no-verify", *options, token=token)

    return run


def uploads(hub: Hub) -> int:
    """How many files were sent whole."""
    return sum(item.method == "PUT" and item.status == 200 for item in hub.log)


def changed(hub: Hub, repo: str = "me/model") -> bool:
    """Whether the repository has more than what it was created with."""
    return repo in hub.repositories and len(hub.repositories[repo].commits) > 1


@pytest.fixture(scope="module")
def broken(delta: Path, place: Path) -> Path:
    """A plan without its tensors: verification would fail, so it has to come second."""
    folder = place / "broken/dense_connector"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_bytes((delta / "dense_connector/plan.json").read_bytes())
    return folder.parent


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        ("hf_wrong", "me/model", ("does not accept this token (401)", "hf auth login")),
        ("hf_reader", "me/model", ("token of me is read-only", "write access")),
        ("hf_narrow", "me/model", ("no write permission for me/model", "repo.write")),
        ("hf_writer", "them/model", ("cannot create them/model", "me/model")),
        ("hf_writer", BASE, ("may not write to org/base (403)", "--create-pr")),
        ("hf_writer", "me/a--b", ("cannot be the name of a repository",)),
        ("hf_writer", "me/a/b", ("cannot be the name of a repository",)),
    ],
)
def test_who_may_not_push_is_told_before_anything_is_read(
    hub: Hub, pusher: Pusher, broken: Path, token: str, repo: str, words: tuple[str, ...]
) -> None:
    refused(pusher.run("push", broken, repo, token=token), *words)
    assert uploads(hub) == 0 and not changed(hub, repo)
    assert hub.repositories.keys() == {BASE}


def test_without_a_token_or_offline_nobody_is_asked(
    hub: Hub, pusher: Pusher, delta: Path, place: Path, push: Push
) -> None:
    refused(push(token=""), "no Hub token was found", "hf auth login")
    done = subprocess.run(
        [sys.executable, "-m", "dcsurgery", "push", delta, "me/model"],
        env=environment(hub, place) | {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_writer"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    refused(Done(done.returncode, done.stdout, done.stderr), "HF_HUB_OFFLINE is set")
    assert hub.log == []


def test_tokens_with_the_right_permission_push(hub: Hub, push: Push) -> None:
    assert push(token="hf_fine").code == 0
    assert push(repo="ours/model").code == 0
    assert push(repo="bare").code == 0
    assert hub.repositories.keys() == {BASE, "me/model", "ours/model", "me/bare"}


def test_somebody_else_s_commit_in_between_is_not_overwritten(hub: Hub, push: Push) -> None:
    assert push().code == 0
    repository = hub.repositories["me/model"]

    def meddle() -> None:
        head = repository.commits[repository.commit]
        entries = {**head.entries, "theirs.txt": head.entries[".gitattributes"]}
        repository.add(type(head)(entries, "theirs", head.id))

    hub.faults.append(Fault("POST", "/preupload/", "call", action=meddle))
    # The first preupload is the permission check; the second follows the plan.
    hub.faults.insert(0, Fault("POST", "/preupload/", "call"))
    refused(push("--overwrite-card", "--license", "mit"), "another commit", "(412)")
    assert repository.commits[repository.commit].title == "theirs"
    assert push("--overwrite-card", "--license", "mit").code == 0
    assert "theirs.txt" in repository.files


def test_a_dropped_upload_is_tried_again(hub: Hub, push: Push) -> None:
    hub.faults.append(Fault("PUT", "/lfs/", "reset", after=100))
    done = push()
    assert done.code == 0 and changed(hub)


def test_an_upload_that_fails_for_good_is_resumed_by_the_next_push(hub: Hub, push: Push) -> None:
    hub.faults.append(Fault("PUT", "/lfs/", "status", status=403))
    refused(push(), "(403)", "the new repository me/model is empty")
    assert uploads(hub) == 1 and not changed(hub)
    hub.log.clear()
    assert push().code == 0
    assert uploads(hub) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("POST", "/commit/", "status", status=500), ("the Hub failed (500)",)),
        (Fault("POST", "/commit/", "status", status=503), ("the Hub failed (503)",)),
        (Fault("POST", "/commit/", "reset"), ("connection to the Hub broke", "so far")),
        (Fault("POST", "/commit/", "short"), ()),
        (Fault("POST", "/verify", "status", status=400), ("the Hub refused it (400",)),
        (Fault("POST", "/create", "status", status=409), ("being changed by somebody else",)),
        (Fault("POST", "/create", "status", status=502), ("the Hub failed (502)",)),
        (Fault("GET", "/whoami-v2", "status", status=429), ("limits how often", "wait")),
        (Fault("GET", "/whoami-v2", "reset"), ("connection to the Hub broke",)),
        (Fault("GET", "/api/models/me/model", "status", status=500), ("the Hub failed (500)",)),
        (Fault("GET", "/tree/", "short"), ()),  # the client asks again
    ],
    ids=str,
)
def test_a_failing_hub_leaves_nothing_and_the_next_push_sends_what_is_missing(
    hub: Hub, push: Push, fault: Fault, words: tuple[str, ...]
) -> None:
    hub.faults.append(fault)
    done = push()
    if words:
        refused(done, *words, "run the same command again" if "400" not in words[0] else "")
        assert not changed(hub)
    sent = uploads(hub)
    assert push().code == 0 and changed(hub)
    assert uploads(hub) == max(sent, 2)


def test_a_lost_answer_is_no_failure_when_the_commit_is_there(hub: Hub, push: Push) -> None:
    hub.faults.append(Fault("POST", "/commit/", "lost"))
    done = push("--json")
    assert done.code == 0
    assert done.json["commit"] == hub.repositories["me/model"].commit
    assert "answer was lost" in done.json["notes"][-1]


def test_what_cannot_be_known_is_said(hub: Hub, push: Push) -> None:
    hub.faults += [
        Fault("POST", "/commit/", "lost"),
        Fault("GET", "/api/models/me/model/revision/main", "status", status=500),
    ]
    refused(push(), "could not find out whether it was committed", nothing=False)
    done = push()
    assert done.code == 0 and "nothing was committed" in done.out


class Stall:
    """Holds a request back until it is released."""

    def __init__(self, hub: Hub, method: str, path: str) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        hub.faults.append(Fault(method, path, "call", action=self.hold))

    def hold(self) -> None:
        self.reached.set()
        self.release.wait(30)


@pytest.mark.parametrize("where", ["PUT /lfs/", "POST /commit/"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_push_that_is_stopped_says_so_at_once_and_is_resumed(
    hub: Hub, pusher: Pusher, delta: Path, push: Push, where: str, number: int
) -> None:
    stall = Stall(hub, *where.split())
    pid = pusher.start("push", delta, "me/model", "--no-verify")
    assert stall.reached.wait(30)
    os.kill(pid, number)
    started = time.monotonic()
    done = pusher.wait(pid)
    # The upload is still held back: nobody waited for it.
    assert not stall.release.is_set() and time.monotonic() - started < 25
    if number == signal.SIGKILL:
        assert (done.code, done.out) == (-signal.SIGKILL, "")
    else:
        assert (done.code, done.out) == (130, "")
        assert done.err.startswith(f"interrupted; {NOTHING}") and done.err.count("\n") == 1
    assert not changed(hub)
    stall.release.set()
    assert push().code == 0 and changed(hub)


def test_copies_the_hub_refuses_are_uploaded(hub: Hub, pusher: Pusher, place: Path) -> None:
    done = pusher.run("convert", BASE, "-o", place / "stock")
    assert done.code == 0, done.err
    hub.faults.append(Fault("POST", "/lfs-files/duplicate", "status", status=403))
    done = pusher.run("push", place / "stock", "me/stock", "--no-verify", "--json")
    assert done.code == 0, done.err
    assert "refused to copy" in done.json["notes"][-1]
    copied = [item["path"] for item in done.json["files"] if item["action"] == "copy"]
    assert len(copied) == 2
    files = hub.repositories["me/stock"].files
    assert all(files[name] == (place / "stock" / name).read_bytes() for name in copied)
