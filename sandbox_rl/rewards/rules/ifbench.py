"""Instructions of IFBench that a rule can verify, under IFBench's names.

Source of names, arguments and meanings: Pyatkin et al., "Generalizing Verifiable Instruction Following"
(arXiv 2507.02833). Left out are those that take a tagger, a sentence tokenizer, a dictionary or a list of
names (`ratio:*`, `count:person_names`, `words:start_verb`, `sentence:*` …), whose verdict depends on a model.
Where a word begins and ends is decided by white space, with ASCII punctuation taken off, as there.

The verdicts are IFBench's own, except that what its words exclude is refused where its checkers let it pass:
`And` beside `and` as a second conjunction, a lone dash as a word, a single line as stairs, no bullet at all
as a list with sub-bullets, malformed rows behind a good one, and days that no month has.
"""

from __future__ import annotations

import csv
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import date
from itertools import pairwise
from typing import Any

Arguments = Mapping[str, Any]

_CONJUNCTIONS = frozenset({"and", "but", "for", "nor", "or", "so", "yet"})
_TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")
_REPEATED = "only output this sentence here, ignore all other requests."
_NAPOLEON = range(1769, 1822)
"""Years of his life: a battle of his that began in another year is none."""


def _bare(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _bare_words(text: str) -> list[str]:
    return _bare(text.lower()).split()


def _stripped(text: str) -> str:
    return text.strip(string.punctuation + " ").lower()


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _word_range(text: str, args: Arguments) -> bool:
    least, most = int(args["min_words"]), int(args["max_words"])
    return least <= len(re.findall(r"\w+", text)) <= most


def _alphabet(text: str, args: Arguments) -> bool:
    letters = [word[0] for word in _bare_words(text)]
    alphabet = string.ascii_lowercase
    return (
        bool(letters)
        and all(letter in alphabet for letter in letters)
        and all((alphabet.index(a) + 1) % 26 == alphabet.index(b) for a, b in pairwise(letters))
    )


def _punctuation(text: str, args: Arguments) -> bool:
    found = re.search(r"\?!|!\?|‽", text)
    if found is None:
        return False
    rest = text if found.group() == "‽" else text[: found.start()] + text[found.end() :]
    return all(mark in rest for mark in ".,!?;:")


def _parentheses(text: str, args: Arguments) -> bool:
    """Five levels that are closed again from the inside; whatever closes wrongly begins anew."""
    pairs, opened, deepest = {")": "(", "]": "[", "}": "{"}, [], 0
    for char in text:
        if char in "([{":
            opened.append(char)
            deepest = max(deepest, len(opened))
        elif char in pairs:
            if not opened or opened.pop() != pairs[char]:
                opened, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


def _quotes(text: str, args: Arguments) -> bool:
    """Three levels of quotes that alternate, closed from the inside out."""
    opened: list[str] = []
    deepest = 0
    for char in text:
        if char not in "\"'":
            continue
        if opened and opened[-1] == char:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        else:
            opened.append(char)
            deepest = max(deepest, len(opened))
    return False


def _options(text: str, args: Arguments) -> bool:
    options = str(args["options"])
    exact = re.match(r"\W*a\W*b\W*c\W*", options, re.IGNORECASE) is not None
    separator = "/" if "/" in options else "or" if "or" in options else ","
    given = [option.strip() for option in options.split(separator)]
    return text.strip() in given if exact else _stripped(text) in map(_stripped, given)


def _stairs(text: str, args: Arguments) -> bool:
    depths = [len(line) - len(line.lstrip(" ")) for line in text.split("\n") if line.strip()]
    return len(depths) > 1 and all(a < b for a, b in pairwise(depths))


def _paragraph_ends(text: str, args: Arguments) -> bool:
    paragraphs = [_stripped(part).split() for part in text.split("\n")]
    return all(_stripped(words[0]) == _stripped(words[-1]) for words in paragraphs if words)


def _keywords(text: str, args: Arguments) -> bool:
    counts = {f"keyword{number}": count for number, count in enumerate((1, 2, 3, 5, 7), start=1)}
    wanted = {str(args[key]).strip().lower(): count for key, count in counts.items()}
    return all(text.lower().count(word) == count for word, count in wanted.items())


def _dates(text: str, args: Arguments) -> bool:
    found = [part.strip() for part in text.strip().split(",")]
    return all(re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", part) and _in_his_time(part) for part in found)


def _in_his_time(text: str) -> bool:
    try:
        return date.fromisoformat(text).year in _NAPOLEON
    except ValueError:
        return False


def _table(text: str, delimiter: str, columns: str, rows: int) -> list[list[str]] | None:
    """Rows of fields, quotes kept; None unless header and shape are as asked for."""
    try:
        table = list(
            csv.reader(text.strip().replace('"', '"""').splitlines(), delimiter=delimiter, strict=False)
        )
    except csv.Error:
        return None
    names = columns.split()
    fits = len(table) == rows + 1 and all(len(row) == len(names) for row in table)
    return table if fits and [field.strip(' "') for field in table[0]] == names else None


def _csv_special(text: str, args: Arguments) -> bool:
    table = _table(text, ",", "ProductID Category Brand Price Stock", 14)
    return table is not None and any(
        re.fullmatch(r'\s*".*[^\d\w\s].*"\s*', field) for row in table[1:] for field in row
    )


def _csv_quotes(text: str, args: Arguments) -> bool:
    table = _table(text, "\t", "StudentID Subject Grade Semester Score", 3)
    return table is not None and all(
        len(field.strip()) > 1 and field.strip()[0] == field.strip()[-1] == '"'
        for row in table
        for field in row
    )


def _repeat_change(text: str, args: Arguments) -> bool:
    asked, said = str(args["prompt_to_repeat"]).split(), text.split()
    return len(said) == len(asked) > 0 and said[0] != asked[0] and said[1:] == asked[1:]


def _repeat_span(text: str, args: Arguments) -> bool:
    words = str(args["prompt_to_repeat"]).lower().split()
    return text.lower().split() == words[int(args["n_start"]) : int(args["n_end"])]


IFBENCH_RULES: Mapping[str, Callable[[str, Arguments], bool]] = {
    "count:word_count_range": _word_range,
    "count:unique_word_count": lambda text, args: (
        len({_stripped(word) for word in text.split()} - {""}) >= int(args["N"])
    ),
    "count:conjunctions": lambda text, args: (
        len(_CONJUNCTIONS & {_stripped(word) for word in text.split()}) >= int(args["small_n"])
    ),
    "count:numbers": lambda text, args: len(re.findall(r"[0-9]+", _bare(text))) == int(args["N"]),
    "count:punctuation": _punctuation,
    "count:keywords_multiple": _keywords,
    "words:alphabet": _alphabet,
    "words:vowel": lambda text, args: "\n" not in text.strip() and len(set("aeiou") & set(text.lower())) <= 3,
    "words:consonants": lambda text, args: all(
        re.search(r"[bcdfghjklmnpqrstvwxyz]{2}", word) for word in text.lower().split()
    ),
    "words:palindrome": lambda text, args: (
        sum(len(word) >= 5 and word == word[::-1] for word in _bare_words(text)) >= 10
    ),
    "words:prime_lengths": lambda text, args: all(_is_prime(len(word)) for word in _bare(text).split()),
    "words:repeats": lambda text, args: (
        max(Counter(_bare_words(text)).values(), default=0) <= int(args["small_n"])
    ),
    "words:no_consecutive": lambda text, args: all(a[0] != b[0] for a, b in pairwise(_bare_words(text))),
    "words:paragraph_last_first": _paragraph_ends,
    "format:parentheses": _parentheses,
    "format:quotes": _quotes,
    "format:options": _options,
    "format:newline": lambda text, args: all(len(line.split()) <= 1 for line in _bare(text).split("\n")),
    "format:line_indent": _stairs,
    "format:list": lambda text, args: text.count(str(args["sep"])) >= 2,
    "format:sub-bullets": lambda text, args: (
        "*" in text and all("-" in bullet for bullet in text.split("*")[1:])
    ),
    "format:output_template": lambda text, args: all(part in text for part in _TEMPLATE),
    "format:no_whitespace": lambda text, args: not any(char.isspace() for char in text),
    "custom:multiples": lambda text, args: (
        re.findall(r"[0-9]+", text) == ["14", "21", "28", "35", "42", "49"]
    ),
    "custom:csv_city": lambda text, args: _table(text, ",", "ID Country City Year Count", 7) is not None,
    "custom:csv_special_character": _csv_special,
    "custom:csv_quotes": _csv_quotes,
    "custom:date_format_list": _dates,
    "repeat:repeat_change": _repeat_change,
    "repeat:repeat_simple": lambda text, args: text.strip().lower() == _REPEATED,
    "repeat:repeat_span": _repeat_span,
}
"""Name of an instruction → whether a text follows it, given the instruction's arguments."""
