"""The only script of a page, and the hash by which the page's Content-Security-Policy allows it and no other."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class InlineScript:
    """A script as it is written between the tags."""

    text: Markup

    @property
    def source(self) -> str:
        """The source that `script-src` of the Content-Security-Policy allows."""
        return f"sha256-{base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()}"


def load(environment: jinja2.Environment, *names: str) -> InlineScript:
    """The templates of these names, concatenated, as one script."""
    return InlineScript(Markup("".join(environment.get_template(name).render() + "\n" for name in names)))
