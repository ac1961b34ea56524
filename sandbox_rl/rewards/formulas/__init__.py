"""Mathematical answers: text to tokens to trees, and when two trees are one answer."""
