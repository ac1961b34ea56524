"""The clean process that starts sandboxes and holds what belongs to them outside.

Started once per backend with an empty environment and one descriptor, it never sees the trainer's
memory. It lives exactly as long as its control socket: at its end it kills every sandbox, removes
their cgroups and leaves. Standard library only; joined into one file like the agent.
"""
