"""Objectives of alignment: log-probabilities and rewards go in, one summed loss and summed statistics come out.

Owns the formulas (preference.py, policy.py, advantages.py) and what a token counts (normalising.py). Pure functions of
tensors: refuses to know models, batches, optimisers and where a reward came from. Sums, not means: the loop divides by
the count of the whole optimiser step, so accumulation, packing and ranks cannot change what a pair or a token counts.
"""
