"""Reading a model: who am I, model info, tree, files with ranges, references."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import yaml

from tests.hub.routes import Call, Reply, Routes, as_json
from tests.hub.state import Answer, Commit

ROUTES = Routes()


@ROUTES.on("GET", "/api/whoami-v2")
def whoami(call: Call) -> Reply:
    """The token's owner and role."""
    user = call.user
    token: dict[str, Any] = {"displayName": "test", "role": user.role}
    if user.role == "fineGrained":
        scoped = [
            {"entity": {"type": "user", "name": entity}, "permissions": [permission]}
            for entity, permission in user.scopes
        ]
        token["fineGrained"] = {"global": [], "scoped": scoped}
    orgs = [{"type": "org", "name": name} for name in user.orgs]
    auth = {"type": "access_token", "accessToken": token}
    return as_json({"type": "user", "name": user.name, "orgs": orgs, "auth": auth})


@ROUTES.on("GET", "/api/models/{id}(?:/revision/(.+))?")
def model_info(call: Call, repo_id: str, revision: str | None) -> Reply:
    """The model info document, sizes included."""
    repository, sha, commit = call.at(repo_id, revision)
    siblings = []
    for path, entry in sorted(commit.entries.items()):
        found = entry.describe(path)
        siblings.append({"rfilename": path, "size": found["size"], "blobId": found["oid"]})
        if "lfs" in found:
            siblings[-1]["lfs"] = found["lfs"]
    about = {
        "id": repo_id, "sha": sha, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
        "private": repository.private or repository.token is not None, "disabled": False,
        "gated": "manual" if repository.gated else False,
    }  # fmt: skip
    card = commit.entries.get("README.md")
    block = card.data.decode().split("---\n")[1:2] if card else []
    try:
        about["cardData"] = yaml.safe_load(block[0]) if block else None
    except yaml.YAMLError:
        about["cardData"] = None
    return as_json(about)


@ROUTES.on("GET", "/api/datasets/{id}(?:/revision/(.+))?")
def dataset_info(call: Call, repo_id: str, revision: str | None) -> Reply:
    """The commit of a data set, which is stored as datasets/owner/name."""
    _, sha, _ = call.at(f"datasets/{repo_id}", revision)
    about = {"id": repo_id, "sha": sha, "siblings": [], "tags": [], "downloads": 0, "likes": 0}
    return as_json({**about, "private": False, "disabled": False, "gated": False})


def listing(commit: Commit, below: str | None) -> list[dict[str, Any]]:
    """The entries of a tree, or of a folder of it."""
    start = f"{below}/" if below else ""
    return [e.describe(p) for p, e in sorted(commit.entries.items()) if p.startswith(start)]


@ROUTES.on("GET", "/api/models/{id}/tree/{rev}(?:/(.+))?")
def tree(call: Call, repo_id: str, revision: str, below: str | None) -> Reply:
    """Every file, as with recursive=true."""
    return as_json(listing(call.at(repo_id, revision)[2], below))


@ROUTES.on("POST", "/api/models/{id}/paths-info/{rev}")
def paths_info(call: Call, repo_id: str, revision: str) -> Reply:
    """The entries of some paths; unknown ones are left out."""
    is_json = call.body.startswith(b"{")
    wanted = call.json["paths"] if is_json else parse_qs(call.body.decode()).get("paths", [])
    entries = call.at(repo_id, revision)[2].entries
    return as_json([entries[path].describe(path) for path in wanted if path in entries])


@ROUTES.on("GET", "/api/models/{id}/refs")
def refs(call: Call, repo_id: str) -> Reply:
    """Branches and pull requests."""
    found = [
        {"name": name, "ref": name if "/" in name else f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in call.open(repo_id).refs.items()
    ]
    pulls = [item for item in found if item["name"].startswith("refs/pr/")]
    heads = [item for item in found if item not in pulls]
    return as_json({"branches": heads, "tags": [], "converts": [], "pullRequests": pulls})


@ROUTES.on("GET", "/api/models/{id}/commits/{rev}")
def commits(call: Call, repo_id: str, revision: str) -> Reply:
    """The history, newest first."""
    repository, sha, _ = call.at(repo_id, revision)
    found, at = [], sha
    while at:
        commit = repository.commits[at]
        date = "2026-01-01T00:00:00.000Z"
        found.append({"id": at, "title": commit.title, "message": "", "authors": [], "date": date})
        at = commit.parent or ""
    return as_json(found)


@ROUTES.on("GET", "/{id}/resolve/{rev}/(.+)")
def resolve(call: Call, repo_id: str, revision: str, path: str) -> Reply:
    """A file, whole or the range asked for."""
    repository, sha, commit = call.at(repo_id, revision)
    if repository.gated:
        raise Answer(403, "GatedRepo")
    if path not in commit.entries:
        raise Answer(404, "EntryNotFound", commit=sha)
    entry = commit.entries[path]
    found = entry.describe(path)
    etag = found.get("lfs", found)["oid"]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if "lfs" in found:
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry.size)}
    if entry.xet and call.hub.store:
        place = f"{call.hub.url}/api/models/{repo_id}/xet-read-token/{sha}"
        headers |= {"X-Xet-Hash": entry.xet, "Link": f'<{place}>; rel="xet-auth"'}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", call.range or "")
    if wanted is None or call.hub.ignore_ranges:
        return 200, headers, entry.data
    start = int(wanted[1])
    end = min(int(wanted[2] or len(entry.data) - 1), len(entry.data) - 1)
    if start > end:
        return 416, headers, b""
    headers["Content-Range"] = f"bytes {start}-{end}/{len(entry.data)}"
    return 206, headers, entry.data[start : end + 1]
