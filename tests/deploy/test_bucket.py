"""The bucket's policy and life cycle in deploy/s3: what docs/s3.md asks for, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from service.setting_types import DAY
from service.settings import load
from tests.deploy.proxies import DEPLOY
from tests.e2e.process import ROOT

POLICY: Final[dict[str, Any]] = json.loads((DEPLOY / "s3" / "policy.json").read_text())
RULES: Final[list[dict[str, Any]]] = json.loads((DEPLOY / "s3" / "lifecycle.json").read_text())["Rules"]
PAGE: Final = (ROOT / "docs" / "s3.md").read_text("utf-8")


def _rights(policy: dict[str, Any]) -> dict[str, set[str]]:
    """The actions that are allowed, by what they are allowed on."""
    assert all(statement["Effect"] == "Allow" for statement in policy["Statement"])
    return {statement["Resource"]: set(statement["Action"]) for statement in policy["Statement"]}


def test_the_policy_has_the_rights_of_the_page() -> None:
    """The file allows exactly what docs/s3.md lists, on the bucket and on what is in it."""
    block = re.search(r"## Rights\s+```json\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    assert _rights(POLICY) == _rights(json.loads(block[1]))


def test_the_policy_has_no_pattern_of_actions() -> None:
    """Each action is named by itself: none is allowed by a star."""
    assert not [action for actions in _rights(POLICY).values() for action in actions if "*" in action]


def test_unfinished_parts_outlive_every_upload() -> None:
    """The bucket aborts nothing that attachd may still add to, and leaves nothing for good (lessons C2, E3)."""
    days = [rule["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] for rule in RULES if "Abort" in str(rule)]
    assert len(days) == 1
    assert days[0] * DAY > load({}).upload_life
    assert f"after {days[0]} days" in PAGE


def test_no_rule_removes_a_file() -> None:
    """What expires are old versions and the marks of what was deleted; a file's life is attachd's to end."""
    for rule in RULES:
        assert set(rule.get("Expiration", {})) <= {"ExpiredObjectDeleteMarker"}
        assert not {"Transition", "Transitions"} & rule.keys()
