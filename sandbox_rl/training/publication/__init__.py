"""How updated weights get into the servers that sample."""
