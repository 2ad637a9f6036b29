"""What people read: console, metrics, figures, report.html."""
