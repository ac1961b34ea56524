"""Cases that do not fail on the weak backend, each with the reason."""

NOT_RUN: dict[str, str] = {
    "RES-01": "an unbounded fork bomb; the processes of root are exempt from RLIMIT_NPROC",
    "RES-07": "what eight loops get depends on the machine's load; test_processor.py makes it fail",
    "RES-20": "takes the machine's terminals",
    "RES-20b": "takes what the machine gives this user",
    "LIF-01c": "deletes whatever it can",
}
"""Not run there."""

ALONE = ("LIF-01", "LIF-01b")
"""Run in a container of their own, because they end the weak backend's own process."""

_BYTES = "plain bytes arrive anywhere; what they may do to the conversation is tested in test_tokens.py"
_KERNEL = "the container's user namespace already refuses it; outside it would harm the machine"

PASSING: dict[str, str] = {
    "ISO-04": "no container engine runs there",
    "IO-09g": "the mark that the weak backend appends ends up in the here-document and is printed",
    "ISO-06": "the container has no network, so that no test dials out",
    "ISO-16b": _KERNEL,
    "ISO-21": _KERNEL,
    "ISO-23": "tests run without a terminal that could be taken; ISO-23b brings its own",
    "RES-17": "root can remove every name",
    "IO-19f": "root can read every file",
    "IO-22": "a rename is atomic, and both versions are allowed; IO-22b fails there",
    "IO-26": "the weak backend never cuts",
    "SCO-09": "nothing is scored there; test_scorers.py does",
    "LIF-01b": "the container's process 1 is protected by its namespace",
    **dict.fromkeys(("TOK-01", "TOK-02", "TOK-03", "TOK-04", "TOK-08", "TOK-10"), _BYTES),
}
"""Run there and pass. A listed case that begins to fail must leave the list."""
