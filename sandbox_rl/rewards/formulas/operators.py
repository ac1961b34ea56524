"""Sums, products, signs, powers and what stands behind a value, by their precedence."""

from __future__ import annotations

from abc import abstractmethod

from sandbox_rl.rewards.formulas.cursor import MAX_DEPTH, Cursor
from sandbox_rl.rewards.formulas.names import CONSTANTS, FUNCTIONS, GREEK
from sandbox_rl.rewards.formulas.nodes import Node, cross, times
from sandbox_rl.rewards.formulas.tokens import Unread


class Operators(Cursor):
    """Reads values that operators join; what a value is the subclass knows."""

    @abstractmethod
    def _primary(self) -> Node:
        """The next value without what stands behind it."""

    @abstractmethod
    def _group(self) -> Node:
        """What stands in braces, as one value."""

    def whole(self) -> Node:
        """The node of all tokens."""
        node = self._sum()
        if self._at != len(self._tokens):
            raise Unread(f"{self._tokens[self._at].text!r} is out of place")
        return node

    def _sum(self) -> Node:
        terms = [self._term()]
        while self._is("+", "-", "\\pm", "\\mp"):
            sign = self._next().text
            term = self._term()
            terms.append({"+": term, "-": Node("neg", (term,))}.get(sign, Node("pm", (term,), sign[1:2])))
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _term(self) -> Node:
        node = self._signed()
        while True:
            if self._is("x", "X") and self._before_power_of_ten():
                self._next()  # 1.2 x 10^5
                node = times(node, self._power())
            elif self._passes("*"):
                node = times(node, self._signed())
            elif self._passes("×"):
                node = cross(node, self._signed())
            elif self._passes("/"):
                node = Node("div", (node, self._signed()))
            elif self._starts_factor():
                if self._peek().kind == "num" and self._tokens[self._at - 1].text not in (")", "!", "}"):
                    raise Unread("two numbers side by side")
                node = times(node, self._power())
            else:
                return node

    def _before_power_of_ten(self) -> bool:
        around = self._tokens[self._at - 1 : self._at + 3]
        return around[0].kind == "num" and [token.text for token in around[2:]] == ["10", "^"]

    def _signed(self) -> Node:
        self._depth += 1
        if self._depth > 3 * MAX_DEPTH:
            raise Unread("too many signs")
        try:
            if self._passes("-"):
                return Node("neg", (self._signed(),))
            if self._passes("+"):
                return self._signed()
            if self._is("\\pm", "\\mp"):
                sign = self._next().text
                return Node("pm", (self._signed(),), sign[1])
            return self._power()
        finally:
            self._depth -= 1

    def _starts_factor(self) -> bool:
        token = self._peek()
        if token.kind == "sign":
            return token.text in ("(", "[", "{", "\\{") or (token.text == "|" and self._bars == 0)
        if token.kind == "word":
            return token.text not in ("and", "or", "mod")
        return token.kind == "num" or token.text not in (
            "\\pm", "\\mp", "\\cup", "\\cap", "\\setminus", "\\in", "\\notin", "\\equiv", "\\pmod", "\\bmod",
            "\\rfloor", "\\rceil", "\\\\", "\\to", "\\implies", "\\mod", "\\choose", "",
        )  # fmt: skip

    def _power(self) -> Node:
        base = self._postfix(self._primary())
        if not self._passes("^"):
            return base
        exponent = self._exponent()
        node = Node("pow", (base, exponent))
        if base.kind == "func" and not base.args and base.name.startswith("f:"):
            raise Unread("a power of a function's name")
        return self._postfix(node)

    def _exponent(self) -> Node:
        if self._is("-", "+"):
            sign = self._next().text
            inner = self._exponent()
            return Node("neg", (inner,)) if sign == "-" else inner
        if self._is("{"):
            return self._group()
        token = self._peek()
        several = token.kind == "word" and len(token.text) > 1
        if several and not {token.text} & (CONSTANTS.keys() | FUNCTIONS.keys() | GREEK):
            raise Unread("an exponent of several letters without brackets")
        base = self._postfix(self._primary())
        if self._passes("^"):
            return Node("pow", (base, self._exponent()))
        return base

    def _postfix(self, node: Node) -> Node:
        start = self._at
        while True:
            if self._at - start > 2:
                raise Unread("too many signs behind a value")
            if self._passes("!"):
                if (node.kind == "func" and node.name == "factorial") or self._is("!"):
                    raise Unread("a double factorial")
                node = Node("func", (node,), "factorial")
            elif self._passes("°"):
                node = Node("func", (node,), "degrees")
            elif self._passes("%"):
                node = Node("func", (node,), "percent")
            else:
                return node
