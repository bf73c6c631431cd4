"""One module a screen: it composes widgets, starts workers and owns its state."""
