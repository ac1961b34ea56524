"""Names in formulas: functions, constants, letters, signs and their spellings, words that are no products."""

from __future__ import annotations

_SAME = """
sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan arccot ln exp log sqrt cbrt abs floor ceil
gcd lcm max min factorial root sign re im log2 log10 asinh acosh atanh
"""
FUNCTIONS = {name: name for name in _SAME.split()} | {
    **{"asin": "arcsin", "acos": "arccos", "atan": "arctan", "Abs": "abs", "ceiling": "ceil", "Max": "max"},
    **{"Min": "min", "binomial": "binom", "Rational": "over", "Fraction": "over", "Re": "re", "Im": "im"},
    **{"sgn": "sign", "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh", "Float": "same"},
    **{"Integer": "same"},
}
CONSTANTS = {"pi": "pi", **dict.fromkeys(("oo", "inf", "infinity", "infty", "Infinity"), "inf")}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_LETTERS = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar
"""
GREEK = frozenset(_LETTERS.split())

_WORDS = """
no on or if is it in at an as am be by do go he hi me my of so to up us we yes not the and all any for but one
two six ten odd even true none nan are can has had his her its may new now old our out see set too use was way
who why you
"""
ENGLISH = frozenset(_WORDS.split())

OPAQUE = frozenset("fghFGPQ")
"""Letters that are a function where a bracket follows, not a factor."""

_LAYOUT_WORDS = """
left right bigl bigr Bigl Bigr biggl biggr big Big bigg Bigg displaystyle textstyle limits quad qquad
thinspace middle mathstrut nolimits enspace hfill
"""
LAYOUT = frozenset(_LAYOUT_WORDS.split())

_UPRIGHT_WORDS = """
text textrm textbf textit textsf texttt textnormal mathrm mathbf mathit mathsf mathtt mbox hbox boldsymbol bm
pmb operatorname mathcal
"""
UPRIGHT = frozenset(_UPRIGHT_WORDS.split())

SYNONYMS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "sfrac"), "\\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), "\\binom"),
    **dict.fromkeys(("le", "leq", "leqslant", "leqq"), "<="),
    **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), ">="),
    **dict.fromkeys(("ne", "neq"), "!="),
    **{"lt": "<", "gt": ">", "times": "*", "cdot": "*", "ast": "*", "div": "/", "colon": ":"},
    **dict.fromkeys(("mid", "vert", "lvert", "rvert"), "|"),
    **{"lbrace": "\\{", "rbrace": "\\}", "langle": "<<", "rangle": ">>", "lbrack": "[", "rbrack": "]"},
    **dict.fromkeys(("ldots", "dots", "cdots", "dotsc", "dotsb"), "..."),
    **dict.fromkeys(("emptyset", "varnothing"), "\\emptyset"),
    **{"infin": "\\infty", "land": "and", "wedge": "and", "lor": "or", "vee": "or", "degree": "°"},
    **{"varepsilon": "\\epsilon", "varphi": "\\phi", "vartheta": "\\theta", "lg": "\\log"},
    **{"bar": "\\overline", "textdollar": "$", "euro": "€", "pounds": "£"},
    **dict.fromkeys(("approx", "sim", "simeq", "cong", "thickapprox"), "≈"),
    **dict.fromkeys(("smallsetminus", "setminus", "backslash"), "\\setminus"),
}
