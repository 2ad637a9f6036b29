"""What people read: console, metrics, figures, report.html."""

import os

# Before matplotlib is imported: a notebook hands its own backend on to every process it starts.
os.environ["MPLBACKEND"] = "Agg"
