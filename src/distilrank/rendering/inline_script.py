"""Inline script of a page, with the hash by which the page's Content-Security-Policy allows only this script."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class InlineScript:
    """Text of a script between its tags."""

    text: Markup

    @property
    def source(self) -> str:
        """Source expression for `script-src` of the Content-Security-Policy."""
        return f"sha256-{base64.b64encode(hashlib.sha256(self.text.encode()).digest()).decode()}"


def load(environment: jinja2.Environment, *names: str) -> InlineScript:
    """Render templates and concatenate them to one script."""
    return InlineScript(Markup("".join(environment.get_template(name).render() + "\n" for name in names)))
