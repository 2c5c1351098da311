"""All of Ray: what spreads the stages of a sweep over workers."""

import gc

# Each of a sweep's processes, Ray's workers among them, imports some hundred thousand objects that stay. Python looks for garbage among
# them at every 700 new ones, and among all of them again and again, which is a good part of the time until such a process works.
gc.set_threshold(max(10_000, gc.get_threshold()[0]))
