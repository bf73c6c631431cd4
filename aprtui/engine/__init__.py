"""The stage graph and the traced forward pass. Only modules in here import torch."""
