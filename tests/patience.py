"""How long a test waits before it calls something hung. A limit, never a measure: machines differ by a factor of five."""

PATIENCE_S = 1200
