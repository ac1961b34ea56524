"""Answers that would keep a scorer busy for very long, by what makes them expensive."""

TOWERS = [
    r"\boxed{9^{9^{9}}}",
    "9**9**9",
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{10^{1000000000}+1}",
    r"\boxed{2^{2^{34}}}",
]
FACTORIALS = [
    r"\boxed{100000000!}",
    r"\boxed{((9!)!)!}",
    r"\boxed{\binom{1000000000}{500000000}}",
    r"\boxed{\prod_{n=1}^{100000000} n}",
    r"\boxed{\sum_{n=1}^{1000000000}\frac{1}{n^2}}",
]
NESTING = [
    "\\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}",
    "\\boxed{" + "\\frac{1}{1+" * 300 + "1" + "}" * 300 + "}",
    "\\boxed{" + "-" * 20000 + "1}",
    "\\boxed{" * 5000,
    "[" * 60000,
]
BACKTRACKING = [
    "1," * 30000,
    "$" * 60000,
    " " * 60000 + "41",
    "a" * 60000 + "!",
    "0." * 30000,
    "\\text{" * 10000,
    "answer is " * 6000,
]
