"""Instructions about form that a rule verifies: the `rules` scorer, with the rules of IFEval and IFBench."""
