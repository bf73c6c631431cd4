"""Pairs of captures: metrics, bars, culprits and explanations."""
