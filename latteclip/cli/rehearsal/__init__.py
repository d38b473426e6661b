"""The rehearsal of a run on the machine at hand: `latteclip doctor --gpu`."""
