"""Answers as an adversary with a gradient would write them, from a grammar; each would leave a canary."""

from __future__ import annotations

import random
from collections.abc import Iterator

MARK = "/tmp/sandbox_rl_canary"

_WAYS = (
    "__import__('os').system('touch {m}')",
    "exec(\"open('{m}','w')\")",
    "open('{m}','w').close() or {g}",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='Popen'][0]('touch {m}',shell=1)",
    "(lambda: __import__('subprocess').run(['touch','{m}']))()",
    "eval(compile('open(\"{m}\",\"w\")','x','exec'))",
    "getattr(__builtins__,'ev'+'al')('open(\"{m}\",\"w\")')",
    "Symbol('x').subs.__globals__['sys'].modules['os'].system('touch {m}')",
    "sqrt.__globals__['__builtins__']['open']('{m}','w')",
    "Integer.__init__.__globals__",
    "'{{0.__class__.__init__.__globals__}}'.format(x)",
    'f\'{{open("{m}","w")}}\'',
    "{{x.__init__.__globals__['os'].system('touch {m}')}}",
    "[x for x in [1] if open('{m}','w')]",
    "(x := __import__('pathlib').Path('{m}')).touch()",
    "type('X',(),{{'__eq__':lambda s,o:True}})()",
    "Function('f')(1).func.__class__.__eq__",
    "sys.modules['sandbox_rl.rewards.maths'].score.__code__",
    "help().__class__",
    "breakpoint()",
    "__builtins__['print'](open('/etc/passwd').read())",
    "import os; os.system('touch {m}')",
    '\\input{{|"touch {m}"}}',
    "\\write18{{touch {m}}}",
    "!!python/object/apply:os.system ['touch {m}']",
    "cos\nsystem\n(S'touch {m}'\ntR.",
    "$(touch {m})",
    "`touch {m}`",
    "9**9**9**9",
    "factorial(factorial(99))",
    "(" * 60 + "1" + ")" * 60 + "**99999",
    "x" + "**9" * 40,
    "integrate(x**x**x,(x,0,1))",
    "'a'*10**9",
    "{g} if True else 0",
    "{g} or 1",
    "[{g}][0]",
)
_FRAMES = (
    "{}",
    "\\boxed{{{}}}",
    "${}$",
    "({})",
    "[{}]",
    "0+{}",
    "-({})",
    "\\frac{{{}}}{{1}}",
    " {} ",
    "{}#",
    "x={}",
)
_LOOKALIKES = {"e": "е", "o": "ο", "_": "＿", "i": "і", "a": "а", "(": "（", ".": "．", "'": "’"}


def _disguise(text: str, rng: random.Random) -> str:
    way = rng.randrange(7)
    if way == 0:
        return "".join(_LOOKALIKES.get(c, c) if rng.random() < 0.5 else c for c in text)
    if way == 1:
        return "".join(f"\\x{ord(c):02x}" if c.isalpha() and rng.random() < 0.4 else c for c in text)
    if way == 2:
        return f"eval(bytes.fromhex('{text.encode().hex()}'))"
    if way == 3:
        return "+".join(f"chr({ord(c)})" for c in text[:60])
    if way == 4:
        return "\u200b".join(text)
    if way == 5:
        return "".join(chr(0x1D41A + ord(c) - 97) if c.isascii() and c.islower() else c for c in text)
    return text


def hostile_answers(count: int, gold: str, seed: int = 0) -> Iterator[str]:
    """That many answers, none of which states the gold answer plainly."""
    rng = random.Random(seed)
    made = set()
    while len(made) < count:
        text = rng.choice(_WAYS).format(m=MARK, g=gold)
        if rng.random() < 0.5:
            text = _disguise(text, rng)
        for _ in range(rng.randrange(3)):
            text = rng.choice(_FRAMES).format(text)
        if rng.random() < 0.2:
            text += rng.choice(["\n", ";", ",", "\t", "\0", "\\"]) + str(rng.randrange(10**6))
        if text not in made:
            made.add(text)
            yield text
