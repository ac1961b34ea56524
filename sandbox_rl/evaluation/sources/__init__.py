"""Tasks that only evaluations use, made from what is installed on this machine."""
