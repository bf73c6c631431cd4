"""The Textual app. Only modules in here import textual."""
