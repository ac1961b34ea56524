"""Units of measurement as people write them, to compare "5 km" with "5000 m" but not with "5 miles"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["NO_UNIT", "Unit", "parse_unit"]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit by its dimension ("length", "km·h^-1" …) and its size in the dimension's base unit."""

    dimension: str
    factor: Fraction = Fraction(1)


NO_UNIT = Unit("")

# spellings, dimension, size. Temperatures differ by an offset, so each scale is its own dimension.
_TABLE = """
m meter metre|length|1
km kilometer kilometre|length|1000
cm centimeter centimetre|length|1/100
mm millimeter millimetre|length|1/1000
nm nanometer nanometre|length|1/1000000000
mi mile|length|201168/125
ft foot feet|length|381/1250
in inch inches|length|127/5000
yd yard|length|1143/1250
g gram gramme|mass|1
kg kilogram|mass|1000
mg milligram|mass|1/1000
t ton tonne|mass|1000000
lb pound|mass|45359237/100000
oz ounce|mass|45359237/1600000
s sec second|time|1
ms millisecond|time|1/1000
min minute|time|60
h hr hour|time|3600
day|time|86400
week|time|604800
month|month|1
yr year|year|1
l liter litre|volume|1
ml milliliter millilitre|volume|1/1000
n newton|force|1
kn kilonewton|force|1000
j joule|energy|1
kj kilojoule|energy|1000
w watt|power|1
kw kilowatt|power|1000
pa pascal|pressure|1
kpa kilopascal|pressure|1000
v volt|voltage|1
a amp ampere|current|1
ohm ω|resistance|1
hz hertz|frequency|1
khz kilohertz|frequency|1000
mol mole|amount|1
k kelvin|kelvin|1
°c celsius|celsius|1
°f fahrenheit|fahrenheit|1
° deg degree|angle|1
rad radian|radian|1
$ usd dollar buck|dollar|1
cent ¢|dollar|1/100
€ eur euro|euro|1
£ gbp|pound sterling|1
% percent pct|percent|1
person people|person|1
unit|unit|1
"""


def _table() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        spellings, dimension, factor = line.split("|")
        for spelling in spellings.split():
            units[spelling] = Unit(dimension, Fraction(factor))
    return units


_UNITS = _table()
_POWERS = {"squared": 2, "cubed": 3, "²": 2, "³": 3}
_TERM = re.compile(r"(?P<word>[^\d\s/*^·.²³-]+)(?:\^?\{?(?P<power>-?\d)\}?|(?P<mark>[²³]))?")


def parse_unit(text: str) -> Unit | None:
    """The unit that `text` spells, `NO_UNIT` for nothing, None for text that is no unit.

    Products and quotients are read: "m/s", "kg m^2", "miles per hour", "square metres".
    """
    lowered = text.casefold().strip(" .")
    if not lowered:
        return NO_UNIT
    if len(lowered) > 60:
        return None
    lowered = lowered.replace(" per ", " / ").replace("/", " / ").replace("*", " ").replace("·", " ")
    factor, powers = Fraction(1), dict[str, int]()
    sign, pending = 1, 0
    for token in lowered.split():
        if token == "/":
            sign = -1
            continue
        if token in ("square", "cubic"):
            pending = 2 if token == "square" else 3
            continue
        if token in _POWERS and powers:
            last = next(reversed(powers))
            powers[last] *= _POWERS[token]
            continue
        match = _TERM.fullmatch(token)
        unit = _lookup(match.group("word")) if match else None
        if match is None or unit is None:
            return None
        power = sign * (pending or int(match.group("power") or _POWERS.get(match.group("mark") or "", 1)))
        factor *= unit.factor**power
        powers[unit.dimension] = powers.get(unit.dimension, 0) + power
        pending = 0
    parts = [name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()) if power]
    return Unit("·".join(parts), factor)


def _lookup(word: str) -> Unit | None:
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _UNITS:
            return _UNITS[form]
    return None
