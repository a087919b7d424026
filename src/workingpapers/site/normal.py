"""Normal forms of what papers are known by: texts, titles, identifiers, addresses.

What comes from elsewhere passes through here before it is kept: control characters and lone surrogates are taken out,
identifiers lose their resolvers and versions, and of addresses only http and https stay.
"""

from __future__ import annotations

import functools
import hashlib
import html
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import urlsplit

# Controls, and formatting characters that hide text or turn its direction; joiners within words stay.
_HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb]"
)
_ARXIV = re.compile(
    r"(?:https?://(?:www\.|export\.)?arxiv\.org/(?:abs|pdf)/|arxiv:)?"
    r"(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?:v\d+)?(?:\.pdf)?",
    re.IGNORECASE,
)
_DOI = re.compile(r"(?:https?://(?:dx\.)?doi\.org/|doi:\s*)?(10\.\d{4,9}/[^\s<>\"]{1,200})", re.IGNORECASE)
_ARXIV_DOI = "10.48550/arxiv."
_BARE_ADDRESS = re.compile(r"[\w-]+(\.[\w-]+)+/\S+")
_LONGEST_ADDRESS = 2000

_GREEK = {
    chr(code): unicodedata.name(chr(code)).split()[-1].lower().replace("lamda", "lambda")  # as LaTeX writes it
    for code in range(ord("α"), ord("ω") + 1)
}
# Letters that Unicode does not take apart.
_LETTERS = str.maketrans(_GREEK | {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ı": "i"})
# LaTeX commands that stand for letters; all others only change how the text looks.
_COMMANDS = {name: name for name in _GREEK.values()} | {"ell": "l", "i": "i", "j": "j", "o": "o", "l": "l", "ss": "ss"}
_COMMANDS |= {"ae": "ae", "oe": "oe", "aa": "a", "and": "and", "textendash": " ", "textemdash": " "}
_COMMANDS |= {f"var{name}": name for name in ("epsilon", "theta", "pi", "rho", "sigma", "phi")}
_COMMAND = re.compile(r"\\([a-z]+)")
_TAG = re.compile(r"</?[a-z][^<>]*>")
_NOT_WORD = re.compile(r"[\W_]+")
_PLAIN_NOT_WORD = re.compile(r"[^a-z0-9]+")
_NEEDS_CARE = re.compile(r"[\\<&]")


def text(value: str, longest: int) -> str:
    """Return a text on one line in Unicode's composed form, without hidden characters, cut to `longest` characters."""
    if not value.isprintable():  # as is any space but the plain one
        value = _HIDDEN.sub("", " ".join(value.split()))
    if "  " in value or value[:1] == " " or value[-1:] == " ":
        value = " ".join(value.split())
    if not value.isascii():
        value = unicodedata.normalize("NFC", value)
    return value if len(value) <= longest else value[:longest].rstrip()


def names(values: Iterable[str], longest: int, most: int) -> list[str]:
    """Return texts in order, each once, without empty ones; at most `most` of them."""
    return list(dict.fromkeys(filter(None, (text(value, longest) for value in values))))[:most]


@functools.lru_cache(maxsize=4096)  # a batch asks for each several times
def title_key(title: str) -> str:
    """Return what is equal for titles that differ only in case, accents, punctuation, spacing, HTML or LaTeX.

    It holds letters and digits alone: "Multi-Task $\\beta$-VAEs" and "Multitask β-VAEs" are both "multitaskbetavaes". A
    title without any letter or digit is its own key.
    """
    plain = title.casefold()
    careful = not plain.isascii() or _NEEDS_CARE.search(plain)
    key = _careful_key(plain) if careful else _PLAIN_NOT_WORD.sub("", plain)
    return key or "".join(html.unescape(title).split()) or "".join(title.split())


def _careful_key(plain: str) -> str:
    plain = _TAG.sub("", html.unescape(plain).casefold()).replace("\\&", "&").replace("&", " and ")
    plain = _COMMAND.sub(lambda found: _COMMANDS.get(found[1], ""), plain)
    apart = unicodedata.normalize("NFKD", plain).casefold()
    bare = "".join(letter for letter in apart if unicodedata.category(letter) != "Mn")
    return _NOT_WORD.sub("", bare.translate(_LETTERS))


def slug(title: str, *distinct: object) -> str:
    """Return words of a title for an address, with a digest of its key and of what else tells papers apart."""
    digest = hashlib.sha256("\n".join(map(str, (title_key(title), *distinct))).encode()).hexdigest()[:10]
    plain = title if title.isascii() else unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    words = "-".join(re.findall(r"[a-z0-9]+", plain.lower())[:8])[:60].strip("-")
    return f"{words}-{digest}" if words else f"paper-{digest}"


def family_names(authors: Iterable[str]) -> frozenset[str]:
    """Return the keys of authors' family names: what stands before a comma, or else the last word."""
    return frozenset(title_key(name.partition(",")[0] if "," in name else name.rpartition(" ")[2]) for name in authors)


def arxiv_id(value: str) -> str:
    """Return an arXiv identifier without version, address or prefix.

    Raises:
        ValueError: it is none.
    """
    found = _ARXIV.fullmatch(value.strip())
    if not found:
        raise ValueError(f"arxiv: {value[:100]!r} is no arXiv identifier, such as 1706.03762 or cs/0112017")
    number = found[1]
    archive, slash, rest = number.partition("/")
    # Only the archive counts in old identifiers: math.GT/0309136 and math/0309136 are the same paper.
    return f"{archive.partition('.')[0].lower()}/{rest}" if slash else number


def doi(value: str) -> str:
    """Return a DOI in lower case, without resolver.

    Raises:
        ValueError: it is none.
    """
    found = _DOI.fullmatch(value.strip())
    if not found:
        raise ValueError(f"doi: {value[:100]!r} is no DOI, such as 10.1000/xyz123")
    return found[1].lower()


def arxiv_of(name: str) -> str | None:
    """Return the arXiv identifier that a DOI of arXiv's own stands for; None for any other DOI."""
    return arxiv_id(name.removeprefix(_ARXIV_DOI)) if name.startswith(_ARXIV_DOI) else None


def web_address(value: str) -> str:
    """Return an http or https address as it may stand in a link, or "" if it is anything else."""
    if not value:
        return ""
    value = value.strip()
    if _BARE_ADDRESS.fullmatch(value):
        value = f"https://{value}"
    try:
        place = urlsplit(value)
        usable = place.scheme in ("http", "https") and place.hostname and "@" not in place.netloc and place.port != 0
    except ValueError:
        return ""
    odd = not value.isprintable() or " " in value or len(value) > _LONGEST_ADDRESS or set(value) & set("<>\"'`\\")
    return value if usable and not odd else ""
