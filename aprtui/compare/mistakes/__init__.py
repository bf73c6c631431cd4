"""The mistakes that people make, each a small function that makes a stage wrong in its own way.

``naming`` has the catalogue and needs torch; ``pages`` says what each is and does not.
"""
