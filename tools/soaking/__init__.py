"""Faults on purpose, for as long as asked, with every frame checked: ``tools/soak``.

In reading order:

- `picture`: a picture in which every kind of damage that it can suffer shows;
- `writer` is the server's process, `reader` a reader's: each kind of reader ill in its own way;
- `process` starts them and ends them, and counts what a process holds;
- `breaks` are writers that are wrong on purpose, so that the checks are seen to find it;
- `crowd` keeps readers coming and going, `run` is the whole of it;
- `stock` are viewers that people have, `moving` a server and a reader that time themselves, and
  `beside` measures what the ones cost the others: ``tools/soak --viewers``;
- `cli` is the command.

What must hold, whatever happens to the readers: no torn frame; no lost damage (a mirror that is
kept from damage alone equals every frame); no frame that changes while it is held; a writer that
never waits; and nothing left over when they are gone.
"""
