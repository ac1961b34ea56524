"""One person, one question, one sandbox: files in, a live view, results out."""
