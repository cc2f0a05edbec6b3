"""Publishing a model: repositories, branches, large files, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from typing import Any

import yaml

from tests.hub.routes import Call, Reply, Routes, as_json
from tests.hub.state import LARGE, Answer, Commit, Entry, Repository, blob_id

ROUTES = Routes()
LFS = "application/vnd.git-lfs+json"
LARGEST_REGULAR = 10 * 1024 * 1024


@ROUTES.on("POST", "/api/repos/create")
def create(call: Call) -> Reply:
    """A new repository with the one file the Hub puts there."""
    user, wanted = call.user, call.json
    repo_id = f"{wanted.get('organization') or user.name}/{wanted['name']}"
    url = {"url": f"{call.hub.url}/{repo_id}", "name": repo_id}
    if repo_id in call.hub.repositories:
        return as_json(url | {"error": "You already created this model repo"}, 409)
    if not user.may_write(repo_id):
        raise Answer(403, message=f"You don't have the rights to create a model under {repo_id}")
    private = wanted.get("visibility") == "private"
    call.hub.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
    return as_json(url)


@ROUTES.on("POST", "/api/models/{id}/branch/(.+)")
def branch(call: Call, repo_id: str, name: str) -> Reply:
    """A new branch at a starting point."""
    repository = call.writable(repo_id)
    if name in repository.refs:
        raise Answer(409, message="Reference already exists")
    start = repository.find(call.json.get("startingPoint"))
    if start is None:
        raise Answer(404, "RevisionNotFound")
    repository.refs[name] = start
    return as_json({}, 201)


@ROUTES.on("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Reply:
    """What the Hub says about a card's metadata: a mapping, and known kinds of values."""
    content = call.json["content"]
    errors = []
    block = content.split("---\n")[1] if content.startswith("---\n") else ""
    try:
        found = yaml.safe_load(block) or {}
        if not isinstance(found, dict):
            errors.append("metadata must be a mapping")
        elif not isinstance(found.get("license", ""), str | list):
            errors.append('"license" must be a string')
        elif not isinstance(found.get("tags", []), list):
            errors.append('"tags" must be an array')
        elif "model-index" in found and not found["model-index"][0]["results"][0]["metrics"]:
            errors.append('"model-index[0].results[0].metrics" must not be empty')
    except yaml.YAMLError as error:
        errors.append(str(error))
    answer = {"errors": [{"message": text} for text in errors], "warnings": []}
    return as_json(answer, 400 if errors else 200)


@ROUTES.on("POST", "/api/models/{id}/preupload/{rev}")
def preupload(call: Call, repo_id: str, revision: str) -> Reply:
    """How each file is to be sent, and what is there already."""
    if call.query.get("create_pr"):
        call.open(repo_id)
    else:
        call.writable(repo_id)
    entries = call.at(repo_id, revision)[2].entries
    files = []
    for item in call.json["files"]:
        path = item["path"]
        large = path.endswith(LARGE) and item["size"] > 0
        found: dict[str, Any] = {"path": path, "uploadMode": "lfs" if large else "regular"}
        if path in entries:
            old = entries[path]
            found["oid"] = old.sha256 if old.large else blob_id(old.data)
        files.append(found | {"shouldIgnore": False})
    return as_json({"files": files})


def storable(call: Call, repo_id: str) -> Repository:
    """A repository whose storage the caller may use: pull requests bring large files as well."""
    if call.user.role == "read":
        raise Answer(403, message="this token is read-only")
    return call.open(repo_id)


@ROUTES.on("POST", "/{id}.git/info/lfs/objects/batch")
def batch(call: Call, repo_id: str) -> Reply:
    """Where to send large files; no action for those the repository holds."""
    stored = storable(call, repo_id).stored
    objects = []
    for item in call.json["objects"]:
        oid, size = item["oid"], item["size"]
        found = {"oid": oid, "size": size}
        if oid not in stored:
            place = f"{call.hub.url}/lfs/{repo_id}/{oid}"
            upload: dict[str, Any] = {"href": place}
            part = call.hub.part_bytes
            if part and size > part:
                urls = {f"{n + 1:05d}": f"{place}/{n + 1}" for n in range(math.ceil(size / part))}
                upload = {"href": f"{place}/complete", "header": {"chunk_size": str(part)} | urls}
            found["actions"] = {"upload": upload, "verify": {"href": f"{place}/verify"}}
        objects.append(found)
    return as_json({"transfer": "basic", "objects": objects}, kind=LFS)


def keep(repository: Repository, oid: str, data: bytes) -> None:
    """Store a large file whose bytes are what its name says."""
    if hashlib.sha256(data).hexdigest() != oid:
        raise Answer(400, message="content does not match its digest")
    repository.stored[oid] = Entry(data, True, oid if repository.xet else None)


@ROUTES.on("PUT", "/lfs/{id}/([0-9a-f]{64})")
def put(call: Call, repo_id: str, oid: str) -> Reply:
    """A whole large file; the storage behind the Hub asks for no token."""
    if call.token:
        raise Answer(400, message="a token was shown to the storage")
    keep(call.hub.repositories[repo_id], oid, call.body)
    return 200, {}, b""


