"""Normal forms: what looks different and is the same, what looks the same and is not, what must not get in."""

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workingpapers.site import normal
from workingpapers.site.normal import title_key

LETTERS = "abcxyzABCXYZ0129äéîõüßñçøłæαβγλωΩ漢字"
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=8)
ACCENTS = {"a": "ä", "e": "é", "o": "õ", "u": "ü", "n": "ñ", "c": "ç", "s": "š", "z": "ž", "i": "î"}
LATEX = {
    "ä": '\\"a',
    "é": "\\'{e}",
    "õ": "\\~{o}",
    "ü": '{\\"u}',
    "ñ": "\\~n",
    "ç": "\\c{c}",
    "š": "\\v{s}",
    "ø": "{\\o}",
}


@given(WORDS)
def test_case_spacing_and_punctuation_make_no_difference(words):
    key = title_key(" ".join(words))
    assert key == title_key("  ".join(words).upper()) == title_key("-".join(words).lower())
    assert key == title_key(f"\t{', '.join(words)}?!\r\n ") == title_key(f"“{': '.join(words)}”")


@given(WORDS)
def test_unicode_forms_make_no_difference(words):
    title = " ".join(words)
    assert len({title_key(unicodedata.normalize(form, title)) for form in ("NFC", "NFD", "NFKC", "NFKD")}) == 1


@given(st.text("aeounciszbdt ", min_size=1))
def test_accents_make_no_difference(plain):
    assert title_key(plain) == title_key("".join(ACCENTS.get(letter, letter) for letter in plain))


@given(st.text("".join(LATEX) + "abc ", min_size=1))
def test_accents_as_latex_writes_them_make_no_difference(title):
    assert title_key(title) == title_key("".join(LATEX.get(letter, letter) for letter in title))


@given(st.text(LETTERS + " &<>\"'", min_size=1))
def test_escaped_html_makes_no_difference(title):
    assert title_key(title) == title_key(html.escape(title))


@given(WORDS, st.sampled_from(["i", "sub", "b", "span class='x'"]))
def test_tags_make_no_difference(words, tag):
    marked = " ".join(f"<{tag}>{word}</{tag.split()[0]}>" for word in words)
    assert title_key(marked) == title_key(" ".join(words))


@given(st.text())
def test_every_title_has_a_key_that_stays(title):
    key = title_key(title)
    assert bool(key) == bool(title.split())
    assert not any(letter.isspace() for letter in key)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Multi-Task $\\beta$-VAEs", "Multitask β-VAEs"),
        ("$\\ell_1$-norm Attacks", "L1-Norm Attacks"),
        ("Ada$^2$NPT: \\emph{Adaptive} Nets", "Ada²NPT: Adaptive Nets"),
        ("Width & Depth Pruning", "Width and Depth Pruning"),
        ("Width \\& Depth Pruning", "Width &amp; Depth Pruning"),
        ("$\\mathcal{X}$-Armed Bandits", "X-Armed Bandits"),
        ("Visual\r Tracking", "Visual Tracking"),
        ("𝛽-divergence", "Beta-Divergence"),
        ("Łukasz and Ångström", "Lukasz and Angstrom"),
        ("H<sub>2</sub>O", "H2O"),
    ],
)
def test_the_same_title(one, other):
    assert title_key(one) == title_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bounds if x < y and z > w", "Bounds if x"),
        ("Part I", "Part II"),
        ("Learning with α", "Learning with β"),
        ("???", "!!!"),
        ("漢字", "字漢"),
    ],
)
def test_different_titles(one, other):
    assert title_key(one) != title_key(other)


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("1706.03762", "1706.03762"),
        ("1706.03762v7", "1706.03762"),
        ("arXiv:1706.03762", "1706.03762"),
        ("http://arxiv.org/abs/1706.03762v5", "1706.03762"),
        ("https://arxiv.org/pdf/0704.0001v1.pdf", "0704.0001"),
        ("cs/0112017v1", "cs/0112017"),
        ("math.GT/0309136", "math/0309136"),
    ],
)
def test_arxiv_identifiers(given_, kept):
    assert normal.arxiv_id(given_) == kept


@pytest.mark.parametrize("wrong", ["", "1713.00001", "17.1", "1706.03762/x", "javascript:1706.03762", "../etc"])
def test_no_arxiv_identifier(wrong):
    with pytest.raises(ValueError, match="arXiv identifier"):
        normal.arxiv_id(wrong)


def test_dois():
    assert normal.doi("https://doi.org/10.1109/CVPR.2016.90") == normal.doi("doi: 10.1109/cvpr.2016.90")
    assert normal.arxiv_of(normal.doi("10.48550/arXiv.1706.03762")) == "1706.03762"
    assert normal.arxiv_of("10.1109/cvpr.2016.90") is None
    with pytest.raises(ValueError, match="is no DOI"):
        normal.doi("11.1/x")


@pytest.mark.parametrize("kept", ["https://github.com/a/b", "http://example.org/x?y=1#z", "https://ex.org:8443/"])
def test_addresses_that_are_kept(kept):
    assert normal.web_address(f" {kept} ") == kept


@pytest.mark.parametrize(
    "wrong",
    [
        "javascript:alert(1)",
        "JaVaScRiPt://x/%0aalert(1)",
        "data:text/html,x",
        "//example.org/x",
        "https://",
        "https://user:pass@example.org/",
        "https://example.org/\x00",
        'https://example.org/"onclick=x',
        "https://example.org/<script>",
        "https://[::1",
        "https://example.org:99999999/",
        "https://example.org/" + "x" * 2000,
        "not yet",
    ],
)
def test_addresses_that_are_not(wrong):
    assert normal.web_address(wrong) == ""


def test_an_address_without_scheme_gets_one():
    assert normal.web_address("www.github.com/a/b") == "https://www.github.com/a/b"


@given(st.text(), st.integers(1, 50))
def test_texts_are_printable_and_short(value, longest):
    kept = normal.text(value, longest)
    assert len(kept) <= longest
    assert kept == kept.strip()
    kept.encode()
    assert not set(kept) & set(map(chr, (*range(32), *range(127, 160), 0x202E, 0x200B, 0xFEFF, 0xD800)))


def test_names_keep_their_order_once():
    assert normal.names(["Ada L.", " Bob ", "", "Ada  L.", "\x00"], 200, 5) == ["Ada L.", "Bob"]
    assert normal.names(map(str, range(9)), 200, 3) == ["0", "1", "2"]


def test_slugs_have_words_and_tell_papers_apart():
    made = normal.slug("Über die <b>Größe</b> von $x$", 2020, "Ada")
    assert made.startswith("uber-die-b-gro")
    assert made != normal.slug("Über die <b>Größe</b> von $x$", 2021, "Ada")
    assert normal.slug("漢字").startswith("paper-")
    assert normal.slug("Same title") == normal.slug("SAME  TITLE!")


def test_family_names():
    assert normal.family_names(["Yann LeCun", "Müller, Klaus-Robert"]) == {"lecun", "muller"}
