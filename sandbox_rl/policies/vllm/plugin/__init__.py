"""What runs on vLLM's side: this folder goes onto the server's PYTHONPATH, nothing of it is imported here.

The server's environment needs no sandbox_rl: the modules use vLLM, torch and the standard library only.
"""
