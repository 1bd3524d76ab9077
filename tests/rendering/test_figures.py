from __future__ import annotations

import re

from distilrank.rendering import figures, templating


def test_plots_use_the_stylesheet_s_colors() -> None:
    style = (templating.TEMPLATES / "style.css.j2").read_text()
    light, dark = (dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{6});", part)) for part in style.split("@media", 2)[:2])
    assert {name: light[name] for name in figures.VARIABLES.values()} == {
        name: color for color, name in figures.VARIABLES.items()
    }
    assert light.keys() == dark.keys() and set(figures.COLORS.values()) <= figures.VARIABLES.keys()
    assert all(light[name] != dark[name] for name in light)
