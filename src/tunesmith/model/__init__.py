"""Weights and what is known about them: finding, fetching, converting, loading, adapters. Knows nothing of chat."""
