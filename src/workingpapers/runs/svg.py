"""A matplotlib figure as an SVG element that lies inside a page and looks as the page does."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from matplotlib.figure import Figure


def inline(figure: Figure, colours: Mapping[str, str], name: str, title: str, description: str) -> str:
    """Return a figure as an SVG element for HTML.

    Text stays text in the page's font, numbers are cut to a tenth of a unit, what only files need is left out, and ids
    that nothing refers to are dropped. An artist whose gid is "tip:some text" shows that text under the pointer.

    Args:
        figure: drawn under matplotlib's setting `svg.fonttype: none`.
        colours: placeholder colour ("#000001") to what the page paints in its place ("var(--ink)").
        name: starts every id, so that figures on one page don't share any.
        title: accessible name.
        description: what the figure shows, for who cannot see it.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", facecolor="none", metadata=dict.fromkeys(("Date", "Creator", "Format")))
    root = ElementTree.fromstring(written.getvalue())
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', written.getvalue()))
    for element in list(root.iter()):
        _clean(element, colours, name, used)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib |= {"viewBox": view, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = printable(text)
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, colours: Mapping[str, str], name: str, used: set[str]) -> None:
    """Make one of matplotlib's elements fit the page: HTML's names, the page's colours, its own ids, short numbers."""
    element.tag = element.tag.rpartition("}")[2]
    for child in list(element):
        if child.tag.rpartition("}")[2] in ("metadata", "style"):
            element.remove(child)
    own = element.attrib.pop("id", "")
    if own.startswith("tip:"):
        tip = ElementTree.Element("title")
        tip.text = own.removeprefix("tip:")
        element.insert(0, tip)
    elif own in used:
        element.attrib["id"] = f"{name}-{own}"
    for key in list(element.attrib):
        value = element.attrib.pop(key)
        if key in ("d", "x", "y", "transform"):
            value = re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}", value)
        elif key == "style":
            value = re.sub(r"#[0-9a-f]{6}", lambda found: colours.get(found[0], found[0]), value)
            value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", re.sub(r"font-family: [^;]*; ?", "", value))
            element.attrib |= _attributes(value.replace("url(#", f"url(#{name}-"))
            continue
        elif key.endswith("href"):
            value = value.replace("#", f"#{name}-")
        element.attrib[key.rpartition("}")[2]] = value.replace("url(#", f"url(#{name}-")
    if element.tag != "text":
        element.text = None
    element.tail = None


def _attributes(style: str) -> dict[str, str]:
    """Return declarations as presentation attributes, which a content policy without inline styles allows."""
    pairs = (declaration.partition(":") for declaration in style.split(";") if ":" in declaration)
    return {name.strip(): value.strip() for name, _, value in pairs}


def printable(text: str) -> str:
    """Return text with a space in place of each character that XML cannot hold or nobody can see."""
    return "".join(character if character.isprintable() else " " for character in text)
