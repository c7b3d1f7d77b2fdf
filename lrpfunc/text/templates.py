"""Templates of pages that need no network: what is shown is escaped, and no script runs but their own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

BASE = Path(__file__).parent / "base.css"


def template(
    folder: Path, scripts: Sequence[str] = (), filters: Mapping[str, Callable] | None = None
) -> jinja2.Template:
    """The template `page.html.jinja` of a folder.

    `scripts`: of its folder `script`, in the order in which they become one; then `js` and `css`, which is `base.css`
    and the folder's `page.css`, are there with the hashes that a content security policy names.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(filters or {})
    # Compact, in the order given, and with no nan, which is not JSON.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    if scripts:
        environment.globals["css"] = _hashed([BASE, folder / "page.css"])
        environment.globals["js"] = _hashed([folder / "script" / f"{name}.js" for name in scripts])
    return environment.get_template("page.html.jinja")


def _hashed(files: Sequence[Path]) -> dict[str, str]:
    """What files have together, with its hash: a browser runs only what has the one that the page's policy names."""
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    return {"text": text, "hash": f"sha256-{base64_of(hashlib.sha256(text.encode()).digest())}"}


def base64_of(data: bytes) -> str:
    """Bytes as text."""
    return base64.b64encode(data).decode()
