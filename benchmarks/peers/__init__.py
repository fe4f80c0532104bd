"""The zoo: faults measured in the libraries around this one, each a small problem that any of them can be given.

``python -m benchmarks.peers`` gives every case to every library that is installed and prints a table, ``property x
library``; ``--write`` puts it into ``docs/peers.md``. ``tests/peers`` runs our own column: it must be
right or say that it is not, in every case.
"""
