"""When two answers are one: the rules for every shape. Nothing here reads text."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_rl.rewards.formulas.exact import TooLarge, exact_or_none
from sandbox_rl.rewards.formulas.nodes import Node, is_name, is_plain, symbols, walk
from sandbox_rl.rewards.formulas.quantities import same_quantities
from sandbox_rl.rewards.formulas.readings import VALUES, both_signs, readings
from sandbox_rl.rewards.formulas.realsets import FLIPPED, NotASet, flattened, is_set_like, same_set
from sandbox_rl.rewards.formulas.values import proportional, same_value

_ARITHMETIC = frozenset({"num", "add", "mul", "div", "neg"})


def same(said: Node, gold: Node) -> bool:
    """Whether `said` states exactly what `gold` states."""
    try:
        return _same(flattened(said), flattened(gold))
    except (TooLarge, OverflowError, MemoryError, RecursionError):
        return False


def _same(said: Node, gold: Node) -> bool:
    if said == gold:
        return True
    if "quantity" in (said.kind, gold.kind) and not {"rel", "list", "tuple", "set"} & {said.kind, gold.kind}:
        return same_quantities(said, gold, _same)
    if (several := both_signs(said)) is not None:
        return _same(several, gold)
    if (several := both_signs(gold)) is not None:
        return _same(said, several)
    if is_set_like(gold) or is_set_like(said):
        return _sets(said, gold)
    if gold.kind == "list" and (each := _each_named(said)) is not None:
        return _same(each, gold)
    if "rel" in (said.kind, gold.kind):
        return _relations(said, gold)
    if said.kind == "text" or gold.kind == "text":
        return _texts(said, gold)
    if gold.kind in VALUES and said.kind in VALUES:
        return _values(said, gold)
    return _collections(said, gold)


def _values(said: Node, gold: Node) -> bool:
    if is_plain(gold) and _is_arithmetic(said, gold):
        return False
    return any(same_value(reading, gold) for reading in readings(said, gold))


def _is_arithmetic(said: Node, gold: Node) -> bool:
    """A sum, product or quotient of plain numbers that was left to be computed, such as 123*456 or 10/2."""
    if is_plain(said):
        whole = exact_or_none(gold)
        return said.kind == "div" and whole is not None and whole.denominator == 1 and gold.kind != "div"
    return all(part.kind in _ARITHMETIC for part in walk(said))


def _sets(said: Node, gold: Node) -> bool:
    if said.kind == gold.kind == "rel" and said.name == gold.name and said.name in ("\\equiv", "≈"):
        return all(map(_same, said.args, gold.args))
    for left, right in ((said, gold), (gold, said)):  # x ∈ S is S
        if left.kind == "rel" and left.name == "\\in" and is_name(left.args[0]) and right.kind != "rel":
            return _same(left.args[1], right) if left is said else _same(right, left.args[1])
        if right.kind == "rel" and right.name == "=" and is_name(right.args[0]) and left.kind != "rel":
            return _same(left, right.args[1]) if left is said else _same(right.args[1], left)
    try:
        return same_set(said, gold)
    except NotASet:
        pass
    if said.kind != gold.kind or len(said.args) != len(gold.args):
        return False
    if said.kind == "rel":
        return _inequalities(said, gold)
    if said.kind in ("union", "inter") and _in_order(said.args, gold.args[::-1]):
        return True
    return said.name == gold.name and _in_order(said.args, gold.args)


def _inequalities(said: Node, gold: Node) -> bool:
    """With unknowns on both sides: equal up to a factor, whose sign turns the relation around."""
    if len(said.args) == 2 and said.name in ("<", ">", "<=", ">=", "!="):
        if not _solved(said) and _solved(gold):
            return False
        sign = proportional(_difference(said), _difference(gold))
        wanted = {1: gold.name, -1: FLIPPED.get(gold.name, "")}.get(sign)
        return wanted == said.name or (bool(sign) and said.name == gold.name == "!=")
    return said.name == gold.name and _in_order(said.args, gold.args)


def _solved(relation: Node) -> bool:
    left, right = relation.args
    return (is_name(left) and left.name not in symbols(right)) or (is_name(right) and not symbols(left))


def _difference(relation: Node) -> Node:
    return Node("add", (relation.args[0], Node("neg", (relation.args[1],))))


def _relations(said: Node, gold: Node) -> bool:
    said, gold = _named_first(said), _named_first(gold)
    if gold.kind != "rel":
        return said.name.replace("= ", "") == "=" and _stated(said, gold)
    if gold.name != "=":
        return said.name == gold.name and _in_order(said.args, gold.args)
    name, value = gold.args
    if said.kind != "rel":
        return ((is_name(name) and not _holds(value, name)) and _same(said, value)) or _pairs(gold, said)
    if said.name != "=":
        return said.name.replace("= ", "") == "=" and said.args[0] == name and _stated(said, value)
    if is_name(name) and not _holds(value, name):
        if is_name(said.args[0]) and not _holds(said.args[1], said.args[0]):
            return said.args[0] == name and _same(said.args[1], value)
        if not symbols(value):
            return False  # 2x = 4 is the question of x = 2
    if name.kind in ("tuple", "set", "list") or said.args[0].kind in ("tuple", "set", "list"):
        return _same(said.args[0], name) and _same(said.args[1], value)
    if not {part.kind for part in (*said.args, *gold.args)} <= VALUES:
        return all(map(_same, said.args, gold.args))
    return proportional(_difference(said), _difference(gold)) != 0


def _named_first(node: Node) -> Node:
    if node.kind == "rel" and node.name == "=" and is_name(node.args[1]) and not is_name(node.args[0]):
        return Node("rel", node.args[::-1], "=")
    return node


def _holds(value: Node, name: Node) -> bool:
    return name.name in symbols(value) or name == value or name in walk(value)


def _stated(said: Node, gold: Node) -> bool:
    """x = 5, (x, y) = (1, 2), or a chain of equal values that ends in the result, for a bare gold."""
    first, *rest = said.args
    if len(rest) == 1 and first.kind == "tuple" and rest[0].kind == "tuple":
        names = all(is_name(arg) for arg in first.args) and len(first.args) == len(rest[0].args)
        return names and not any(_holds(gold, name) for name in first.args) and _same(rest[0], gold)
    if is_name(first) and not _holds(gold, first):
        if gold.kind == "list":
            return len(rest) == 1 and _same(rest[0], gold)
        return all(_same(value, gold) for value in rest[-1:]) and all(_equal(value, gold) for value in rest)
    if is_plain(first) or symbols(first) or not is_plain(rest[-1]):
        return False  # 5 = 5 says nothing
    return _same(rest[-1], gold) and all(_equal(value, gold) for value in (first, *rest))


def _equal(said: Node, gold: Node) -> bool:
    if said.kind in VALUES and gold.kind in VALUES:
        return same_value(said, gold)
    return _same(said, gold)


def _each_named(said: Node) -> Node | None:
    """x = 1, y = 2 for (x, y) = (1, 2); None for anything else."""
    if said.kind != "rel" or len(said.args) != 2 or {arg.kind for arg in said.args} != {"tuple"}:
        return None
    names, values = said.args
    if len(names.args) != len(values.args) or not all(is_name(name) for name in names.args):
        return None
    pairs = zip(names.args, values.args, strict=True)
    return Node("list", tuple(Node("rel", pair, said.name) for pair in pairs))


def _pairs(gold: Node, said: Node) -> bool:
    """(x, y) = (1, 2) for the gold, and (1, 2) or x = 1, y = 2 for the answer."""
    if (wanted := _each_named(gold)) is None:
        return False
    return _same(said, gold.args[1]) if said.kind == "tuple" else said.kind == "list" and _same(said, wanted)


def _texts(said: Node, gold: Node) -> bool:
    if said.kind == gold.kind:
        if not said.args or not gold.args or _is_titled(said, gold):
            return said.name.casefold() == gold.name.casefold()
        if said.name == gold.name:
            return True
        # "ab" and "ba" are one product, "cat" and "tac" are not one word; "ab" is not "AB"
        ordered = len(gold.name) == 2 or list(gold.name) == sorted(gold.name)
        return ordered and same_value(said.args[0], gold.args[0])
    left, right = (node.args[0] if node.kind == "text" and node.args else node for node in (said, gold))
    return left.kind != "text" != right.kind and _same(left, right)


def _is_titled(said: Node, gold: Node) -> bool:
    """A word of three letters or more, such as Bob: letters of a product are not written like that."""
    return any(len(node.name) > 2 and node.name.istitle() for node in (said, gold))


def _collections(said: Node, gold: Node) -> bool:
    if gold.kind == "set" and gold.name == "{" and said.kind in VALUES:
        return _same(said, gold.args[0])
    if said.kind == "mod" == gold.kind:
        return all(map(_same, said.args, gold.args))
    if said.kind == "list" and gold.kind == "tuple" and all(_is_assignment(arg) for arg in said.args):
        names = [arg.args[0].name for arg in said.args]  # x = 1, y = 2 for (1, 2)
        values = Node("tuple", tuple(arg.args[1] for arg in said.args), gold.name)
        return gold.name == "()" and names == sorted(set(names)) and _same(values, gold)
    shapes = (_shape(said), _shape(gold))
    if shapes[0] != shapes[1] and shapes not in _ALIKE:
        return False
    if len(said.args) != len(gold.args):
        both = gold.kind == said.kind == "set"
        return both and _subset(said.args, gold.args) and _subset(gold.args, said.args)
    if gold.kind == "matrix":
        return all(_in_order(a.args, b.args) for a, b in zip(said.args, gold.args, strict=True))
    ordered = gold.kind in ("tuple", "ratio") or "dots" in {part.kind for part in gold.args}
    if ordered:
        return _in_order(said.args, gold.args)
    return bool(gold.args) and _matched(said.args, gold.args)


_ALIKE = {
    ("list", "set"),
    ("set", "list"),
    ("tuple []", "list"),
    ("tuple []", "set"),
    ("tuple <>", "tuple ()"),
    ("tuple ()", "tuple <>"),
}


def _shape(node: Node) -> str:
    return f"tuple {node.name.replace('<<>>', '<>')}" if node.kind == "tuple" else node.kind


def _is_assignment(node: Node) -> bool:
    return node.kind == "rel" and node.name == "=" and is_name(node.args[0])


def _in_order(said: Sequence[Node], gold: Sequence[Node]) -> bool:
    return len(said) == len(gold) and all(map(_same, said, gold))


def _subset(small: Sequence[Node], large: Sequence[Node]) -> bool:
    return all(any(_same(one, other) for other in large) for one in small)


def _matched(said: Sequence[Node], gold: Sequence[Node]) -> bool:
    left = list(gold)
    for one in said:
        match = next((other for other in left if _same(one, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True
