"""What spiceshm costs, measured on the machine that it runs on: ``tools/bench``.

In reading order:

- `work`: what is handed over, to whom and how fast, said once for every program that does it;
- `floor` runs the same job in C (floor.c), `ends` in spiceshm, each in processes of their own;
- `startup`, `xdesktop` and `handover` measure what is no such job: programs that start, other
  programs' screens, other libraries' memory;
- `stock` and `decoders` look at stock SPICE servers: `guest` is a virtual machine that draws;
- `cases` declares every case and what it is compared with, `gather` runs them in rounds;
- `stats` makes medians and ratios of the rounds, `report` a table of those, `plot` a picture;
- `cli` is the command.

Absolute figures of one machine say little of another, so whatever can be is divided by what was
measured beside it in the same round.
"""
