"""What a sweep asks: axes → cells with keys made of their content; flags; checks before anything is loaded.

A sweep's own file needs no more than these names.
"""

from kvstream.grid.axes import Grid as Grid
from kvstream.grid.axes import Repeats as Repeats
from kvstream.grid.axes import expand as expand
