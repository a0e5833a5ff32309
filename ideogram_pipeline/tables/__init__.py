"""The tables people write: read, checked row by row, handed on as typed rows. Ideogram is not known here."""
