"""Model families, one file each: names, keys, tensors and the graph. Nothing else names a family.

How one is added: docs/families.md.
"""
