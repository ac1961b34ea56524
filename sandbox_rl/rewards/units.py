"""Units of measurement as people write them, to compare "5 km" with "5000 m" but not with "5 miles".

Pint knows dimensions, sizes and offsets, as exact fractions. It is only given names from the list below:
among the thousands that it reads there are spellings of ordinary letters ("rh" is a ronto-hour). Money, items
and square units, which it does not know, are dimensions of their own. Case carries meaning: mW and MW.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_POWER = 6


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit by its dimension, its size in base units, and the offset of its zero in base units."""

    dimension: str
    factor: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)


NO_UNIT = Unit("")


def _named(text: str) -> dict[str, str]:
    """A table that is written as "symbol=name symbol=name …"."""
    return dict(entry.split("=") for entry in text.split())


# Symbols that take prefixes, and those prefixes; then symbols and words that stand alone.
_PREFIXED = {
    **dict.fromkeys(
        ("m", "g", "s", "L", "l", "N", "J", "W", "V", "A", "Pa", "Hz", "mol", "F", "C", "T"), "pnuµμmcdhkMGT"
    ),
    **dict.fromkeys(
        ("Ω", "ohm", "eV", "cal", "bar", "Wb", "H", "S", "K", "Bq", "Gy", "Sv", "M"), "pnuµμmkMGT"
    ),
    **dict.fromkeys(("Wh", "B", "b", "bit", "byte", "bps", "pc", "t", "ly", "lm", "cd", "lx"), "mkMGT"),
}
_SYMBOL_NAMES = _named("""
L=liter l=liter Ω=ohm B=byte b=bit M=molar t=tonne ly=light_year pc=parsec C=coulomb F=farad H=henry
T=tesla A=ampere S=siemens K=kelvin cal=calorie Wh=watt_hour g=gram m=meter s=second N=newton
J=joule W=watt V=volt
""")
_PREFIX_NAMES = _named("""
p=pico n=nano u=micro µ=micro μ=micro m=milli c=centi d=deci h=hecto k=kilo M=mega G=giga T=tera
""")
_WORDS = """
meter metre gram gramme second liter litre newton joule watt volt ampere|amp pascal hertz mole farad coulomb
tesla ohm electron_volt|electronvolt calorie bar weber henry siemens kelvin becquerel byte bit tonne
"""
_OTHER = """
min=minute minute h=hour hr=hour hrs=hour hour sec=second secs=second mins=minute day d=day week month yr=year
year decade century
in=inch inch inches=inch ft=foot foot feet=foot yd=yard yard mi=mile mile acre ha=hectare hectare
lb=pound lbs=pound pound oz=ounce ounce ton=metric_ton tonne=metric_ton stone
gal=gallon gallon quart qt=quart pint cup fluid_ounce tsp=teaspoon tbsp=tablespoon tablespoon teaspoon
mph=mile/hour kph=kilometer/hour kmh=kilometer/hour kmph=kilometer/hour knot knots=knot rpm Cal=kilocalorie
psi atm=atmosphere atmosphere mmHg torr=torr horsepower hp=horsepower dyn=dyne dyne erg btu=btu
rad=radian radian rev=revolution revolution arcmin=arcminute arcsec=arcsecond au=astronomical_unit
gauss=gaussian_field Gs=gaussian_field kilohm=kiloohm kilohms=kiloohm megohm=megaohm megohms=megaohm
angstrom Å=angstrom amu=dalton u=dalton light_year lightyear=light_year
"""
_OWN = {
    **dict.fromkeys(("$", "dollar", "dollars", "usd", "buck", "bucks"), ("dollar", Fraction(1))),
    **dict.fromkeys(("cent", "cents", "¢"), ("dollar", Fraction(1, 100))),
    **dict.fromkeys(("€", "eur", "euro", "euros"), ("euro", Fraction(1))),
    **dict.fromkeys(("£", "gbp"), ("sterling", Fraction(1))),
    **dict.fromkeys(("¥", "yen", "jpy"), ("yen", Fraction(1))),
    **dict.fromkeys(("yuan", "rmb"), ("yuan", Fraction(1))),
    **dict.fromkeys(("rs", "rupee", "rupees"), ("rupee", Fraction(1))),
    **dict.fromkeys(("%", "percent", "pct", "per cent"), ("percent", Fraction(1, 100))),
    **dict.fromkeys(("°", "deg", "degs", "degree", "degrees"), ("degree", Fraction(1))),
    **dict.fromkeys(("person", "people", "persons"), ("person", Fraction(1))),
    **dict.fromkeys(("unit", "units"), ("unit", Fraction(1))),
}
_TEMPERATURES = {
    **dict.fromkeys(("°c", "° c", "celsius", "degc", "degree celsius", "degrees celsius"), "degC"),
    **dict.fromkeys(("°f", "° f", "fahrenheit", "degf", "degree fahrenheit", "degrees fahrenheit"), "degF"),
    **dict.fromkeys(("kelvin", "kelvins"), "kelvin"),
}
_TURNS = frozenset({"radian", "revolution", "arcminute", "arcsecond", "rpm"})
_DEGREES = Fraction(180 / math.pi)
"""In a radian; a numeric answer has a tolerance."""
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}
_TERM = re.compile(r"([A-Za-z_µμΩÅ$€£¥¢%°]+)(?:\^\{?([-+]?\d)\}?|([²³]))?")


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Spelling → the name that pint is given. Words are looked up in lower case, symbols as they stand."""
    names: dict[str, str] = {}
    for symbol, prefixes in _PREFIXED.items():
        base = _SYMBOL_NAMES.get(symbol, symbol)
        names[symbol] = base
        names.update({prefix + symbol: _PREFIX_NAMES[prefix] + base for prefix in prefixes})
    for entry in _WORDS.split():
        spellings = entry.split("|")
        for word in spellings:
            for prefix in ("", *set(_PREFIX_NAMES.values())):
                names[prefix + word] = names[prefix + word + "s"] = prefix + spellings[0]
    for entry in _OTHER.split():
        word, _, name = entry.partition("=")
        names[word] = name or word
        if len(word) > 2:
            names.setdefault(word + "s", name or word)
    names.update(kt="knot", light_years="light_year", fluid_ounces="fluid_ounce")
    return names


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    registry = pint.UnitRegistry(non_int_type=Fraction, cache_folder=None)
    registry.define("gaussian_field = 1e-4 tesla")  # pint's gauss has the dimension of the other system
    return registry


@lru_cache(maxsize=512)
def _known(name: str) -> Unit:
    """What pint says of one of our names."""
    registry = _registry()
    quantity = registry.Quantity(Fraction(1), name).to_base_units()
    zero = Fraction(0)
    if name.startswith("deg"):
        zero = Fraction(registry.Quantity(Fraction(0), name).to("kelvin").magnitude)
    powers = {key.strip("[]"): int(power) for key, power in quantity.dimensionality.items()}
    if name in _TURNS:  # pint has no dimension of angle, so 60 rpm would be 6.28 Hz
        powers["radian"] = 1
    return Unit(_written(powers) or name, Fraction(quantity.magnitude) - zero, zero)


@lru_cache(maxsize=2048)
def parse_unit(text: str) -> Unit | None:
    """The unit that `text` spells, `NO_UNIT` for nothing, None for text that is no unit.

    Products, quotients and powers are read: "m/s", "kg m^2", "miles per hour", "square metres".
    """
    text = " ".join(text.strip(" .").split())
    if not text:
        return NO_UNIT
    if len(text) > 60:
        return None
    if name := _TEMPERATURES.get(text.casefold()):
        return _known(name)
    text = re.sub(r"\bper cent\b", "percent", text, flags=re.I)
    text = re.sub(r"\b(light|fluid)[ -](years?|ounces?)\b", r"\1_\2", text, flags=re.I)
    text = re.sub(r"\s+per\s+|/", " / ", f" {text} ", flags=re.I)
    text = re.sub(r"(?<=[A-Za-z\d}])\s*-\s*(?=[A-Za-z])|[*·]", " ", text)
    text = re.sub(r"\s*\^\s*", "^", text)
    if match := re.fullmatch(r"([^()]*/)\s*\(([^()/]*)\)\s*", text):  # J/(kg K): a slash holds for all behind
        text = match[1] + match[2]
    return _product(text.split())


def _product(words: list[str]) -> Unit | None:
    factor, powers, terms = Fraction(1), dict[str, int](), 0
    sign, pending, last = 1, 1, None
    for word in words:
        lowered = word.casefold()
        if word == "/":
            sign = -1
        elif lowered in ("square", "sq", "cubic", "cu"):
            pending = _POWER_WORDS[lowered]
        elif lowered in ("squared", "cubed") and last is not None:
            more = last[1] * (_POWER_WORDS[lowered] - 1)
            factor *= last[0].factor ** more
            _raise(powers, last[0].dimension, more)
        else:
            match = _TERM.fullmatch(word)
            unit = _lookup(match.group(1)) if match else None
            if match is None or unit is None or terms > 8:
                return None
            own = int(match.group(2) or {"²": 2, "³": 3}.get(match.group(3) or "", 1))
            if abs(own) > MAX_POWER:
                return None
            power = sign * pending * own
            factor *= unit.factor**power
            _raise(powers, unit.dimension, power)
            terms, pending, last = terms + 1, 1, (unit, power)
    if not terms or pending != 1:
        return None
    return Unit(_written(powers), factor)


def _raise(powers: dict[str, int], dimension: str, power: int) -> None:
    for part in dimension.split(" · ") if dimension else ():
        name, _, own = part.partition("^")
        powers[name] = powers.get(name, 0) + power * int(own or 1)


def _written(powers: dict[str, int]) -> str:
    kept = sorted((name, power) for name, power in powers.items() if power)
    return " · ".join(name if power == 1 else f"{name}^{power}" for name, power in kept)


@lru_cache(maxsize=1024)
def _lookup(word: str) -> Unit | None:
    if own := _OWN.get(word.casefold()):
        return Unit(*own)
    names = _names()
    name = names.get(word) or (names.get(word.casefold()) if len(word) > 2 else None)
    if name is None:
        return None
    return _known(name)


def converted(value: Fraction, said: Unit, gold: Unit) -> Fraction | None:
    """`value` of the unit `said` in the unit `gold`; None where the dimensions differ."""
    said, gold = _in_degrees(said), _in_degrees(gold)
    if said.dimension != gold.dimension:
        return None
    return (value * said.factor + said.offset - gold.offset) / gold.factor


def _in_degrees(unit: Unit) -> Unit:
    """Radians of the dimension as degrees, so that both can be compared."""
    parts = unit.dimension.split(" · ")
    if "radian" not in parts:
        return unit
    powers: dict[str, int] = {}
    for part in parts:
        _raise(powers, "degree" if part == "radian" else part, 1)
    return Unit(_written(powers), unit.factor * _DEGREES, unit.offset)
