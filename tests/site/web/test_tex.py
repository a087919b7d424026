"""Formulas become MathML, money stays money, and nothing hostile gets through."""

import re
from html import escape
from html.parser import HTMLParser
from threading import Thread

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from workingpapers.site.web.tex import typeset, typeset_marked

ELEMENTS = frozenset(
    "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mpadded mphantom "
    "mtable mtr mtd b i em code span mark".split()
)
ATTRIBUTES = frozenset(
    "accent accentunder displaystyle fence form linethickness lspace mathvariant maxsize minsize movablelimits rspace "
    "scriptlevel separator stretchy symmetric width class".split()
)
PIECES = (
    r"$ $ $ { } ^ _ \ & < > \" ' % # ~ x 1 ( ) [ ] | \frac \sqrt \left \right \{ \} \text \textbf{a} \mathbb{R} \hat"
    r" \mathcal \begin{array}{c} \end{array} \begin{matrix} \\ \def\a{\a\a} \newcommand{\b}{<b>} \a \color \not \over"
    r" \href{javascript:x}{y} \textcolor{red} \class{x} \style{color:red} \operatorname{argmax} \hspace{99em} \kern9em"
    r" \! \, \phantom \text{<script>alert(1)</script>} <script> <img/src=x> </math> <b> &lt; &#60; `` '' \emph{<i>} \%"
    r" \& \("
    " \ud800 \0 é 𝒪 \u202e 5 10"
).split(" ")


class Page(HTMLParser):
    """Reads HTML as browsers do, and notes elements, attributes, text, and whether what is opened is closed."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.text, self._open = set(), [], "", []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes += attrs
        self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


def shown(html):
    """Return the text of HTML, which must hold nothing but what the page allows."""
    page = Page(str(html))
    assert page.elements <= ELEMENTS
    for name, value in page.attributes:
        assert name in ATTRIBUTES
        assert re.fullmatch(r"[a-z]+|-?[\d.]+(em)?", value)
    return page.text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ('Plain <b> & "quoted"', "Plain &lt;b&gt; &amp; &#34;quoted&#34;"),
        ("$k$-means", "<math><mi>k</mi></math>-means"),
        ("C$^3$AI", "C<math><msup><mrow></mrow><mn>3</mn></msup></math>AI"),
        ("$\\ell_p$", "<math><msub><mi>ℓ</mi><mi>p</mi></msub></math>"),
        ("a $x < y$ & b", "a <math><mi>x</mi><mo>&lt;</mo><mi>y</mi></math> &amp; b"),
        ("$\\texttt{SPIN}$", "<code>SPIN</code>"),
        ("$\\textbf{<b>}$ of", "<b>&lt;b&gt;</b> of"),
        ("``such'' \\emph{a} {\\it man} 70\\%", "“such” <em>a</em> <em>man</em> 70%"),
    ],
)
def test_latex_is_typeset(text, html):
    assert typeset(text) == html
    assert isinstance(typeset(text), Markup)


@pytest.mark.parametrize(
    "text",
    [
        "A robot hand that costs $150 US in parts",
        "$100K or 100 Days",
        "between $5 and $10 an hour",
        "$5-$10, $15/$20",
        "a profit of $10,301 on less than $9",
        "it has $\\ell_1$ and costs $5",
        "$1.2M in funding and $3M",
        "$the design and examination of a unit $",
        "Climber$ , of$ robots",
        "\\$5 for $x$",
        "$$",
        "$ $ and $  $",
        "$\\notacommand{x}$",
        "$\\frac{1}{2$",
        "$x & y$",
        "$\\def\\a{\\a\\a}\\a$",
        "$\\hspace{99em}$",
        "$" + "x+" * 200 + "x$",
        "$" + "{\\sqrt " * 40 + "x" + "}" * 40 + "$",
        "``unpaired",
        "\\input{x} \\cite{y} \\unknown",
    ],
)
def test_what_is_doubtful_stays_as_it_was_typed(text):
    assert typeset(text) == escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


def test_a_formula_that_cannot_be_read_leaves_the_others_alone():
    assert typeset("$\\mine$ and $x$") == "$\\mine$ and <math><mi>x</mi></math>"


def test_long_formulas_may_scroll_and_short_ones_do_not():
    assert typeset("$a+b$").startswith("<math>")
    assert typeset("$a+b+c+d+e+f+g$").startswith('<span class="formula"><math>')


hostile = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
formula = hostile.map(lambda text: f"before ${text.replace('$', '')}$ after")


@settings(max_examples=600, deadline=None)
@given(st.one_of(hostile, formula, st.text(max_size=60), st.text(max_size=60).map(lambda it: f"${it}$")))
@example("$\\text{<script>alert(1)</script>}$")
@example("$\\color{red}x$ $\\text{\\textbf{<img src=x onerror=alert(1)>}}$")
def test_no_markup_from_outside_gets_through(text):
    shown(typeset(text))


@settings(max_examples=300, deadline=None)
@given(hostile, st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=4))
def test_marks_survive_and_change_nothing_else(text, places):
    marked, end = "", 0
    for start, length in sorted(places):
        if end <= start < start + length <= len(text):
            marked += f"{escape(text[end:start])}<mark>{escape(text[start : start + length])}</mark>"
            end = start + length
    marked += escape(text[end:])
    html = typeset_marked(Markup(marked))
    assert shown(html) == shown(typeset(text))
    assert ("<mark>" in html) == ("<mark>" in marked)


def test_a_mark_within_a_formula_marks_it_whole():
    marked = Markup("<mark>Fast</mark> $<mark>k</mark>$<mark>-means</mark> &amp; $b$")
    assert typeset_marked(marked) == (
        "<mark>Fast</mark> <mark><math><mi>k</mi></math></mark><mark>-means</mark> &amp; <math><mi>b</mi></math>"
    )
    across = typeset_marked(Markup("$<mark>k$-means</mark> &lt;b&gt;"))
    assert across == "<mark><math><mi>k</mi></math></mark><mark>-means</mark> &lt;b&gt;"


def test_marks_in_a_text_without_latex_stay():
    assert typeset_marked(Markup("<mark>a</mark> &lt;b&gt;")) == "<mark>a</mark> &lt;b&gt;"


@pytest.mark.parametrize("nested", ["{", "\\sqrt{", "\\left(", "x^{", "\\text{", "\\frac{", "\\hat{"])
def test_the_deepest_nesting_a_formula_can_have_is_survived_in_a_thread(nested):
    closing = {"\\left(": "\\right)"}.get(nested, "}")
    deep = 300 // (len(nested) + len(closing))
    results = []
    thread = Thread(target=lambda: results.append(typeset(f"${nested * deep}x{closing * deep}$")))
    thread.start()
    thread.join()
    shown(results[0])


def test_threads_do_not_disturb_each_other():
    results = []

    def work(number):
        results.extend(typeset(f"$x_{{{number}}}^{{{i}}}$").startswith("<math>") for i in range(300))

    threads = [Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 1200
