"""Contents as one HTML file: nothing in it comes from elsewhere, and its policy lets nothing be fetched.

Styles and script are named by their hashes in the page's Content-Security-Policy, so that a script that got into
a caption would not run even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from contract.files import replace_file
from eval.page import charts, media, projection, tables
from eval.page import plots as drawing
from eval.page.contents import Contents, gather
from eval.page.projection import Method
from eval.retrieval import Measured


def require(method: Method, *, plots: bool) -> None:
    """Refuse what needs a package that is not installed, before anything is measured."""
    projection.require(method)
    if plots:
        drawing.require()


def write(
    measured: Measured,
    path: Path,
    *,
    since: Measured | None = None,
    method: Method = "pca",
    plots: bool = False,
) -> tuple[Path, ...]:
    """Write the page at `path`, and with `plots` the charts beside it as PNG and SVG; returns all files.

    `since` is another run's measurement of the same split.
    """
    contents = gather(measured, since=since, method=method)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, as_html(contents).encode())
    if not plots:
        return (path,)
    return (path, *drawing.write(contents, path))


def as_html(contents: Contents) -> str:
    """The whole page."""
    style, script = _asset("style.css"), _asset("script.js")
    sounds = {sound.key: sound.uri for sound in contents.media.sounds.values()}
    text = _template().render(
        page=contents,
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        sounds=Markup(json.dumps(sounds).replace("<", r"\u003c")),
    )
    return text.strip() + "\n"


def _policy(style: str, script: str) -> str:
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            "media-src data:",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = tables.number
    environment.globals |= {
        "bars": charts.bars,
        "bin_name": charts.bin_name,
        "mark": charts.mark,
        "named": tables.named,
        "series_key": charts.series_key,
    }
    return environment.from_string(_asset("page.html.jinja"))


def _shown(value: Any) -> Any:
    """What the template writes of a value, before it is escaped."""
    return media.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
