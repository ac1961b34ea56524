r"""LaTeX that lost its backslashes on the way: to JSON, to a shell, to `printf` or to a Python string.

`\boxed` becomes U+0008 and "oxed", `\frac` a form feed and "rac", `\times` a tab and "imes". A command is put
back where its name is whole and known. A bell, backspace, vertical tab, form feed or escape before the rest
of a command can be nothing else; a tab or a line break can, so there a scorer reads an answer both ways.
"""

from __future__ import annotations

import re

_LETTERS = dict(zip("\x07\x08\t\n\x0b\x0c\r\x1b", "abtnvfre", strict=True))
_NAMES = """
    aleph alpha amalg and angle approx arccos arcsin arctan arg array ast asymp
    backslash bar because begin beta beth bf big bigcap bigcup bigg biggl biggr bigl bigr bigoplus bigotimes
    binom bmatrix bmod bold boldsymbol bot bowtie box boxed breve bullet
    ell emptyset end epsilon equiv eta exists exp
    fbox flat forall frac frown
    nabla natural ne nearrow neg neq newline nexists ngeq ni nleq nmid nolimits nonumber norm not notin
    nparallel nsubseteq nu nwarrow
    rangle rbrace rbrack rceil rfloor rfrac rho right rightarrow rightharpoonup rightleftharpoons rm root
    rVert rvert
    tag tan tanh tau tbinom text textbf textit textnormal textrm textsf textstyle texttt textup tfrac
    therefore theta thickapprox thicksim thinspace tilde times tiny to top triangle triangledown
    triangleleft triangleq triangleright tt
    varepsilon varkappa varnothing varphi varpi varrho varsigma vartheta vartriangle vcenter vdash vdots
    vec vee vert vphantom vspace
"""
_COMMANDS = frozenset(_NAMES.split())
_SURE = re.compile("[\x07\x08\x0b\x0c\x1b](?=([A-Za-z]+))")
_EITHER = re.compile("[\t\n\r](?=([A-Za-z]+))")
_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2})")
_BARE = re.compile(
    r"(?<![\\A-Za-z])(?=(?:boxed|[dt]?frac|sqrt|[dt]?binom|text|mathrm|overline|bar|vec)\{"
    r"|(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega"
    r"|times|cdot|neq|infty)(?![A-Za-z]))"
)


def restored(text: str) -> str:
    """`text` with the commands put back that a control character stands for which is no part of texts."""
    return _SURE.sub(_backslash, text)


def other_reading(text: str) -> str | None:
    r"""`text` as LaTeX whose backslashes went the other ways; None where there are none.

    Tabs and line breaks before the rest of a command, names of commands without a backslash (unquoted words
    of a shell), two backslashes for one (escaped once too often).
    """
    read = _BARE.sub(r"\\", _TWICE.sub(r"\\", _EITHER.sub(_backslash, text)))
    return None if read == text else read


def swallowed(text: str) -> tuple[str, str] | None:
    """The first control character in a call's string that an escape left there, and what follows it.

    A bell, backspace or form feed anywhere; a tab or carriage return before the rest of a command. A line
    break never: code is made of them.
    """
    for match in re.finditer("[\x07\x08\x0c\t\r](?=([A-Za-z]*))", text):
        # Shorter rests ("o", "an") are words that tabs stand before in code and tables.
        if match.group() not in "\t\r" or (len(match[1]) > 2 and _backslash(match) != match.group()):
            return match.group(), text[match.end() : match.end() + 20]
    return None


def _backslash(match: re.Match[str]) -> str:
    """The backslash and letter that a control character stands for, or itself."""
    letter = _LETTERS[match.group()]
    return f"\\{letter}" if letter + match[1] in _COMMANDS else match.group()
