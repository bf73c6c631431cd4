"""Widgets that draw one thing each and know nothing of screens."""
