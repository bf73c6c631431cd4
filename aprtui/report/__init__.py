"""One comparison as a file to attach to an issue: HTML, Markdown or JSON, behind one value."""