@ROUTES.on("PUT", "/lfs/{id}/([0-9a-f]{64})/(\\d+)")
def put_part(call: Call, repo_id: str, oid: str, number: str) -> Reply:
    """One part of a large file."""
    call.hub.parts[oid, int(number)] = call.body
    return 200, {"ETag": f'"{oid[:8]}-{number}"'}, b""


@ROUTES.on("POST", "/lfs/{id}/([0-9a-f]{64})/complete")
def complete(call: Call, repo_id: str, oid: str) -> Reply:
    """Join the parts."""
    numbers = [part["partNumber"] for part in call.json["parts"]]
    data = b"".join(call.hub.parts.pop((oid, number)) for number in numbers)
    keep(call.hub.repositories[repo_id], oid, data)
    return as_json({}, kind=LFS)


@ROUTES.on("POST", "/lfs/{id}/([0-9a-f]{64})/verify")
def verify(call: Call, repo_id: str, oid: str) -> Reply:
    """Confirm that a large file arrived."""
    found = storable(call, repo_id).stored.get(oid)
    if found is None or len(found.data) != call.json["size"]:
        raise Answer(400, message="the file is not there")
    return as_json({}, kind=LFS)


@ROUTES.on("POST", "/api/models/{id}/lfs-files/duplicate")
def duplicate(call: Call, repo_id: str) -> Reply:
    """Copy large files of this repository to another one, on the server."""
    target = call.writable(call.json["target"]["name"])
    source, done, failed = call.open(repo_id), [], []
    for item in call.json["files"]:
        found = source.stored.get(item["sha256"])
        if found is None or found.xet != item["xetHash"]:
            failed.append({"sha256": item["sha256"], "error": "not found"})
            continue
        target.stored[item["sha256"]] = found
        done.append(item["sha256"])
    return as_json({"success": done, "failed": failed})


@ROUTES.on("GET", "/api/models/{id}/xet-(read|write)-token/{rev}")
def xet_token(call: Call, repo_id: str, kind: str, revision: str) -> Reply:
    """Where the Xet store is; Rust reads the body, Python the headers."""
    _ = call.writable(repo_id) if kind == "write" else call.open(repo_id)
    if call.hub.store is None:
        raise Answer(404, "NotFound")
    url, expires = call.hub.store.url, 4_000_000_000
    status, headers, body = as_json({"casUrl": url, "exp": expires, "accessToken": "xet"})
    headers |= {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet"}
    return status, headers | {"X-Xet-Token-Expiration": str(expires)}, body


def change(
    call: Call, repository: Repository, entries: dict[str, Entry], line: dict[str, Any]
) -> None:
    """Apply one line of a commit."""
    key, value = line["key"], line["value"]
    path = value["path"]
    if ".." in path.split("/") or path.startswith("/"):
        raise Answer(400, message=f"invalid path {path}")
    if key == "file":
        data = base64.b64decode(value["content"])
        if len(data) > LARGEST_REGULAR:
            raise Answer(400, message=f"{path} is too large for a regular file")
        entries[path] = Entry(data, False)
    elif key == "lfsFile":
        oid = value["oid"]
        if oid not in repository.stored and call.hub.store and oid in call.hub.store.files():
            xet, size = call.hub.store.files()[oid]
            repository.stored[oid] = Entry(b"", True, xet, (oid, size))
        if oid not in repository.stored:
            raise Answer(400, message=f"the content of {path} was never uploaded")
        entries[path] = repository.stored[oid]
    elif key == "deletedFile":
        if entries.pop(path, None) is None:
            raise Answer(404, "EntryNotFound", "A file with this name doesn't exist")
    else:
        raise Answer(400, message=f"unknown operation {key}")


@ROUTES.on("POST", "/api/models/{id}/commit/{rev}")
def commit(call: Call, repo_id: str, revision: str) -> Reply:
    """All changes at once, on the stated parent; with create_pr on a new reference."""
    pull = bool(call.query.get("create_pr"))
    repository = call.open(repo_id) if pull else call.writable(repo_id)
    author = call.user
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    head = repository.refs.get(revision)
    if head is None:
        raise Answer(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if header.get("parentCommit", head) != head and not pull:
        raise Answer(412, message="A commit has happened since. Please refresh and try again.")
    entries = dict(repository.commits[head].entries)
    for line in lines[1:]:
        change(call, repository, entries, line)
    number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
    ref = f"refs/pr/{number}" if pull else revision
    oid = repository.add(Commit(entries, header["summary"], head), ref)
    answer = {
        "success": True,
        "commitOid": oid,
        "commitUrl": f"{call.hub.url}/{repo_id}/commit/{oid}",
    }
    if pull:
        answer["pullRequestUrl"] = f"{call.hub.url}/{repo_id}/discussions/{number}"
    assert author
    return as_json(answer)
