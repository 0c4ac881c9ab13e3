"""Room of the paper's tables and figures, measured again: `upslope reproduce` calls it."""
