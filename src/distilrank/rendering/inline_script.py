"""The one script of a page, and the digest by which the page's security policy allows it and no other."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class InlineScript:
    """A script as it stands between the tags."""

    text: Markup

    @property
    def source(self) -> str:
        """What `script-src` of the Content-Security-Policy says of it."""
        return f"sha256-{base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()}"


def load(environment: jinja2.Environment, *names: str) -> InlineScript:
    """The templates called `names`, one after the other, as one script."""
    return InlineScript(Markup("".join(environment.get_template(name).render() + "\n" for name in names)))
