"""The program that runs as the first process of every sandbox.

Standard library only, Python 3.9 or later. Its modules are joined into one file
(`sandboxes.bundle`), so no two of them may define the same top-level name. Start-up time counts:
modules that pull in others (`signal`, `json`, `ctypes`, `subprocess`) are left out or imported late.
"""
