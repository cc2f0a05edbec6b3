"""Which licence a pushed model has: the base's, unless that one lets others be stated."""

from __future__ import annotations

from typing import Any

from dcsurgery.errors import PublishError
from dcsurgery.publishing.failures import NOTHING

# Licences that allow derived works under other terms.
PERMISSIVE = {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "unlicense"}
KEYS = ("license", "license_name", "license_link")


def settle_licence(
    base: dict[str, Any], card: dict[str, Any], stated: str | None
) -> dict[str, Any]:
    """Return the licence keys of the card, from the base's metadata, the card's and the option.

    Raises PublishError when the base's licence does not allow what is stated.
    """
    inherited = {key: base[key] for key in KEYS if base.get(key)}
    wanted = {key: card[key] for key in KEYS if card.get(key)}
    if stated is not None:
        wanted = {"license": stated}
    if not wanted or not inherited:
        return wanted or inherited
    first, second = inherited.get("license"), wanted.get("license")
    renamed = "license_name" in wanted and wanted["license_name"] != inherited.get("license_name")
    if first == second and not renamed:
        return inherited | wanted
    if first not in PERMISSIVE:
        where = "--license says" if stated is not None else "the card says"
        raise PublishError(
            f"the base is licensed {first}, {where} {second}; {NOTHING}",
            hint=f"keep {first}: correct the card's metadata, or leave --license out",
        )
    return wanted
