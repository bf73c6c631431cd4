"""Faults that need signals at random or mounts: scripts that a person runs, not part of the suite.

    python -m tests.faults.kill [--kills 1000]     every writing command killed at random moments
    python -m tests.faults.disks                   disks of every size class filled (needs root)

Each prints a table, and exits 1 where something that was promised did not hold.
"""
