"""Contracts: reading and validating them, running their tests, and the levels these support."""
