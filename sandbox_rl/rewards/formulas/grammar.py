r"""From tokens to the tree of one answer, by recursive descent.

Nothing is evaluated and nothing is skipped: a token that does not fit ends in `Unread`. Depth and length
are bounded, so that reading is linear in the text.
"""

from __future__ import annotations

import re
from fractions import Fraction

from sandbox_rl.rewards.formulas.cursor import number, parted
from sandbox_rl.rewards.formulas.names import CONSTANTS, ENGLISH, FUNCTIONS, GREEK, OPAQUE
from sandbox_rl.rewards.formulas.nodes import Node, times
from sandbox_rl.rewards.formulas.operators import Operators
from sandbox_rl.rewards.formulas.tokens import OPENING, Token, Unread

ANGLES = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_COUNTS = {"over": 2, "root": 2, "binom": 2, "log": 1, "gcd": 0, "lcm": 0, "max": 0, "min": 0}
"""How many arguments a function takes, 0 for any number; the others take one."""
_LOG_NAMES = (["2", "("], ["10", "("])


class Expression(Operators):
    """A value: sums, products, powers, functions."""

    def _primary(self) -> Node:
        token = self._next()
        if token.kind == "num":
            return self._numeral(token)
        if token.kind == "word":
            return self._word(token)
        if token.kind == "cmd":
            return self._command(token.text[1:])
        if token.text in OPENING:
            self._at -= 1
            return self._bracket()
        if token.text == "|":
            self._bars += 1
            inner = self._sum()
            self._expect("|")
            self._bars -= 1
            return Node("func", (inner,), "abs")
        raise Unread(f"{token.text!r} is out of place")

    def _word(self, token: Token) -> Node:
        word = token.text
        if word in CONSTANTS:
            return Node("const", name=CONSTANTS[word])
        if word in FUNCTIONS and (self._is("(") or word in ("sin", "cos", "tan", "ln", "log", "sqrt", "exp")):
            return self._function(FUNCTIONS[word], plain=True)
        if word in GREEK:
            return self._symbol(word)
        if len(word) == 1:
            return self._letter(word)
        for name in ("sin", "cos", "tan", "ln", "log"):
            if word == name + word[-1]:
                argument = Node("sym", name=word[-1])
                return Node("log", (argument,)) if name == "log" else Node("func", (argument,), name)
        if word.casefold() in ENGLISH or len(word) > 4 or token.upright or not word.isalpha():
            raise Unread(f"the word {word!r}")
        if word.endswith("pi"):
            return times(self._letters(word[:-2]), Node("const", name="pi"))
        last = self._postfix(self._letter(word[-1]))  # in ab^2 the power is that of b
        if self._passes("^"):
            last = Node("pow", (last, self._exponent()))
        return times(self._letters(word[:-1]), last)

    def _letters(self, word: str) -> Node:
        node: Node | None = None
        for letter in word:
            factor = self._constant(letter)
            node = factor if node is None else times(node, factor)
        if node is None:
            raise Unread("nothing stands before a letter")
        return node

    def _letter(self, letter: str) -> Node:
        if letter in ("e", "i") and not self._is("_"):
            return Node("const", name=letter)
        return self._symbol(letter)

    def _symbol(self, name: str) -> Node:
        if self._passes("_"):
            name += "_" + self._subscript()
        while self._passes("'"):
            name += "'"
        if name.rstrip("'") in OPAQUE and self._is("("):
            return Node("func", self._members(), f"f:{name}")
        return Node("sym", name=name)

    def _group(self) -> Node:
        """What stands in LaTeX's braces, as one value; a single token without them."""
        if not self._is("{"):
            token = self._peek()
            if token.kind == "num" and len(token.text) > 1:
                raise Unread("more digits than LaTeX takes as one argument")
            return self._primary()
        return Expression(self._enclosed(), self._depth + 1).whole()

    def _members(self) -> tuple[Node, ...]:
        """The expressions between the commas of the brackets that come next."""
        parts, _ = parted(self._enclosed(), lambda token: token.kind == "sign" and token.text == ",")
        return tuple(Expression(part, self._depth + 1).whole() for part in parts)

    def _two(self) -> tuple[Node, Node]:
        token = self._peek()
        if token.kind == "num" and re.fullmatch(r"\d\d", token.text):
            self._next()  # \frac12
            return Node("num", number=Fraction(token.text[0])), Node("num", number=Fraction(token.text[1]))
        if token.kind == "word" and len(token.text) == 2:
            self._next()  # \frac ab
            return self._constant(token.text[0]), self._constant(token.text[1])
        return self._group(), self._group()

    def _command(self, name: str) -> Node:
        if name == "frac":
            return Node("div", self._two())
        if name == "binom":
            return Node("func", self._two(), "binom")
        if name == "sqrt":
            if self._is("["):
                degree = Expression(self._enclosed(), self._depth + 1).whole()
                return Node("func", (self._group(), degree), "root")
            if self._is("("):
                return self._function("sqrt", plain=True)
            if self._peek().kind == "num":
                return Node("func", (self._numeral(self._next()),), "sqrt")
            return Node("func", (self._group(),), "sqrt")
        if name in ("lfloor", "lceil"):
            inner = self._sum()
            self._expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return Node("func", (inner,), "floor" if name == "lfloor" else "ceil")
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name], plain=False)
        if name == "pi" or name == "infty":
            return Node("const", name="pi" if name == "pi" else "inf")
        if name == "imath":
            return Node("const", name="i")
        if name == "jmath":
            return self._symbol("j")
        if name in ("hat", "widehat"):
            inner = self._group()
            # A unit vector is the same one in bold, plain and with a hat.
            is_unit = inner.kind in ("const", "sym") and inner.name in ("i", "j", "k")
            return inner if is_unit else Node("func", (inner,), f"mark:{name}")
        if name in ("overline", "vec", "tilde"):
            return Node("func", (self._group(),), f"mark:{name}")
        if name in ("angle", "triangle"):
            return Node("func", (self._primary(),), f"mark:{name}")
        if name in GREEK:
            return self._symbol(name)
        raise Unread(f"the command \\{name}")

    def _function(self, name: str, *, plain: bool) -> Node:
        power = base = None
        if name == "log" and self._passes("_"):
            token = self._peek()
            if token.kind == "num":  # \log_2 3, \log_23
                self._next()
                base = Node(
                    "num", number=number(token.text[0] if len(token.text) == 2 and not plain else token.text)
                )
                if base.number != number(token.text):
                    return Node("func", (Node("num", number=number(token.text[1:])), base), "logbase")
            else:
                base = self._group()
        elif (
            name == "log" and plain and [t.text for t in self._tokens[self._at : self._at + 2]] in _LOG_NAMES
        ):
            base = self._numeral(self._next())  # log2(3)
        if self._passes("^"):
            power = self._exponent()
        arguments = self._arguments(name)
        node = _applied(name, arguments, base)
        if power is None:
            return node
        if power == Node("neg", (Node("num", number=Fraction(1)),)):
            if name not in ANGLES:
                raise Unread("an inverse function")
            return _applied(f"arc{name}", arguments, None)
        return Node("pow", (node, power))

    def _arguments(self, name: str) -> tuple[Node, ...]:
        if self._is("(", "{", "["):
            return self._members()
        argument = self._signed() if self._is("-") else self._power()
        while self._starts_factor() and self._peek().text.lstrip("\\") not in FUNCTIONS:
            token = self._peek()
            if token.text in ("(", "[", "{", "\\{", "|") or token.kind == "num":
                break
            argument = times(argument, self._power())
        angle = self._tokens[self._at - 1].text in ("\\pi", "pi")
        if self._is("/") and self._peek(1).kind == "num" and angle and name in ANGLES:
            self._next()  # sin pi/6
            argument = Node("div", (argument, self._power()))
        return (argument,)

    def _bracket(self) -> Node:
        opening = self._tokens[self._at].text
        inner = self._members()
        pair = opening + self._tokens[self._at - 1].text
        if len(inner) != 1 or pair in ("\\{\\}", "<<>>", "(]", "[)"):
            raise Unread("a list inside of an expression")
        if inner[0].kind in ("rel", "list"):
            raise Unread("a statement inside of an expression")
        return inner[0]


def _applied(name: str, arguments: tuple[Node, ...], base: Node | None) -> Node:
    """The node of a function; `base` is a logarithm's."""
    if name == "log":
        given = arguments if base is None else (*arguments, base)
        if len(given) > 2 or len(arguments) < 1:
            raise Unread("a logarithm of several numbers")
        return Node("func", given, "logbase") if len(given) == 2 else Node("log", given)
    count = _COUNTS.get(name, 1)
    if base is not None or (count and len(arguments) != count) or not arguments:
        raise Unread(f"{name} takes other arguments")
    if name == "over":
        return Node("div", arguments)
    return arguments[0] if name == "same" else Node("func", arguments, name)
